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
