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

"""The one door for NIfTI: opening a file, judging its header, and reading images, frames and cines from it."""

from __future__ import annotations

import gzip
import itertools
import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from scripts.cardiac.cines import LABELS, Array, Cine
from scripts.errors import InputError, first_cause
from scripts.files import is_dicom
from torch import Tensor

# How far the cosine of the angle between two axes may be from 0; ITK reads no image beyond that.
RIGHT_ANGLE = 1e-4
# Millimeters that qform and sform of a file may be apart; quaternions in single precision are closer.
SAME_PLACE = 0.1
FASTEST = 3.0  # ms from frame to frame, a third of what the fastest cines of a heart have
# How many times longer than both others an axis' spacing is where slices lie along it.
CLEARLY_THICKER = 1.5


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


def stem_of(path: str | Path) -> str:
    """File name without _4d and the endings of NIfTI files."""
    return re.sub(r"(_4d)?(\.(nii|img|hdr)(\.gz)?)?$", "", Path(path).name, flags=re.IGNORECASE)


def read_image(path: str) -> MetaTensor:
    """A NIfTI file (X, Y, Z) as (1, X, Y, Z), with the affine that its header gives.

    MONAI's reader takes the qform for the affine where the sform disagrees with the voxel sizes, whatever its code
    says.
    """
    file = nib.load(path)
    array = read_voxels(file)
    # A lone slice has two axes, and some writers add axes of length 1.
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim)) if array.ndim < 3 else array
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return MetaTensor(torch.from_numpy(array.copy())[None], affine=file.affine, meta={"filename_or_obj": str(path)})


def read_frame(path: str, frame: int) -> MetaTensor:
    """One frame, counted from 0, of a NIfTI file (X, Y, Z, T), as (1, X, Y, Z).

    Raises:
        InputError: for a file without that frame.
    """
    file = nib.load(path)
    if file.ndim != 4 or not 0 <= frame < file.shape[3]:
        raise InputError(
            f"{path}: has no frame {frame}, counted from 0, in the shape {file.shape}; correct its ED and ES in the table."
        )
    return MetaTensor(
        torch.from_numpy(read_voxels(file, frame))[None], affine=file.affine, meta={"filename_or_obj": str(path)}
    )


def check_image(image: Tensor, path: str, is_label: bool = False) -> None:
    """Stop at an image that is not a stack of slices or holds NaN, Inf or, as a label, a fraction.

    Raises:
        InputError: naming the file.
    """
    if image.ndim != 4 or image.shape[0] != 1:
        shape = tuple(image.shape[1:]) + tuple(image.shape[:1]) * (image.shape[0] > 1)
        raise InputError(
            f"{path}: has the shape {shape}; one stack of slices (X, Y, Z) is needed: pick one frame of a cine."
        )
    if not torch.isfinite(image).all():
        raise InputError(f"{path}: holds NaN or Inf; replace those voxels.")
    if is_label and not torch.equal(image, image.round()):
        raise InputError(f"{path}: holds fractions, so it is not a label image; labels are the integers {LABELS}.")


