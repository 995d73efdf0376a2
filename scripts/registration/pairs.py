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

"""What a network is given: a pair (B, 2 C, *spatial), C channels of the moving image and then as many of the fixed one.

The first of an image's channels is its intensities; others, where there are any, are maps of its anatomy on the same
grid, such as where structures are. Mostly C is 1. An odd channel, the last one, is 1 where both images hold a
measurement; no network sees it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def without_valid(channels: Tensor) -> tuple[Tensor, Tensor | None]:
    """A pair, and where its images hold a measurement, (B, 1, *spatial), None where that is not told."""
    count = channels.shape[1] // 2 * 2
    return channels[:, :count], channels[:, count:] if channels.shape[1] > count else None


def halves(pair: Tensor) -> tuple[Tensor, Tensor]:
    """The moving and the fixed image of a pair with all their channels, each (B, C, *spatial)."""
    half = pair.shape[1] // 2
    return pair[:, :half], pair[:, half:]


def intensities(pair: Tensor) -> Tensor:
    """Moving and fixed image of a pair without their maps, (B, 2, *spatial)."""
    return pair[:, :: max(pair.shape[1] // 2, 1)]


def exchange(pair: Tensor) -> Tensor:
    """A pair with the fixed image as the moving one and the other way round, their channels in order."""
    moving, fixed = halves(pair)
    return torch.cat([fixed, moving], dim=1)
