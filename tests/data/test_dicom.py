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

"""DICOM folders written by hand: every voxel at the place that its own file states, and nothing of the patient in what
comes back."""

from __future__ import annotations

import builtins
import logging
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.cases import find_cases
from scripts.data.dicom import read_dicom_cine
from scripts.data.dicom_headers import read_instances

from tests import dicom_files as dcm
from tests.conftest import ROOT

pydicom = pytest.importorskip("pydicom")
from pydicom.uid import CTImageStorage, RLELossless, generate_uid  # noqa: E402


def test_reads_a_stack_of_one_series_a_slice(tmp_path: Path) -> None:
    stack = dcm.make_stack()
    cine = read_dicom_cine(dcm.write(tmp_path / "heart", stack))
    assert cine.name == "heart"
    assert cine.image.shape == (dcm.COLUMNS, dcm.ROWS, dcm.SLICES, dcm.PHASES)
    assert cine.image.dtype == np.float32
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))
    np.testing.assert_allclose(
        cine.times, [[10 + z + (90 + z) * t for t in range(dcm.PHASES)] for z in range(dcm.SLICES)]
    )
    assert cine.frame_time == pytest.approx(91)


def test_affine_puts_a_voxel_where_its_file_does(tmp_path: Path) -> None:
    stack = dcm.make_stack()
    cine = read_dicom_cine(dcm.write(tmp_path, stack))
    column, row = 5, 2
    for z, phases in enumerate(stack):
        lps = (
            np.array(phases[0].ImagePositionPatient, float)
            + dcm.AXES[0] * dcm.SPACING[1] * column
            + dcm.AXES[1] * dcm.SPACING[0] * row
        )
        np.testing.assert_allclose((cine.affine @ [column, row, z, 1])[:3], lps * [-1, -1, 1], atol=1e-3)
    np.testing.assert_allclose(cine.spacing, (dcm.SPACING[1], dcm.SPACING[0], dcm.GAP), rtol=1e-4)
    assert np.linalg.det(cine.affine) > 0
    np.testing.assert_array_equal(cine.affine[3], [0, 0, 0, 1])


@pytest.mark.parametrize("series", [lambda z, t: "1.2.3", lambda z, t: f"1.2.{t + 1}"], ids=["one", "one a phase"])
def test_series_do_not_matter(tmp_path: Path, series: Callable[[int, int], str]) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"SeriesInstanceUID": series(z, t)})
    cine = read_dicom_cine(dcm.write(tmp_path, stack))
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))


def test_a_folder_holds_one_cine_beside_stills(tmp_path: Path) -> None:
    long_axis, shifted = np.stack([dcm.NORMAL, dcm.AXES[1]]), dcm.CORNER + 300 * dcm.AXES[0]
    stack = dcm.make_stack()
    # Scouts are no evenly spaced stack, and have no trigger times.
    scouts = [[dcm.make_image(dcm.CORNER + step * dcm.NORMAL, PixelSpacing=[2.0, 2.0])] for step in (0, 5, 20)]
    cine = read_dicom_cine(dcm.write(tmp_path / "study", stack, scouts, dcm.make_stack(4, 1, axes=long_axis, seed=1)))
    assert cine.name == "study"
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))
    other = dcm.set_tags(dcm.make_stack(2, 2, shifted, seed=2), lambda z, t: {"PixelSpacing": [2.0, 2.0]})
    study = dcm.write(tmp_path / "two", stack, other, dcm.make_stack(1, 5, axes=long_axis, seed=1))
    np.testing.assert_array_equal(read_dicom_cine(study).image, dcm.expected_image(stack))
    assert "only single images" in dcm.error_of(dcm.write(tmp_path / "stills", scouts))


def test_series_may_be_links(tmp_path: Path) -> None:
    stack = dcm.make_stack()
    dcm.write(tmp_path / "archive", stack)
    (tmp_path / "cine").mkdir()
    for part in ("part0", "part1"):
        (tmp_path / "cine" / part).symlink_to(tmp_path / "archive" / part)
    np.testing.assert_array_equal(read_dicom_cine(tmp_path / "cine").image, dcm.expected_image(stack))


