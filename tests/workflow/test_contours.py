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

"""Cases that gain a label by the segmentation, and those that must not; on the phantom, which the shipped weights know."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from numpy.typing import NDArray
from phantom_cases import PHANTOM, T, write_cine, write_pair
from scripts.cardiac.cines import AUTOMATIC, ESTIMATED, LABELS, TRIGGERED
from scripts.cardiac.phases import find_phases
from scripts.data.cases import find_cases
from scripts.data.loading import LoadCase, in_parts
from scripts.errors import InputError
from scripts.registration.metrics import dice_percent
from scripts.workflow import contours
from scripts.workflow.contours import NO_RING, SegmentCase

WEIGHTS = str(ROOT / "models" / "segmentation.pt")
KEYS_OF_A_REFERENCE = {"reference", "reference_basis", "fixed"}
TRUE = np.stack([PHANTOM.label(t) for t in range(1, T + 1)])


@pytest.fixture(scope="module")
def segment() -> SegmentCase:
    return SegmentCase(WEIGHTS)


def load(**sources: object) -> dict:
    return LoadCase()(find_cases(**{key: str(value) for key, value in sources.items()})[0])


def dice(found: NDArray, true: NDArray) -> list[float]:
    return [dice_percent(found == value, true == value) for value in LABELS.values()]


def test_a_cine_without_label_gains_that_of_end_diastole(segment: SegmentCase, tmp_path: Path) -> None:
    item = segment(load(cine=write_cine(tmp_path)))
    assert (item["reference"], item["reference_basis"], item["label_basis"]) == (1, AUTOMATIC, "automatic")
    segmented = item["segmented"].numpy()
    assert segmented.dtype == np.uint8
    assert segmented.shape == TRUE.shape
    assert min(dice(segmented, TRUE)) > 80
    label = item["reference_label"]
    assert np.array_equal(label[0].numpy(), segmented[0])
    np.testing.assert_array_equal(label.affine, item["fixed"].affine)


def test_limits_are_known_of_the_shipped_weights_alone(segment: SegmentCase, tmp_path: Path) -> None:
    assert segment.is_measured
    weights = torch.load(WEIGHTS, weights_only=True)
    next(iter(weights.values())).mul_(1.001)
    torch.save(weights, tmp_path / "segmentation.pt")
    assert not SegmentCase(tmp_path / "segmentation.pt").is_measured
    assert not SegmentCase("none").is_measured
    assert segment(load(cine=write_cine(tmp_path)))["is_measured"] is True


def test_the_reference_frame_is_end_diastole_whichever_it_is(segment: SegmentCase, tmp_path: Path) -> None:
    path = write_cine(tmp_path)
    cine = nib.load(path)
    nib.save(nib.Nifti1Image(np.roll(np.asarray(cine.dataobj), 2, axis=3), cine.affine, cine.header), path)
    item = segment(load(cine=path))
    assert item["reference"] == find_phases(np.moveaxis(np.roll(TRUE, 2, axis=0), 0, -1), PHANTOM.spacing)[0] == 3
    np.testing.assert_array_equal(item["fixed"], item["moving"][2:3])


def test_what_is_given_stays_and_the_frames_are_segmented_beside_it(segment: SegmentCase, tmp_path: Path) -> None:
    path = write_cine(tmp_path)
    loaded = LoadCase()(
        find_cases(cine=str(path), reference_frame=1, reference_label=str(path.with_name("label.nii.gz")))[0]
    )
    item = segment(loaded)
    assert item["label_basis"] == "given"
    assert item["reference_label"] is loaded["reference_label"]
    assert min(dice(item["segmented"].numpy(), TRUE)) > 80
    # A frame that is given keeps its number, and gains a label.
    item = segment(LoadCase()(find_cases(cine=str(path), reference_frame=3)[0]))
    assert (item["reference"], item["label_basis"]) == (3, "automatic")
    assert min(dice(item["reference_label"][0].numpy(), TRUE[2])) > 80


def test_of_a_pair_the_fixed_stack_gains_a_label(segment: SegmentCase, tmp_path: Path) -> None:
    paths = write_pair(tmp_path)
    item = segment(load(moving=paths["moving"], fixed=paths["fixed"]))
    assert item["label_basis"] == "automatic"
    assert min(dice(item["reference_label"][0].numpy(), TRUE[0])) > 80
    np.testing.assert_array_equal(item["fixed_segmented"], item["reference_label"])
    assert min(dice(item["segmented"][0].numpy(), TRUE[2])) > 80
    item = segment(load(**paths))
    assert item["label_basis"] == "given"
    assert "reference_label" not in item
    assert item["segmented"].shape == item["fixed_segmented"].shape == (1, *TRUE.shape[1:])


@pytest.mark.parametrize("plane", ["2CH", "LAX"])
def test_a_long_axis_view_gets_no_contours(
    segment: SegmentCase, tmp_path: Path, plane: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = LoadCase()({**find_cases(cine=str(write_cine(tmp_path)))[0], "plane": plane})
    # Where the most is bright: not in the first frame, as atria may be in a real view.
    loaded["moving"] = loaded["moving"].roll(1, 0)
    item = segment(loaded)
    assert item.keys() - loaded.keys() == KEYS_OF_A_REFERENCE
    assert (item["reference"], item["reference_basis"]) == (1, TRIGGERED)
    assert f"is a long-axis view ({plane})" in caplog.text


def test_what_shows_no_short_axis_gets_none_and_a_line_says_so(
    segment: SegmentCase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).integers(0, 900, (40, 36, 2, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, np.diag([1.5, 1.5, 8, 1])), tmp_path / "noise_4d.nii.gz")
    item = segment(load(cine=tmp_path / "noise_4d.nii.gz"))
    assert not {"segmented", "reference_label"} & set(item)
    assert item["reference_basis"] == ESTIMATED
    assert f"noise: {NO_RING}" in caplog.text
    assert item["doubts"].splitlines() == [NO_RING]


def test_real_long_axis_cines_get_none_by_their_look_alone(segment: SegmentCase) -> None:
    folder = ROOT.parent / "shared" / "data" / "long_axis"
    if not folder.is_dir():
        pytest.skip(f"no long-axis cines in {folder.parent}")
    path = sorted(path for path in folder.rglob("*.nii.gz") if "gt" not in path.name and "label" not in path.name)[0]
    loaded = LoadCase()({"cine": str(path), "case": "view"})
    loaded |= {"plane": "", "moving": loaded["moving"][::10]}
    assert "segmented" not in segment(loaded)


@pytest.mark.parametrize("options", [{"segmentation": "none"}, {"segmentation": WEIGHTS, "reference_label": "none"}])
def test_it_can_be_turned_off(tmp_path: Path, options: dict) -> None:
    loaded = load(cine=write_cine(tmp_path))
    item = SegmentCase(**options)(loaded)
    assert item.keys() - loaded.keys() == KEYS_OF_A_REFERENCE
    assert (item["reference"], item["reference_basis"]) == (1, ESTIMATED)
    pair = load(**write_pair(tmp_path))
    assert SegmentCase(**options)(pair) == {**pair, "label_basis": "given"}


def test_no_frame_is_estimated_that_is_known(
    segment: SegmentCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contours, "largest_cavity", lambda _: pytest.fail("was estimated"))
    path = write_cine(tmp_path)
    segment(load(cine=path))
    loaded = LoadCase()(find_cases(cine=str(path), reference_frame=2)[0])
    assert SegmentCase("none")(loaded) == loaded


def test_weights_that_are_not_there_are_refused_with_the_cure() -> None:
    with pytest.raises(InputError, match=r"--segmentation nowhere\.pt: no such file; give weights"):
        SegmentCase("nowhere.pt")


def test_parts_of_a_case_hold_the_segmentation_of_their_frames(segment: SegmentCase, tmp_path: Path) -> None:
    item = segment(load(cine=write_cine(tmp_path)))
    parts = list(in_parts(item, voxels=2 * item["moving"][0].numel()))
    assert [len(part["segmented"]) for part in parts] == [2, 2, 1]
    assert np.array_equal(np.concatenate([part["segmented"] for part in parts]), item["segmented"])
