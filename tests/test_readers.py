"""Cines from NIfTI files: intensities, affines, and frame times as headers tell them."""

from __future__ import annotations

import gzip
import json
import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti
from scripts.errors import InputError
from scripts.readers import read_cine, read_nifti_cine

SHAPE = (7, 6, 3, 5)


def write_cine(path: Path, array: np.ndarray, step: float | None = None, unit: str | None = None) -> Path:
    image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0]))
    if step is not None:
        image.header.set_xyzt_units("mm", unit)
        image.header.set_zooms((1.5, 1.5, 8.0, step))
    nib.save(image, path)
    return path


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, SHAPE).astype(np.int16)


@pytest.mark.parametrize(
    ("step", "unit", "milliseconds"),
    [(37.5, "msec", 37.5), (0.0375, "sec", 37.5), (37500, "usec", 37.5), (1.0, "sec", None), (0.0, "msec", None)]
    + [(37.5, None, None), (None, None, None), (30.0, "hz", None)],
)
def test_frame_times_are_the_headers(
    tmp_path: Path, array: np.ndarray, step: float | None, unit: str | None, milliseconds: float | None
) -> None:
    cine = read_nifti_cine(write_cine(tmp_path / "some_4d.nii.gz", array, step, unit))
    if milliseconds is None:
        assert cine.times is None
        assert cine.frame_time is None
    else:
        np.testing.assert_allclose(cine.times, np.tile(milliseconds * np.arange(5), (3, 1)), rtol=1e-6)
        assert cine.frame_time == pytest.approx(milliseconds)


def test_a_cine_keeps_values_affine_and_name(tmp_path: Path, array: np.ndarray) -> None:
    affine = np.array([[0.9, -0.4, 1.0, -30], [0.5, 1.2, -2.0, 40], [0.1, 0.6, 7.5, 5], [0, 0, 0, 1.0]])
    for name in ("one_4d.nii.gz", "one.nii"):
        cine = read_cine(write_nifti(tmp_path / name, array, affine))
        np.testing.assert_array_equal(cine.image, array)
        assert cine.image.dtype == np.float32
        np.testing.assert_allclose(cine.affine, affine, atol=1e-6)
        np.testing.assert_allclose(cine.spacing, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), rtol=1e-6)
        assert cine.frames == 5
        assert cine.name == "one"


