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

"""What the parts of `benchmarks.gpu` share: the device, the data, and how much of each there is to do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from benchmarks.gpu.prepared import Prepared
from benchmarks.training import read_config


@dataclass(frozen=True)
class Bench:
    """One device, one data set, and the sizes of a measurement or of its rehearsal."""

    device: str
    data: Prepared
    output_dir: Path
    reference: str | None = None
    """A checkout of the authors' repository."""
    batch: int = 32
    size: int = 128
    """Pixels along both axes of training crops."""
    steps: int = 20
    """Of a round of a loop that is timed."""
    rounds: int = 10
    most_steps: int | None = None
    """Of a training; None takes all of its epochs."""
    executor: Executor | None = None
    """Processes that score; None for this one."""

    @property
    def on_gpu(self) -> bool:
        """Whether figures mean anything."""
        return self.device.startswith("cuda")

    def config(self, network: str, **overrides: object) -> ConfigParser:
        """train.yaml with one of `benchmarks.training.NETWORKS`, for this device."""
        sizes = {"batch_size": self.batch, "crop_size": [self.size] * 2, "log_every": 20}
        parser = read_config(network, self.device, **{**sizes, **overrides})
        if not self.on_gpu:
            parser["train::trainer::record"] = run_as_is
        return parser

    def pair(self, count: int) -> Tensor:
        """Some central crops of training slices as one batch (B, 2, size, size) on the device, each of another place in
        the data set."""
        slices = self.data.slices(self.device, size=self.size)
        return slices[torch.linspace(0, len(slices) - 1, count).long()]["pair"]


def run_as_is(step: Callable[[], None]) -> Callable[[], None]:
    """Stands for the recording of a CUDA graph on a CPU, which has none."""
    return step
