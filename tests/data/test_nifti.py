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

"""The one door for NIfTI: what is read, and what is refused with which cure."""

from __future__ import annotations

import errno
import gzip
import itertools
import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti
from nibabel.affines import voxel_sizes
from oblique import grid_affine
from scipy.spatial.transform import Rotation
from scripts.data.itk_fields import write_field
from scripts.data.nifti import check_right_angles, open_nifti, read_nifti_cine, unreadable
from scripts.errors import InputError
from scripts.workflow.writers import write_nifti as write_output


def test_damage_that_voxels_do_not_show_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 999, (9, 8, 7), dtype=np.int16), np.eye(4))
    nib.save(image, path)
    whole = path.read_bytes()
    np.testing.assert_array_equal(open_nifti(path).voxels(), image.get_fdata())
    damaged = bytearray(whole)
    damaged[-6] ^= 1  # of the checksum
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be read as NIfTI \(CRC check failed"):
        open_nifti(path).voxels()


def test_a_file_at_two_places_is_refused_and_the_cure_is_one(tmp_path: Path) -> None:
    path, affine = tmp_path / "a.nii.gz", np.diag([-1.5, -1.5, 8.0, 1.0])
    image = nib.Nifti1Image(np.zeros((20, 18, 3), np.float32), affine)
    turned = affine.copy()
    turned[:3, :3] = Rotation.from_euler("z", 1, degrees=True).as_matrix() @ affine[:3, :3]
    image.set_qform(turned, 1)
    image.set_sform(affine, 2)
    nib.save(image, path)
    with pytest.raises(InputError, match=r"a\.nii\.gz: its qform and its sform put it up to 0\.6\d+ mm apart"):
        open_nifti(path)
    image.set_qform(image.affine, 1)
    nib.save(image, path)
    open_nifti(path)
    # One of the two alone is what all take.
    for wrong, right in (("qform", "sform"), ("sform", "qform")):
        getattr(image, f"set_{wrong}")(turned, 0)
        getattr(image, f"set_{right}")(affine, 1)
        nib.save(image, path)
        open_nifti(path)


def test_voxels_without_size_and_other_units_are_refused_and_no_place_is_called_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 2), np.float32), np.diag([1.5, 1.5, 8, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(
        InputError, match=r"a\.nii\.gz: its header gives lengths in units of a meter; write it again in mm"
    ):
        open_nifti(tmp_path / "a.nii.gz")
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii.gz")
    open_nifti(tmp_path / "a.nii.gz")
    assert not caplog.records
    raw = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    raw[252:256] = bytes(4)  # qform_code and sform_code
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    open_nifti(tmp_path / "b.nii.gz")
    assert "b.nii.gz: its header says nowhere where it lies (neither qform nor sform)" in caplog.text
    raw[88:92] = bytes(4)  # pixdim[3]
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(InputError, match=r"c\.nii\.gz: its header gives voxels of 1\.5 x 1\.5 x 0 mm"):
        open_nifti(tmp_path / "c.nii.gz")
    for flat in (np.diag([1.5, 1.5, 0, 1]), np.diag([1.5, np.nan, 8, 1])):
        with pytest.raises(InputError, match="d: its voxels are"):
            check_right_angles(flat, "d")


def write_header(
    path: Path, qform: np.ndarray, sform: np.ndarray, codes: tuple[int, int], sizes: tuple[float, float, float]
) -> Path:
    """A file whose forms and sizes say what they are told, be it nonsense."""
    image = nib.Nifti1Image(np.zeros((20, 18, 3), np.int16), None)
    image.header.set_qform(qform, codes[0])
    image.header.set_sform(sform, codes[1])
    image.header["pixdim"][1:4] = sizes
    nib.save(image, path)
    return path


def itk_affine(path: Path) -> np.ndarray:
    """Voxel index to RAS where ITK's reader puts a file."""
    reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=str(path))
    reader.Update()
    image, affine = reader.GetOutput(), np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


SIZES = (1.5, 1.3, 8.0)
TURNS = {"straight": (0, 0, 180), "oblique": (20, -30, 40)}


@pytest.mark.parametrize("codes", itertools.product((0, 1, 2), (0, 1, 2)))
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("columns", ["true", "of length 1"])
def test_a_file_lies_where_itk_puts_it_whatever_its_codes_and_columns(
    tmp_path: Path, codes: tuple[int, int], turn: str, columns: str
) -> None:
    true = grid_affine(TURNS[turn], SIZES)
    sform = true if columns == "true" else grid_affine(TURNS[turn], (1, 1, 1))
    path = write_header(tmp_path / "a.nii.gz", true, sform, codes, SIZES)
    file = open_nifti(path)
    np.testing.assert_allclose(file.affine, itk_affine(path), atol=1e-4)
    np.testing.assert_allclose(voxel_sizes(file.affine), SIZES, atol=1e-5)
    assert file.placed == any(codes)
    if any(codes):
        np.testing.assert_allclose(file.affine, true, atol=1e-4)
    is_mended = codes[1] and columns != "true"
    assert ("pixdim's sizes are taken" in " ".join(file.notes)) == bool(is_mended)


@pytest.mark.parametrize("codes", [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)])
def test_an_sform_of_other_sizes_that_are_none_is_refused_and_the_cure_is_one(
    tmp_path: Path, codes: tuple[int, int]
) -> None:
    true, sform = grid_affine(TURNS["oblique"], SIZES), grid_affine(TURNS["oblique"], (1.5, 1.3, 10))
    path = write_header(tmp_path / "a.nii.gz", true, sform, codes, SIZES)
    with pytest.raises(InputError, match=r"where the sform is right, write `img = .*img\.set_qform\(img\.affine, 1\)`"):
        open_nifti(path)
    mended = nib.load(path)
    mended.set_qform(mended.affine, 1)
    nib.save(mended, tmp_path / "b.nii.gz")
    np.testing.assert_allclose(open_nifti(tmp_path / "b.nii.gz").affine, sform, atol=1e-4)
    np.testing.assert_allclose(itk_affine(tmp_path / "b.nii.gz"), sform, atol=1e-4)


