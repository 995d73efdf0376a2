"""DICOM folders written by hand: every voxel at the place that its own file states, and nothing of the patient in what
comes back."""

from __future__ import annotations

import builtins
import logging
import random
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.cases import find_cases
from scripts.data.dicom import read_dicom_cine
from scripts.data.nifti import check_right_angles
from scripts.errors import InputError

from tests.conftest import ROOT

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

ROWS, COLUMNS, SLICES, PHASES = 6, 8, 3, 4
# Between rows and between columns, as PixelSpacing has it.
SPACING = (1.5, 1.25)
GAP = 9.0
AXES = np.array([[0.77038, 0.618446, 0.155046], [-0.15161, 0.41389, -0.897613]])
NORMAL = np.cross(*AXES)
CORNER = np.array([-67.3, -244.9, 121.4])
PATIENT = "Doe^Jane"

Slice = list[pydicom.Dataset]


def make_image(position: np.ndarray, seed: int = 0, axes: np.ndarray = AXES, **tags: object) -> pydicom.Dataset:
    """One MR image; a tag that is None is left out."""
    image = pydicom.Dataset()
    image.PatientName, image.PatientID, image.SeriesDescription = PATIENT, "4711-JD", f"cine {PATIENT}"
    image.SOPClassUID, image.SOPInstanceUID, image.Modality = MRImageStorage, generate_uid(), "MR"
    image.ImageOrientationPatient, image.ImagePositionPatient = (
        axes.round(6).ravel().tolist(),
        np.round(position, 5).tolist(),
    )
    image.PixelSpacing, image.SliceThickness, image.SpacingBetweenSlices = list(SPACING), 7.0, GAP
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.PixelData = np.random.default_rng(seed).integers(-100, 900, (ROWS, COLUMNS), dtype=np.int16).tobytes()
    for tag, value in tags.items():
        if value is None:
            delattr(image, tag)
        else:
            setattr(image, tag, value)
    return image


def make_stack(
    slices: int = SLICES, phases: int = PHASES, corner: np.ndarray = CORNER, axes: np.ndarray = AXES, seed: int = 0
) -> list[Slice]:
    """Slices of phases along the normal, a series each; slice z is triggered at 10 + z ms and every 30 + z ms
    thereafter."""
    step = GAP * np.cross(*axes)
    return [
        [
            make_image(
                corner + z * step,
                1000 * seed + 100 * z + t,
                axes,
                SeriesInstanceUID=uid,
                TriggerTime=10.0 + z + (30 + z) * t,
            )
            for t in range(phases)
        ]
        for z, uid in enumerate(generate_uid() for _ in range(slices))
    ]


def set_tags(stack: list[Slice], rule: Callable[[int, int], dict[str, object]]) -> list[Slice]:
    """The stack with tags by slice and phase, both counted from 0; None removes a tag."""
    for z, phases in enumerate(stack):
        for t, image in enumerate(phases):
            for tag, value in rule(z, t).items():
                if value is None:
                    delattr(image, tag)
                else:
                    setattr(image, tag, value)
    return stack


def write(folder: Path, *stacks: list[Slice], syntax: str = ExplicitVRLittleEndian) -> Path:
    """Files in shuffled order, in subfolders, without a suffix."""
    images = [image for stack in stacks for phases in stack for image in phases]
    random.Random(0).shuffle(images)
    for number, image in enumerate(images):
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID, image.file_meta.MediaStorageSOPClassUID = syntax, image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        path = folder / f"part{number % 2}" / f"IM{number:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(path, enforce_file_format=True)
    return folder


def expected_image(stack: list[Slice]) -> np.ndarray:
    """(X, Y, Z, T) from (rows, columns) of each file."""
    return np.stack([np.stack([image.pixel_array.T for image in phases], axis=-1) for phases in stack], axis=2)


