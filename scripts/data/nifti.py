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

"""The one door for NIfTI: a file is opened once, its header judged once, for training, evaluation and inference alike.

Where qform, sform and pixdim of a header disagree, the rule is ITK's, as far as ITK has one (`_judge_place`).
"""

from __future__ import annotations

import errno
import gzip
import itertools
import logging
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from scripts.cardiac.cines import Cine
from scripts.data.nifti_times import frame_times
from scripts.data.padding import fill_padding, find_fill
from scripts.errors import InputError, first_cause
from scripts.files import is_archive, is_dicom

# How far the cosine of the angle between two axes may be from 0; ITK reads no image beyond that.
RIGHT_ANGLE = 1e-4
# Degrees of shear that are taken for a converter's rounding, and straightened.
STRAIGHTENED = 2.0
# Millimeters that two places of one file may be apart; quaternions in single precision are closer.
SAME_PLACE = 0.1
# How many times longer than both others an axis' spacing is where slices lie along it.
CLEARLY_THICKER = 1.5
# Millimeters of a field of view that no scanner has, and in which no heart has room; and voxels of all frames that no cine
# has: 16 GiB as float32.
LARGEST_MM, SMALLEST_MM, LARGEST_VOXELS = 5000.0, 1.0, 1 << 32
# Intent codes of files of vectors: "vector" is what ITK writes for displacements, "displacement vector" its other name.
VECTOR, DISPLACEMENT = 1007, 1006


class NiftiFile:
    """A NIfTI file whose header was judged; made by `open_nifti`.

    Attributes:
        path: as it was given.
        shape: (X, Y, Z) or (X, Y, Z, T): a lone slice has Z = 1, axes of length 1 after these are dropped, and time in
            the fifth axis is moved to the fourth. What is neither keeps its own shape.
        affine: voxel index to RAS in mm, (4, 4), where ITK puts the file.
        placed: whether the header says where the file lies; else `affine` is ITK's choice.
        notes: what is to be said of the header that was taken, in sentences.
        header: as it was read.
    """

    def __init__(
        self, path: str | Path, image: nib.Nifti1Pair, affine: NDArray, placed: bool = True, notes: Sequence[str] = ()
    ) -> None:
        self.path = str(path)
        self.shape = _true_shape(image)
        self.affine = affine
        self.placed = placed
        self.notes = tuple(notes)
        self.header = image.header
        self._image = image
        self._is_whole = False

    def voxels(self, frame: int | None = None, dtype: type[np.floating] = np.float32) -> np.ndarray:
        """The voxels in `shape`, or (X, Y, Z) of one frame, counted from 0.

        Raises:
            InputError: naming the file, for one that is damaged, or holds NaN, Inf, complex numbers or colors.
        """
        if self._image.get_data_dtype().kind == "c":
            raise InputError(f"{self.path}: holds complex numbers; write their magnitude to a new file.")
        if self._image.get_data_dtype().kind == "V":
            raise InputError(f"{self.path}: its voxels are colors: convert them to gray.")
        try:
            if not self._is_whole:
                _check_whole(self.path)
                self._is_whole = True
            if frame is None:
                stored = np.asanyarray(self._image.dataobj).reshape(self.shape)
            else:
                later = tuple(0 if length == 1 else frame for length in self._image.shape[3:])
                stored = self._image.dataobj[(slice(None),) * 3 + later]
            with np.errstate(over="ignore"):
                array = np.array(stored, dtype=dtype)
        except Exception as error:
            raise unreadable(self.path, error) from error
        if not np.isfinite(array).all():
            raise InputError(f"{self.path}: {_why_not_finite(stored)}")
        return array


