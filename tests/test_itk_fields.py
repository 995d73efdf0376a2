"""Fields in files against ITK's own reader and resamplers, on oblique, anisotropic, flipped grids and single slices,
and landmarks against analytic displacements in mm.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from scripts.errors import InputError
from scripts.fields import warp_stack
from scripts.itk_fields import (
    STEP_MM,
    check_in_image,
    check_one_place,
    check_right_angles,
    invert,
    lps_to_voxels,
    move_points,
    pull,
    read_field,
    read_points,
    to_lps,
    voxels_to_lps,
    write_field,
)

LPS = np.array([-1.0, -1.0, 1.0])
SCALAR, VECTORS = itk.Image[itk.F, 3], itk.Image[itk.Vector[itk.F, 3], 3]


def grid_affine(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], origin: tuple = (-31, 42, 7)
) -> np.ndarray:
    """Voxel index to RAS: a rotation by Euler angles in degrees, with a negative spacing where an axis is flipped."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(spacing)
    affine[:3, 3] = origin
    return affine


GRIDS = {
    "oblique": (grid_affine((20, -30, 40), (1.3, 1.9, 8)), (26, 22, 4)),
    "negative determinant": (grid_affine((-65, 15, 110), (-1.4, 1.1, 5)), (26, 22, 4)),
    "two negative axes": (grid_affine((0, 0, 0), (-1.5, -1.2, 10)), (24, 27, 3)),
    "left-handed through-plane": (grid_affine((5, 50, -20), (0.9, 2.1, -6)), (22, 25, 5)),
    "single slice": (grid_affine((20, -30, 40), (1.3, 1.9, 8)), (26, 22, 1)),
    "single flipped slice": (grid_affine((-65, 15, 110), (-1.4, 1.1, 5)), (22, 26, 1)),
}
AFFINE, SHAPE = GRIDS["oblique"]


def indices(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))


def waves(index: np.ndarray, channels: int = 2) -> np.ndarray:
    """A smooth field in voxels at voxel positions (3, ...): up to 2.5 in-plane and, of three channels, 0.6
    through-plane."""
    x, y, z = index
    field = np.stack(
        [2.5 * np.sin(0.25 * y + 0.2 * z), 2 * np.cos(0.21 * x - 0.1 * y), 0.6 * np.sin(0.2 * (x + y)) + 0 * z]
    )
    return field[:channels]


def positions(index: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Of voxel positions (3, ...), in mm along RAS."""
    return np.einsum("ij,j...->i...", affine[:3, :3], index) + affine[:3, 3].reshape(3, *[1] * (index.ndim - 1))


def read_itk(path: Path, kind: type) -> itk.Image:
    """Single slices too as an image in space, which `itk.imread` would not take them for."""
    reader = itk.ImageFileReader[kind].New(FileName=str(path))
    reader.Update()
    return reader.GetOutput()


def itk_moved(field: Path, moving: Path, fixed: Path) -> tuple[np.ndarray, np.ndarray]:
    """The moving image on the fixed grid by ITK's two ways to apply a field, given nothing but the files."""
    vectors, moving_image, fixed_image = read_itk(field, VECTORS), read_itk(moving, SCALAR), read_itk(fixed, SCALAR)
    warped = itk.WarpImageFilter[SCALAR, SCALAR, VECTORS].New(Input=moving_image, DisplacementField=vectors)
    warped.SetOutputParametersFromImage(fixed_image)
    warped.Update()
    # The resampler wants displacements in double precision; a view does not own its memory.
    doubles = itk.array_from_image(vectors).astype(np.float64)
    double_field = itk.image_view_from_array(doubles, ttype=itk.Image[itk.Vector[itk.D, 3], 3])
    double_field.CopyInformation(vectors)
    transform = itk.DisplacementFieldTransform[itk.D, 3].New(DisplacementField=double_field)
    resampled = itk.resample_image_filter(
        moving_image, transform=transform, use_reference_image=True, reference_image=fixed_image
    )
    return tuple(itk.array_from_image(image).T for image in (warped.GetOutput(), resampled))


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


def test_pull_of_integers_labels_and_what_lies_outside() -> None:
    still, label = np.zeros((2, 6, 5, 2)), np.random.default_rng(2).integers(0, 4, (6, 5, 2))
    half = still.copy()
    half[0] = 0.5
    np.testing.assert_allclose(pull(label, AFFINE, half, AFFINE)[:5], (label[1:] + label[:-1]) / 2, atol=1e-6)
    shifted = pull(label, AFFINE, still + 0.3, AFFINE, is_label=True)
    assert shifted.dtype == label.dtype
    # Each of the four corners' values counts with the weights of all corners that hold it.
    corners = np.stack([np.roll(label, (-i, -j), (0, 1)) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))])
    weights = np.array([0.49, 0.21, 0.21, 0.09]).reshape(4, 1, 1, 1)
    expected = np.argmax([(weights * (corners == value)).sum(axis=0) for value in range(4)], axis=0)
    np.testing.assert_array_equal(shifted[:-1, :-1], expected[:-1, :-1])
    repeated = pull(label, AFFINE, still - 9.0, AFFINE, is_label=True, repeat_border=True)
    np.testing.assert_array_equal(repeated, np.broadcast_to(label[:1, :1], label.shape))
    # Beyond its edge an image is 0.
    for is_label in (False, True):
        pulled = pull(label + 1, AFFINE, still - 1.0, AFFINE, is_label)
        np.testing.assert_allclose(pulled[1:, 1:], (label + 1)[:-1, :-1])
        assert not pulled[0].any()
        assert not pulled[:, 0].any()
    assert pull(label + 1, AFFINE, still - 0.49, AFFINE).all()


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


