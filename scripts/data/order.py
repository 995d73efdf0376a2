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

"""Whether two frames of a cine have exchanged their places, by what is in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The share by which an exchange shortens the steps to and from two frames. In clean cines of ACDC's `train`, whole ones and ten
# frames of each, the best exchange stays below 0.06 (median -0.30 and -0.12: it makes them longer), with noise or without some
# frames, too. The rule of the verdict's thresholds would give 0.11, which a gross blur reaches (0.14 on `val`). Where frames half a
# cycle apart are exchanged it is 0.26 at least, and 0.6 or more in half of the cines.
CLEARLY_SHORTER = 0.2
# Of fewer frames another order may be as short.
FEWEST = 8
# That are looked at along each axis in-plane, at least, where there are as many: more is more time and memory.
PIXELS = 64


def exchanged_frames(image: NDArray) -> tuple[int, int] | None:
    """The two frames of a cine (X, Y, Z, T), counted from 1, that fit clearly better in each other's place; None where
    there are none.

    Mean squared differences of frames are the lengths of steps. A heart moves on from frame to frame, so that the way
    through them all is short in their order of time, and noise adds as much to each step. An exchange has to shorten the
    way whether or not it leads back from the last frame to the first: a cine may cover a part of the cycle.

    Args:
        image: intensities; few frames tell nothing.
    """
    frames = image.shape[3]
    if frames < FEWEST:
        return None
    steps = _differences(image)
    beside = np.eye(frames, k=1) + np.eye(frames, k=-1)
    gains = _gains(steps, beside)
    beside[0, -1] = beside[-1, 0] = 1
    gains = np.minimum(gains, _gains(steps, beside))
    one, two = map(int, np.unravel_index(gains.argmax(), gains.shape))
    return (min(one, two) + 1, max(one, two) + 1) if gains[one, two] > CLEARLY_SHORTER else None


def _differences(image: NDArray) -> NDArray:
    """The mean squared differences of all frames (T, T), of some pixels; 0 where they are no more than rounding."""
    found, stride = np.zeros((image.shape[3],) * 2), max(min(image.shape[:2]) // PIXELS, 1)
    for z in range(image.shape[2]):
        few = np.asarray(image[::stride, ::stride, z], dtype=np.float64).reshape(-1, image.shape[3])
        few = few - few[:, :1]  # equal frames are then exactly 0
        products = few.T @ few / few.size
        squares = np.diag(products)
        found += squares[:, None] + squares - 2 * products
    return np.where(found > 1e-9 * found.max(), found, 0.0)


def _gains(steps: NDArray, beside: NDArray) -> NDArray:
    """By which share the steps to and from each two frames (T, T) shrink when these exchange their places.

    Args:
        beside: 1 where one frame comes right before or after the other, else 0 (T, T).
    """
    in_place = beside @ steps  # [i, j]: the steps of frame j in the place of i
    own, between = np.diag(in_place), beside * steps
    before = own[:, None] + own - between  # the step between neighbors is one
    after = in_place + in_place.T + between
    return np.where(before > 0, 1 - after / np.where(before > 0, before, 1), 0.0)
