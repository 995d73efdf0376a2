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

"""What a report shows of a cine and of a pair, apart from the page in test_page.py."""

from __future__ import annotations

import numpy as np
from scripts.cardiac.answers import BY_SEGMENTATION, GIVEN
from scripts.cardiac.cines import Cine
from scripts.cardiac.registrations import CineRegistration, PairRegistration
from scripts.report.subjects import CineSubject, PairSubject, subject_of

SHAPE = (4, 3, 2)
RNG = np.random.default_rng(0)


def make_cine(frames: int = 4, reference: int = 2, **parts: object) -> CineSubject:
    image, still = RNG.random((*SHAPE, frames)), np.zeros((frames, 2, *SHAPE))
    cine = Cine("heart", image, np.eye(4), parts.pop("times", None))
    registration = CineRegistration(
        cine=cine, fields=still, inverses=still, moved=image + 1, reference=reference, reference_basis="given", **parts
    )
    return subject_of(registration)


def make_pair(**labels: object) -> PairSubject:
    image, still = RNG.random((*SHAPE, 1)), np.zeros((1, 2, *SHAPE))
    labels = {"moving_label": RNG.integers(0, 4, SHAPE), "moved_label": RNG.integers(0, 4, SHAPE), **labels}
    cine = Cine("pair", image, np.eye(4))
    return subject_of(
        PairRegistration(cine=cine, fields=still, inverses=still, moved=image + 1, fixed=RNG.random(SHAPE), **labels)
    )


def test_end_systole_is_shown_beside_the_reference_else_what_moves_most() -> None:
    motion = [0.0, 1.0, 3.0, 2.0]
    assert make_cine(function={"es_frame": 4}).frame_beside(motion) == 3
    assert make_cine(function={"es_frame": 2}).frame_beside(motion) == 2  # the reference itself
    assert make_cine().frame_beside(motion) == 2
    assert make_pair().frame_beside([0.0]) == 0


def test_a_cine_plays_its_frames_from_the_reference_on() -> None:
    times = np.array([[0.0, 30, 60, 90], [10, 40, 70, 100]])
    subject = make_cine(times=times)
    assert subject.names[1] == "frame 2 of 4, 35 ms"
    assert make_cine().names[1] == "frame 2 of 4"
    assert make_cine(times=times, function={"es_frame": 2}).names[1] == "frame 2 of 4, 35 ms, end systole"
    assert (subject.still(2), subject.interval) == (2, 30)
    images = subject.registration.moved
    assert subject.play(images) is images
    assert [make_cine(frames, 1).has_motion for frames in (1, 2)] == [False, True]


def test_a_pair_alternates_between_its_images() -> None:
    subject = make_pair()
    played = subject.play(subject.registration.moved)
    assert played.shape == (*SHAPE, len(subject.names))
    np.testing.assert_array_equal(played[..., 0], subject.registration.fixed)
    np.testing.assert_array_equal(played[..., 1], subject.registration.moved[..., 0])
    assert subject.still(0) == 1


def test_the_sheet_shows_each_image_once_with_its_own_label() -> None:
    (_, fixed, on_fixed), (_, moving, on_moving) = make_pair().sheet(0)
    assert fixed.shape == moving.shape == on_fixed.shape == on_moving.shape == SHAPE
    pair = make_pair()
    assert pair.sheet(0)[0][2] is pair.registration.moved_label
    np.testing.assert_array_equal(pair.sheet(0)[1][2], pair.registration.moving_label)
    labels = RNG.integers(0, 4, (*SHAPE, 4))
    automatic = make_pair(moving_label=None, moved_label=None, fixed_label=labels[..., 0], carried_label=labels[..., 1])
    assert [label.tolist() for _, _, label in automatic.sheet(0)] == [labels[..., t].tolist() for t in (0, 1)]
    cine = make_cine(label=labels[..., 1], labels=labels)
    assert [title for title, _, _ in cine.sheet(3)] == ["frame 2, the reference", "frame 4"]
    np.testing.assert_array_equal(cine.sheet(3)[1][2], labels[..., 3])
    assert len(cine.sheet(1)) == 1


def test_a_frame_with_two_answers_is_shown_with_each() -> None:
    labels, segmented = RNG.integers(0, 4, (2, *SHAPE, 4))
    parts = {"label": labels[..., 1], "labels": labels, "segmented": segmented}
    shown = {
        f"frame {t + 1}{phase}, outlines {words}": answer[..., t].tolist()
        for t, phase in ((0, ", end diastole"), (3, ""))
        for words, answer in (("carried by the motion", labels), ("segmented in each frame", segmented))
    }
    for basis, own in (
        (GIVEN, {"as given": labels, "segmented": segmented}),
        (BY_SEGMENTATION, {"segmented": segmented}),
    ):
        cine = make_cine(label_basis=basis, function={"ed_frame": 1}, **parts)
        reference = {f"frame 2, the reference, outlines {words}": one[..., 1].tolist() for words, one in own.items()}
        assert {title: label.tolist() for title, _, label in cine.sheet(3)} == reference | shown


def test_the_outline_of_the_rv_is_the_one_that_its_figures_rest_on() -> None:
    labels, segmented = RNG.integers(0, 4, (2, *SHAPE, 4))
    parts = {"label": labels[..., 1], "labels": labels, "segmented": segmented}
    for by, rv in (("carried", labels == 1), ("segmented", (segmented == 1) & (labels < 2))):
        cine = make_cine(function={"rv_measured_by": by}, **parts)
        shown = np.stack([cine.outlined(t) for t in range(4)], axis=-1)
        np.testing.assert_array_equal(shown == 1, rv)
        for value in (2, 3):
            np.testing.assert_array_equal(shown == value, labels == value)
    assert make_cine().outlined(0) is None
