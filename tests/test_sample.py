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

"""The cine in `sample/`: a real heart that needs no download, its ejection fraction against the one drawn by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scripts.api import register_cine
from scripts.cardiac.registrations import CineRegistration

from benchmarks.heartbeat import draw_heartbeat
from benchmarks.sample import BOX, cut_sample

SAMPLE = ROOT / "sample" / "SC-HF-I-2"
SOURCE = ROOT.parent / "shared" / "data" / "scd" / "SC-HF-I-2"
ED, ES, LV = 20, 7, 3


def read_label(frame: int) -> nib.Nifti1Image:
    return nib.load(SAMPLE / f"SC-HF-I-2_frame{frame:02d}_gt.nii.gz")


def test_sample_is_small_and_keeps_place_and_time() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.parent.rglob("*") if path.is_file()) < 1e6
    cine, label = nib.load(SAMPLE / "SC-HF-I-2_4d.nii.gz"), read_label(ED)
    assert cine.get_data_dtype() == np.uint8
    assert cine.header.get_xyzt_units() == ("mm", "msec")
    assert cine.header["pixdim"][4] == pytest.approx(34.48, abs=0.01)
    np.testing.assert_allclose(nib.affines.voxel_sizes(cine.affine), (1.367, 1.367, 10.0), atol=1e-3)
    np.testing.assert_array_equal(label.affine, cine.affine)
    assert (np.asarray(label.dataobj) == LV).any(axis=(0, 1)).all()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cine of end systole and end diastole alone."""
    path = tmp_path_factory.mktemp("sample") / "two_4d.nii.gz"
    whole = nib.load(SAMPLE / "SC-HF-I-2_4d.nii.gz")
    two, (*sizes, step) = whole.slicer[..., ES - 1 :: ED - ES], whole.header.get_zooms()
    # Two phases of a whole cycle: frames that cover less than a heartbeat have no times.
    two.header.set_zooms((*sizes, step * whole.shape[3] / two.shape[3]))
    nib.save(two, path)
    return path


@pytest.fixture(scope="module")
def registered(two: Path) -> CineRegistration:
    """The one registered to the other."""
    label = SAMPLE / f"SC-HF-I-2_frame{ED:02d}_gt.nii.gz"
    return register_cine(two, reference_frame=2, reference_label=label, segmentation="none", device="cpu").voxels


def test_two_phases_have_the_ejection_fraction_of_the_contours_by_hand(registered: CineRegistration) -> None:
    ed, es = (np.asarray(read_label(phase).dataobj) == LV for phase in (ED, ES))
    by_hand = 100 * (1 - es.sum() / ed.sum())
    assert by_hand == pytest.approx(25.1, abs=0.1)
    assert registered.function["lv_ef_percent"] == pytest.approx(by_hand, abs=3)
    carried = registered.labels[..., 0] == LV
    assert 2 * (carried & es).sum() / (carried.sum() + es.sum()) > 0.93


def test_without_a_label_two_answers_have_it_too(two: Path) -> None:
    found = register_cine(two, device="cpu")
    assert (found.reference, found.label_basis) == (2, "automatic")
    for by in ("carried", "segmented"):
        assert found.function[by]["lv_ef_percent"] == pytest.approx(25.1, abs=4)


def test_the_picture_of_the_readme_is_drawn(registered: CineRegistration, tmp_path: Path) -> None:
    draw_heartbeat(registered, np.asarray(read_label(ES).dataobj), tmp_path / "heartbeat.png")
    picture = np.asarray(Image.open(tmp_path / "heartbeat.png").convert("RGB"), dtype=int)
    assert picture.shape[1] > 1500
    # Contours and arrows have colors; the images are gray.
    assert (np.ptp(picture, axis=-1) > 60).mean() > 0.005


def test_the_command_beside_the_sample_makes_it(tmp_path: Path) -> None:
    if not SOURCE.is_dir():
        pytest.skip(f"no Sunnybrook data in {SOURCE.parent}")
    cut_sample(SOURCE, tmp_path)
    for path in SAMPLE.glob("*.nii.gz"):
        committed, made = nib.load(path), nib.load(tmp_path / path.name)
        np.testing.assert_array_equal(np.asarray(committed.dataobj), np.asarray(made.dataobj))
        assert committed.header == made.header
    corner = [part.start for part in BOX]
    there = nib.load(SOURCE / "SC-HF-I-2_4d.nii.gz").affine @ [*corner, 1]
    np.testing.assert_allclose(nib.load(SAMPLE / "SC-HF-I-2_4d.nii.gz").affine @ [0, 0, 0, 1], there, atol=1e-4)
