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

"""Voxels that hold no measurement, such as those outside of a scanner's field of view: found, and filled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fill_padding(pixels: NDArray, padding: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Give padding the least intensity of what was acquired, in place, so that it widens no range.

    Args:
        pixels: (X, Y, Z, T).
        padding: the same shape.

    Returns:
        Where anything was acquired, in any phase, (X, Y, Z); None for everywhere, and where nothing was.
    """
    if not padding.any() or padding.all():
        return None
    pixels[padding] = pixels[~padding].min()
    valid = ~padding.all(axis=-1)
    return None if valid.all() else valid


def find_fill(pixels: NDArray) -> float | None:
    """The value that fills what was not acquired, where a file does not say so: an extreme one, constant, on the border of
    a slice, and farther from the nearest other value than these are from each other; None where there is none.

    Args:
        pixels: (X, Y, Z, T).
    """
    for sign in (1, -1):
        extreme = min(float((sign * pixels[..., t]).min()) for t in range(pixels.shape[-1]))
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        if not any((sign * edge == extreme).any() for edge in edges):
            continue
        nearest, farthest = np.inf, -np.inf
        for t in range(pixels.shape[-1]):  # a copy of a whole cine may not fit
            frame = sign * pixels[..., t]
            nearest = min(nearest, float(frame.min(where=frame != extreme, initial=np.inf)))
            farthest = max(farthest, float(frame.max()))
        if np.isfinite(nearest) and nearest - extreme > farthest - nearest > 0:
            return sign * extreme
    return None