def open_nifti(path: str | Path) -> NiftiFile:
    """Open a NIfTI file and judge its header; voxels are read later.

    What there is to say of the header is logged for the first file of its kind in a data set.

    Raises:
        InputError: naming the file and the cure, for a file that is not there, is none or cannot be read, or whose header
            puts it at two places, gives voxels no size, lengths in another unit, axes off right angles by more than
            `STRAIGHTENED`, or a grid that cannot be meant (`check_extent`).
    """
    if Path(path).is_dir() or is_dicom(path):
        raise InputError(
            f"{path}: is a folder or DICOM, where a NIfTI file is needed; convert it, by `dcm2niix` for example."
        )
    try:
        image = nib.load(path)
    except Exception as error:
        # nibabel says of a quaternion that is no rotation that "w2 should be positive".
        raise _bad_qform(path, error) if "w2 " in str(error) else unreadable(path, error) from error
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(f"{path}: is {type(image).__name__.removesuffix('Image')}, no NIfTI; convert it to .nii.gz.")
    if min(image.shape, default=0) < 1:
        raise InputError(
            f"{path}: its header gives the shape {image.shape}, which holds no voxel; is the file complete?"
        )
    affine, placed, notes = _judge_place(path, image)
    file = NiftiFile(path, image, affine, placed, notes)
    check_extent(file.shape, affine, path)
    for note in notes:
        # Files of a data set share their fault: hundreds of lines would say no more than one.
        if is_new(re.sub(r"[\d.]+", "", note), str(Path(path).absolute().parent.parent)):
            logging.getLogger("data").warning(f"{path}: {note} (Said for the first such file alone.)")
    return file


def shape_of(path: str | Path) -> tuple[int, ...]:
    """The shape of a NIfTI file as `NiftiFile` has it; () where it has none that can be read."""
    try:
        return _true_shape(nib.load(path))
    except Exception:
        return ()


def stem_of(path: str | Path) -> str:
    """File name without _4d and the endings of NIfTI files."""
    return re.sub(r"(_4d)?(\.(nii|img|hdr)(\.gz)?)?$", "", Path(path).name, flags=re.IGNORECASE)


def check_right_angles(affine: NDArray, name: object) -> None:
    """Stop at a grid that is sheared: ITK, ANTs and 3D Slicer read no field on it.

    Raises:
        InputError: with `name`, which says whose grid it is; for voxels without extent, too.
    """
    _check_sizes(affine, name)
    degrees = _shear_degrees(affine)
    if degrees > np.rad2deg(RIGHT_ANGLE):
        raise InputError(
            f"{name}: its axes are off right angles by {degrees:.2g} degrees, and ITK takes no field on such a grid; "
            "resample the image onto one with right angles."
        )


def check_extent(shape: Sequence[int], affine: NDArray, path: str | Path) -> None:
    """Stop at a grid (X, Y, Z) or (X, Y, Z, T) that cannot be meant, before memory is taken for it.

    Raises:
        InputError: naming the file.
    """
    if math.prod(shape) > LARGEST_VOXELS:
        raise InputError(f"{path}: has the shape {tuple(shape)}, and no cine is so large; correct the file's header.")
    width, height = (float(n * length) for n, length in zip(shape[:2], voxel_sizes(affine)))
    if max(width, height) > LARGEST_MM:
        raise InputError(
            f"{path}: has slices of {width:.4g} x {height:.4g} mm, and no scanner is so wide; correct the file's voxel sizes."
        )
    if max(width, height) < SMALLEST_MM:
        raise InputError(
            f"{path}: has slices of {width:.4g} x {height:.4g} mm, and no heart is so small; correct the file's voxel sizes."
        )


def check_slices_last(file: NiftiFile) -> None:
    """Stop at a file of several slices whose thick slices do not lie along its third axis: registration would run
    across them.

    Raises:
        InputError: naming file, axis and cure, where the first or second axis has by far the largest spacing.
    """
    spacing = voxel_sizes(file.affine)
    axis = int(spacing.argmax())
    if axis < 2 and file.shape[2] > 1 and spacing[axis] > CLEARLY_THICKER * np.delete(spacing, axis).max():
        order = [[2, 1], [0, 1], [1, 1]] if axis == 0 else [[0, 1], [2, 1], [1, 1]]
        listed = " x ".join(f"{length:.3g}" for length in spacing)
        raise InputError(
            f"{file.path}: its slices lie along axis {axis + 1} of its three (voxels of {listed} mm); reorder it to (X, "
            f"Y, Z), for example by `nibabel.load({Path(file.path).name!r}).as_reoriented({order})` written to a new file."
        )


