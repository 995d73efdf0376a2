"""Cines from files: 4-D NIfTI here, DICOM in `dicom.py`."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scripts.cines import Array, Cine
from scripts.datalists import stem_of
from scripts.dicom import read_dicom_cine
from scripts.errors import InputError
from scripts.files import is_dicom, read_voxels, unreadable
from scripts.itk_fields import check_one_place

FASTEST = 3.0  # ms from frame to frame, a third of what the fastest cines of a heart have
CLEARLY_THICKER = 1.5
"""How many times longer than both others an axis' spacing is where slices lie along it."""


def read_cine(path: str | Path) -> Cine:
    """The cine of a 4-D NIfTI file or of a folder of DICOM files.

    Raises:
        InputError: naming the file or folder and the cure.
    """
    path = Path(path)
    return read_dicom_cine(path) if path.is_dir() else read_nifti_cine(path)


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
