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

"""HyperMorph: one network for every weight of the smoothness (Hoopes et al., IPMI 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class HyperNetwork(nn.Module):
    """A registration network whose parameters depend on the weight λ of the smoothness.

    A small perceptron takes log λ to some features, and each parameter of the network is its own value plus a learned
    combination of these features (zero at the start, so that training begins as the bare network's does). In training λ
    is drawn for each batch, its logarithm uniform over the range; in evaluation it is `weight`, which a state_dict
    carries.

    Args:
        network: (B, 2, *spatial) -> (B, d, *spatial).
        weights: smallest and largest λ.
        features: of the perceptron, per layer.
    """

    def __init__(self, network: nn.Module, weights: Sequence[float], features: int = 32) -> None:
        super().__init__()
        self.network = network
        self.weights = tuple(weights)
        self.parameter_names, parameters = zip(*network.named_parameters())
        self.perceptron = nn.Sequential(nn.Linear(1, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU())
        self.head = nn.Linear(features, sum(p.numel() for p in parameters), bias=False)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("weight", torch.tensor(math.sqrt(self.weights[0] * self.weights[1])))
        self.drawn = self.weight

    def draw(self) -> Tensor:
        """A random λ, a scalar."""
        low, high = map(math.log, self.weights)
        return torch.exp(low + (high - low) * torch.rand((), device=self.weight.device))

    def parameters_at(self, weight: Tensor) -> dict[str, Tensor]:
        """The network's parameters, by name, for a λ."""
        low, high = map(math.log, self.weights)
        position = (2.0 * (weight.log() - low) / (high - low) - 1.0).reshape(1)
        # Divided by the number of features, so that a step of Adam moves a parameter about as far through them as by
        # itself.
        shifts = self.head(self.perceptron(position)) / self.head.in_features
        own = [self.network.get_parameter(name) for name in self.parameter_names]
        parts = shifts.split([p.numel() for p in own])
        return {name: p + part.view(p.shape) for name, p, part in zip(self.parameter_names, own, parts)}

    def forward(self, pair: Tensor) -> Tensor:
        """The network's field for a λ, which is then `drawn`."""
        self.drawn = self.draw() if self.training else self.weight
        return functional_call(self.network, self.parameters_at(self.drawn), (pair,))


class DrawnWeight(nn.Module):
    """A smoothness times the λ that a `HyperNetwork` made the field with.

    Args:
        network: the hypernetwork.
        smoothness: a function of the field (B, d, *spatial) that returns a scalar.
    """

    def __init__(self, network: HyperNetwork, smoothness: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.smoothness = smoothness

    def forward(self, field: Tensor) -> Tensor:
        """A scalar."""
        return self.network.drawn * self.smoothness(field)
