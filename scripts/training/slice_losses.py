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

"""The loss of a segmentation of slices: overlap, probabilities, and the area that each slice has of a structure."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn


class AreaDiceCELoss(nn.Module):
    """MONAI's `DiceCELoss` over whole batches, plus the differences in area.

    Dice by itself is best with structures that are too large: it includes a pixel, or a slice, that belongs to a
    structure with a chance of half the Dice.

    Args:
        cross_entropy: weight of the mean cross-entropy beside that of Dice, which is 1.
        area: weight of the mean over structures of the sum over slices of |predicted area - area|, divided by the sum
            of areas.
    """

    def __init__(self, cross_entropy: float = 5.0, area: float = 1.0) -> None:
        super().__init__()
        self.overlap = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True, lambda_ce=cross_entropy
        )
        self.area = area

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Of logits (B, C, X, Y) and labels (B, 1, X, Y), a number."""
        shares = logits.softmax(dim=1)[:, 1:].sum(dim=(2, 3))
        areas = torch.stack([(label == value).sum(dim=(1, 2, 3)) for value in range(1, logits.shape[1])], dim=1)
        off = (shares - areas).abs().sum(dim=0) / areas.sum(dim=0).clamp(min=1)
        return self.overlap(logits, label) + self.area * off.mean()
