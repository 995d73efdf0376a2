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

"""A cine as an object, which readers make, and the frame at end diastole, found in its intensities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scripts.cardiac.planes import is_long_axis

# Values in a label map: right ventricle, left ventricular myocardium and cavity, as in ACDC.
LABELS = {"rv": 1, "myo": 2, "lv": 3}
# Basis of a reference frame that `largest_cavity` chose.
ESTIMATED = "the frame with the largest estimated cavity: the most bright voxels in the beating region"
# Basis of that of a long-axis view, whose atria fill while the ventricles empty.
TRIGGERED = "the first frame: a cine mostly begins at the R wave"
# Basis of a reference frame that `phases.find_contours` chose.
AUTOMATIC = "the frame with the largest LV by the segmentation of all frames"


@dataclass(frozen=True)
class Cine:
    """A stack of slices over the cardiac cycle, short-axis ones unless `plane` says otherwise. Frames are counted from 1
    wherever a user sees them."""

    name: str
    """Names the outputs; never a patient identifier."""
    image: NDArray
    """Intensities (X, Y, Z, T) in the scanner's unit, fp32."""
    affine: NDArray
    """Voxel index to RAS in mm, (4, 4); oblique in general."""
    times: NDArray | None = None
    """Milliseconds of each slice and frame after the trigger, (Z, T); None where the file does not tell."""
    valid: NDArray[np.bool_] | None = None
    """Where anything was acquired, in any frame, (X, Y, Z); None is everywhere. Padding has the least intensity of the
    rest."""
    plane: str | None = None
    """One of `planes.PLANES`, None where it is unknown."""
    plane_basis: str = "unknown"
    """One of `planes.BASIS`."""
    doubts: tuple[str, ...] = ()
    """Sentences on how it was read that belong to the verdict."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        return tuple(float(length) for length in voxel_sizes(self.affine))

    @property
    def is_stack(self) -> bool:
        """Whether its slices add up to a ventricle: several, and not of a long-axis view."""
        return self.image.shape[2] > 1 and not is_long_axis(self.plane)

    @property
    def frames(self) -> int:
        """T."""
        return self.image.shape[-1]

    @property
    def frame_time(self) -> float | None:
        """Mean milliseconds from a frame to the next, None where unknown or for a single frame."""
        if self.times is None or self.frames < 2:
            return None
        return float(np.diff(self.times, axis=1).mean())

    @property
    def heart_rate(self) -> float | None:
        """Beats a minute, if the frames cover one heartbeat; None where the frame time is unknown."""
        return None if not self.frame_time else 60000 / (self.frame_time * self.frames)


def largest_cavity(image: NDArray) -> int:
    """The frame, counted from 1, in which the most of the beating region is bright: blood fills the cavities at end
    diastole.

    Args:
        image: (X, Y, Z, T). The beating region is where intensities vary most over time; bright is above Otsu's
            threshold in it.
    """
    beating = []
    for smooth in smooth_slices(image):
        spread = gaussian_filter(smooth.std(axis=-1), (3, 3))
        beating.append(smooth[spread > 0.5 * spread.max()])
    values = np.concatenate(beating)
    return int((values > otsu_threshold(values)).sum(axis=0).argmax()) + 1


def smooth_slices(image: NDArray) -> Iterator[NDArray]:
    """Each slice (X, Y, T) of a cine (X, Y, Z, T) under a small Gaussian, in double precision; one at a time, for a
    cine may fill the memory."""
    for z in range(image.shape[2]):
        yield gaussian_filter(np.asarray(image[:, :, z], dtype=np.float64), (1.5, 1.5, 0))


def otsu_threshold(values: NDArray) -> float:
    """The threshold that parts values into two classes of the least variance (Otsu, IEEE Trans. SMC 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centers = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centers) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centers)[::-1]) / np.maximum(above[::-1], 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(edges[1:-1][between.argmax()])
