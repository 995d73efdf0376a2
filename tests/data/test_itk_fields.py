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

"""Fields in files against ITK's own reader and resamplers, on oblique, anisotropic, flipped grids and single slices,
and landmarks against analytic displacements in mm.
"""

from __future__ import annotations

import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from itk_files import SCALAR, VECTORS, itk_moved, read_itk
from oblique import AFFINE, GRIDS, LPS, SHAPE, grid_affine, indices, positions, waves
from scipy.ndimage import map_coordinates
from scripts.data.grids import pull
from scripts.data.itk_fields import STEP_MM, lps_to_voxels, read_field, voxels_to_lps, write_field
from scripts.data.nifti import check_right_angles
from scripts.errors import InputError
from scripts.registration.fields import warp_stack
from scripts.workflow.assemble import invert_array


def stays_inside(field: np.ndarray, to_image: np.ndarray, size: tuple[int, ...], margin: float = 0.49) -> np.ndarray:
    """Where x + u(x), taken to another image's voxels, lies in it up to a margin beyond its outer voxels' centers."""
    index = indices(field.shape[1:])
    index[: len(field)] += field
    where, last = positions(index, to_image), np.array(size).reshape(3, 1, 1, 1) - 1
    return ((where >= -margin) & (where <= last + margin)).all(axis=0)