def error_of(folder: Path) -> str:
    """The message for a folder: it names the folder, and nothing of the patient."""
    with pytest.raises(InputError) as caught:
        read_dicom_cine(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert not re.search("doe|jane|4711", message, re.IGNORECASE)
    return message


def test_reads_a_stack_of_one_series_a_slice(tmp_path: Path) -> None:
    stack = make_stack()
    cine = read_dicom_cine(write(tmp_path / "heart", stack))
    assert cine.name == "heart"
    assert cine.image.shape == (COLUMNS, ROWS, SLICES, PHASES)
    assert cine.image.dtype == np.float32
    np.testing.assert_array_equal(cine.image, expected_image(stack))
    np.testing.assert_allclose(cine.times, [[10 + z + (30 + z) * t for t in range(PHASES)] for z in range(SLICES)])
    assert cine.frame_time == pytest.approx(31)


def test_affine_puts_a_voxel_where_its_file_does(tmp_path: Path) -> None:
    stack = make_stack()
    cine = read_dicom_cine(write(tmp_path, stack))
    column, row = 5, 2
    for z, phases in enumerate(stack):
        lps = (
            np.array(phases[0].ImagePositionPatient, float) + AXES[0] * SPACING[1] * column + AXES[1] * SPACING[0] * row
        )
        np.testing.assert_allclose((cine.affine @ [column, row, z, 1])[:3], lps * [-1, -1, 1], atol=1e-3)
    np.testing.assert_allclose(cine.spacing, (SPACING[1], SPACING[0], GAP), rtol=1e-4)
    assert np.linalg.det(cine.affine) > 0
    np.testing.assert_array_equal(cine.affine[3], [0, 0, 0, 1])


def test_slices_follow_the_normal_whatever_the_order_of_acquisition(tmp_path: Path) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"InstanceNumber": 100 - PHASES * z + t})
    cine = read_dicom_cine(write(tmp_path, stack[::-1]))
    np.testing.assert_array_equal(cine.image, expected_image(stack))


@pytest.mark.parametrize("series", [lambda z, t: "1.2.3", lambda z, t: f"1.2.{t + 1}"], ids=["one", "one a phase"])
def test_series_do_not_matter(tmp_path: Path, series: Callable[[int, int], str]) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"SeriesInstanceUID": series(z, t)})
    cine = read_dicom_cine(write(tmp_path, stack))
    np.testing.assert_array_equal(cine.image, expected_image(stack))


def test_a_folder_holds_one_cine_beside_stills(tmp_path: Path) -> None:
    long_axis, shifted = np.stack([NORMAL, AXES[1]]), CORNER + 300 * AXES[0]
    stack = make_stack()
    # Scouts are no evenly spaced stack, and have no trigger times.
    scouts = [[make_image(CORNER + step * NORMAL, PixelSpacing=[2.0, 2.0])] for step in (0, 5, 20)]
    cine = read_dicom_cine(write(tmp_path / "study", stack, scouts, make_stack(4, 1, axes=long_axis, seed=1)))
    assert cine.name == "study"
    np.testing.assert_array_equal(cine.image, expected_image(stack))
    other = set_tags(make_stack(2, 2, shifted, seed=2), lambda z, t: {"PixelSpacing": [2.0, 2.0]})
    message = error_of(write(tmp_path / "two", stack, other, make_stack(1, 5, axes=long_axis, seed=1)))
    assert "holds 3 different stacks of cines (3 slices of 4 phases with IM" in message
    assert re.search(r"2 slices of 2 phases with IM\d+ \(series 0\); 1 slice of 5 phases", message)
    assert "give each one a folder of its own" in message
    assert "only single images" in error_of(write(tmp_path / "stills", scouts))


def test_orientations_that_jitter_are_averaged(tmp_path: Path) -> None:
    angles = np.deg2rad([-0.3, 0.0, 0.3])
    turned = [
        np.stack([np.cos(a) * AXES[0] + np.sin(a) * AXES[1], np.cos(a) * AXES[1] - np.sin(a) * AXES[0]]) for a in angles
    ]
    stack = set_tags(make_stack(), lambda z, t: {"ImageOrientationPatient": turned[z].round(6).ravel().tolist()})
    cine = read_dicom_cine(write(tmp_path, stack))
    np.testing.assert_allclose(cine.affine[:2, 0], -AXES[0, :2] * SPACING[1], atol=1e-4)


def test_other_files_are_skipped(tmp_path: Path) -> None:
    stack = make_stack()
    write(tmp_path, stack)
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "empty").touch()
    (tmp_path / ".#notes.txt").symlink_to("editor@host")
    (tmp_path / "._IM000.dcm").write_bytes(b"\0\5\26\7")
    report = pydicom.Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", generate_uid(), "SR"
    directory = pydicom.Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = MediaStorageDirectoryStorage, generate_uid()
    write(tmp_path / "more", [[make_image(CORNER, SOPClassUID=CTImageStorage, Modality="CT"), report, directory]])
    cine = read_dicom_cine(tmp_path)
    np.testing.assert_array_equal(cine.image, expected_image(stack))


