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

"""Times of a cine's frames: whether they can be those of a heartbeat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Milliseconds that a heartbeat may last: 240 beats a minute, and 20.
SHORTEST, LONGEST = 250.0, 3000.0


def cycle_ms(times: NDArray[np.floating]) -> float:
    """How long the cycle lasts that frames cover, in ms: their mean step times their number, the median over slices.

    Args:
        times: milliseconds of each slice and frame, (Z, T) with T of 2 or more.
    """
    times = np.atleast_2d(np.asarray(times, dtype=float))
    return float(np.median(np.diff(times, axis=1).mean(axis=1)) * times.shape[1])


def is_heartbeat(times: NDArray[np.floating]) -> bool:
    """Whether the cycle of times (Z, T) in ms lasts as long as a heartbeat may, `SHORTEST` to `LONGEST`."""
    return SHORTEST <= cycle_ms(times) <= LONGEST