def test_nothing_of_the_patient_comes_back_or_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"SOPInstanceUID": f"1.2.04711.{z}{t + 1}"})
    folder = tmp_path / dcm.PATIENT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcm.write(folder, stack)
    caplog.clear()
    with warnings.catch_warnings(record=True) as shown, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        cine = read_dicom_cine(folder.rename(tmp_path / "case"))
    assert [str(one.message) for one in shown] + caplog.messages == []
    assert cine.name == "case"
    assert not re.search("doe|jane|4711", str(astuple(cine)), re.IGNORECASE)


def test_the_name_of_the_current_folder_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dcm.write(tmp_path / "heart", dcm.make_stack()))
    assert read_dicom_cine(".").name == "heart"


def test_stops_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no DICOM")
    assert "holds no DICOM MR image" in dcm.error_of(tmp_path)
    assert "no such folder" in dcm.error_of(tmp_path / "absent")


def test_stops_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(name: str, *rest: object) -> object:
        if name.startswith("pydicom"):
            raise ImportError(name)
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", forbid)
    assert "pip install pydicom" in dcm.error_of(tmp_path)


@pytest.mark.parametrize("files", ["one", "one a slice", "compressed", "actual times"])
def test_enhanced_files_give_what_classic_ones_give(tmp_path: Path, files: str) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"RescaleSlope": 0.5 + z, "RescaleIntercept": -10.0 * t})
    expected = read_dicom_cine(dcm.write(tmp_path / "classic", stack))
    images = [image for phases in stack for image in phases]
    random.Random(1).shuffle(images)
    tag = "ActualCardiacTriggerDelayTime" if files == "actual times" else "NominalCardiacTriggerDelayTime"
    groups = stack if files == "one a slice" else [images]
    folder = dcm.write(tmp_path / "enhanced", [[dcm.make_enhanced(group, tag)] for group in groups])
    if files == "compressed":
        (path,) = (path for path in folder.rglob("*") if path.is_file())
        file = pydicom.dcmread(path)
        file.compress(RLELossless)
        file.save_as(path)
    found = read_dicom_cine(folder)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(found.times, expected.times)


@pytest.mark.parametrize("late", [0.0, 0.01], ids=["at one time", "interleaved"])
@pytest.mark.parametrize("part", ["P", "R", "I"])
@pytest.mark.parametrize("place", ["ImageType", "FrameType", "ComplexImageComponent"])
def test_parts_of_complex_images_are_left_out_beside_magnitudes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, part: str, late: float
) -> None:
    stack = dcm.set_tags(
        dcm.make_stack(), lambda z, t: {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "SeriesInstanceUID": "1.2.3"}
    )
    rule = lambda z, t: {
        "ImageType": ["ORIGINAL", "PRIMARY", part, "ND"],
        "TriggerTime": 10.0 + z + (90 + z) * t + late,
    }
    others = dcm.set_tags(dcm.set_tags(dcm.make_stack(seed=1), rule), lambda z, t: {"SeriesInstanceUID": "1.2.3"})
    folder = dcm.write(tmp_path / "classic", stack, others)
    if place != "ImageType":
        names = {"M": "MAGNITUDE", "P": "PHASE", "R": "REAL", "I": "IMAGINARY"}
        images = [image for both in (stack, others) for phases in both for image in phases]
        file = dcm.make_enhanced(images)
        for groups, image in zip(file.PerFrameFunctionalGroupsSequence, images, strict=True):
            kind = pydicom.Dataset()
            setattr(kind, place, list(image.ImageType) if place == "FrameType" else names[image.ImageType[2]])
            groups.MRImageFrameTypeSequence = [kind]
        folder = dcm.write(tmp_path / "enhanced", [[file]])
    np.testing.assert_array_equal(read_dicom_cine(folder).image, dcm.expected_image(stack))
    assert "left out 12 images, such as IM" in caplog.text
    assert "phase, real or imaginary parts beside a magnitude" in caplog.text


def test_phases_without_magnitudes_are_a_cine(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"ImageType": ["ORIGINAL", "PRIMARY", "P"]})
    np.testing.assert_array_equal(read_dicom_cine(dcm.write(tmp_path, stack)).image, dcm.expected_image(stack))


