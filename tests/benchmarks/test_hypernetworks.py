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

"""A hypernetwork is its network at the start, depends on λ once trained, draws λ in training and keeps one for
evaluation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scripts.registration.losses import SmoothnessLoss, WarpedSimilarity
from scripts.registration.networks import PyramidNetwork
from torch import nn

from benchmarks.hypernetworks import DrawnWeight, HyperNetwork

RANGE = (0.001, 0.1)


@pytest.fixture
def network() -> HyperNetwork:
    torch.manual_seed(0)
    return HyperNetwork(
        PyramidNetwork(features=(4, 8), hidden=8, antisymmetric=False, flow_std=0.1, norm="instance"), RANGE
    )


def stir(network: HyperNetwork) -> HyperNetwork:
    """With a head that is not zero."""
    nn.init.normal_(network.head.weight)
    return network


def pair() -> torch.Tensor:
    return torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(1))


def test_it_begins_as_the_bare_network_at_every_weight(network: HyperNetwork) -> None:
    expected = copy.deepcopy(network.network)(pair())
    assert expected.abs().max() > 0.1
    for _ in range(2):
        torch.testing.assert_close(network(pair()), expected)


def test_the_field_is_that_of_the_network_with_the_parameters_of_the_weight(network: HyperNetwork) -> None:
    stir(network).eval()
    fields = []
    for weight in RANGE:
        network.weight.fill_(weight)
        bare = copy.deepcopy(network.network)
        bare.load_state_dict({**bare.state_dict(), **network.parameters_at(torch.tensor(weight))})
        fields.append(network(pair()))
        torch.testing.assert_close(fields[-1], bare(pair()))
    assert (fields[0] - fields[1]).abs().max() > 1e-3


def test_training_draws_the_logarithm_evenly_and_evaluation_takes_the_one_that_is_saved(network: HyperNetwork) -> None:
    drawn = torch.stack([network.draw() for _ in range(2000)]).log()
    low, high = map(math.log, RANGE)
    assert low <= drawn.min() < low + 0.1
    assert high - 0.1 < drawn.max() <= high
    assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.1)
    network.weight.fill_(0.03)
    other = HyperNetwork(network.network, RANGE).eval()
    assert other.weight.item() == pytest.approx(0.01)
    other.load_state_dict(network.state_dict())
    other(pair())
    assert other.drawn.item() == pytest.approx(0.03)


def test_the_smoothness_is_weighted_by_the_drawn_weight_and_every_part_learns(network: HyperNetwork) -> None:
    stir(network)
    field = network(pair())
    plain = SmoothnessLoss()
    weighted = DrawnWeight(network, plain)(field)
    torch.testing.assert_close(weighted, network.drawn * plain(field))
    (WarpedSimilarity(nn.MSELoss())(field, pair()) + weighted).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_trained_it_gives_smoother_fields_for_larger_weights(network: HyperNetwork) -> None:
    axes = torch.meshgrid(torch.linspace(-2, 2, 32), torch.linspace(-2, 2, 32), indexing="ij")
    blob = lambda width: torch.exp(-(axes[0] ** 2 + axes[1] ** 2) / width)
    images = torch.stack([blob(0.4), blob(0.9)])[None]
    smoothness, similarity = SmoothnessLoss(), WarpedSimilarity(nn.MSELoss())
    network.weights = (1e-3, 1.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        field = network(images)
        (similarity(field, images) + DrawnWeight(network, smoothness)(field)).backward()
        optimizer.step()
    network.eval()
    found = []
    for weight in (1e-3, 1.0):
        network.weight.fill_(weight)
        with torch.no_grad():
            field = network(images)
        found.append((smoothness(field).item(), similarity(field, images).item()))
    assert found[1][0] < 0.7 * found[0][0]
    assert found[1][1] > found[0][1]