def test_series_may_be_links(tmp_path: Path) -> None:
    stack = make_stack()
    write(tmp_path / "archive", stack)
    (tmp_path / "cine").mkdir()
    for part in ("part0", "part1"):
        (tmp_path / "cine" / part).symlink_to(tmp_path / "archive" / part)
    np.testing.assert_array_equal(read_dicom_cine(tmp_path / "cine").image, expected_image(stack))


@pytest.mark.parametrize("size", [0, 100, 140, 300, None])
def test_no_image_vanishes_because_its_file_is_spoiled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int | None
) -> None:
    path = min(write(tmp_path, make_stack()).glob("part*/IM*"))
    if size is None:
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_bytes(path.read_bytes()[:size])
        path = path.rename(path.with_suffix(".dcm")) if size == 100 else path
    if size == 0:
        assert "unequal numbers of phases" in error_of(tmp_path)
        assert f"{path.name} is empty and left out; an image whose copy failed?" in caplog.text
    else:
        words = {None: "cannot be read: it is a broken link", 100: "is not DICOM by its first bytes"}
        assert f": {path.name} {words.get(size, 'cannot be read as DICOM')}" in error_of(tmp_path)


def test_intensities_are_rescaled_file_by_file(tmp_path: Path) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"RescaleSlope": 0.5 + z, "RescaleIntercept": -10.0 * t})
    cine = read_dicom_cine(write(tmp_path, stack))
    slope, intercept = 0.5 + np.arange(SLICES)[:, None], -10.0 * np.arange(PHASES)
    np.testing.assert_allclose(cine.image, expected_image(stack) * slope + intercept, rtol=1e-6)
    assert cine.image.dtype == np.float32


def test_trigger_delays_of_converted_multi_frame_files_are_times(tmp_path: Path) -> None:
    rule = lambda z, t: {"TriggerTime": None, "NominalCardiacTriggerDelayTime": 20.0 * t, "StackID": "1"}
    cine = read_dicom_cine(write(tmp_path, set_tags(make_stack(), rule)))
    np.testing.assert_allclose(cine.times, [[0, 20, 40, 60]] * SLICES)


@pytest.mark.parametrize(("between", "thickness"), [(GAP, GAP), (None, 7.0), (0.0, 7.0)])
def test_a_lone_slice_takes_its_thickness_from_a_tag(tmp_path: Path, between: float | None, thickness: float) -> None:
    stack = set_tags(make_stack(slices=1), lambda z, t: {"SpacingBetweenSlices": between})
    cine = read_dicom_cine(write(tmp_path, stack))
    assert cine.image.shape == (COLUMNS, ROWS, 1, PHASES)
    assert cine.spacing[2] == pytest.approx(thickness, rel=1e-4)
    assert np.linalg.det(cine.affine) > 0


def test_nothing_of_the_patient_comes_back_or_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"SOPInstanceUID": f"1.2.04711.{z}{t + 1}"})
    folder = tmp_path / PATIENT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(folder, stack)
    caplog.clear()
    with warnings.catch_warnings(record=True) as shown, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        cine = read_dicom_cine(folder.rename(tmp_path / "case"))
    assert [str(one.message) for one in shown] + caplog.messages == []
    assert cine.name == "case"
    assert not re.search("doe|jane|4711", str(astuple(cine)), re.IGNORECASE)


def test_the_name_of_the_current_folder_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "heart", make_stack()))
    assert read_dicom_cine(".").name == "heart"


def test_stops_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no DICOM")
    assert "holds no DICOM MR image" in error_of(tmp_path)
    assert "no such folder" in error_of(tmp_path / "absent")


def test_stops_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(name: str, *rest: object) -> object:
        if name.startswith("pydicom"):
            raise ImportError(name)
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", forbid)
    assert "pip install pydicom" in error_of(tmp_path)


def make_enhanced(images: Slice, time_tag: str = "NominalCardiacTriggerDelayTime") -> pydicom.Dataset:
    """One Enhanced file of the images of classic ones, which keep nothing but their pixels, places, times and
    rescaling."""

    def group(**macros: dict) -> pydicom.Dataset:
        item = pydicom.Dataset()
        for name, tags in macros.items():
            macro = pydicom.Dataset()
            for tag, value in tags.items():
                setattr(macro, tag, value)
            setattr(item, name, [macro])
        return item

    moved = (
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "SliceThickness",
        "SpacingBetweenSlices",
    )
    file = make_image(
        CORNER, SOPClassUID=EnhancedMRImageStorage, NumberOfFrames=len(images), SeriesNumber=7, **dict.fromkeys(moved)
    )
    file.SeriesInstanceUID, file.PixelData = generate_uid(), b"".join(image.PixelData for image in images)
    measures = {tag: images[0][tag].value for tag in moved[2:]}
    orientation = {"ImageOrientationPatient": images[0].ImageOrientationPatient}
    file.SharedFunctionalGroupsSequence = [group(PixelMeasuresSequence=measures, PlaneOrientationSequence=orientation)]
    file.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePositionSequence={"ImagePositionPatient": image.ImagePositionPatient},
            CardiacSynchronizationSequence={time_tag: image.TriggerTime},
            PixelValueTransformationSequence={
                "RescaleSlope": image.get("RescaleSlope", 1.0),
                "RescaleIntercept": image.get("RescaleIntercept", 0.0),
            },
        )
        for image in images
    ]
    return file