def test_a_scaled_file_is_read_in_its_unit(tmp_path: Path, array: np.ndarray) -> None:
    image = nib.Nifti1Image(array / 3000 - 0.5, np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").dataobj.slope < 0.01
    np.testing.assert_allclose(read_nifti_cine(tmp_path / "a.nii").image, array / 3000 - 0.5, atol=1e-4)


def test_axes_of_length_one_are_dropped_and_a_pair_of_files_is_named_as_one(tmp_path: Path, array: np.ndarray) -> None:
    cine = read_nifti_cine(write_nifti(tmp_path / "five.nii.gz", array[..., None]))
    np.testing.assert_array_equal(cine.image, array)
    nib.save(nib.Nifti1Pair(array, np.diag([1.5, 1.5, 8, 1])), tmp_path / "two_4d.img")
    assert read_nifti_cine(tmp_path / "two_4d.img").name == "two"


def test_a_frame_time_that_is_none_is_logged(
    tmp_path: Path, array: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="inference"):
        for step, unit in ((1.0, "sec"), (37.5, "msec"), (1.0, "msec"), (3.0, "msec")):
            read_nifti_cine(write_cine(tmp_path / "a.nii.gz", array, step, unit))
        assert not caplog.records
        read_nifti_cine(write_cine(tmp_path / "a.nii.gz", array, 37.5, "sec"))
    assert "a.nii.gz: a frame time of 37.5 sec is implausible, so times are left out" in caplog.text
    # Seconds under the wrong unit.
    assert read_nifti_cine(write_cine(tmp_path / "a.nii.gz", array, 0.0375, "msec")).times is None
    assert "a frame time of 0.0375 msec is implausible" in caplog.text


def test_what_is_no_cine_is_named_with_its_cure(tmp_path: Path, array: np.ndarray) -> None:
    whole = write_nifti(tmp_path / "whole.nii.gz", array).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("no image")
    write_nifti(tmp_path / "stack.nii.gz", array[..., 0])
    write_nifti(tmp_path / "one.nii.gz", array[..., :1])
    write_nifti(tmp_path / "vectors.nii.gz", np.stack([array] * 3, axis=-1))
    nib.save(nib.Nifti1Image(array * np.complex64(1j), np.eye(4)), tmp_path / "complex.nii.gz")
    colors = np.zeros(array.shape, [(channel, np.uint8) for channel in "RGB"])
    nib.save(nib.Nifti1Image(colors, np.eye(4)), tmp_path / "colors.nii.gz")
    whole = (tmp_path / "complex.nii.gz").read_bytes()
    (tmp_path / "packed.nii").write_bytes(whole)
    (tmp_path / "unpacked.nii.gz").write_bytes(gzip.decompress(whole))
    (tmp_path / "volume.nrrd").write_bytes(b"NRRD0004")
    (tmp_path / "IM1").write_bytes(bytes(128) + b"DICM")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        bad = array.astype(np.float32)
        bad[2, 3, 1, 4] = value
        write_nifti(tmp_path / f"{name}.nii.gz", bad)
    for name, words in {
        "missing.nii.gz": "no such file",
        "cut.nii.gz": "is the file complete?",
        "text.nii": "cannot be read as NIfTI",
        "colors.nii.gz": "its voxels are colors: convert them to gray.",
        "packed.nii": "it is compressed: rename it to .nii.gz.",
        "unpacked.nii.gz": "it is not compressed: rename it to .nii.",
        "volume.nrrd": "convert it to .nii.gz.",
        "stack.nii.gz": "--moving and --fixed",
        "one.nii.gz": "two frames or more",
        "vectors.nii.gz": "has the shape (7, 6, 3, 5, 3); a cine is (X, Y, Z, T)",
        "complex.nii.gz": "holds complex numbers; write their magnitude to a new file",
        "IM1": "is one DICOM file; give --cine the folder",
        "nan.nii.gz": "NaN or Inf",
        "inf.nii.gz": "replace those voxels",
    }.items():
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            read_nifti_cine(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(("axis", "order"), [(0, [2, 0, 1]), (1, [0, 2, 1])])
def test_slices_along_another_axis_are_refused_and_the_cure_is_one(
    tmp_path: Path, array: np.ndarray, axis: int, order: list[int]
) -> None:
    affine = np.array([[0, 1.37, 0.1, 4], [1.37, 0, 0.2, -5], [0, 0, 9.9, 6], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "turned.nii.gz", array.transpose(*order, 3), affine[:, [*order, 3]])
    with pytest.raises(
        InputError, match=rf"turned\.nii\.gz: its slices lie along axis {axis + 1} of its three \(voxels of "
    ) as caught:
        read_cine(path)
    cure = re.search(r"as_reoriented\((.*?)\)", str(caught.value))[1]
    nib.save(nib.load(path).as_reoriented(np.array(json.loads(cure))), tmp_path / "mended.nii.gz")
    cine = read_cine(tmp_path / "mended.nii.gz")
    np.testing.assert_array_equal(cine.image, array)
    np.testing.assert_allclose(cine.affine, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((7, 6, 3, 5), (1.4, 1.4, 1.4)),
        ((7, 6, 3, 5), (2, 1.4, 1.4)),
        ((7, 6, 3, 5), (1.8, 1.4, 1)),
        ((7, 6, 1, 5), (2.9, 1.4, 1)),
    ],
    ids=["isotropic", "nearly", "oblong", "one slice"],
)
def test_files_without_clearly_thick_slices_are_read(
    tmp_path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    assert read_cine(write_nifti(tmp_path / "a.nii.gz", np.ones(shape, np.float32), np.diag([*spacing, 1]))).frames == 5


def test_one_dicom_file_says_to_give_its_folder(tmp_path: Path) -> None:
    (tmp_path / "1.DCM").touch()
    with pytest.raises(InputError, match=r"1\.DCM: is one DICOM file; give --cine the folder"):
        read_cine(tmp_path / "1.DCM")


def test_a_cine_at_two_places_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0]))
    image.set_qform(np.diag([1.5, 1.5, 8.0, 1.0]) + np.eye(4, k=3) * 7, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: its qform and its sform put it up to 7 mm apart"):
        read_cine(tmp_path / "a.nii.gz")


def test_another_format_is_named(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(np.zeros((4, 4, 2, 3), np.float32), np.eye(4)), tmp_path / "a.mgz")
    with pytest.raises(InputError, match=r"a\.mgz: is MGH, no NIfTI; convert it to \.nii\.gz"):
        read_cine(tmp_path / "a.mgz")
