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

"""Whether tags, a pattern of dark lines that moves with the tissue, were put on an image: what a plain network knows
nothing of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Distance of tags, mm.
NEAREST, FARTHEST = 4.0, 12.0
# How many times lines are stronger than the median of what has their frequency in other directions. Real images without
# tags (ACDC, Sunnybrook, long axis) stay below 40; with tags of 60 % put on them they are above 230.
CLEAR = 80.0
# Of the variance of a slice that lines make up at least; where a slice holds little but the chest wall, what rises in it
# is weaker.
STRONG = 0.025


def has_tags(image: NDArray, spacing: tuple[float, float]) -> bool:
    """Whether regular lines cross an image, by the peaks of its spectrum.

    Args:
        image: (X, Y, Z), a frame soon after the trigger, before tags fade.
        spacing: of X and Y in mm.
    """
    frequencies = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, s) for n, s in zip(image.shape, spacing)), indexing="ij"))
    rings = np.floor(frequencies * FARTHEST * 8).astype(int)
    band = (frequencies > 1 / FARTHEST) & (frequencies < 1 / NEAREST)
    if not band.any():
        return False
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])
    shares = [_share_of_lines(image[..., z] * 1.0, window, rings, band) for z in range(image.shape[2])]
    return float(np.median(shares)) > STRONG


def _share_of_lines(image: NDArray, window: NDArray, rings: NDArray, band: NDArray) -> float:
    """The share of a slice's variance that the strongest peak of its spectrum is, with those beside it, of the peaks in a
    band that clearly rise above the median of their ring; 0 without any."""
    power = np.square(np.abs(np.fft.fft2((image - image.mean()) * window)))
    usual = np.full(rings.max() + 1, np.inf)
    for ring in np.unique(rings[band]):
        usual[ring] = np.median(power[rings == ring])
    clear = np.where(band & (power > CLEAR * usual[rings]), power, 0.0)
    peak = np.unravel_index(int(clear.argmax()), clear.shape)
    if not clear[peak]:
        return 0.0
    beside = np.ix_(*((np.arange(-1, 2) + n) % size for n, size in zip(peak, power.shape)))
    return 2 * float(power[beside].sum() / power.sum())
