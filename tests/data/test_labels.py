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

"""From a file's values to structures: what is renamed, and what is refused with which values."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.data import MetaTensor
from phantom_cases import PHANTOM
from scripts.data.labels import FITS_BETTER, better_frame, better_turn, name_structures
from scripts.data.loading import load_image
from scripts.data.nifti import open_nifti
from scripts.errors import InputError
from scripts.options import check_option

OTHER_ORDERS = [order for order in itertools.permutations((1, 2, 3)) if order != (1, 2, 3)]


@pytest.fixture(scope="module")
def label() -> np.ndarray:
    """A phantom's structures, (X, Y, Z)."""
    return PHANTOM.label(1).astype(np.int64)


def with_values(label: np.ndarray, rv: int, myo: int, lv: int) -> MetaTensor:
    """The structures as a file has them that gives them other values."""
    return MetaTensor(torch.from_numpy(np.array([0, rv, myo, lv])[label])[None].float())


@pytest.mark.parametrize("order", OTHER_ORDERS)
def test_another_order_is_refused_with_the_values_that_are_its_cure(label: np.ndarray, order: tuple) -> None:
    given = with_values(label, *order)
    with pytest.raises(
        InputError, match=r"gt\.nii\.gz: has \d around \d, so that .*--label_values, by their places"
    ) as caught:
        name_structures(given, "gt.nii.gz")
    cure = [int(value) for value in re.search(r"\'\[(.*)\]\'", str(caught.value))[1].split(", ")]
    assert cure == list(order)
    np.testing.assert_array_equal(name_structures(given, "gt.nii.gz", cure)[0], label)


def test_a_cavity_of_1_with_its_myocardium_is_named(label: np.ndarray) -> None:
    for rv, myo, lv in ((0, 2, 1), (0, 1, 2), (0, 3, 2)):
        given = with_values(label, rv, myo, lv)
        with pytest.raises(InputError, match=re.escape(f"by their places '[None, {myo}, {lv}]'")):
            name_structures(given, "gt.nii.gz")
        expected = np.where(label == 1, 0, label)
        np.testing.assert_array_equal(name_structures(given, "gt.nii.gz", (None, myo, lv))[0], expected)


