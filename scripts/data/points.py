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

"""Landmarks: read from CSV, checked against an image, carried by a field."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scripts.data.itk_fields import RAS_TO_LPS
from scripts.errors import InputError


def move_points(points: NDArray, field: NDArray, affine: NDArray) -> NDArray:
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


def read_points(path: str | Path) -> tuple[list[str], NDArray]:
    """Landmarks from a CSV with the columns x, y, z in mm along LPS (as ITK, ANTs and 3D Slicer have them) and optionally
    name.

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
            reader = csv.DictReader(file, skipinitialspace=True)
            rows, columns = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read as CSV ({error}); save it as UTF-8 text with the columns x, y, z."
        ) from error
    if not rows or any(columns.count(axis) != 1 for axis in "xyz"):
        raise InputError(
            f"{path}: needs the columns x, y, z (mm along LPS), each once, parted by commas, and a row for each point."
        )
    # As where numbers have commas for points, too.
    if long := [number for number, row in enumerate(rows, start=2) if None in row]:
        raise InputError(f"{path}: row {long[0]} has more entries than there are columns; correct it.")
    try:
        positions = np.array([[float(row[axis]) for axis in "xyz"] for row in rows]) * RAS_TO_LPS
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: holds an entry that is not a number ({error}); correct it.") from error
    if not np.isfinite(positions).all():
        raise InputError(f"{path}: holds an entry that is not a number (NaN or Inf); correct it.")
    return [row.get("name") or str(number) for number, row in enumerate(rows, start=1)], positions


def check_in_image(
    path: str | Path, names: Sequence[str], points: NDArray, shape: Sequence[int], affine: NDArray
) -> None:
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


def to_lps(points: NDArray) -> Sequence[list[float]]:
    """Positions (N, 3) in mm along RAS as lists in mm along LPS."""
    return (points * RAS_TO_LPS).tolist()