@pytest.mark.parametrize("name", GRIDS)
def test_ants_moves_the_image_as_we_do(name: str, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="ANTs is not installed: pip install antspyx")
    affine, shape = GRIDS[name]
    image = np.random.default_rng(0).normal(500, 200, shape).astype(np.float32)
    field = waves(indices(shape))
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


def test_by_hand_on_an_oblique_grid() -> None:
    # Axis 0 is 1.5 mm toward (0.8 R, 0.6 A), axis 1 is 2 mm toward (0.6 L, 0.8 A), axis 2 is 8 mm downward.
    affine = np.array([[1.2, -1.2, 0, 5], [0.9, 1.6, 0, 6], [0, 0, -8, 7], [0, 0, 0, 1.0]])
    field = np.array([2.0, 1.0, 0.5]).reshape(3, 1, 1, 1)
    # RAS: 2 * (1.2, 0.9, 0) + (-1.2, 1.6, 0) + 0.5 * (0, 0, -8) = (1.2, 3.4, -4).
    np.testing.assert_allclose(voxels_to_lps(field, affine)[0, 0, 0], [-1.2, -3.4, -4.0])
    np.testing.assert_allclose(voxels_to_lps(field[:2], affine)[0, 0, 0], [-1.2, -3.4, 0.0])
    np.testing.assert_allclose(to_lps(np.array([[1.0, -2.0, 3.0]])), [[-1.0, 2.0, 3.0]])


@pytest.mark.parametrize("damage", ["image", "two vectors", "intent", "nan", "truncated", "missing", "text"])
def test_refuses_other_files(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "field.nii.gz"
    array = np.random.default_rng(4).normal(size=(12, 11, 3, 1, 2 if damage == "two vectors" else 3)).astype(np.float32)
    if damage == "nan":
        array[3, 2, 1, 0, 2] = np.nan
    image = nib.Nifti1Image(array[..., 0, 0] if damage == "image" else array, AFFINE)
    image.header.set_intent(1006 if damage == "intent" else 1007)
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
        "intent": "has intent code 1006; a field in mm along LPS has 1007",
        "nan": "holds NaN or Inf; write the field again",
        "missing": "no such file; correct the path",
    }.get(damage, "cannot be read as NIfTI .*; is the file complete?")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {message}"):
        read_field(path)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("name", GRIDS)