@pytest.mark.parametrize("files", ["one", "one a slice", "compressed", "actual times"])
def test_enhanced_files_give_what_classic_ones_give(tmp_path: Path, files: str) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"RescaleSlope": 0.5 + z, "RescaleIntercept": -10.0 * t})
    expected = read_dicom_cine(write(tmp_path / "classic", stack))
    images = [image for phases in stack for image in phases]
    random.Random(1).shuffle(images)
    tag = "ActualCardiacTriggerDelayTime" if files == "actual times" else "NominalCardiacTriggerDelayTime"
    groups = stack if files == "one a slice" else [images]
    folder = write(tmp_path / "enhanced", [[make_enhanced(group, tag)] for group in groups])
    if files == "compressed":
        (path,) = (path for path in folder.rglob("*") if path.is_file())
        file = pydicom.dcmread(path)
        file.compress(RLELossless)
        file.save_as(path)
    found = read_dicom_cine(folder)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(found.times, expected.times)


def test_lossless_jpeg_gives_what_plain_pixels_give(tmp_path: Path) -> None:
    """What archives make of a scanner's files; encoded by GDCM."""
    import gdcm

    expected = read_dicom_cine(write(tmp_path / "plain", make_stack()))
    folder = write(tmp_path / "compressed", make_stack())
    for path in (path for path in folder.rglob("*") if path.is_file()):
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    found = read_dicom_cine(folder)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    np.testing.assert_allclose(found.times, expected.times)


def test_private_headers_of_frames_change_nothing(tmp_path: Path) -> None:
    """Philips has a classic header of each frame beside the public groups, in which place, scale and time are
    others."""
    stack = make_stack()
    expected = read_dicom_cine(write(tmp_path / "classic", stack))
    file = make_enhanced([image for phases in stack for image in phases])
    for number, groups in enumerate(file.PerFrameFunctionalGroupsSequence):
        private = pydicom.Dataset()
        private.ImagePositionPatient, private.RescaleSlope = [0.0, 0.0, 0.0], 4.5
        private.TriggerTime, private.SOPClassUID = float(-number), MRImageStorage
        groups.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
        groups.add_new(0x2005140F, "SQ", [private])
    found = read_dicom_cine(write(tmp_path / "enhanced", [[file]]))
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(found.times, expected.times)


@pytest.mark.parametrize("late", [0.0, 0.01], ids=["at one time", "interleaved"])
@pytest.mark.parametrize("part", ["P", "R", "I"])
@pytest.mark.parametrize("place", ["ImageType", "FrameType", "ComplexImageComponent"])
def test_parts_of_complex_images_are_left_out_beside_magnitudes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, part: str, late: float
) -> None:
    stack = set_tags(
        make_stack(), lambda z, t: {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "SeriesInstanceUID": "1.2.3"}
    )
    rule = lambda z, t: {
        "ImageType": ["ORIGINAL", "PRIMARY", part, "ND"],
        "TriggerTime": 10.0 + z + (30 + z) * t + late,
    }
    others = set_tags(set_tags(make_stack(seed=1), rule), lambda z, t: {"SeriesInstanceUID": "1.2.3"})
    folder = write(tmp_path / "classic", stack, others)
    if place != "ImageType":
        names = {"M": "MAGNITUDE", "P": "PHASE", "R": "REAL", "I": "IMAGINARY"}
        images = [image for both in (stack, others) for phases in both for image in phases]
        file = make_enhanced(images)
        for groups, image in zip(file.PerFrameFunctionalGroupsSequence, images, strict=True):
            kind = pydicom.Dataset()
            setattr(kind, place, list(image.ImageType) if place == "FrameType" else names[image.ImageType[2]])
            groups.MRImageFrameTypeSequence = [kind]
        folder = write(tmp_path / "enhanced", [[file]])
    np.testing.assert_array_equal(read_dicom_cine(folder).image, expected_image(stack))
    assert "left out 12 images, such as IM" in caplog.text
    assert "phase, real or imaginary parts beside a magnitude" in caplog.text


