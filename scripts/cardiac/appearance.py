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

"""What an image looks like, before anything is made of it: how sharp, how evenly lit, and whether neighboring slices show
one body."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DETAIL_MM = 2.0  # standard deviation of the Gaussian that detail is finer than
COARSE_MM = 3.0  # pixels on which slices are compared
REACH_MM = 18.0  # how far slices may be shifted against each other, as between two breath-holds


def measure_image(image: NDArray, spacing: Sequence[float]) -> dict[str, object]:
    """Figures of a stack (X, Y, Z) with voxels of a size in mm.

    Returns:
        "detail_percent", `fine_detail`; "shading", `shading`; "width_mm", the longer side of its field of view; and
        "likeness_percent", that of each slice and the next (`likeness`), a list of Z - 1.
    """
    pairs = zip(np.moveaxis(image, -1, 0), np.moveaxis(image, -1, 0)[1:])
    return {
        "detail_percent": fine_detail(image, spacing),
        "shading": shading(image),
        "width_mm": float(max(n * length for n, length in zip(image.shape[:2], spacing))),
        "likeness_percent": [likeness(one, two, spacing) for one, two in pairs],
    }


def fine_detail(image: NDArray, spacing: Sequence[float]) -> float:
    """The standard deviation of what is finer than `DETAIL_MM` in the slices of a stack (X, Y, Z), in percent of that of all:
    little in a blurred image, much in a noisy one; NaN for a constant image."""
    image = np.asarray(image, dtype=np.float64)
    if not image.std() > 0:
        return float("nan")
    smooth = ndimage.gaussian_filter(image, [DETAIL_MM / length for length in spacing[:2]] + [0])
    return float(100 * (image - smooth).std() / image.std())


def shading(image: NDArray) -> float:
    """How many times brighter a stack (X, Y, Z) is at one side than at the other: the ratio, over its field of view, of the
    exponential in x and y that fits its intensities best in the logarithm, the 1st percentile taken for black; NaN for a
    constant image."""
    image = np.asarray(image, dtype=np.float64)
    low, high = np.percentile(image, (1, 99))
    if not high > low:
        return float("nan")
    levels = np.log(np.clip((image - low) / (high - low), 0.01, 1)).mean(axis=2)
    x, y = (np.linspace(-0.5, 0.5, n) for n in levels.shape)
    slopes = [(levels.mean(axis=1 - i) * a).sum() / (a**2).sum() for i, a in enumerate((x, y))]
    return float(np.exp(np.hypot(*slopes)))


def likeness(one: NDArray, two: NDArray, spacing: Sequence[float]) -> float:
    """The largest correlation in percent of two slices (X, Y) when one is shifted against the other in plane by up to
    `REACH_MM`; NaN where either is constant or too small for that."""
    factors = [length / COARSE_MM for length in spacing[:2]]
    one, two = (
        ndimage.zoom(ndimage.gaussian_filter(np.asarray(s, np.float64), [0.5 / f for f in factors]), factors, order=1)
        for s in (one, two)
    )
    reach = round(REACH_MM / COARSE_MM)
    inner = one[reach:-reach, reach:-reach]
    if min(one.shape) < 4 * reach or not inner.std() > 0:
        return float("nan")
    windows = np.lib.stride_tricks.sliding_window_view(two, inner.shape).astype(np.float32)
    windows = windows.reshape(-1, inner.size)
    windows = windows - windows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(windows, axis=1)
    centered = inner.ravel() - inner.mean()
    found = (windows @ centered)[lengths > 0] / lengths[lengths > 0] / np.linalg.norm(centered)
    return float(100 * found.max()) if len(found) else float("nan")
