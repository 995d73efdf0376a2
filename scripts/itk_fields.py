"""The only room that knows ITK's conventions: displacement fields in mm along LPS axes, as ITK, ANTs and 3D Slicer
apply them.

A field file is a NIfTI of shape (X, Y, Z, 1, 3) with intent code 1007 (vector): at each voxel of the fixed grid the
displacement in mm along the patient's left, posterior and superior axes, pull direction. With p(x) the position of
voxel x, moved(x) is the moving image at p(x) + u(x). (Intent 1006 would say the same in words, and ITK would flip its
axes.)

ITK takes a vector image of one slice for two-dimensional and forgets where it lies, and would find no displacement at
the fixed image's points. The field of a single slice is therefore written twice, as two slices, and the header's
description says so; `read_field` gives one back.
"""

from __future__ import annotations

import csv
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scripts import fields
from scripts.errors import InputError
from scripts.files import check_whole, unreadable, whole_file

Array = NDArray[np.floating]
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
VECTOR = 1007
ONE_SLICE = "one slice, written twice for ITK"
STEP_MM = 2.0**-12
"""Displacements are written in steps of a quarter of a micrometer: what is finer is noise, which gzip cannot shrink."""
RIGHT_ANGLE = 1e-4
"""How far the cosine of the angle between two axes may be from 0; ITK reads no image beyond that."""
SAME_PLACE = 0.1
"""Millimeters that qform and sform of a file may be apart; quaternions in single precision are closer."""


def voxels_to_lps(field: Array, affine: Array) -> Array:
    """A field in voxels as displacements in mm along LPS.

    Args:
        field: (d, X, Y, Z), d = 2 in-plane or 3, channel i along array axis i, voxels.
        affine: voxel index to RAS in mm, (4, 4).

    Returns:
        (X, Y, Z, 3).
    """
    columns = affine[:3, : field.shape[0]] * RAS_TO_LPS[:, None]
    return np.einsum("ij,jxyz->xyzi", columns, field)


def lps_to_voxels(displacement: Array, affine: Array) -> Array:
    """The reverse of `voxels_to_lps`: (X, Y, Z, 3) in mm along LPS to (3, X, Y, Z) in voxels of the grid of
    `affine`."""
    inverse = np.linalg.inv(affine[:3, :3]) * RAS_TO_LPS
    return np.einsum("ij,xyzj->ixyz", inverse, displacement)


def write_field(path: str | Path, field: Array, affine: Array) -> None:
    """Write a field to NIfTI; the whole file or none. A single slice is written twice, see the top of this file.

    Args:
        path: .nii.gz file.
        field: (d, X, Y, Z), voxels of the fixed grid, channel i along array axis i, pull direction: moved(x) =
            moving(x + u(x)). In the file: mm along LPS, the same direction.
        affine: of the fixed image, voxel index to RAS in mm; its axes are at right angles.

    Raises:
        InputError: naming the file, for axes that are not.
    """
    check_right_angles(affine, path)
    path, one_slice = Path(path), field.shape[-1] == 1
    displacement = np.round(voxels_to_lps(field, affine) / STEP_MM) * STEP_MM
    displacement = np.repeat(displacement, 2 if one_slice else 1, axis=2)
    image = nib.Nifti1Image(displacement[:, :, :, None, :].astype(np.float32), affine)
    image.header.set_intent(VECTOR)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = ONE_SLICE if one_slice else ""
    with whole_file(path) as part:
        nib.save(image, part)


def check_right_angles(affine: Array, name: object) -> None:
    """Stop at a grid that is sheared: ITK, ANTs and 3D Slicer read no field on it.

    Raises:
        InputError: with `name`, which says whose grid it is; for voxels without extent, too.
    """
    lengths = voxel_sizes(affine)
    if not (lengths > 0).all() or not np.isfinite(affine).all():
        raise InputError(
            f"{name}: its voxels are {' x '.join(f'{n:g}' for n in lengths)} mm; write the file again with their true size."
        )
    axes = affine[:3, :3] / lengths
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine > RIGHT_ANGLE:
        raise InputError(
            f"{name}: its axes are off right angles by {np.rad2deg(np.arcsin(min(cosine, 1))):.2g} degrees, and ITK "
            "takes no field on such a grid; resample the image onto one with right angles."
        )


