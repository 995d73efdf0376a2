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

"""How many epochs make as many steps, whatever the batch; and how many steps they are."""

from __future__ import annotations

from collections.abc import Sized


def scale_epochs(epochs: int, batch_size: int) -> int:
    """The number of epochs that makes about as many steps as `epochs` do in batches of four, and never fewer epochs."""
    return epochs * max(1, batch_size // 4)


def count_steps(epochs: int, batches: Sized) -> int:
    """The steps of some epochs over a loader of batches."""
    return epochs * len(batches)


def limit_warmup(warmup: int, steps: int) -> int:
    """The steps of a warm-up, a tenth of all at most."""
    return min(warmup, steps // 10)