def test_a_qform_elsewhere_than_an_sform_of_length_1_is_refused(tmp_path: Path) -> None:
    true, sform = grid_affine((0, 0, 180), SIZES), grid_affine((0, 0, 180), (1, 1, 1), (0, 0, 0))
    for codes in ((1, 1), (1, 2)):
        path = write_header(tmp_path / "a.nii.gz", true, sform, codes, SIZES)
        with pytest.raises(InputError, match=r"its qform and its sform put it up to 52\.\d mm apart"):
            open_nifti(path)


def test_what_is_written_lies_where_itk_puts_a_file_as_acdc_publishes_it(
    tmp_path: Path, array: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    path, frame = tmp_path / "a_4d.nii.gz", tmp_path / "frame.nii.gz"
    for file, voxels in ((path, array), (frame, array[..., 0])):
        image = nib.Nifti1Image(voxels, None)
        image.header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), 2)
        image.header["pixdim"][1:4] = 1.25, 1.5, 10
        nib.save(image, file)
    cine = read_nifti_cine(path)
    assert caplog.text.count("its sform has voxels of 1 x 1 x 1 mm and its pixdim says 1.25 x 1.5 x 10") == 1
    for _ in range(3):
        read_nifti_cine(path)
    assert len(caplog.records) == 1
    write_output(tmp_path / "moved.nii.gz", cine.image[..., 0], cine)
    write_field(tmp_path / "field.nii.gz", np.zeros((2, *cine.image.shape[:3])), cine.affine)
    for name in ("moved", "field"):
        where = nib.load(tmp_path / f"{name}.nii.gz").affine
        np.testing.assert_allclose(where, np.diag([-1.25, -1.5, 10, 1]), atol=1e-6)
        np.testing.assert_allclose(where, itk_affine(frame), atol=1e-5)
    # The line in docs/files.md.
    img = nib.load(path)
    nib.save(
        nib.Nifti1Image(img.dataobj, img.affine @ np.diag([*img.header.get_zooms()[:3], 1])), tmp_path / "mended.nii.gz"
    )
    np.testing.assert_allclose(nib.load(tmp_path / "mended.nii.gz").affine, cine.affine, atol=1e-6)
    np.testing.assert_allclose(open_nifti(tmp_path / "mended.nii.gz").affine, cine.affine, atol=1e-6)


def test_published_acdc_lies_where_itk_puts_it(acdc: Path) -> None:
    for subject in ("patient001", "patient090"):
        for path in sorted((acdc / subject).glob("*_frame*.nii.gz")):
            file = open_nifti(path)
            np.testing.assert_allclose(file.affine, itk_affine(path), atol=1e-5)
            np.testing.assert_allclose(voxel_sizes(file.affine), file.header.get_zooms(), rtol=1e-5)