def check_one_place(path: str | Path) -> None:
    """Stop at a NIfTI file that other programs put elsewhere: whose qform and sform, where it has both, are two places,
    whose voxels have no size or by the sform alone another one, or whose unit is not the millimeter. Where it has
    neither, a line in the log says so.

    Raises:
        InputError: naming the file; for two places or sizes where corners are more than `SAME_PLACE` mm apart.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Pair):
        return
    try:
        (qform, q_code), (sform, s_code) = image.get_qform(coded=True), image.get_sform(coded=True)
    except nib.spatialimages.HeaderDataError as error:
        raise InputError(
            f"{path}: its header has no valid qform ({error}); write it again, with nibabel for example."
        ) from error
    unit = image.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise InputError(f"{path}: its header gives lengths in units of a {unit}; write it again in mm.")
    # nibabel takes sizes of 0 for 1 when it loads an image.
    header = image.file_map.get("header", image.file_map["image"])  # a file of its own beside .img
    with nib.openers.ImageOpener(header.filename) as file:
        pixdim = type(image.header).from_fileobj(file, check=False)["pixdim"][1:4]
    if not s_code and not (pixdim > 0).all():
        sizes = " x ".join(f"{n:g}" for n in pixdim)
        raise InputError(f"{path}: its header gives voxels of {sizes} mm; write it again with their true size.")
    if not q_code and not s_code:
        logging.getLogger("inference").warning(
            f"{path}: its header says nowhere where it lies (neither qform nor sform), so that ITK, ANTs and 3D Slicer put it "
            "elsewhere than the fields: they fit what is written beside them."
        )
    cure = f"write `img = nibabel.load({Path(path).name!r}); img.set_qform(img.affine, 1)` to a new file."
    shape = np.array((*image.shape, 1, 1)[:3])  # a lone slice may have two axes
    # ITK takes sizes from pixdim, which goes with the qform, and directions from the sform.
    sizes = voxel_sizes(image.affine)
    if s_code and not q_code and (np.abs(sizes - pixdim) * shape).max() > SAME_PLACE:
        listed, other = (" x ".join(f"{n:.4g}" for n in lengths) for lengths in (pixdim, sizes))
        raise InputError(
            f"{path}: its header gives voxels of {listed} mm and its sform such of {other} mm, and ITK and ANTs may "
            f"take others than are taken here; where the sform is right, {cure}"
        )
    if not (q_code and s_code):
        return
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape), (1,))])
    gap = np.linalg.norm(corners @ (qform - sform).T, axis=1).max()
    if gap > SAME_PLACE:
        raise InputError(
            f"{path}: its qform and its sform put it up to {gap:.3g} mm apart, and ITK and ANTs may take another one "
            f"than is taken here; where the sform is right, {cure}"
        )


def read_field(path: str | Path) -> tuple[Array, Array]:
    """A field file, mm along LPS, as an array in voxels of its own grid.

    Returns:
        The field (3, X, Y, Z), channel i along array axis i, pull direction: moved(x) = moving(x + u(x)); and its
        grid's affine (voxel index to RAS in mm).

    Raises:
        InputError: naming the file, for one that is not a field of this kind.
    """
    try:
        image = nib.load(path)
        check_whole(path)
        displacement = np.asarray(image.dataobj, dtype=np.float64)
    except Exception as error:
        raise unreadable(path, error) from error
    check_one_place(path)
    if displacement.ndim != 5 or displacement.shape[3:] != (1, 3):
        raise InputError(
            f"{path}: has the shape {displacement.shape}; a displacement field is (X, Y, Z, 1, 3), mm along LPS."
        )
    if int(image.header["intent_code"]) != VECTOR:
        raise InputError(
            f"{path}: has intent code {int(image.header['intent_code'])}; a field in mm along LPS has {VECTOR} (vector)."
        )
    if not np.isfinite(displacement).all():
        raise InputError(f"{path}: holds NaN or Inf; write the field again.")
    if image.shape[2] == 2 and image.header["descrip"].item().decode("latin-1") == ONE_SLICE:
        displacement = displacement[:, :, :1]
    return lps_to_voxels(displacement[..., 0, :], image.affine), image.affine


def pull(
    image: Array, image_affine: Array, field: Array, affine: Array, is_label: bool = False, repeat_border: bool = False
) -> Array:
    """Any image pulled through a field, in physical space: out(x) = image at p(x) + u(x), on the field's grid.

    Args:
        image: (X', Y', Z').
        image_affine: of the image, which may lie on another grid than the field.
        field: (d, X, Y, Z), voxels of its own grid, channel i along array axis i.
        affine: of that grid.
        is_label: whether to take at each voxel the value that weighs most in the linear interpolation, instead of the
            interpolated one.
        repeat_border: whether points beyond the image's edge, half a voxel beyond its outer voxels' centers, take its
            border; else 0, as in ITK and ANTs.

    Returns:
        (X, Y, Z), floating, or the label's type.
    """
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in field.shape[1:]), indexing="ij"))
    index[: field.shape[0]] += field
    to_image = np.linalg.inv(image_affine) @ affine
    where = np.einsum("ij,jxyz->ixyz", to_image[:3, :3], index) + to_image[:3, 3, None, None, None]

    def interpolate(image: Array) -> Array:
        # SciPy would cut interpolated values down to the image's integers.
        return map_coordinates(image, where, output=np.result_type(image, np.float32), order=1, mode="nearest")

    last = np.array(image.shape).reshape(3, 1, 1, 1) - 0.5
    seen = repeat_border | ((where >= -0.5) & (where <= last)).all(axis=0)
    if not is_label:
        return interpolate(image) * seen
    values = np.unique(image)
    moved, most = np.full(where.shape[1:], values[0]), np.full(where.shape[1:], -np.inf)
    for value in values:
        weight = interpolate((image == value).astype(np.float32))
        moved, most = np.where(weight > most, value, moved), np.maximum(weight, most)
    return moved * seen


def move_points(points: Array, field: Array, affine: Array) -> Array:
    """Points carried by a field: p + u(p), for points and displacements in mm.

    Args:
        points: (N, 3), mm along RAS, of the fixed image.
        field: (d, X, Y, Z), voxels of the fixed grid, channel i along array axis i, pull direction; between voxels it
            is interpolated linearly.
        affine: of the fixed image.

    Returns:
        (N, 3), mm along RAS, where those points of the fixed image lie in the moving image.
    """
    index = apply_affine(np.linalg.inv(affine), points)
    shift = np.stack([map_coordinates(channel, index.T, order=1, mode="nearest") for channel in field], axis=1)
    return points + shift @ affine[:3, : field.shape[0]].T


def invert(field: Array, tolerance: float = fields.INVERTED) -> tuple[Array, Array]:
    """The inverse of a field, on the same grid: v with v(y) + u(y + v(y)) = 0 (`fields.invert` for NumPy arrays).

    Args:
        field: (d, X, Y, Z) in voxels, channel i along array axis i, pull direction; in-plane (d = 2, or no more along
            the slices than a tenth of the tolerance, as rounding in files leaves) it is inverted slice by slice.
        tolerance: voxels.

    Returns:
        The inverse (d, X, Y, Z), and the length of its error in voxels (X, Y, Z).
    """
    if len(field) == 3 and np.abs(field[2]).max() <= 0.1 * tolerance:
        in_plane, error = invert(field[:2], tolerance)
        return np.concatenate([in_plane, np.zeros_like(field[2:])]), error
    stack = torch.from_numpy(np.ascontiguousarray(field))
    if len(field) == 3:
        inverse, error = fields.invert(stack[None], tolerance)
        return inverse[0].numpy(), error[0].numpy()
    inverse, error = fields.invert(stack.movedim(-1, 0), tolerance)
    return inverse.movedim(0, -1).numpy(), error.movedim(0, -1).numpy()


def read_points(path: str | Path) -> tuple[list[str], Array]:
    """Landmarks from a CSV with the columns x, y, z in mm along LPS (as ITK, ANTs and 3D Slicer have them) and, if it
    likes, name.

    Returns:
        Names, and positions (N, 3) in mm along RAS.

    Raises:
        InputError: naming the file, for one without those columns or with an entry that is not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; --points takes a CSV with the columns x, y, z in mm along LPS.")
    try:
        # Excel begins its UTF-8 with a mark that would become part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read as CSV ({error}); save it as UTF-8 text with the columns x, y, z."
        ) from error
    if not rows or not {"x", "y", "z"} <= set(rows[0]):
        raise InputError(f"{path}: needs the columns x, y, z (mm along LPS) and a row for each point.")
    try:
        positions = np.array([[float(row[axis]) for axis in "xyz"] for row in rows]) * RAS_TO_LPS
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: holds an entry that is not a number ({error}); correct it.") from error
    if not np.isfinite(positions).all():
        raise InputError(f"{path}: holds an entry that is not a number (NaN or Inf); correct it.")
    return [row.get("name") or str(number) for number, row in enumerate(rows, start=1)], positions


def check_in_image(path: str | Path, names: Sequence[str], points: Array, shape: Sequence[int], affine: Array) -> None:
    """Stop at a landmark that lies outside the voxels of an image, more than half a voxel beyond the outer centers:
    nothing is known of its motion, and ITK would leave it where it is.

    Args:
        path: of the landmarks, for the message.
        names, points: as `read_points` returns them.
        shape, affine: of the image (X, Y, Z).

    Raises:
        InputError: naming the file and the first such landmark.
    """
    index = apply_affine(np.linalg.inv(affine), points)
    outside = ((index < -0.5) | (index > np.array(shape) - 0.5)).any(axis=1)
    if outside.any():
        name = names[int(outside.argmax())]
        raise InputError(
            f"{path}: the point {name} lies outside the image; correct it, or give the image that it belongs to (x, y, z "
            "are mm along LPS)."
        )


def to_lps(points: Array) -> Sequence[list[float]]:
    """Positions (N, 3) in mm along RAS as lists in mm along LPS."""
    return (points * RAS_TO_LPS).tolist()
