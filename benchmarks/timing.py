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

"""Variants timed side by side: in rounds, in random order, compared within each round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm


def time_rounds(
    steps: dict[str, Callable[[], None]], rounds: int, device: str, seed: int = 0, progress: bool = True
) -> dict[str, list[float]]:
    """Seconds of each step in each round; the order within a round is random."""
    shuffle = random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    on_gpu = device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    for _ in tqdm(range(rounds), desc="rounds", unit="round", disable=not progress):
        names = list(steps)
        shuffle(names)
        for name in names:
            if on_gpu:
                torch.cuda.synchronize(device)
            start = clock()
            steps[name]()
            if on_gpu:
                torch.cuda.synchronize(device)
            seconds[name].append(clock() - start)
    return seconds


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q1": float(low), "q3": float(high)}


def format_rows(table: dict[str, dict]) -> str:
    """A line for each row, a column for each figure: medians [quartiles] and plain numbers."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    width, names = max(24, *(len(column) + 2 for column in columns)), max(len(name) + 2 for name in table)

    def cell(value: dict | float | None) -> str:
        if isinstance(value, dict):
            return f"{value['median']:.3g} [{value['q1']:.3g}, {value['q3']:.3g}]"
        return "" if value is None else f"{value:.4g}"

    lines = [" " * names + "".join(f"{column:>{width}}" for column in columns)]
    for name, row in table.items():
        lines.append(f"{name:<{names}}" + "".join(f"{cell(row.get(column)):>{width}}" for column in columns))
    return "\n".join(lines)
