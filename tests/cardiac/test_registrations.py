# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""What a registered cine and a registered pair have in common, and what each of them says of itself."""

from __future__ import annotations

import numpy as np
from scripts.cardiac.cines import ESTIMATED, TRIGGERED, Cine
from scripts.cardiac.registrations import CineRegistration, PairRegistration

SHAPE = (4, 3, 2)


def make_cine(frames: int = 5, reference: int = 2, **parts: object) -> CineRegistration:
    image = np.random.default_rng(0).random((*SHAPE, frames))
    still = np.zeros((frames, 2, *SHAPE))
    return CineRegistration(
        cine=Cine("heart", image, np.eye(4)),
        fields=still,
        inverses=still,
        moved=image,
        reference=reference,
        **{"reference_basis": "given", **parts},
    )


def make_pair(**parts: object) -> PairRegistration:
    image, still = np.random.default_rng(0).random((*SHAPE, 1)), np.zeros((1, 2, *SHAPE))
    return PairRegistration(
        cine=Cine("pair", image, np.eye(4)), fields=still, inverses=still, moved=image, fixed=np.ones(SHAPE), **parts
    )


def test_the_reference_counts_from_one() -> None:
    registration = make_cine(reference=2)
    np.testing.assert_array_equal(registration.fixed, registration.cine.image[..., 1])
    assert registration.frames_to_judge() == {1, 3, 4, 5}
    described = registration.describe_reference()
    assert (described["reference_frame"], described["reference_basis"]) == (2, "given")
    assert registration.fixed_name == "reference, frame 2"


def test_a_cycle_takes_three_frames() -> None:
    assert [make_cine(frames, 1).has_cycle for frames in (1, 2, 3)] == [False, False, True]
    assert not make_pair().has_cycle


def test_frames_are_named_with_their_phase() -> None:
    registration = make_cine(function={"ed_frame": 1, "es_frame": 3})
    assert [registration.name_image(t) for t in range(3)] == [
        "frame 1, end diastole",
        "frame 2",
        "frame 3, end systole",
    ]
    assert make_cine().name_image(0) == "frame 1"


def test_frames_of_a_cine_have_numbers_and_a_pair_has_none() -> None:
    assert make_cine().are_numbered
    assert not make_pair().are_numbered


def test_only_an_estimated_reference_is_called_so() -> None:
    assert make_cine(reference_basis=ESTIMATED).is_estimated
    assert make_cine(reference_basis=TRIGGERED).is_estimated
    assert not make_cine().is_estimated


def test_labels_of_a_pair_lie_where_those_of_a_cine_do() -> None:
    """`label` on the fixed image, `labels` on what was moved."""
    moving, moved = np.full(SHAPE, 1), np.full(SHAPE, 2)
    pair = make_pair(moving_label=moving, moved_label=moved)
    np.testing.assert_array_equal(pair.label, moved)
    np.testing.assert_array_equal(pair.labels, moving[..., None])
    assert make_pair().label is make_pair().labels is None


def test_a_pair_has_one_image_and_no_frames() -> None:
    pair = make_pair()
    assert (pair.frames_to_judge(), pair.fixed_name, pair.name_image(0)) == ({1}, "fixed image", "moving image")
    assert pair.describe_reference()["reference_frame"] is None


def test_what_is_compared_of_a_cine_are_its_frames() -> None:
    labels, segmented = np.full((*SHAPE, 5), 1), np.full((*SHAPE, 5), 2)
    answers, reference = make_cine(labels=labels, segmented=segmented).compared
    assert (answers["carried"] is labels, answers["segmented"] is segmented, reference) == (True, True, 2)


def test_what_is_compared_of_a_pair_are_both_images_the_fixed_one_first() -> None:
    """The label that was carried is that of the moving image where one is given, else that of the fixed one."""
    fixed, moving, drawn, carried = (np.full(SHAPE, value) for value in range(4))
    parts = {"segmented": moving[..., None], "fixed_segmented": fixed}
    given = make_pair(moving_label=drawn, moved_label=carried, label_basis="given", **parts)
    automatic = make_pair(fixed_label=fixed, carried_label=carried, label_basis="automatic", **parts)
    for pair, first, second, reference in ((given, carried, drawn, 2), (automatic, fixed, carried, 1)):
        answers, found = pair.compared
        assert found == reference
        np.testing.assert_array_equal(answers["carried"], np.stack([first, second], axis=-1))
        np.testing.assert_array_equal(answers["segmented"], np.stack([fixed, moving], axis=-1))
    assert make_pair(moving_label=drawn, moved_label=carried).compared[0] == {}
    assert make_pair().compared[0] == {}