def test_stacks_at_a_few_degrees_to_each_other_are_two(tmp_path: Path) -> None:
    angle = np.deg2rad(5)
    turned = np.stack(
        [
            np.cos(angle) * dcm.AXES[0] + np.sin(angle) * dcm.AXES[1],
            np.cos(angle) * dcm.AXES[1] - np.sin(angle) * dcm.AXES[0],
        ]
    )
    other = dcm.make_stack(2, axes=turned, corner=dcm.CORNER + 200 * dcm.NORMAL, seed=1)
    stack = dcm.make_stack()
    np.testing.assert_array_equal(read_dicom_cine(dcm.write(tmp_path, stack, other)).image, dcm.expected_image(stack))


def test_a_cine_without_times_is_not_passed_over_for_another(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"TriggerTime": None})
    long_axis = dcm.make_stack(1, 5, axes=np.stack([dcm.NORMAL, dcm.AXES[1]]), seed=1)
    assert "12 of them, such as IM" in dcm.error_of(dcm.write(tmp_path, stack, long_axis))


def test_slices_in_a_folder_each_are_called_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = lambda z, t: {"FrameOfReferenceUID": "1.2.7"}
    for z, phases in enumerate(dcm.make_stack()):
        dcm.write(tmp_path / "study" / f"slice{z}", dcm.set_tags([phases], frame))
    long_axis = dcm.make_stack(1, 5, axes=np.stack([dcm.NORMAL, dcm.AXES[1]]), seed=1)
    dcm.write(tmp_path / "study" / "long", dcm.set_tags(long_axis, frame))
    assert len(find_cases(dataset_dir=str(tmp_path / "study"))) == 4
    assert (
        "study: slice0, slice1, slice2 look like slices of one cine and are registered apart; where they are, give"
        in caplog.text
    )
    caplog.clear()
    for name, tags in (
        ("a", {"FrameOfReferenceUID": "1.2.8"}),
        ("b", {"FrameOfReferenceUID": "1.2.9"}),
        ("again", {"FrameOfReferenceUID": "1.2.9"}),
        ("c", {}),
    ):
        dcm.write(tmp_path / "cohort" / name, dcm.set_tags(dcm.make_stack(), lambda z, t, tags=tags: tags))
    assert len(find_cases(dataset_dir=str(tmp_path / "cohort"))) == 4
    assert not caplog.records


def test_two_acquisitions_in_one_series_are_called_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_dicom_cine(dcm.write(tmp_path / "one", dcm.make_stack()))
    # A phase that is missing in all slices.
    read_dicom_cine(dcm.write(tmp_path / "gap", [[*phases[:1], *phases[2:]] for phases in dcm.make_stack()]))
    assert not caplog.records
    late = lambda z, t: {"TriggerTime": 13.0 + z + (90 + z) * t}
    doubled = [phases + others for phases, others in zip(dcm.make_stack(), dcm.set_tags(dcm.make_stack(seed=1), late))]
    dcm.set_tags(doubled, lambda z, t: {"SeriesInstanceUID": "1.2.3"})
    assert read_dicom_cine(dcm.write(tmp_path / "two", doubled)).frames == 2 * dcm.PHASES
    assert "its phases are 3 to 89 ms apart; where these are two acquisitions, keep one of them" in caplog.text


def test_a_slice_that_begins_a_phase_late_is_called_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = dcm.make_stack()
    read_dicom_cine(dcm.write(tmp_path / "late", [stack[0][:-1], stack[1][1:], *(phases[:-1] for phases in stack[2:])]))
    assert (
        "its slices begin 10 to 102 ms after the trigger, with phases 91 ms apart; where a slice lacks its first"
        in caplog.text
    )


def test_a_scout_taken_twice_is_no_cine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack, axes = dcm.make_stack(), np.stack([dcm.NORMAL, dcm.AXES[1]])
    scouts = [[dcm.make_image(dcm.CORNER, seed, axes, SeriesInstanceUID=generate_uid()) for seed in (0, 1)]]
    cine = read_dicom_cine(dcm.write(tmp_path, stack, scouts))
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))
    assert "left out 2 images, such as IM" in caplog.text