def test_phases_without_magnitudes_are_a_cine(tmp_path: Path) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"ImageType": ["ORIGINAL", "PRIMARY", "P"]})
    np.testing.assert_array_equal(read_dicom_cine(write(tmp_path, stack)).image, expected_image(stack))


@pytest.mark.parametrize(("bits", "signed"), [(12, False), (None, False), (16, True)])
def test_images_whose_least_value_is_white_are_turned_over(tmp_path: Path, bits: int | None, signed: bool) -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": int(signed)}
    tags |= {"RescaleSlope": 2.0, "RescaleIntercept": -50.0, "BitsStored": bits or 16}
    stack = set_tags(make_stack(), lambda z, t: tags)
    for image in (image for phases in stack for image in phases):
        image.PixelData = (np.frombuffer(image.PixelData, np.int16) % 4096).tobytes()
    white = -1 if signed else 2 ** (bits or 16) - 1
    np.testing.assert_array_equal(
        read_dicom_cine(write(tmp_path, stack)).image, 2 * (white - expected_image(stack).astype(np.int32)) - 50
    )


@pytest.mark.parametrize("meta", ["explicit", "implicit", "none", "none, implicit"])
@pytest.mark.parametrize("enhanced", [False, True])
def test_files_without_a_preamble_are_read(tmp_path: Path, meta: str, enhanced: bool) -> None:
    stack = make_stack()
    write(tmp_path / "classic", stack)
    syntax = ImplicitVRLittleEndian if "implicit" in meta else ExplicitVRLittleEndian
    files = [[make_enhanced([image for phases in stack for image in phases])]] if enhanced else stack
    folder = write(tmp_path / "files", files, syntax=syntax)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        body = path.read_bytes()
        # The tags of the data set begin with its class.
        path.write_bytes(body[132:] if "none" not in meta else body[body.index(bytes([8, 0, 22, 0])) :])
    np.testing.assert_array_equal(read_dicom_cine(folder).image, expected_image(stack))


def test_pictures_in_color_are_no_images(tmp_path: Path) -> None:
    stack = make_stack()
    color = make_image(
        CORNER, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, TriggerTime=99.0
    )
    np.testing.assert_array_equal(read_dicom_cine(write(tmp_path, stack, [[color]])).image, expected_image(stack))


def test_stacks_at_a_few_degrees_to_each_other_are_two(tmp_path: Path) -> None:
    angle = np.deg2rad(5)
    turned = np.stack(
        [np.cos(angle) * AXES[0] + np.sin(angle) * AXES[1], np.cos(angle) * AXES[1] - np.sin(angle) * AXES[0]]
    )
    other = make_stack(2, axes=turned, corner=CORNER + 200 * NORMAL, seed=1)
    assert "holds 2 different stacks" in error_of(write(tmp_path, make_stack(), other))


def test_a_cine_without_times_is_not_passed_over_for_another(tmp_path: Path) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"TriggerTime": None})
    long_axis = make_stack(1, 5, axes=np.stack([NORMAL, AXES[1]]), seed=1)
    assert "holds 2 different stacks of cines (3 slices of 4 phases" in error_of(write(tmp_path, stack, long_axis))


def test_slices_in_a_folder_each_are_called_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = lambda z, t: {"FrameOfReferenceUID": "1.2.7"}
    for z, phases in enumerate(make_stack()):
        write(tmp_path / "study" / f"slice{z}", set_tags([phases], frame))
    long_axis = make_stack(1, 5, axes=np.stack([NORMAL, AXES[1]]), seed=1)
    write(tmp_path / "study" / "long", set_tags(long_axis, frame))
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
        write(tmp_path / "cohort" / name, set_tags(make_stack(), lambda z, t, tags=tags: tags))
    assert len(find_cases(dataset_dir=str(tmp_path / "cohort"))) == 4
    assert not caplog.records


def test_copies_of_an_enhanced_file_count_once(tmp_path: Path) -> None:
    file = make_enhanced([image for phases in make_stack() for image in phases])
    folder = write(tmp_path, [[file]])
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    path.with_name("copy").write_bytes(path.read_bytes())
    assert read_dicom_cine(folder).image.shape == (COLUMNS, ROWS, SLICES, PHASES)


