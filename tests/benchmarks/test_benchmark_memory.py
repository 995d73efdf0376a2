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

"""The benchmark of memory: a small run of it, and that its figures are those of the process it watches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import memory


def test_peaks_are_measured_and_written(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    memory.main(["--size", "32", "32", "2", "--frames", "3", "--write", "moved", "--json", str(path)])
    (row,) = json.loads(path.read_text())["cines"]
    assert row["input_gb"] == pytest.approx(4 * 32 * 32 * 2 * 3 / 1e9)
    # PyTorch and MONAI alone take a few hundred megabytes.
    assert 0.2 < row["peak_gb"] < 3
    assert row["beyond_input_gb"] == pytest.approx(row["peak_gb"] - row["input_gb"])
