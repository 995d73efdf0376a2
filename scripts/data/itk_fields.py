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

"""The only module that knows ITK's conventions: displacement fields in mm along LPS axes, as ITK, ANTs and 3D Slicer
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

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scripts.data.nifti import VECTOR, check_right_angles, open_nifti
from scripts.errors import InputError
from scripts.files import whole_file

RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
ONE_SLICE = "one slice, written twice for ITK"
# Displacements are written in steps of a quarter of a micrometer: what is finer is noise, which gzip cannot compress.
STEP_MM = 2.0**-12
# Displacements beyond this are no motion, nor what parts two images of one heart.
FARTHEST_MM = 500.0


def voxels_to_lps(field: NDArray, affine: NDArray) -> NDArray:
    """A field in voxels as displacements in mm along LPS.

    Args:
        field: (d, X, Y, Z), d = 2 in-plane or 3, channel i along array axis i, voxels.
        affine: voxel index to RAS in mm, (4, 4).

    Returns:
        (X, Y, Z, 3).
    """
    columns = affine[:3, : field.shape[0]] * RAS_TO_LPS[:, None]
    return np.einsum("ij,jxyz->xyzi", columns, field)


def lps_to_voxels(displacement: NDArray, affine: NDArray) -> NDArray:
    """The reverse of `voxels_to_lps`: (X, Y, Z, 3) in mm along LPS to (3, X, Y, Z) in voxels of the grid of
    `affine`."""
    inverse = np.linalg.inv(affine[:3, :3]) * RAS_TO_LPS
    return np.einsum("ij,xyzj->ixyz", inverse, displacement)


def write_field(path: str | Path, field: NDArray, affine: NDArray) -> None:
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


def read_field(path: str | Path) -> tuple[NDArray, NDArray]:
    """A field file, mm along LPS, as an array in voxels of its own grid.

    Returns:
        The field (3, X, Y, Z), channel i along array axis i, pull direction: moved(x) = moving(x + u(x)); and its
        grid's affine (voxel index to RAS in mm).

    Raises:
        InputError: naming the file, for one that is not a field of this kind, or that moves farther than `FARTHEST_MM`.
    """
    file = open_nifti(path)
    code = int(file.header["intent_code"])
    if file.header.get_data_shape()[3:] == (1, 3) and code != VECTOR:
        raise InputError(
            f"{path}: has intent code {code}, and a field in mm along LPS has {VECTOR} (vector); where it is one, write `img "
            f"= nibabel.load({Path(path).name!r}); img.header.set_intent({VECTOR})` to a new file."
        )
    if len(file.shape) != 5 or file.shape[3:] != (1, 3):
        raise InputError(f"{path}: has the shape {file.shape}; a displacement field is (X, Y, Z, 1, 3), mm along LPS.")
    displacement = file.voxels(dtype=np.float64)
    if (farthest := np.abs(displacement).max()) > FARTHEST_MM:
        raise InputError(
            f"{path}: moves by up to {farthest:.3g} mm, farther than any heart; give a field in mm along LPS."
        )
    if file.shape[2] == 2 and file.header["descrip"].item().decode("latin-1") == ONE_SLICE:
        displacement = displacement[:, :, :1]
    return lps_to_voxels(displacement[..., 0, :], file.affine), file.affine
