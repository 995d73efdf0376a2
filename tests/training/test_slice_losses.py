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

import pytest
import torch
from monai.losses import DiceCELoss
from scripts.training.slice_losses import AreaDiceCELoss
from torch import Tensor
from torch.nn import functional as F


@pytest.fixture
def label() -> Tensor:
    label = torch.zeros(2, 1, 12, 12, dtype=torch.uint8)
    label[0, :, 2:6, 2:6], label[0, :, 6:9, 2:6], label[1, :, 3:5, 3:5] = 1, 2, 3
    return label


def certain(label: Tensor) -> Tensor:
    """Logits that leave no doubt of a label."""
    return 50.0 * F.one_hot(label[:, 0].long(), 4).movedim(-1, 1).float()


def test_it_is_zero_where_all_is_right(label: Tensor) -> None:
    assert AreaDiceCELoss()(certain(label), label) == pytest.approx(0, abs=1e-4)


def test_without_areas_it_is_monai_s(label: Tensor) -> None:
    logits = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, lambda_ce=3.0)
    assert AreaDiceCELoss(3.0, 0.0)(logits, label) == pytest.approx(expected(logits, label).item())


def test_areas_count_slice_by_slice(label: Tensor) -> None:
    # The RV of the first slice is found in the second: nothing is right, and of both slices its area is off.
    found = label.clone()
    found[0][label[0] == 1] = 0
    found[1, :, 8:12, 8:12] = 1
    logits = certain(found)
    areas = AreaDiceCELoss(1.0, 1.0)(logits, label) - AreaDiceCELoss(1.0, 0.0)(logits, label)
    assert areas == pytest.approx((16 + 16) / 16 / 3, abs=1e-3)


def test_a_structure_in_no_slice_has_no_area_to_miss(label: Tensor) -> None:
    label[label == 3] = 0
    assert AreaDiceCELoss(0.0, 1.0)(certain(label), label).isfinite()
