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

"""Whether times can be those of a heartbeat."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.data.times import cycle_ms, is_heartbeat


@pytest.mark.parametrize(
    ("step", "frames", "plausible"),
    [
        (34.0, 25, True),
        (3.4, 20, False),  # TR in the place of the frame time
        (12.5, 20, True),  # 240 beats a minute
        (12.4, 20, False),
        (120.0, 25, True),
        (121.0, 25, False),
        (0.034, 25, False),  # seconds taken for milliseconds
    ],
)
def test_a_cycle_lasts_as_long_as_a_heartbeat_may(step: float, frames: int, plausible: bool) -> None:
    times = step * np.arange(frames) + np.array([[0.0], [7.0]])
    assert cycle_ms(times) == pytest.approx(step * frames)
    assert is_heartbeat(times) == plausible


def test_one_slice_of_many_does_not_decide() -> None:
    times = np.tile(34.0 * np.arange(25), (5, 1))
    times[2] *= 100
    assert is_heartbeat(times)
