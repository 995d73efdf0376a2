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

"""Pixels of DICOM images: decoded, rescaled, and without what the scanner only filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scripts.data.dicom_headers import VALUE_TAGS, Instance, read_file
from scripts.errors import InputError

PIXEL_TAGS = ("Rows", "Columns", "NumberOfFrames", *VALUE_TAGS, "BitsAllocated", "HighBit", "PixelData")
PIXEL_TAGS += ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")


def read_images(
    folder: Path, instances: Sequence[Instance]
) -> dict[Instance, tuple[NDArray, NDArray[np.bool_] | None]]:
    """Rescaled intensities (X, Y) in fp32 by image, with where it is padding (X, Y), or None where it states no
    padding; each file is read once, whatever it holds.

    Raises:
        InputError: where they cannot be decoded, are more or fewer than the header says, or are not finite.
    """
    by_path: dict[Path, list[Instance]] = {}
    for one in instances:
        by_path.setdefault(one.path, []).append(one)
    return {
        one: found for path, frames in by_path.items() for one, found in zip(frames, _read_pixels(folder, path, frames))
    }


def _read_pixels(
    folder: Path, path: Path, frames: Sequence[Instance]
) -> list[tuple[NDArray, NDArray[np.bool_] | None]]:
    """What `read_images` gives of the images of one file; errors as there."""
    from pydicom.pixels import pixel_array

    images = []
    for one in frames:
        try:
            if not images:
                file = read_file(path, PIXEL_TAGS)
            stored = pixel_array(file, index=one.frame).T
        except (AttributeError, RuntimeError, ValueError) as error:
            raise InputError(f"{folder}: the pixels of {one.label} cannot be read ({_cure_encoding(path)}.") from error
        if stored.shape != one.size:
            raise InputError(
                f"{folder}: {one.label} has pixels of the shape {stored.shape}, not {one.size} as its header says; export it again."
            )
        padding = None
        if one.padding is not None:
            low, high = one.padding
            padding = (stored >= low) & (stored <= high)
        slope, intercept = one.rescale
        with np.errstate(over="ignore", invalid="ignore"):
            image = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        if not np.isfinite(image).all():
            raise InputError(
                f"{folder}: {one.label} has intensities beyond single precision (RescaleSlope {slope:.3g}, RescaleIntercept "
                f"{intercept:.3g}); export it again."
            )
        images.append((image, padding))
    return images


def _cure_encoding(path: Path) -> str:
    """How the pixels of a file are encoded, and what to do where they cannot be read so."""
    syntax = read_file(path, ["SOPClassUID"], stop_before_pixels=True).file_meta.get("TransferSyntaxUID")
    name = getattr(syntax, "name", "unknown encoding")
    if getattr(syntax, "is_transfer_syntax", False) and not syntax.is_compressed:
        return f"{name}); is the file complete? Export it again"
    return f"{name}); export it again, uncompressed, or run `pip install python-gdcm` where that is missing"