def off_the_edge(field: np.ndarray, to_image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Where x + u(x) is clearly in the other image, or clearly outside."""
    return stays_inside(field, to_image, size) | ~stays_inside(field, to_image, size, margin=0.51)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("name", GRIDS)
def test_itk_moves_the_image_as_we_do(name: str, channels: int, tmp_path: Path) -> None:
    affine, shape = GRIDS[name]
    image = np.random.default_rng(0).normal(500, 200, shape).astype(np.float32)
    field = waves(indices(shape), channels) * np.array([1, 1, shape[2] > 1]).reshape(3, 1, 1, 1)[:channels]
    write_field(tmp_path / "field.nii.gz", field, affine)
    moving = write_nifti(tmp_path / "moving.nii.gz", image, affine)
    inside, sure = stays_inside(field, np.eye(4), shape), off_the_edge(field, np.eye(4), shape)
    assert 0.4 < inside.mean() < sure.mean()
    read, read_affine = read_field(tmp_path / "field.nii.gz")
    ours = [(pull(image, affine, field, affine), sure), (pull(image, affine, read, read_affine), sure)]
    if channels == 2:
        ours.append((warp_stack(torch.from_numpy(image)[None], torch.from_numpy(field))[0].numpy(), inside))
    assert np.abs(ours[0][0] - image)[inside].max() > 0.2 * np.ptp(image)
    for theirs in itk_moved(tmp_path / "field.nii.gz", moving, moving):
        for moved, where in ours:
            assert moved.shape == theirs.shape
            assert np.abs(moved - theirs)[where].max() < 1e-3 * np.ptp(image)


def test_simpleitk_moves_a_frame_as_the_readme_says(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    index = indices(SHAPE)
    frame = (100 + 50 * np.sin(0.3 * index[0] + 0.2 * index[1])).astype(np.float32)
    paths = [str(write_nifti(tmp_path / f"{name}.nii.gz", frame, AFFINE)) for name in ("frame", "fixed")]
    write_field(tmp_path / "field.nii.gz", waves(index), AFFINE)
    field = sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64)
    images = map(sitk.ReadImage, paths)
    moved = sitk.Resample(*images, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    inside = stays_inside(waves(index), np.eye(4), SHAPE)
    assert inside.mean() > 0.7
    expected = pull(frame, AFFINE, waves(index), AFFINE)
    np.testing.assert_allclose(sitk.GetArrayFromImage(moved).T[inside], expected[inside], atol=0.05)


def test_an_image_on_another_grid(tmp_path: Path) -> None:
    other = grid_affine((35, -20, 5), (-1.7, 2.2, 3.1))
    size, field = (34, 30, 26), waves(indices(SHAPE), 3)
    # The other grid is laid so that the centers of both coincide.
    other[:3, 3] += AFFINE[:3] @ [12.5, 10.5, 1.5, 1] - other[:3] @ [16.5, 14.5, 12.5, 1]
    to_image = np.linalg.inv(other) @ AFFINE
    inside, sure = stays_inside(field, to_image, size), off_the_edge(field, to_image, size)
    assert inside.mean() > 0.5
    write_field(tmp_path / "field.nii.gz", field, AFFINE)
    fixed = write_nifti(tmp_path / "fixed.nii.gz", np.zeros(SHAPE, np.float32), AFFINE)
    noise = np.random.default_rng(1).normal(0, 1, size).astype(np.float32)
    moved = pull(noise, other, field, AFFINE)
    for theirs in itk_moved(tmp_path / "field.nii.gz", write_nifti(tmp_path / "noise.nii.gz", noise, other), fixed):
        assert np.abs(moved - theirs)[sure].max() < 1e-3 * np.ptp(noise)
    # What is linear in space, linear interpolation gives exactly.
    ramp = lambda where: np.einsum("i,i...->...", [0.7, -1.1, 0.4], where)
    index = indices(SHAPE)
    expected = ramp(positions(index + field, AFFINE))
    moved = pull(ramp(positions(indices(size), other)), other, field, AFFINE)
    np.testing.assert_allclose(moved[inside], expected[inside], atol=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_the_file_lies_where_the_image_lies(name: str, tmp_path: Path) -> None:
    affine, shape = GRIDS[name]
    field = waves(indices(shape))
    write_field(tmp_path / "field.nii.gz", field, affine)
    file = nib.load(tmp_path / "field.nii.gz")
    # A vector image of one slice would be two-dimensional to ITK.
    assert file.shape == (*shape[:2], max(shape[2], 2), 1, 3)
    assert file.header["intent_code"] == 1007
    assert file.get_data_dtype() == np.float32
    assert file.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(file.affine, affine, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["field.nii.gz"]
    vectors = read_itk(tmp_path / "field.nii.gz", VECTORS)
    corner = [n - 1 for n in shape]
    np.testing.assert_allclose(
        vectors.TransformIndexToPhysicalPoint(corner), (affine @ [*corner, 1])[:3] * LPS, atol=1e-4
    )
    # The displacement in mm along LPS takes a voxel's position to that of the voxel x + u.
    index = indices(shape)
    target = positions(index + np.pad(field, [(0, 1), *[(0, 0)] * 3]), affine)
    expected = np.moveaxis(target - positions(index, affine), 0, -1) * LPS
    written = itk.array_from_image(vectors).transpose(2, 1, 0, 3)[:, :, : shape[2]]
    np.testing.assert_allclose(written, expected, atol=STEP_MM / 2 + 1e-5)
    np.testing.assert_array_equal(written, np.round(written / STEP_MM) * STEP_MM)
    read, read_affine = read_field(tmp_path / "field.nii.gz")
    assert read.shape == (3, *shape)
    np.testing.assert_allclose(read[:2], field, atol=3e-4)
    np.testing.assert_allclose(read[2], 0, atol=3e-4)
    np.testing.assert_allclose(read_affine, affine, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("name", GRIDS)
def test_ants_moves_the_image_as_we_do(name: str, channels: int, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="ANTs is not installed: pip install antspyx")
    affine, shape = GRIDS[name]
    image = np.random.default_rng(0).normal(500, 200, shape).astype(np.float32)
    field = waves(indices(shape), channels) * np.array([1, 1, shape[2] > 1]).reshape(3, 1, 1, 1)[:channels]
    write_field(tmp_path / "field.nii.gz", field, affine)
    moving = ants.image_read(str(write_nifti(tmp_path / "moving.nii.gz", image, affine)))
    theirs = ants.apply_transforms(moving, moving, [str(tmp_path / "field.nii.gz")], interpolator="linear").numpy()
    sure = off_the_edge(field, np.eye(4), shape)
    assert sure.mean() > 0.95
    ours = pull(image, affine, field, affine)
    assert np.abs(ours - image)[sure].max() > 0.2 * np.ptp(image)
    assert np.abs(ours - theirs)[sure].max() < 1e-3 * np.ptp(image)


@pytest.mark.parametrize("name", ["oblique", "negative determinant"])
def test_ants_moves_labels_as_we_do(name: str, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="ANTs is not installed: pip install antspyx")
    affine, shape = GRIDS[name]
    label = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    field = waves(indices(shape))
    write_field(tmp_path / "field.nii.gz", field, affine)
    moving = ants.image_read(str(write_nifti(tmp_path / "label.nii.gz", label, affine)))
    theirs = ants.apply_transforms(
        moving, moving, [str(tmp_path / "field.nii.gz")], interpolator="genericLabel"
    ).numpy()
    ours = pull(label, affine, read_field(tmp_path / "field.nii.gz")[0], affine, is_label=True)
    sure = off_the_edge(field, np.eye(4), shape)
    # Of the values that weigh the same, either is taken.
    assert (ours != theirs)[sure].mean() < 2e-3
    assert (ours != label)[sure].mean() > 0.3


def test_a_sheared_grid_is_refused_where_itk_refuses_it(tmp_path: Path) -> None:
    for degrees, right in ((0.003, True), (0.02, False), (5.0, False)):
        affine = AFFINE.copy()
        affine[:3, 2] += 8 * np.tan(np.deg2rad(degrees)) * AFFINE[:3, 0] / 1.3
        image = write_nifti(tmp_path / "image.nii.gz", np.ones(SHAPE, np.float32), affine)
        path = tmp_path / f"field_{degrees}.nii.gz"
        if right:
            write_field(path, waves(indices(SHAPE)), affine)
            read_itk(image, SCALAR)
        else:
            with pytest.raises(
                InputError, match=f"field_{degrees}.nii.gz: its axes are off right angles by {degrees:.2g} degrees"
            ):
                write_field(path, waves(indices(SHAPE)), affine)
            assert not path.exists()
            with pytest.raises(RuntimeError, match="orthonormal"):
                read_itk(image, SCALAR)
    for affine, _ in GRIDS.values():
        check_right_angles(affine, "a grid")


def test_two_slices_stay_two(tmp_path: Path) -> None:
    write_field(tmp_path / "field.nii.gz", np.ones((2, 4, 3, 2)), AFFINE)
    assert read_field(tmp_path / "field.nii.gz")[0].shape == (3, 4, 3, 2)


def test_a_failed_write_leaves_the_old_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "field.nii.gz"
    write_field(path, np.ones((2, 4, 3, 2)), AFFINE)
    before = path.read_bytes()

    def fail(image: nib.Nifti1Image, to: Path) -> None:
        Path(to).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_field(path, np.zeros((2, 4, 3, 2)), AFFINE)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", GRIDS)
def test_voxels_and_mm_are_each_other_s_reverse(name: str) -> None:
    affine, shape = GRIDS[name]
    field = np.random.default_rng(3).normal(0, 3, (3, *shape))
    np.testing.assert_allclose(lps_to_voxels(voxels_to_lps(field, affine), affine), field, atol=1e-12)
    in_plane = lps_to_voxels(voxels_to_lps(field[:2], affine), affine)
    np.testing.assert_allclose(in_plane, np.concatenate([field[:2], 0 * field[2:]]), atol=1e-12)


@pytest.mark.parametrize(
    "damage", ["image", "two vectors", "intent", "no intent", "nan", "far", "truncated", "missing", "text"]
)
def test_refuses_other_files(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "field.nii.gz"
    array = np.random.default_rng(4).normal(size=(12, 11, 3, 1, 2 if damage == "two vectors" else 3)).astype(np.float32)
    if damage in ("nan", "far"):
        array[3, 2, 1, 0, 2] = np.nan if damage == "nan" else -1e30
    image = nib.Nifti1Image(array[..., 0, 0] if damage == "image" else array, AFFINE)
    image.header.set_intent({"intent": 1006, "no intent": 0}.get(damage, 1007))
    nib.save(image, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-900])
    elif damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("x,y,z")
    message = {
        "image": r"has the shape \(12, 11, 3\); a displacement field is \(X, Y, Z, 1, 3\), mm along LPS",
        "two vectors": r"has the shape \(12, 11, 3, 1, 2\)",
        "intent": r"has intent code 1006, and a field in mm along LPS has 1007 .*set_intent\(1007\)",
        "no intent": "has intent code 0, and a field in mm along LPS has 1007",
        "far": r"moves by up to 1e\+30 mm, farther than any heart; give a field in mm along LPS",
        "nan": "holds NaN or Inf; replace those voxels",
        "missing": "no such file; correct the path",
    }.get(damage, "cannot be read as NIfTI .*; is the file complete?")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {message}"):
        read_field(path)


def test_the_inverse_is_that_of_each_slice_or_of_the_volume() -> None:
    x = np.linspace(0, np.pi, 24)
    field = np.stack([np.outer(np.sin(x), np.sin(x)), -np.outer(np.sin(x), np.sin(x))])[..., None] * np.array(
        [1.0, 2.0]
    )
    inverse, error = invert_array(field)
    assert inverse.shape == field.shape
    assert error.shape == field.shape[1:]
    assert error.max() <= 0.01
    for z in range(2):
        where = np.stack(np.meshgrid(*[np.arange(24.0)] * 2, indexing="ij")) + inverse[..., z]
        pulled = np.stack([map_coordinates(channel[..., z], where, order=1, mode="nearest") for channel in field])
        np.testing.assert_allclose(inverse[..., z] + pulled, 0, atol=0.011)
    # As `read_field` gives it: nothing along the slices, of which there may be one.
    for part in (field, field[..., :1]):
        whole, whole_error = invert_array(np.concatenate([part, 0 * part[:1]]))
        np.testing.assert_array_equal(whole, np.concatenate([invert_array(part)[0], 0 * part[:1]]))
        np.testing.assert_array_equal(whole_error, invert_array(part)[1])
    field = waves(indices((20, 18, 9)), 3)
    inverse, error = invert_array(field)
    where = indices((20, 18, 9)) + inverse
    pulled = np.stack([map_coordinates(channel, where, order=1, mode="nearest") for channel in field])
    np.testing.assert_allclose(np.linalg.norm(inverse + pulled, axis=0), error, atol=1e-6)
    assert np.percentile(error, 95) < 0.01