def test_stops_at_enhanced_files_that_do_not_say_where_their_frames_lie(tmp_path: Path) -> None:
    file = make_enhanced([image for phases in make_stack() for image in phases])
    del file.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence
    message = error_of(write(tmp_path / "one", [[file]]))
    assert "(series 7), frame 5 has no valid ImagePositionPatient" in message
    del file.PerFrameFunctionalGroupsSequence
    assert "(series 7) is Enhanced DICOM without PerFrameFunctionalGroupsSequence" in error_of(
        write(tmp_path / "all", [[file]])
    )
    file = make_enhanced([image for phases in make_stack() for image in phases])
    file.PixelData = file.PixelData[: ROWS * COLUMNS * 5]
    assert "cannot be read" in error_of(write(tmp_path / "cut", [[file]]))


def test_stops_at_classic_files_of_several_frames(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, make_stack(), [[make_image(CORNER, SeriesNumber=7, NumberOfFrames=3)]]))
    assert "(series 7) holds several frames in a class of files that has one each" in message


@pytest.mark.parametrize("tag", ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"])
def test_stops_at_files_without_geometry(tmp_path: Path, tag: str) -> None:
    message = error_of(write(tmp_path, [[make_image(CORNER, **{tag: None})]]))
    assert f"IM000 (series 0) has no valid {tag}; export it again" in message


def test_rounded_directions_are_taken_at_their_length(tmp_path: Path) -> None:
    rounded = AXES.round(3)
    assert np.abs(np.linalg.norm(rounded, axis=1) - 1).max() > 1e-4
    stack = set_tags(make_stack(), lambda *_: {"ImageOrientationPatient": rounded.ravel().tolist()})
    cine = read_dicom_cine(write(tmp_path / "rounded", stack))
    np.testing.assert_allclose(cine.affine, read_dicom_cine(write(tmp_path / "exact", make_stack())).affine, atol=0.05)
    message = error_of(write(tmp_path / "none", [[make_image(CORNER, ImageOrientationPatient=[0.0] * 6)]]))
    assert "IM000 (series 0) has no valid ImageOrientationPatient" in message


def test_stops_at_slices_of_unequal_numbers_of_phases(tmp_path: Path) -> None:
    stack = make_stack()
    stack[1].pop()
    message = error_of(write(tmp_path, stack))
    assert "unequal numbers of phases (4, 3, 4); add the missing files" in message
    assert "the stack of 11 images with IM000 (series 0)" in message


def test_stops_at_repeated_slices(tmp_path: Path) -> None:
    repeat = make_stack()[1:2]
    assert "slice 2 is there more than once (8 files, 2 series)" in error_of(
        write(tmp_path / "series", make_stack(), repeat)
    )
    doubled = [phases + make_stack()[z] for z, phases in enumerate(make_stack())]
    set_tags(doubled, lambda z, t: {"SeriesInstanceUID": "1.2.3"})
    assert "slice 1 has several images of one TriggerTime; keep one" in error_of(write(tmp_path / "phases", doubled))


def test_two_acquisitions_in_one_series_are_called_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_dicom_cine(write(tmp_path / "one", make_stack()))
    # A phase that is missing in all slices.
    read_dicom_cine(write(tmp_path / "gap", [[*phases[:1], *phases[2:]] for phases in make_stack()]))
    assert not caplog.records
    late = lambda z, t: {"TriggerTime": 13.0 + z + (30 + z) * t}
    doubled = [phases + others for phases, others in zip(make_stack(), set_tags(make_stack(seed=1), late))]
    set_tags(doubled, lambda z, t: {"SeriesInstanceUID": "1.2.3"})
    assert read_dicom_cine(write(tmp_path / "two", doubled)).frames == 2 * PHASES
    assert "its phases are 3 to 29 ms apart; where these are two acquisitions, keep one of them" in caplog.text


def test_a_slice_that_begins_a_phase_late_is_called_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = make_stack()
    read_dicom_cine(write(tmp_path / "late", [stack[0][:-1], stack[1][1:], *(phases[:-1] for phases in stack[2:])]))
    assert (
        "its slices begin 10 to 42 ms after the trigger, with phases 31 ms apart; where a slice lacks its first"
        in caplog.text
    )


def test_copies_of_a_file_count_once(tmp_path: Path) -> None:
    stack = make_stack()
    cine = read_dicom_cine(write(write(tmp_path, stack) / "copy", stack[:2]).parent)
    np.testing.assert_array_equal(cine.image, expected_image(stack))


def test_one_uid_for_all_files_makes_no_copies_of_them(tmp_path: Path) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"SOPInstanceUID": "1.2.3"})
    np.testing.assert_array_equal(read_dicom_cine(write(tmp_path / "phases", stack)).image, expected_image(stack))
    # Magnitude and phase images under one UID and time are no copies.
    doubled = [phases + make_stack(seed=1)[z] for z, phases in enumerate(make_stack())]
    set_tags(doubled, lambda z, t: {"SOPInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"})
    assert "slice 1 has several images of one TriggerTime" in error_of(write(tmp_path / "doubled", doubled))


