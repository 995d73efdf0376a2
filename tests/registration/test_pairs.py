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

"""Pairs with and without maps beside their intensities."""

from __future__ import annotations

import torch
from scripts.registration.pairs import exchange, halves, intensities, without_valid


def test_a_pair_without_maps_is_its_two_images() -> None:
    pair = torch.rand(3, 2, 5, 4)
    assert torch.equal(intensities(pair), pair)
    assert all(torch.equal(half, pair[:, i : i + 1]) for i, half in enumerate(halves(pair)))
    assert torch.equal(exchange(pair), pair.flip(1))


def test_maps_stay_with_their_image() -> None:
    moving, fixed = torch.rand(2, 3, 4, 5, 4, 2).unbind()
    pair = torch.cat([moving, fixed], dim=1)
    assert torch.equal(intensities(pair), torch.stack([moving[:, 0], fixed[:, 0]], dim=1))
    assert all(map(torch.equal, halves(pair), (moving, fixed)))
    assert torch.equal(exchange(pair), torch.cat([fixed, moving], dim=1))


def test_an_odd_channel_says_where_something_was_measured() -> None:
    channels = torch.rand(2, 9, 4, 3)
    pair, valid = without_valid(channels)
    assert torch.equal(torch.cat([pair, valid], dim=1), channels)
    assert valid.shape[1] == 1
    assert without_valid(channels[:, :8])[1] is None
