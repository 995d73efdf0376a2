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

"""A field that was written before, applied to another image, its label, or landmarks."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scripts.cardiac.cines import Cine
from scripts.data.grids import check_meets, check_same_grid, pull
from scripts.data.itk_fields import read_field
from scripts.data.loading import load_image
from scripts.data.nifti import open_nifti
from scripts.data.points import check_in_image, move_points, read_points, to_lps
from scripts.data.results import DONE, check_writable, explain_write_errors
from scripts.errors import InputError
from scripts.files import write_csv
from scripts.workflow.writers import write_nifti

# Of a label map, whatever its structures are.
MOST_VALUES = 256


def apply_field(
    field: str | Path,
    moving: str | Path | None = None,
    moving_label: str | Path | None = None,
    points: str | Path | None = None,
    output_dir: str | Path = ".",
    resample_moving: bool = False,
) -> list[Path]:
    """Write `moved.nii.gz`, `moved_label.nii.gz` and `points.csv` to a folder: what a field makes of an image, a label
    and landmarks.

    Args:
        field: a field file (`itk_fields`); it says the grid of the outputs.
        moving: image on the field's grid, linearly interpolated.
        moving_label: label on that grid, see `grids.pull`.
        points: CSV of landmarks of the fixed image, mm along LPS; they are carried into the moving image.
        output_dir: folder to write to.
        resample_moving: whether image and label may lie on another grid than the field, as long as they meet it in
            space.

    Returns:
        The files written.

    Raises:
        InputError: naming the file and the cure.
    """
    given = {"moved.nii.gz": (moving, False), "moved_label.nii.gz": (moving_label, True)}
    if not (moving or moving_label or points):
        raise InputError("--field: needs something to move; give --moving, --moving_label or --points.")
    folder, written = Path(output_dir), []
    for path in (field, moving, moving_label, points):
        if path and os.path.realpath(path) in [os.path.realpath(folder / name) for name in (*given, "points.csv")]:
            raise InputError(f"{path}: would be overwritten by what is made of it; give --output_dir another folder.")
    if (folder / DONE).is_file():
        raise InputError(
            f"{folder}: holds the results of a registration, which would be mixed with others; give another --output_dir."
        )
    others = [name for name, wanted in (*((n, p) for n, (p, _) in given.items()), ("points.csv", points)) if not wanted]
    if stale := [name for name in others if (folder / name).is_file()]:
        raise InputError(
            f"{folder}: holds {stale[0]} of an earlier call, which may be of another field; give all that is to be moved in "
            "one call, or another --output_dir."
        )
    voxels, affine = read_field(field)
    outputs = {}
    for name, (path, is_label) in given.items():
        if path:
            image = _load(path, is_label)
            grid = MetaTensor(torch.empty(1, *voxels.shape[1:]), affine=torch.from_numpy(affine))
            if not resample_moving:
                check_same_grid(
                    image, path, grid, field, "give the image that the field belongs to, or --resample_moving True"
                )
            check_meets(image, path, grid, field, "give the image that the field belongs to")
            moved = pull(image[0].numpy(), image.affine.double().numpy(), voxels, affine, is_label)
            outputs[name] = moved.astype(_label_type(moved) if is_label else np.float32)
    rows = []
    if points:
        names, positions = read_points(points)
        check_in_image(points, names, positions, voxels.shape[1:], affine)
        moved = to_lps(move_points(positions, voxels, affine))
        rows = [{"name": name, "x": x, "y": y, "z": z} for name, (x, y, z) in zip(names, moved)]
    check_writable(folder)
    with explain_write_errors(folder):
        for name, array in outputs.items():
            write_nifti(folder / name, array, Cine("", array[..., None], affine))
            written.append(folder / name)
        if rows:
            write_csv(folder / "points.csv", rows)
            written.append(folder / "points.csv")
    logging.getLogger("inference").info("wrote %s", ", ".join(map(str, written)))
    return written


def _load(path: str | Path, is_label: bool) -> MetaTensor:
    """The image or label map (1, X, Y, Z) of a file.

    Raises:
        InputError: naming the file, as `load_image`, and for an image that is given as a label map.
    """
    image = load_image(open_nifti(path), is_label=is_label)
    if is_label and (number := len(torch.unique(image.as_tensor()))) > MOST_VALUES:
        raise InputError(f"{path}: has {number} values, so it is no label map; give an image as --moving.")
    return image


def _label_type(label: NDArray) -> type[np.integer]:
    """The type a label is written in: one byte where its values fit, else four."""
    return np.uint8 if label.min() >= 0 and label.max() <= 255 else np.int32
