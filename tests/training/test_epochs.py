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

"""Epochs that make as many steps."""

from __future__ import annotations

import pytest
from scripts.training.epochs import count_steps, limit_warmup, scale_epochs


@pytest.mark.parametrize(("batch", "epochs"), [(1, 50), (4, 50), (7, 50), (8, 100), (32, 400)])
def test_a_larger_batch_takes_more_epochs(batch: int, epochs: int) -> None:
    assert scale_epochs(50, batch) == epochs


def test_a_warm_up_is_a_tenth_of_all_steps_at_most() -> None:
    assert count_steps(3, [None] * 7) == 21
    assert [limit_warmup(200, steps) for steps in (21, 2000, 5000)] == [2, 200, 200]