def test_values_that_are_no_structure_are_listed_with_their_cure(
    label: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    given = with_values(label, 600, 200, 500)
    words = "holds 200, 500, 600, which are no structures; give the file's values"
    with pytest.raises(InputError, match=re.escape(words) + r".*'\[600, 200, 500\]'"):
        name_structures(given, "gt.nii.gz")
    np.testing.assert_array_equal(name_structures(given, "gt.nii.gz", (600, 200, 500))[0], label)
    with pytest.raises(InputError, match=r"holds 200, 500, 600, none of --label_values \[3, 2, 1\]"):
        name_structures(given, "gt.nii.gz", (3, 2, 1))
    # What is left out on purpose is said, and changes nothing else.
    found = name_structures(given, "gt.nii.gz", (None, 200, 500))
    np.testing.assert_array_equal(found[0], np.where(label == 1, 0, label))
    assert "gt.nii.gz: 600 are no structures by --label_values, and are left out" in caplog.text


def keep_voxels(label: np.ndarray, value: int, number: int) -> np.ndarray:
    """The label with no more than some voxels of a structure."""
    changed = label.copy()
    changed[tuple(np.argwhere(label == value)[number:].T)] = 0
    return changed


def cut_slice(label: np.ndarray) -> np.ndarray:
    changed = np.concatenate([label[..., :1], label[..., :1], label[..., :1]], axis=-1)
    changed[..., 1] = np.where(changed[..., 1] == 3, 0, changed[..., 1])
    return changed


def add_pixel(label: np.ndarray) -> np.ndarray:
    changed = label.copy()
    changed[0, 0, 0] = 3
    return changed


STRANGE = {
    "few voxels": (lambda label: keep_voxels(label, 1, 1), "its RV has 1 voxel in all: stray pixels?"),
    "RV alone": (lambda label: label * (label == 1), "holds 1 alone, so that figures are the RV's"),
    "no cavity": (lambda label: label * (label < 3), "labels myocardium without a cavity of the LV"),
    "two hearts": (
        lambda label: np.where(label == 2, 0, label) + 2 * (np.roll(label, 20, axis=0) == 2),
        "of the rim of",
    ),
    "a slice not drawn": (cut_slice, r"its LV is missing in slices between others (2)"),
    "a stray pixel": (add_pixel, "its LV has several parts in slices (1): stray pixels?"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_strange_about_a_label_is_said(label: np.ndarray, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    name_structures(with_values(label, 1, 2, 3), "gt.nii.gz")
    assert not caplog.text
    change, sentence = STRANGE[kind]
    name_structures(with_values(change(label) % 4, 1, 2, 3), "gt.nii.gz")
    assert sentence in caplog.text
    assert all(record.getMessage().startswith("gt.nii.gz: ") for record in caplog.records)


def test_a_label_of_next_to_nothing_is_refused(label: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"gt\.nii\.gz: labels 9 voxels in all; give a label map"):
        name_structures(with_values(keep_voxels(label * (label == 3), 3, 9), 1, 2, 3), "gt.nii.gz")


def test_an_image_is_no_label(label: np.ndarray) -> None:
    image = MetaTensor(torch.arange(label.size).reshape(1, *label.shape).float())
    with pytest.raises(InputError, match=r"gt\.nii\.gz: holds 4, 5, .*it seems to be an image; give a label map"):
        name_structures(image, "gt.nii.gz")


@pytest.mark.parametrize("missing", [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)])
def test_a_label_that_lacks_structures_is_taken(label: np.ndarray, missing: tuple[int, ...]) -> None:
    given = np.where(np.isin(label, missing), 0, label)
    np.testing.assert_array_equal(name_structures(with_values(given, 1, 2, 3), "gt.nii.gz")[0], given)


@pytest.mark.parametrize(
    "values", ["3,2,1", [1, 2], [1, 2, 2], [0, 1, 2], [None] * 3, [1.5, 2, 3], [True, 2, 3], [1, 2, 3, 4], 3]
)
def test_an_option_that_is_no_three_values_is_refused(values: object) -> None:
    with pytest.raises(InputError, match=r"--label_values .*: must be the file's values of RV, myocardium and LV"):
        check_option("label_values", values)


def test_an_option_of_three_values_is_taken() -> None:
    for values in (None, [3, 2, 1], (3, None, 1), [None, None, 1]):
        check_option("label_values", values)


def test_a_label_fits_its_own_frame_best() -> None:
    images = torch.from_numpy(np.stack([PHANTOM.image(t) for t in range(1, 6)])).float()
    labels = [torch.from_numpy(PHANTOM.label(t).astype(np.float32))[None] for t in range(1, 6)]
    assert all(better_frame(images, one, t) is None for t, one in enumerate(labels))
    assert better_frame(images, labels[0], 2) == 0
    # Neither gain and offset nor a label without myocardium decide.
    assert better_frame(3 * images + 70, labels[0], 2) == 0
    assert better_frame(images, (labels[0] == 3) * 3.0, 2) is None
    assert 0 < FITS_BETTER < 1


def test_a_label_that_is_turned_fits_better_turned_back() -> None:
    image, label = torch.from_numpy(PHANTOM.image(1)).float(), torch.from_numpy(PHANTOM.label(1).astype(np.float32))
    assert better_turn(image, label[None]) is None
    for axes in ((0,), (1,), (2,), (0, 2)):
        words = " and ".join(f"axis {axis + 1} reversed" for axis in axes)
        assert better_turn(image, torch.flip(label, axes)[None]) == words
    square, inner = image[2:46, :44], label[2:46, :44]
    assert better_turn(square, inner.transpose(0, 1)[None]) == "axes 1 and 2 exchanged"
    # Nor can one structure alone tell.
    assert better_turn(image, torch.flip((label == 3) * 3.0, (0,))[None]) is None


def test_what_no_one_draws_is_refused(label: np.ndarray) -> None:
    full, noise = np.full(label.shape, 3), np.random.default_rng(0).integers(0, 4, label.shape)
    for values, words in ((full, "labels 100 % of a slice"), (noise, "is noise: only 2. % of")):
        with pytest.raises(InputError, match=rf"gt\.nii\.gz: {words}.*; give a label map that is 0 outside"):
            name_structures(with_values(values, 1, 2, 3), "gt.nii.gz")


def test_the_rv_among_other_values_is_the_one_beside_the_myocardium(label: np.ndarray) -> None:
    given = label.copy()
    given[:2] = 7
    with pytest.raises(InputError, match=r"by their places '\[1, 2, 3\]'"):
        name_structures(
            with_values(np.where(given == 7, 0, given), 1, 2, 3) + 7 * torch.from_numpy(given == 7), "gt.nii.gz"
        )
    with pytest.raises(InputError, match=r"holds 255, .*'\[None, None, 255\]' where this is the LV's cavity"):
        name_structures(with_values(np.where(label == 3, 3, 0), 0, 0, 255), "gt.nii.gz")


def test_published_labels_are_taken_and_fit_their_own_frame(acdc: Path) -> None:
    for subject in ("patient001", "patient014", "patient090"):
        pairs = sorted((acdc / subject).glob("*_frame*_gt.nii.gz"))
        images = [load_image(open_nifti(str(path).replace("_gt", ""))) for path in pairs]
        for number, path in enumerate(pairs):
            found = load_image(open_nifti(path), is_label=True)
            named = name_structures(found, str(path))
            np.testing.assert_array_equal(named, found)
            assert better_frame(torch.cat(images), named, number) is None
            assert better_turn(images[number][0], named) is None
            assert better_turn(images[number][0], torch.flip(named, (2,))) == "axis 2 reversed"


def test_the_sample_s_label_is_taken() -> None:
    for path in sorted((ROOT / "sample").glob("*_gt.nii.gz")):
        name_structures(load_image(open_nifti(path), is_label=True), str(path))
