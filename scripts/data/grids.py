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

"""Voxel grids in space: labels turned to their image, images brought onto another grid, and whether two grids are one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scripts.errors import InputError

AFFINE_TOLERANCE_MM = 1e-3


def pull(
    image: NDArray,
    image_affine: NDArray,
    field: NDArray,
    affine: NDArray,
    is_label: bool = False,
    repeat_border: bool = False,
) -> NDArray:
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

    def interpolate(image: NDArray) -> NDArray:
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


def turn_to(label: MetaTensor, image: MetaTensor) -> MetaTensor:
    """A label (1, X, Y, Z) with its axes in the order and direction of an image's: converters turn the rows of DICOM
    over."""
    affines = [one.affine.double().numpy() for one in (label, image)]
    if not all((voxel_sizes(affine) > 0).all() for affine in affines):
        return label  # `check_same_grid` reports it.
    # Of the one relative to the other: near 45 degrees each for itself may round to another axis.
    turn = io_orientation(np.linalg.inv(affines[1]) @ affines[0])
    if tuple(np.take(label.shape[1:], np.argsort(turn[:, 0]))) != tuple(image.shape[1:]):
        return label  # the message names the shape of the file
    array = apply_orientation(label[0].numpy(), turn)
    affine = affines[0] @ inv_ornt_aff(turn, label.shape[1:])
    return MetaTensor(torch.from_numpy(array.copy())[None], affine=affine, meta=dict(label.meta))


def resample(image: MetaTensor, reference: MetaTensor, is_label: bool) -> MetaTensor:
    """An image or a label (1, X, Y, Z) on the grid of another one, see `grids.pull`; within its slices it repeats
    its border.

    A slice of the grid that the image does not reach is 0: nothing can be registered there.
    """
    native, affine = image.affine.double().numpy(), reference.affine.double().numpy()
    still = np.zeros((3, *reference.shape[1:]))
    array = pull(image[0].numpy(), native, still, affine, is_label, repeat_border=True)
    reached = pull(np.ones(image.shape[1:], np.float32), native, still, affine).any(axis=(0, 1))
    # A dict of its own: a MetaTensor writes its affine into the one that it is given.
    return MetaTensor(
        torch.from_numpy(array * reached)[None].to(image.dtype), affine=reference.affine, meta=dict(image.meta)
    )


def check_same_grid(
    image: MetaTensor,
    path: str,
    reference: MetaTensor,
    reference_path: str,
    cure: str = "resample one onto the other's grid",
    tolerance: float = AFFINE_TOLERANCE_MM,
) -> None:
    """Stop where two images do not lie on one grid, their corners within a tolerance in mm.

    Raises:
        InputError: naming both files.
    """
    if image.shape != reference.shape:
        shapes = f"{tuple(image.shape[1:])} and {tuple(reference.shape[1:])}"
        raise InputError(f"{path} and {reference_path}: have different shapes, {shapes}; {cure}.")
    # The affines agree where they put the corners of the image within the tolerance.
    extent = torch.tensor([*reference.shape[1:], 1.0], dtype=torch.float64)
    gap = ((image.affine.double() - reference.affine.double()).abs() * extent)[:3].sum(dim=1).max().item()
    if not gap <= tolerance:  # NaN, too
        raise InputError(f"{path} and {reference_path}: have affines up to {gap:.3g} mm apart; {cure}.")


def check_meets(
    image: MetaTensor, path: str | Path, reference: MetaTensor, reference_path: str | Path, cure: str
) -> None:
    """Stop at an image whose box, on whatever grid, lies outside that of a reference, both (1, X, Y, Z).

    Raises:
        InputError: naming both files.
    """
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in reference.shape[1:]))))
    to_image = torch.linalg.solve(image.affine.double(), reference.affine.double()).numpy()
    index = to_image @ np.vstack([corners.T, np.ones(len(corners))])
    low, high = index[:3].min(axis=1), index[:3].max(axis=1)
    if (low >= np.array(image.shape[1:]) - 0.5).any() or (high <= -0.5).any():
        raise InputError(f"{path}: lies apart from {reference_path} in space; {cure}.")
