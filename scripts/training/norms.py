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

"""Batch norms of averaged weights: a running mean of weights has no statistics of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import update_bn


class NormStatistics:
    """Takes the statistics of a network's batch norms anew, from training batches, each time an evaluator starts.

    Args:
        network: whose weights are validated and saved.
        loader: of training batches.
        prepare_batch: the trainer's; the first thing it returns is the network's input.
        batches: how many of them.
        seed: of their order and augmentation, always the same; the training's own random state stays as it is.
    """

    def __init__(
        self, network: nn.Module, loader: Iterable, prepare_batch: Callable, batches: int = 16, seed: int = 0
    ) -> None:
        self.network = network
        self.loader = loader
        self.prepare_batch = prepare_batch
        self.batches = batches
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        device = next(self.network.parameters()).device
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            update_bn((self.prepare_batch(batch, device) for batch in islice(self.loader, self.batches)), self.network)
