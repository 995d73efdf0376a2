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

"""Changes to surgery by the rule's own means, without a weight: `python -m benchmarks.transfer --changes NAME ...` trains
with them beside the default, in one process: several average smoothness gradients only after they are read here.
"""

from __future__ import annotations

import torch
from ignite.engine import Engine
from scripts.registration.fields import jacobian_determinant
from scripts.registration.losses import SmoothnessLoss
from scripts.surgery.handler import GradientSurgeryHandler
from torch import Tensor, nn


class RememberingHandler(GradientSurgeryHandler):
    """Surgery against the running mean of the smoothness gradients instead of that of one batch, whose noise leaves
    most of the conflict with the mean in place. No checkpoint holds the mean: a training that goes on begins it anew.

    Args:
        memory: share of the mean that a step keeps.
    """

    def __init__(self, *args: object, memory: float = 0.9, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.memory = memory
        self.mean: list[Tensor] | None = None

    @torch.no_grad()
    def _operate(self, engine: Engine) -> None:
        if self._is_last_of_accumulation(engine):
            if self.mean is None:
                self.mean = [torch.zeros_like(gradient) for gradient in self.smoothness_gradients]
            torch._foreach_lerp_(self.mean, self.smoothness_gradients, 1 - self.memory)
            self.smoothness_gradients = self.mean
        super()._operate(engine)


class RelativeSmoothness(SmoothnessLoss):
    """Smoothness of a field over the mean size of its components in voxels: a motion that grows as a whole costs
    nothing.

    Args: those of `SmoothnessLoss`.
    """

    STILL = 0.1  # voxels, below which a field counts as still and its smoothness as it is

    def forward(self, field: Tensor, spacing: Tensor | None = None) -> Tensor:
        return super().forward(field, spacing) / (field.abs().mean() + self.STILL)


class DeterminantLoss(nn.Module):
    """What the Jacobian determinant of a field lacks to a bound, mean over voxels: 0 as long as nothing is compressed
    more.

    Args:
        bound: the share of its area that a voxel may shrink to for nothing.
    """

    def __init__(self, bound: float = 0.5) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, field: Tensor, spacing: Tensor | None = None) -> Tensor:
        return (self.bound - jacobian_determinant(field)).clamp(min=0).mean()


REMEMBERING = {"train::handlers::1::_target_": "benchmarks.changes.RememberingHandler"}
SLACK = {"smoothness::slack": 0.5}
DETERMINANT = {"smoothness": {"_target_": "benchmarks.changes.DeterminantLoss"}}
CHANGES = {
    "module": {"granularity": "module"},
    "vector": {"granularity": "vector"},
    "memory": REMEMBERING,
    "relative": {"smoothness::_target_": "benchmarks.changes.RelativeSmoothness"},
    "slack": SLACK,
    "slack_vector": {**SLACK, "granularity": "vector"},
    "determinant": DETERMINANT,
    "determinant_memory": {**DETERMINANT, **REMEMBERING},
    "determinant_vector": {**DETERMINANT, "granularity": "vector"},
}
