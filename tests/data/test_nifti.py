"""The one door for NIfTI: what is read, and what is refused with which cure."""

from __future__ import annotations

import gzip
import logging
import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti
from scipy.spatial.transform import Rotation
from scripts.data.nifti import check_one_place, check_right_angles, read_nifti_cine, read_voxels
from scripts.errors import InputError


def test_damage_that_voxels_do_not_show_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 999, (9, 8, 7), dtype=np.int16), np.eye(4))
    nib.save(image, path)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_voxels(nib.load(path)), image.get_fdata())
    damaged = bytearray(whole)
    damaged[-6] ^= 1  # of the checksum
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        read_voxels(nib.load(path))


def test_a_file_at_two_places_is_refused_and_the_cure_is_one(tmp_path: Path) -> None:
    path, affine = tmp_path / "a.nii.gz", np.diag([-1.5, -1.5, 8.0, 1.0])
    image = nib.Nifti1Image(np.zeros((20, 18, 3), np.float32), affine)
    turned = affine.copy()
    turned[:3, :3] = Rotation.from_euler("z", 1, degrees=True).as_matrix() @ affine[:3, :3]
    image.set_qform(turned, 1)
    image.set_sform(affine, 2)
    nib.save(image, path)
    with pytest.raises(InputError, match=r"a\.nii\.gz: its qform and its sform put it up to 0\.6\d+ mm apart"):
        check_one_place(path)
    image.set_qform(image.affine, 1)
    nib.save(image, path)
    check_one_place(path)
    # One of the two alone is what all take.
    for wrong, right in (("qform", "sform"), ("sform", "qform")):
        getattr(image, f"set_{wrong}")(turned, 0)
        getattr(image, f"set_{right}")(affine, 1)
        nib.save(image, path)
        check_one_place(path)


def test_voxels_without_size_and_other_units_are_refused_and_no_place_is_called_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 2), np.float32), np.diag([1.5, 1.5, 8, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(
        InputError, match=r"a\.nii\.gz: its header gives lengths in units of a meter; write it again in mm"
    ):
        check_one_place(tmp_path / "a.nii.gz")
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii.gz")
    check_one_place(tmp_path / "a.nii.gz")
    assert not caplog.records
    raw = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    raw[252:256] = bytes(4)  # qform_code and sform_code
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    check_one_place(tmp_path / "b.nii.gz")
    assert "b.nii.gz: its header says nowhere where it lies (neither qform nor sform)" in caplog.text
    raw[88:92] = bytes(4)  # pixdim[3]
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(InputError, match=r"c\.nii\.gz: its header gives voxels of 1\.5 x 1\.5 x 0 mm"):
        check_one_place(tmp_path / "c.nii.gz")
    for flat in (np.diag([1.5, 1.5, 0, 1]), np.diag([1.5, np.nan, 8, 1])):
        with pytest.raises(InputError, match="d: its voxels are"):
            check_right_angles(flat, "d")


def test_sizes_that_are_not_the_sform_s_are_refused_as_itk_takes_them(tmp_path: Path) -> None:
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    image = nib.Nifti1Image(np.zeros((20, 18, 3), np.float32), affine)
    image.set_qform(affine, 0)
    image.set_sform(affine, 2)
    image.header["pixdim"][1:3] = 1
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").affine, affine)
    assert list(itk.imread(str(tmp_path / "a.nii.gz")).GetSpacing()) == [1, 1, 8]
    with pytest.raises(
        InputError, match=r"gives voxels of 1 x 1 x 8 mm and its sform such of 1\.5 x 1\.5 x 8 mm, .*set_qform\("
    ):
        check_one_place(tmp_path / "a.nii.gz")
    mended = nib.load(tmp_path / "a.nii.gz")
    mended.set_qform(mended.affine, 1)
    nib.save(mended, tmp_path / "b.nii.gz")
    check_one_place(tmp_path / "b.nii.gz")
    assert list(itk.imread(str(tmp_path / "b.nii.gz")).GetSpacing()) == [1.5, 1.5, 8]


def test_a_pair_of_header_and_image_lies_where_its_header_says(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((4, 4, 2), np.float32), np.diag([1.5, 1.5, 8, 1])), tmp_path / "a.img")
    check_one_place(tmp_path / "a.img")


def write_cine(path: Path, array: np.ndarray, step: float | None = None, unit: str | None = None) -> Path:
    image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0]))
    if step is not None:
        image.header.set_xyzt_units("mm", unit)
        image.header.set_zooms((1.5, 1.5, 8.0, step))
    nib.save(image, path)
    return path


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