@pytest.mark.parametrize("codes", [(0, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("degrees", [0.05, 1.1, 1.9])
def test_a_small_shear_is_straightened_about_the_center_or_to_the_qform(
    tmp_path: Path, codes: tuple[int, int], degrees: float
) -> None:
    """As ukbb_cardiac's converter leaves it, which takes the third axis from the corners of two slices."""
    affine, angle = grid_affine(TURNS["oblique"], SIZES), np.deg2rad(degrees)
    sheared = affine.copy()
    sheared[:3, 2] = SIZES[2] / SIZES[0] * np.sin(angle) * affine[:3, 0] + np.cos(angle) * affine[:3, 2]
    path = write_header(tmp_path / "a.nii.gz", sheared, sheared, codes, SIZES)
    file = open_nifti(path)
    check_right_angles(file.affine, "a")
    np.testing.assert_allclose(
        voxel_sizes(file.affine), [*SIZES[:2], SIZES[2] * (np.cos(angle) if not codes[0] else 1)]
    )
    assert f"off right angles by {degrees:.2g} degrees and are straightened" in " ".join(file.notes)
    if codes[0]:
        np.testing.assert_allclose(file.affine, itk_affine(path), atol=1e-3)
    else:
        center = [9.5, 8.5, 1, 1]
        np.testing.assert_allclose(file.affine @ center, sheared @ center, atol=1e-5)
    cosine = np.deg2rad(2.2)
    sheared[:3, 2] = SIZES[2] / SIZES[0] * np.sin(cosine) * affine[:3, 0] + np.cos(cosine) * affine[:3, 2]
    with pytest.raises(InputError, match=r"a\.nii\.gz: its axes are off right angles by 2\.2 degrees"):
        open_nifti(write_header(tmp_path / "a.nii.gz", sheared, sheared, (0, 2), SIZES))


def test_a_quaternion_that_is_no_rotation_and_numbers_beyond_single_precision_have_their_cures(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((4, 4, 2), 1e300), np.diag([1.5, 1.5, 8, 1]))
    nib.save(image, tmp_path / "big.nii")
    with pytest.raises(InputError, match=r"big\.nii: holds 1e\+300, beyond single precision; scale its intensities"):
        open_nifti(tmp_path / "big.nii").voxels()
    raw = bytearray((tmp_path / "big.nii").read_bytes())
    raw[252:256] = np.array([1, 0], "<i2").tobytes()
    raw[256:268] = np.array([5, 5, 5], "<f4").tobytes()
    (tmp_path / "turn.nii").write_bytes(raw)
    with pytest.raises(InputError, match=r"turn\.nii: its header has no valid qform .*; write it again with an affine"):
        open_nifti(tmp_path / "turn.nii")


@pytest.mark.parametrize("shape", [(7, 6, 3, 1, 5), (7, 6, 3, 5, 1)])
def test_time_may_be_the_fifth_axis(tmp_path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", array.reshape(shape))
    np.testing.assert_array_equal(read_nifti_cine(path).image, array)
    np.testing.assert_array_equal(open_nifti(path).voxels(3), array[..., 3])


def test_a_pair_of_header_and_image_lies_where_its_header_says(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((4, 4, 2), np.float32), np.diag([1.5, 1.5, 8, 1])), tmp_path / "a.img")
    open_nifti(tmp_path / "a.img")


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


@pytest.mark.parametrize(("shape", "size"), [((30000, 30000, 3000, 2), 0.1), ((512, 512, 30000, 1000), 1.5)])
def test_a_grid_that_cannot_be_meant_is_refused_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...], size: float
) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.diag([size, size, 8, 1]), 1)
    header["pixdim"][1:4], header["vox_offset"], header["magic"] = (size, size, 8), 352, b"n+1"
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(
        InputError, match=r"a\.nii: has the shape .*, and no cine is so large; correct the file's header"
    ):
        open_nifti(tmp_path / "a.nii")


def test_a_lack_of_memory_is_not_taken_for_damage(tmp_path: Path, array: np.ndarray) -> None:
    path = write_nifti(tmp_path / "a.nii", array)
    for error in (MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")):
        assert str(unreadable(path, error)).endswith(
            "it needs more memory than there is: close other programs, or crop the image."
        )


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
        "vectors.nii.gz": "nibabel.Nifti1Image(img.dataobj[..., 0], img.affine)`, to a new file",
        "complex.nii.gz": "holds complex numbers; write their magnitude to a new file",
        "IM1": "is one DICOM file; give --cine the folder",
        "nan.nii.gz": "NaN or Inf",
        "inf.nii.gz": "replace those voxels",
    }.items():
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            read_nifti_cine(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