def test_a_folder_of_nifti_files_says_how_to_give_them(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    assert "holds NIfTI files and no DICOM MR image; give --cine one of the files, or --dataset_dir" in dcm.error_of(
        tmp_path
    )


def test_reads_what_a_scanner_wrote() -> None:
    folder = ROOT.parent / "shared" / "data" / "scd" / "SC-HF-I-2_dicom"
    if not folder.is_dir():
        pytest.skip(f"no DICOM files in {folder.parent}")
    cine = read_dicom_cine(folder)
    assert cine.name == "SC-HF-I-2_dicom"
    assert cine.image.shape == (256, 256, 3, 20)
    assert cine.image.max() > 255
    np.testing.assert_allclose(cine.spacing, (1.367188, 1.367188, 10.0), rtol=1e-5)
    np.testing.assert_allclose(cine.times[:, 0], [17.647, 17.442, 17.442], atol=1e-3)
    assert (np.diff(cine.times, axis=1) > 34).all()

    cropped = nib.load(folder.parent / "SC-HF-I-2" / "SC-HF-I-2_4d.nii.gz")
    pixels = np.asarray(cropped.dataobj)
    to_cine = np.linalg.inv(cine.affine) @ cropped.affine
    # The NIfTI file is the same grid, cropped by 56 pixels and with its slices counted the other way.
    np.testing.assert_allclose(to_cine, [[1, 0, 0, 56], [0, 1, 0, 56], [0, 0, -1, 7], [0, 0, 0, 1]], atol=2e-3)
    for z in range(3):
        crop = cine.image[56:200, 56:200, z]
        for t in (0, 7, 19):
            assert np.corrcoef(crop[..., t].ravel(), pixels[..., 7 - z, t].ravel())[0, 1] > 0.999


def test_a_phase_that_all_slices_lack_is_a_doubt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = dcm.set_tags(dcm.make_stack(phases=6), lambda z, t: {"CardiacNumberOfImages": 6})
    assert not read_dicom_cine(dcm.write(tmp_path / "whole", stack)).doubts
    (doubt,) = read_dicom_cine(dcm.write(tmp_path / "part", [[*one[:2], *one[3:]] for one in stack])).doubts
    assert doubt == "In slice 1 the phases 2 and 3 are 180 ms apart, and others 91.5: is one missing?"
    assert doubt in caplog.text
    (doubt,) = read_dicom_cine(dcm.write(tmp_path / "end", [one[:5] for one in stack])).doubts
    assert doubt == "There are 5 phases, and 6 were taken by the headers: are some missing?"


def test_what_is_no_mr_image_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = dcm.make_stack()
    others = dcm.make_stack(slices=1, phases=2, seed=1)
    dcm.set_tags(others, lambda z, t: {"SOPClassUID": CTImageStorage})
    with caplog.at_level("INFO", logger="inference"):
        cine = read_dicom_cine(dcm.write(tmp_path, stack, others))
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))
    assert "left out what is no MR image: 2 of CT Image Storage" in caplog.text


def test_images_of_two_patients_are_no_cine(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"PatientID": f"4711-JD{z // 2}"})
    assert "holds images of 2 patients" in dcm.error_of(dcm.write(tmp_path / "mixed", stack))
    (one,) = {instance.patient for instance in read_instances(tmp_path, next((tmp_path / "mixed").rglob("IM*")))}
    assert one
    assert "4711" not in one


def test_slices_of_two_studies_without_a_common_place_are_a_doubt(tmp_path: Path) -> None:
    """Not where a study has two frames of reference, or a program invented names for each file."""
    for number, (study, frame, count) in enumerate(
        (
            (lambda z, t: z // 3, lambda z, t: z // 3, 2),
            (lambda z, t: z // 3, lambda z, t: 0, 0),
            (lambda z, t: 0, lambda z, t: z // 3, 0),
            (lambda z, t: 10 * z + t, lambda z, t: 10 * z + t, 0),
        )
    ):
        stack = dcm.set_tags(
            dcm.make_stack(slices=5),
            lambda z, t, s=study, f=frame: {
                "StudyInstanceUID": f"1.{s(z, t) + 1}",
                "FrameOfReferenceUID": f"2.{f(z, t) + 1}",
            },
        )
        cine = read_dicom_cine(dcm.write(tmp_path / str(number), stack))
        assert cine.image.shape[2] == 5
        words = f"Slices are of {count} studies that name no place in common: are they of one patient?"
        assert cine.doubts == ((words,) if count else ())