def read_nifti_cine(path: str | Path, frames: int | None = None) -> Cine:
    """A 4-D NIfTI file, or one slice (X, Y, T) whose T is `frames`, with its times where they are known.

    Raises:
        InputError: naming the file, for one that `open_nifti` refuses, that is no cine, or has its slices along another
            axis than the third.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give --cine a 4-D NIfTI file or a folder of DICOM files.")
    if path.suffix.lower() == ".dcm" or is_dicom(path):
        raise InputError(f"{path}: is one DICOM file; give --cine the folder that holds all files of the cine.")
    file = open_nifti(path)
    if frames is not None and file.shape[2:] == (frames,):
        file.shape = (*file.shape[:2], 1, frames)
    if len(file.shape) != 4 or file.shape[3] < 2:
        if int(file.header["intent_code"]) == VECTOR:
            raise InputError(f"{path}: is a displacement field; give it as --field, or give --cine a cine.")
        raise InputError(f"{path}: {no_cine(path, file.shape)}")
    check_slices_last(file)
    pixels = file.voxels()
    valid = leave_out_fill(file, pixels)
    times = frame_times(file.path, file.header, *file.shape[2:])
    return Cine(stem_of(path), pixels, file.affine, times, valid)


def no_cine(path: str | Path, shape: Sequence[int]) -> str:
    """Why a file of a shape, as `NiftiFile` has it, is no cine, with the cure."""
    words = f"has the shape {tuple(shape)}; a cine is (X, Y, Z, T) with two frames or more."
    load = f"`img = nibabel.load({Path(path).name!r}); nibabel.Nifti1Image("
    if len(shape) == 3 and shape[2] > 1:
        words += f" Where its third axis is time, write {load}img.dataobj[:, :, None], img.affine)` to a new file."
    if len(shape) == 3:
        words += " Register two images by --moving and --fixed."
    if len(shape) == 5:
        first = "..., 0" if shape[4] < shape[3] else ":, :, :, 0"
        words += f" Write one image of each frame, such as {load}img.dataobj[{first}], img.affine)`, to a new file."
    return words


def leave_out_fill(file: NiftiFile, pixels: NDArray) -> NDArray[np.bool_] | None:
    """Give the fill value of an image the least intensity of the rest, in place, with a line in the log.

    Args:
        file: the image's, for the line.
        pixels: (X, Y, Z) or (X, Y, Z, T).

    Returns:
        Where anything was acquired, (X, Y, Z); None for everywhere.
    """
    frames = pixels if pixels.ndim == 4 else pixels[..., None]
    value = find_fill(frames)
    if value is None:
        return None
    padding = frames == value
    logging.getLogger("data").warning(
        f"{file.path}: {100 * padding.mean():.2g} % of its voxels are {value:g}, far outside the rest, and are left out as "
        "a fill value."
    )
    return fill_padding(frames, padding)


def unreadable(path: str | Path, error: Exception) -> InputError:
    """What to say of a file that nibabel cannot read, with the cure that its name and first bytes suggest."""
    path = Path(path)
    if not path.is_file():
        return InputError(f"{path}: no such file; correct the path.")
    with path.open("rb") as file:
        head = file.read(4)
    name, cure = path.name.lower(), "is the file complete?"
    cause = first_cause(error)
    if name.endswith(".nii") and head[:2] == b"\x1f\x8b":
        cure = "it is compressed: rename it to .nii.gz."
    elif is_archive(path):
        cure = "it is an archive or a compressed file: unpack it, and give what was in it."
    elif isinstance(cause, FileNotFoundError):
        cure = "lay that file beside it."
    elif not name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
        cure = "convert it to .nii.gz."
    elif name.endswith(".gz") and {int.from_bytes(head, order) for order in ("little", "big")} & {348, 540}:
        cure = "it is not compressed: rename it to .nii."
    if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM:
        cure = "it needs more memory than there is: close other programs, or crop the image."
    reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
    return InputError(f"{path}: cannot be read as NIfTI ({reason}); {cure}")


def _judge_place(path: str | Path, image: nib.Nifti1Pair) -> tuple[NDArray, bool, list[str]]:
    """Where a file lies: its affine, whether the header says so, and what the log says of it.

    By the codes of the header:
        neither qform nor sform: where ITK puts such files, the first voxel at 0 and the axes along LPS;
        qform alone: the qform;
        sform: the sform. Where its columns have length 1 and pixdim has other sizes, as in ACDC's files, it has pixdim's
            sizes, and keeps its own directions and origin. Axes off right angles by up to `STRAIGHTENED` are straightened,
            to the qform where there is one;
        both: they must agree after this, since ITK takes the one or the other by the codes, and nibabel the sform.

    Raises:
        InputError: see `open_nifti`.
    """
    header = image.header
    try:
        (qform, q_code), (sform, s_code) = header.get_qform(coded=True), header.get_sform(coded=True)
    except (HeaderDataError, ValueError) as error:
        raise _bad_qform(path, error) from error
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError as error:
        raise InputError(f"{path}: its header gives units that NIfTI does not have; write it again in mm.") from error
    if unit not in ("mm", "unknown"):
        raise InputError(f"{path}: its header gives lengths in units of a {unit}; write it again in mm.")
    pixdim = _stored_sizes(image)
    if not np.isfinite(pixdim).all() or (not s_code and not (pixdim > 0).all()):
        raise InputError(
            f"{path}: its header gives voxels of {_list_sizes(pixdim)} mm; write it again with their true size."
        )
    shape = np.array((*image.shape, 1, 1)[:3])  # a lone slice may have two axes
    if not s_code and not q_code:
        return np.diag([-pixdim[0], -pixdim[1], pixdim[2], 1.0]), False, [_PLACELESS]
    if not s_code:
        check_right_angles(qform, path)
        return qform, True, []
    notes = []
    _check_sizes(sform, path)
    sizes = voxel_sizes(sform)
    differs = (pixdim > 0).all() and (np.abs(sizes - pixdim) * shape).max() > SAME_PLACE
    if differs and np.allclose(sizes, 1, atol=1e-3):
        sform = sform @ np.diag([*(pixdim / sizes), 1])
        notes.append(
            f"its sform has voxels of 1 x 1 x 1 mm and its pixdim says {_list_sizes(pixdim)}; pixdim's sizes are taken, with "
            "the sform's directions and origin, as ITK does (docs/files.md)."
        )
    elif differs and not q_code:
        raise InputError(
            f"{path}: its header gives voxels of {_list_sizes(pixdim)} mm and its sform such of {_list_sizes(sizes)} mm, and ITK "
            f"and ANTs may take others than are taken here; where the sform is right, {_set_form(path, 'qform')}"
        )
    affine, shear = sform, _shear_degrees(sform)
    if np.rad2deg(RIGHT_ANGLE) < shear <= STRAIGHTENED:
        affine = _straightened(sform, shape)
        moved = _largest_gap(affine, sform, shape)
        # ITK takes the qform, which has right angles, and which programs derive from such an sform.
        if q_code and _largest_gap(qform, sform, shape) <= 2 * moved + SAME_PLACE:
            affine, moved = qform, _largest_gap(qform, sform, shape)
        notes.append(
            f"its axes are off right angles by {shear:.2g} degrees and are straightened, which moves voxels by up to "
            f"{moved:.2g} mm."
        )
    check_right_angles(affine, path)
    if q_code and (gap := _largest_gap(qform, affine, shape)) > SAME_PLACE:
        raise InputError(
            f"{path}: its qform and its sform put it up to {gap:.3g} mm apart, and ITK and ANTs may take another one "
            f"than is taken here; where the sform is right, {_set_form(path, 'qform')}"
        )
    return affine, True, notes


_PLACELESS = (
    "its header says nowhere where it lies (neither qform nor sform), so it is put where ITK, ANTs and 3D Slicer put it; "
    "nibabel puts it elsewhere."
)


def _stored_sizes(image: nib.Nifti1Pair) -> NDArray:
    """The three voxel sizes of a header as they are stored: nibabel takes sizes of 0 for 1 when it loads an image."""
    header = image.file_map.get("header", image.file_map["image"])  # a file of its own beside .img
    with nib.openers.ImageOpener(header.filename) as file:
        return type(image.header).from_fileobj(file, check=False)["pixdim"][1:4].astype(float)


def _largest_gap(one: NDArray, other: NDArray, shape: NDArray) -> float:
    """Millimeters that two affines put the corners of an image (X, Y, Z) apart at most."""
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape), (1,))])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def _straightened(affine: NDArray, shape: NDArray) -> NDArray:
    """An affine with axes at right angles: in-plane axes nearest to its own, slices along their normal at the same
    distances, and the center of the image where it was."""
    sizes = voxel_sizes(affine)
    u, _, v = np.linalg.svd(affine[:3, :2] / sizes[:2], full_matrices=False)
    in_plane = u @ v
    normal = np.cross(*in_plane.T)
    step = affine[:3, 2] @ normal
    straight = np.eye(4)
    straight[:3, :3] = np.column_stack([in_plane * sizes[:2], normal * step])
    center = np.array([*(np.asarray(shape) - 1) / 2, 1])
    straight[:3, 3] = (affine @ center - straight @ (center * [1, 1, 1, 0]))[:3]
    return straight


def _shear_degrees(affine: NDArray) -> float:
    """Degrees by which the axes of an affine are off right angles at most."""
    axes = affine[:3, :3] / voxel_sizes(affine)
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    return float(np.rad2deg(np.arcsin(min(cosine, 1))))


def _check_sizes(affine: NDArray, name: object) -> None:
    """Stop at voxels without extent.

    Raises:
        InputError: with `name`.
    """
    sizes = voxel_sizes(affine)
    if not (sizes > 0).all() or not np.isfinite(affine).all():
        raise InputError(f"{name}: its voxels are {_list_sizes(sizes)} mm; write the file again with their true size.")


def _list_sizes(sizes: NDArray) -> str:
    """Voxel sizes in a message."""
    return " x ".join(f"{size:.4g}" for size in sizes)


def _set_form(path: str | Path, form: str) -> str:
    """The cure of a header by nibabel, which makes a form that of the affine that nibabel reads."""
    return f"write `img = nibabel.load({Path(path).name!r}); img.set_{form}(img.affine, 1)` to a new file."


def _bad_qform(path: str | Path, error: Exception) -> InputError:
    """What to say of a header whose quaternion gives no rotation."""
    return InputError(
        f"{path}: its header has no valid qform ({error}); write it again with an affine, by nibabel for example."
    )


def _true_shape(image: nib.Nifti1Pair) -> tuple[int, ...]:
    """See `NiftiFile`."""
    shape = image.shape
    is_nifti = isinstance(image, nib.Nifti1Pair)
    has_vectors = is_nifti and int(image.header["intent_code"]) in (VECTOR, DISPLACEMENT)
    while len(shape) >= 5 and shape[3] == 1 and not has_vectors:
        shape = (*shape[:3], *shape[4:])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return (*shape, 1) if len(shape) == 2 else shape


def _why_not_finite(stored: np.ndarray) -> str:
    """Why voxels are not finite, with the cure."""
    if np.isfinite(stored).all():
        return f"holds {np.abs(stored).max():.3g}, beyond single precision; scale its intensities."
    return "holds NaN or Inf; replace those voxels."


def _check_whole(path: str | Path) -> None:
    """Read a compressed file to its end, where its checksum is; who reads voxels stops before.

    Raises:
        OSError, EOFError, zlib.error: for a file that is damaged.
    """
    if str(path).lower().endswith(".gz"):
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass


@lru_cache(maxsize=4096)
def _heard(kind: str, folder: str) -> list[None]:
    """A list for each kind of note and each folder of a data set, which is empty until the note was made."""
    return []


def is_new(kind: str, folder: str) -> bool:
    """Whether a note is made for the first time of the files of a data set."""
    heard = _heard(kind, folder)
    heard.append(None)
    return len(heard) == 1
