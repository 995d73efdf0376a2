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

"""Oblique, anisotropic and flipped grids, analytic fields on them, and what ITK makes of both."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

LPS = np.array([-1.0, -1.0, 1.0])


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