def read_nifti_cine(path: str | Path) -> Cine:
    """A 4-D NIfTI file, with the frame time of its header.

    Raises:
        InputError: naming the file, for one that is not there, cannot be read, is no cine, holds NaN, Inf or complex
            numbers, lies at two places (`itk_fields.check_one_place`), or has its slices along another axis than the
            third.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give --cine a 4-D NIfTI file or a folder of DICOM files.")
    if path.suffix.lower() == ".dcm" or is_dicom(path):
        raise InputError(f"{path}: is one DICOM file; give --cine the folder that holds all files of the cine.")
    try:
        file = nib.load(path)
        image = read_voxels(file)
    except InputError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    if not isinstance(file, nib.Nifti1Pair):
        raise InputError(f"{path}: is {type(file).__name__.removesuffix('Image')}, no NIfTI; convert it to .nii.gz.")
    # Some writers add axes of length 1.
    image = image.reshape(image.shape[:4]) if set(image.shape[4:]) <= {1} else image
    if image.ndim != 4 or image.shape[3] < 2:
        raise InputError(
            f"{path}: has the shape {image.shape}; a cine is (X, Y, Z, T) with two frames or more. Register two 3-D images by "
            "--moving and --fixed."
        )
    if not np.isfinite(image).all():
        raise InputError(f"{path}: holds NaN or Inf; replace those voxels.")
    check_one_place(path)
    check_slices_last(path)
    return Cine(stem_of(path), image, file.affine, frame_times(file))


def shape_of(path: str | Path) -> tuple[int, ...]:
    """The shape of a NIfTI file, by its header; () where it has none that can be read."""
    try:
        return nib.load(path).shape
    except Exception:
        return ()


def check_slices_last(path: str | Path) -> None:
    """Stop at a file of several slices whose thick slices do not lie along its third axis: registration would run
    across them.

    Raises:
        InputError: naming file, axis and cure, where the first or second axis has by far the largest spacing.
    """
    file = nib.load(path)
    spacing = voxel_sizes(file.affine)
    axis = int(spacing.argmax())
    if (
        axis < 2
        and file.ndim > 2
        and file.shape[2] > 1
        and spacing[axis] > CLEARLY_THICKER * np.delete(spacing, axis).max()
    ):
        order = [[2, 1], [0, 1], [1, 1]] if axis == 0 else [[0, 1], [2, 1], [1, 1]]
        listed = " x ".join(f"{length:.3g}" for length in spacing)
        raise InputError(
            f"{path}: its slices lie along axis {axis + 1} of its three (voxels of {listed} mm); reorder it to (X, "
            f"Y, Z), for example by `nibabel.load({Path(path).name!r}).as_reoriented({order})` written to a new file."
        )


def frame_times(file: nib.Nifti1Image) -> Array | None:
    """Milliseconds of each slice and frame (Z, T) by a NIfTI header, the same for all slices; None where it does not
    tell."""
    length, unit = float(file.header.get_zooms()[3]), file.header.get_xyzt_units()[1]
    step = length * {"sec": 1e3, "msec": 1.0, "usec": 1e-3}.get(unit, 0.0)
    # A header that was never filled in says one second, or one millisecond.
    if not FASTEST <= step < 1000:
        if length not in (0, 1):
            logging.getLogger("inference").warning(
                f"{file.get_filename()}: a frame time of {length:g} {unit} is implausible, so times are left out; correct "
                "the header with nibabel's set_zooms and set_xyzt_units('mm', 'msec')"
            )
        return None
    return np.tile(step * np.arange(file.shape[3]), (file.shape[2], 1))


def read_voxels(file: nib.Nifti1Pair, frame: int | None = None) -> np.ndarray:
    """The voxels of a NIfTI file, or of one frame of it, counted from 0, in fp32.

    Raises:
        InputError: for complex numbers, of which fp32 would keep the real part.
        OSError, EOFError, zlib.error: for a file that is damaged.
    """
    check_whole(file.get_filename())
    if file.get_data_dtype().kind == "c":
        raise InputError(f"{file.get_filename()}: holds complex numbers; write their magnitude to a new file.")
    return np.asarray(file.dataobj if frame is None else file.dataobj[..., frame], dtype=np.float32)


def check_whole(path: str | Path) -> None:
    """Read a compressed file to its end, where its checksum is; who reads voxels stops before.

    Raises:
        OSError, EOFError, zlib.error: for a file that is damaged.
    """
    if str(path).lower().endswith(".gz"):
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass


def unreadable(path: str | Path, error: Exception) -> InputError:
    """What to say of a file that nibabel cannot read, with the cure that its name and first bytes suggest."""
    path = Path(path)
    if not path.is_file():
        return InputError(f"{path}: no such file; correct the path.")
    with path.open("rb") as file:
        head = file.read(4)
    name, cure = path.name.lower(), "is the file complete?"
    if not name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
        cure = "convert it to .nii.gz."
    elif name.endswith(".nii") and head[:2] == b"\x1f\x8b":
        cure = "it is compressed: rename it to .nii.gz."
    elif name.endswith(".gz") and {int.from_bytes(head, order) for order in ("little", "big")} & {348, 540}:
        cure = "it is not compressed: rename it to .nii."
    elif "Void" in str(error):
        cure = "its voxels are colors: convert them to gray."
    cause = first_cause(error)
    reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
    return InputError(f"{path}: cannot be read as NIfTI ({reason}); {cure}")
