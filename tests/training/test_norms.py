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

from __future__ import annotations

import torch
from ignite.engine import Engine
from scripts.training.norms import NormStatistics
from torch import nn


def test_statistics_are_those_of_training_batches_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)).eval()
    batches = [3 + 5 * torch.randn(8, 2, 16, 16) for _ in range(6)]
    weights = [parameter.clone() for parameter in network.parameters()]
    engine = Engine(lambda engine, batch: None)
    NormStatistics(network, batches, lambda batch, device: (batch.to(device), None), batches=4).attach(engine)
    before = torch.random.get_rng_state()
    engine.run([0])
    assert torch.equal(torch.random.get_rng_state(), before)
    seen = torch.stack(batches[:4])
    torch.testing.assert_close(network[0].running_mean, seen.mean((0, 1, 3, 4)), atol=1e-3, rtol=0)
    torch.testing.assert_close(network[0].running_var, seen.var((0, 1, 3, 4)), atol=0.2, rtol=0)
    assert not network.training
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), weights))


def test_random_batches_are_the_same_each_time() -> None:
    network = nn.BatchNorm2d(1)
    engine = Engine(lambda engine, batch: None)
    NormStatistics(network, range(9), lambda batch, device: (torch.randn(2, 1, 4, 4), None)).attach(engine)
    engine.run([0])
    first = network.running_mean.clone()
    torch.randn(5)
    engine.run([0])
    assert torch.equal(network.running_mean, first)
