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

"""Gradients of both losses by two backward passes, and the rule on them, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

Gradients = dict[str, np.ndarray]


def assert_close(
    found: dict[str, Tensor], expected: Gradients, tolerance: float = 1e-10, skip: Sequence[str] = ()
) -> None:
    """Equal up to `tolerance` of the largest entry of all tensors."""
    assert found.keys() == expected.keys()
    scale = max(np.abs(g).max() for name, g in expected.items() if name not in skip)
    assert scale > 0
    for name in expected.keys() - set(skip):
        np.testing.assert_allclose(
            found[name].numpy() / scale, expected[name] / scale, rtol=0, atol=tolerance, err_msg=name
        )


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


RECORDS = ("similarity", "smoothness", "conflict_ratio", "cosine", "ill_posed")
