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

"""Real cines of another scanner, where they are there: the LV contour carried from ED to ES against the one drawn by
hand, from NIfTI and from the scanner's DICOM files, and the fields in files through ITK and ANTs."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, write_nifti
from scripts.api import register_cine
from scripts.cardiac.registrations import CineRegistration
from scripts.data.acdc import read_info
from scripts.data.dicom import read_dicom_cine
from scripts.data.itk_fields import write_field
from scripts.registration.metrics import dice_percent
from test_itk_fields import off_the_edge

FOLDER = ROOT.parent / "shared" / "data" / "scd"
LV = 3


def drawn(subject: str) -> tuple[dict[str, int], dict[str, nib.Nifti1Image]]:
    """Frame number and label at ED and ES."""
    folder = FOLDER / subject
    if not folder.is_dir():
        pytest.skip(f"no Sunnybrook data in {FOLDER}")
    frames = {phase: int(read_info(folder / "Info.cfg")[phase]) for phase in ("ED", "ES")}
    return frames, {
        phase: nib.load(folder / f"{subject}_frame{frame:02d}_gt.nii.gz") for phase, frame in frames.items()
    }


def check_contour(name: str, result: CineRegistration, es_frame: int, by_hand: np.ndarray) -> None:
    """Dice and ejection fraction of the carried LV on the slices drawn at both phases."""
    ed, es, carried = result.label == LV, by_hand == LV, result.labels[..., es_frame - 1] == LV
    both = ed.any(axis=(0, 1)) & es.any(axis=(0, 1))
    ed, es, carried = ed[..., both], es[..., both], carried[..., both]
    dice, before = dice_percent(carried, es), dice_percent(ed, es)
    fraction, expected = (100 * (1 - np.sum(mask) / np.sum(ed)) for mask in (carried, es))
    print(
        f"\n{name}: Dice {dice:.1f} (unregistered {before:.1f}), ejection fraction {fraction:.1f} % (by hand {expected:.1f} %)"
    )
    assert dice >= 85
    assert abs(fraction - expected) <= 8


@pytest.mark.parametrize("subject", ["SC-HF-I-1", "SC-HF-I-2"])
def test_the_contour_reaches_end_systole(subject: str, tmp_path: Path) -> None:
    frames, labels = drawn(subject)
    cine = nib.load(FOLDER / subject / f"{subject}_4d.nii.gz")
    # Four frames tell as much of end systole as twenty.
    kept = sorted({1, 12, *frames.values()})
    numbers = {phase: kept.index(frame) + 1 for phase, frame in frames.items()}
    short = write_nifti(tmp_path / "short_4d.nii.gz", np.asarray(cine.dataobj)[..., [t - 1 for t in kept]], cine.affine)
    label = FOLDER / subject / f"{subject}_frame{frames['ED']:02d}_gt.nii.gz"
    result = register_cine(
        short, reference_frame=numbers["ED"], reference_label=label, segmentation="none", device="cpu"
    ).voxels
    assert all(frame["folding_percent"] <= 0.1 for frame in result.quality["frames"])
    assert all(frame["inverse_error_mm_p95"] <= 0.1 for frame in result.quality["frames"])
    check_contour(subject, result, numbers["ES"], labels["ES"].get_fdata())

    # The field of end systole in a file, applied by others to the frame in a file.
    t = numbers["ES"] - 1
    field, frame = tmp_path / "field.nii.gz", tmp_path / "frame.nii.gz"
    write_field(field, result.fields[t], result.cine.affine)
    write_nifti(frame, result.cine.image[..., t], result.cine.affine)
    tolerance, sure = (
        1e-3 * np.ptp(result.cine.image[..., t]),
        off_the_edge(result.fields[t], np.eye(4), result.fixed.shape),
    )
    assert sure.mean() > 0.99
    image, vectors = itk.imread(frame, itk.F), itk.imread(field)
    warped = itk.warp_image_filter(image, displacement_field=vectors, output_parameters_from_image=image)
    assert np.abs(itk.array_from_image(warped).T - result.moved[..., t])[sure].max() < tolerance
    ants = pytest.importorskip("ants", reason="ANTs is not installed: pip install antspyx")
    image = ants.image_read(str(frame))
    moved = ants.apply_transforms(image, image, [str(field)], interpolator="linear").numpy()
    assert np.abs(moved - result.moved[..., t])[sure].max() < tolerance


def test_the_scanner_s_files_give_the_same(tmp_path: Path) -> None:
    """Three slices of a subject as DICOM, its label brought onto them."""
    frames, labels = drawn("SC-HF-I-2")
    onto = {}
    for phase, label in labels.items():
        whole = np.zeros((256, 256, 3), np.uint8)
        # Where the NIfTI file was cut out, with its slices counted the other way.
        whole[56:200, 56:200] = np.asarray(label.dataobj)[..., [7, 6, 5]]
        onto[phase] = whole
    folder = FOLDER / "SC-HF-I-2_dicom"
    path = write_nifti(tmp_path / "label.nii.gz", onto["ED"], read_dicom_cine(folder).affine)
    result = register_cine(
        folder, reference_frame=frames["ED"], reference_label=path, segmentation="none", device="cpu"
    ).voxels
    check_contour("SC-HF-I-2, DICOM", result, frames["ES"], onto["ES"])
    assert result.strain[0]["time_ms"] == pytest.approx(result.cine.times.mean(axis=0)[0])