def test_a_scout_taken_twice_is_no_cine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack, axes = make_stack(), np.stack([NORMAL, AXES[1]])
    scouts = [[make_image(CORNER, seed, axes, SeriesInstanceUID=generate_uid()) for seed in (0, 1)]]
    cine = read_dicom_cine(write(tmp_path, stack, scouts))
    np.testing.assert_array_equal(cine.image, expected_image(stack))
    assert "left out 2 images, such as IM" in caplog.text


@pytest.mark.parametrize("place", [0.5, 1.0, 5.0], ids=["between", "on a slice", "beyond"])
@pytest.mark.parametrize("per_phase", [False, True])
def test_a_single_image_parallel_to_the_cine_is_left_out(
    tmp_path: Path, place: float, per_phase: bool, caplog: pytest.LogCaptureFixture
) -> None:
    series = (lambda z, t: f"1.2.{t + 1}") if per_phase else (lambda z, t: f"1.2.{z + 1}")
    stack = set_tags(make_stack(), lambda z, t: {"SeriesInstanceUID": series(z, t)})
    scout = [
        [make_image(CORNER + place * GAP * NORMAL, 99, SeriesInstanceUID="1.2.99", SeriesNumber=9, TriggerTime=5.0)]
    ]
    write(tmp_path, stack, scout)
    if per_phase and place == 1:
        # It looks like one phase more of that slice.
        assert "unequal numbers of phases (4, 5, 4)" in error_of(tmp_path)
        return
    np.testing.assert_array_equal(read_dicom_cine(tmp_path).image, expected_image(stack))
    assert re.search(r"left out 1 images, such as IM\d+ \(series 9\): single in series of their own", caplog.text)


def test_a_slice_of_a_series_a_phase_beside_slices_of_one_series_is_kept(tmp_path: Path) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"SeriesInstanceUID": f"1.2.{z + 1}{t if z == 2 else ''}"})
    np.testing.assert_array_equal(read_dicom_cine(write(tmp_path, stack)).image, expected_image(stack))


