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
BRIGHT_MM = 40.0  # within which there is fat or blood wherever there is a body
RIM = 0.25  # of the field of view, at each side
COARSE_MM = 3.0  # pixels on which slices are compared
REACH_MM = 18.0  # how far slices may be shifted against each other, as between two breath-holds


def measure_image(image: NDArray, spacing: Sequence[float]) -> dict[str, object]:
    """Figures of a stack (X, Y, Z) with voxels of a size in mm.

    Returns:
        "detail_percent", `fine_detail`; "shading", `shading`; "width_mm", the longer side of its field of view; and
        "likeness_percent" and "mirrored_percent", those of each slice and the next (`likeness`), lists of Z - 1.
    """
    pairs = zip(np.moveaxis(image, -1, 0), np.moveaxis(image, -1, 0)[1:])
    alike = [likeness(one, two, spacing) for one, two in pairs]
    return {
        "detail_percent": fine_detail(image, spacing),
        "shading": shading(image, spacing),
        "width_mm": float(max(n * length for n, length in zip(image.shape[:2], spacing))),
        "likeness_percent": [plain for plain, _ in alike],
        "mirrored_percent": [mirrored for _, mirrored in alike],
    }


def fine_detail(image: NDArray, spacing: Sequence[float]) -> float:
    """The standard deviation of what is finer than `DETAIL_MM` in the slices of a stack (X, Y, Z), in percent of that of all:
    little in a blurred image, much in a noisy one; NaN for a constant image."""
    image = np.asarray(image, dtype=np.float64)
    if not image.std() > 0:
        return float("nan")
    smooth = ndimage.gaussian_filter(image, [DETAIL_MM / length for length in spacing[:2]] + [0])
    return float(100 * (image - smooth).std() / image.std())


def shading(image: NDArray, spacing: Sequence[float]) -> float:
    """How many times brighter a stack (X, Y, Z) is at one side than at the other: the ratio, over its field of view, of the
    exponential in x and y that fits the brightest tissue within `BRIGHT_MM` best in the logarithm, the 1st percentile taken
    for black and the outermost `RIM` left out, where there may be air alone; NaN for a constant image."""
    image = np.asarray(image, dtype=np.float64)
    low, high = np.percentile(image, (1, 99))
    if not high > low:
        return float("nan")
    levels = np.clip((image - low) / (high - low), 0.01, 1).max(axis=2)
    bright = np.log(ndimage.maximum_filter(levels, [max(round(BRIGHT_MM / length), 1) for length in spacing[:2]]))
    inner = tuple(slice(int(RIM * n), n - int(RIM * n)) for n in bright.shape)
    places = np.stack(np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in bright.shape), indexing="ij"))[
        (slice(None), *inner)
    ]
    design = np.stack([*places.reshape(2, -1), np.ones(bright[inner].size)], axis=1)
    slopes = np.linalg.lstsq(design, bright[inner].ravel(), rcond=None)[0][:2]
    return float(np.exp(np.hypot(*slopes)))


def likeness(one: NDArray, two: NDArray, spacing: Sequence[float]) -> tuple[float, float]:
    """The largest correlation in percent of two slices (X, Y) when one is shifted against the other in plane by up to
    `REACH_MM`: as it is, and mirrored along either axis; NaN where either is constant or too small for that."""
    factors = [length / COARSE_MM for length in spacing[:2]]
    one, two = (
        ndimage.zoom(ndimage.gaussian_filter(np.asarray(s, np.float64), [0.5 / f for f in factors]), factors, order=1)
        for s in (one, two)
    )
    reach = round(REACH_MM / COARSE_MM)
    inner = one[reach:-reach, reach:-reach]
    if min(one.shape) < 4 * reach or not inner.std() > 0:
        return float("nan"), float("nan")
    windows = np.lib.stride_tricks.sliding_window_view(two, inner.shape).astype(np.float32)
    windows = windows.reshape(-1, inner.size)
    windows = windows - windows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(windows, axis=1)
    if not (lengths > 0).any():
        return float("nan"), float("nan")
    turned = np.stack([turn.ravel() for turn in (inner, inner[::-1], inner[:, ::-1])], axis=-1).astype(np.float32)
    turned = turned - turned.mean(axis=0)
    found = (windows @ turned)[lengths > 0] / lengths[lengths > 0, None] / np.linalg.norm(turned, axis=0)
    plain, *mirrored = 100 * found.max(axis=0)
    return float(plain), float(max(mirrored))