def test_points_move_by_the_displacement_in_mm(name: str, channels: int) -> None:
    affine, shape = GRIDS[name]
    linear = np.array([[0.1, -0.2, 0.3], [0.05, 0.15, -0.4], [-0.02, 0.03, 0.2]])[:channels]
    field = np.einsum("ij,j...->i...", linear, indices(shape)) + 0.7
    index = np.random.default_rng(5).uniform(0, 1, (50, 3)) * (np.array(shape) - 1)
    points, shift = positions(index.T, affine).T, index @ linear.T + 0.7
    moved = move_points(points, field, affine)
    # Linear interpolation of a linear field is exact.
    np.testing.assert_allclose(moved, points + shift @ affine[:3, :channels].T, atol=1e-9)
    # By ITK's own transform, in LPS.
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    slices = np.repeat(voxels_to_lps(field, affine), 2, axis=2) if shape[2] == 1 else voxels_to_lps(field, affine)
    vectors = np.ascontiguousarray(slices.transpose(2, 1, 0, 3))
    view = itk.image_view_from_array(vectors, ttype=itk.Image[itk.Vector[itk.D, 3], 3])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    view.SetSpacing(spacing.tolist())
    view.SetOrigin((affine[:3, 3] * LPS).tolist())
    view.SetDirection(itk.matrix_from_array(affine[:3, :3] / spacing * LPS[:, None]))
    transform.SetDisplacementField(view)
    theirs = [transform.TransformPoint(point) for point in to_lps(points)]
    np.testing.assert_allclose(to_lps(moved), theirs, atol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_points_beyond_the_image_are_refused(name: str) -> None:
    affine, shape = GRIDS[name]
    last = np.array(shape) - 1.0
    corners = np.array([[0, 0, 0], last, last / 2, [-0.4, 0, 0], [0, 0, last[2] + 0.4]])
    check_in_image("p.csv", list("abcde"), positions(corners.T, affine).T, shape, affine)
    for beyond in ([-0.6, 3, 0], [3, last[1] + 0.6, 0], [3, 3, last[2] + 0.6], [3, 3, -900]):
        points = positions(np.array([[3, 3, 0], beyond, beyond]).T, affine).T
        with pytest.raises(InputError, match=r"^p\.csv: the point second lies outside the image; correct it"):
            check_in_image("p.csv", ["first", "second", "third"], points, shape, affine)


def test_points_between_voxels_of_a_smooth_field() -> None:
    index = np.random.default_rng(6).uniform(1, 2, (40, 3)) * [10, 9, 1]
    points = positions(index.T, AFFINE).T
    expected = points + waves(index.T).T @ AFFINE[:3, :2].T
    assert np.linalg.norm(move_points(points, waves(indices(SHAPE)), AFFINE) - expected, axis=1).max() < 0.1


def test_a_label_and_its_center_go_to_one_place() -> None:
    affine, shape, center = grid_affine((20, -30, 40), (1.3, -1.9, 3.1)), (46, 34, 20), np.array([24.0, 15.0, 9.0])
    x, y, z = indices(shape)
    field = np.stack([5 + np.sin(0.06 * y), 4 * np.cos(0.05 * x) - 6, 2 + np.sin(0.1 * z + 0.05 * x)])
    inverse, error = invert(field)
    assert error.max() < 0.01
    where = positions(indices(shape), affine)
    middle = positions(center[:, None], affine)
    ball = (np.linalg.norm(where - middle.reshape(3, 1, 1, 1), axis=0) < 9).astype(np.uint8)
    carried = pull(ball, affine, inverse, affine, is_label=True)
    moved = move_points(middle.T, field, affine)[0]
    gap = np.linalg.inv(affine[:3, :3]) @ (where[:, carried == 1].mean(axis=1) - moved)
    assert np.linalg.norm(moved - middle[:, 0]) > 5
    assert np.abs(gap).max() < 0.5
    # Through the field itself it would go the other way.
    astray = pull(ball, affine, field, affine, is_label=True)
    assert np.linalg.norm(where[:, astray == 1].mean(axis=1) - moved) > 10


@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_reads_points(begin: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(f"{begin}x, y, z, name\n1, 2, 3, apex\n-4.5, 5e1, 6,\n", encoding="utf-8")
    names, points = read_points(path)
    assert names == ["apex", "2"]
    np.testing.assert_array_equal(points, [[-1, -2, 3], [4.5, -50, 6]])
    np.testing.assert_array_equal(to_lps(points), [[1, 2, 3], [-4.5, 50, 6]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; --points takes a CSV with the columns x, y, z in mm along LPS"),
        (b"", "needs the columns x, y, z"),
        (b"x,y,z\n", "a row for each point"),
        (b"x,y,name\n1,2,3\n", "needs the columns x, y, z"),
        (b"x,y,z\n1,2,three\n", "not a number .*three.*; correct it"),
        (b"x,y,z\n1,2,3\n1,2\n", "not a number"),
        (b"x,y,z\n1,nan,3\n", "not a number"),
        (b"x,y,z\n1,2,inf\n", "not a number"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "cannot be read as CSV"),
    ],
)
def test_refuses_other_points(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_points(path)


def test_the_inverse_is_that_of_each_slice_or_of_the_volume() -> None:
    x = np.linspace(0, np.pi, 24)
    field = np.stack([np.outer(np.sin(x), np.sin(x)), -np.outer(np.sin(x), np.sin(x))])[..., None] * np.array(
        [1.0, 2.0]
    )
    inverse, error = invert(field)
    assert inverse.shape == field.shape
    assert error.shape == field.shape[1:]
    assert error.max() <= 0.01
    for z in range(2):
        where = np.stack(np.meshgrid(*[np.arange(24.0)] * 2, indexing="ij")) + inverse[..., z]
        pulled = np.stack([map_coordinates(channel[..., z], where, order=1, mode="nearest") for channel in field])
        np.testing.assert_allclose(inverse[..., z] + pulled, 0, atol=0.011)
    # As `read_field` gives it: nothing along the slices, of which there may be one.
    for part in (field, field[..., :1]):
        whole, whole_error = invert(np.concatenate([part, 0 * part[:1]]))
        np.testing.assert_array_equal(whole, np.concatenate([invert(part)[0], 0 * part[:1]]))
        np.testing.assert_array_equal(whole_error, invert(part)[1])
    field = waves(indices((20, 18, 9)), 3)
    inverse, error = invert(field)
    where = indices((20, 18, 9)) + inverse
    pulled = np.stack([map_coordinates(channel, where, order=1, mode="nearest") for channel in field])
    np.testing.assert_allclose(np.linalg.norm(inverse + pulled, axis=0), error, atol=1e-6)
    assert np.percentile(error, 95) < 0.01


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