def test_trigger_delays_order_phases_that_share_a_rounded_trigger_time(tmp_path: Path) -> None:
    rule = lambda z, t: {"TriggerTime": float(t // 2), "NominalCardiacTriggerDelayTime": 10.0 * t + z}
    stack = set_tags(make_stack(), rule)
    cine = read_dicom_cine(write(tmp_path, stack))
    np.testing.assert_array_equal(cine.image, expected_image(stack))
    np.testing.assert_allclose(cine.times, [[10 * t + z for t in range(PHASES)] for z in range(SLICES)])


def test_a_folder_of_nifti_files_says_how_to_give_them(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    assert "holds NIfTI files and no DICOM MR image; give --cine one of the files, or --dataset_dir" in error_of(
        tmp_path
    )


@pytest.mark.parametrize(
    ("pitch", "thickness", "said"), [(9.0, 8.0, True), (9.0, None, True), (18.0, 8.0, False), (1.0, 8.0, False)]
)
def test_every_second_slice_alone_is_called_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pitch: float, thickness: float | None, said: bool
) -> None:
    tags = {"SpacingBetweenSlices": pitch} | ({} if thickness is None else {"SliceThickness": thickness})
    stack = set_tags(make_stack(slices=5), lambda z, t: tags)
    if thickness is None:
        for phase in (phase for phases in stack for phase in phases):
            del phase.SliceThickness
    cine = read_dicom_cine(write(tmp_path, stack[::2]))
    assert np.linalg.norm(cine.affine[:3, 2]) == pytest.approx(18.0)
    assert (
        "its slices lie 18.0 mm apart, and were taken 9.0 mm apart by its files: are some missing?" in caplog.text
    ) == said


def test_stops_at_a_missing_slice(tmp_path: Path) -> None:
    stack = make_stack(slices=5)
    assert "unequally far apart (9.0, 18.0, 9.0 mm); add the missing slice" in error_of(
        write(tmp_path, stack[:2] + stack[3:])
    )


@pytest.mark.parametrize(
    "rule", [lambda z, t: z == 1, lambda z, t: z, lambda z, t: t == 2], ids=["slice", "shear", "phase"]
)
def test_stops_at_images_shifted_in_plane(tmp_path: Path, rule: Callable[[int, int], float]) -> None:
    place = lambda z, t: np.round(CORNER + z * GAP * NORMAL + 3 * rule(z, t) * AXES[0], 5).tolist()
    stack = set_tags(make_stack(), lambda z, t: {"ImagePositionPatient": place(z, t)})
    assert "shifted against each other in plane" in error_of(write(tmp_path, stack))


def test_shifts_below_half_a_pixel_leave_right_angles(tmp_path: Path) -> None:
    place = lambda z: np.round(CORNER + z * GAP * NORMAL + 0.4 * z * AXES[0], 5).tolist()
    cine = read_dicom_cine(write(tmp_path, set_tags(make_stack(), lambda z, t: {"ImagePositionPatient": place(z)})))
    check_right_angles(cine.affine, "the cine")
    assert np.linalg.norm(cine.affine[:3, 3] - CORNER * [-1, -1, 1]) < 0.5


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda z, t: {"TriggerTime": None}, r"12 of them, such as IM000 \(series 0\), have no trigger time"),
        (
            lambda z, t: {"TriggerTime": None} if (z, t) == (1, 2) else {},
            r"1 of them, such as IM\d+ \(series 0\), have no trigger",
        ),
        (
            lambda z, t: {"NominalCardiacTriggerDelayTime": 9.0 * t} | ({"TriggerTime": None} if z == t == 1 else {}),
            r"1 of them, such as IM\d+ \(series 0\), have no trigger",
        ),
        (lambda z, t: {"TriggerTime": 0.0}, "its trigger times do not differ"),
        (lambda z, t: {"TriggerTime": 0.0} if z == 2 else {}, "its trigger times do not differ"),
    ],
    ids=["none", "one lacks it", "one lost it", "zeros", "zeros in a slice"],
)
def test_stops_without_trigger_times(tmp_path: Path, rule: Callable[[int, int], dict], words: str) -> None:
    """Whatever else might tell the order of the phases."""
    others = lambda z, t: {
        "InstanceNumber": 100 * z + t,
        "TemporalPositionIdentifier": t + 1,
        "AcquisitionTime": f"13315{z}.{t}0",
    }
    message = error_of(write(tmp_path, set_tags(set_tags(make_stack(), others), rule)))
    assert re.search(words, message)
    assert "TriggerTime or NominalCardiacTriggerDelayTime or Actual" in message
    assert "export it again with them, or convert it to NIfTI" in message


def test_stops_at_a_lone_slice_without_thickness(tmp_path: Path) -> None:
    stack = set_tags(make_stack(slices=1), lambda z, t: {"SpacingBetweenSlices": None, "SliceThickness": None})
    assert "its only slice has neither SpacingBetweenSlices nor SliceThickness" in error_of(write(tmp_path, stack))


def test_stops_at_pixels_that_cannot_be_read(tmp_path: Path) -> None:
    stack = set_tags(make_stack(), lambda z, t: {"PixelData": b"\0\0"})
    assert "(series 0) cannot be read (Explicit VR Little Endian); export it again" in error_of(
        write(tmp_path / "short", stack)
    )
    stack = set_tags(
        make_stack(), lambda z, t: {"PixelData": make_image(CORNER).PixelData * 2} if (z, t) == (1, 2) else {}
    )
    assert re.search(
        r"IM\d+ \(series 0\) has pixels of the shape \(8, 6, 2\), not \(8, 6\)",
        error_of(write(tmp_path / "long", stack)),
    )
    fragment = pydicom.encaps.encapsulate([b"\0\0\0\0"])
    stack = set_tags(make_stack(), lambda z, t: {"PixelData": fragment})
    for syntax, name in (
        (JPEG2000Lossless, "(JPEG 2000 Image Compression (Lossless Only))"),
        (MPEG2MPML, "(MPEG2 Main Profile"),
    ):
        assert name in error_of(write(tmp_path / syntax, stack, syntax=syntax))


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


def test_a_spoiled_header_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "IM7").write_bytes(bytes(128) + b"DICM")

    def spoiled(*_: object, **__: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(pydicom, "dcmread", spoiled)
    with pytest.raises(
        InputError, match=r"IM7 cannot be read as DICOM \(error\); export it again or move it out of the folder"
    ):
        read_dicom_cine(tmp_path)
