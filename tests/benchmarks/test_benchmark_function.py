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

"""Ejection fractions against drawn ones: agreement by hand, the choice, the command on phantoms, and the table in the code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scripts.cardiac.answers import BETTER, BY_SEGMENTATION, GIVEN

from benchmarks.function import agreement, choose, compare, ejection_fractions, main


def rows(carried: list[float], segmented: list[float]) -> list[dict]:
    """Subjects whose drawn ejection fractions are 50, with both ventricles alike."""
    found = []
    for one, other in zip(carried, segmented):
        row = {f"{key}_carried_{basis}": one for key in ("lv", "rv") for basis in (GIVEN, BY_SEGMENTATION)}
        found.append(
            row | {f"{key}_{name}": x for key in ("lv", "rv") for name, x in (("drawn", 50), ("segmented", other))}
        )
    return found


def test_agreement_by_hand() -> None:
    found = agreement(rows([51, 55, 54, float("nan")], [0] * 4), "lv", "carried_given")
    differences = np.array([1.0, 5.0, 4.0])
    assert found == pytest.approx(
        {
            "subjects": 3,
            "bias": 10 / 3,
            "limits": 1.96 * differences.std(ddof=1),
            "root_mean_square": np.sqrt(42 / 3),
            "median_absolute": 4,
        }
    )


def test_the_better_answer_is_chosen_on_one_split_and_measured_on_the_other() -> None:
    splits = {"val": rows([52, 49], [58, 40]), "test": rows([60, 64], [51, 50])}
    better = choose(compare(splits), "val", "test")
    for basis in (GIVEN, BY_SEGMENTATION):
        assert better[basis]["lv"]["by"] == "carried"
        assert better[basis]["rv"]["bias"] == pytest.approx(12)
    assert choose(compare(splits), "test", "val")[GIVEN]["lv"]["by"] == "segmented"


def test_ejection_fractions_count_voxels() -> None:
    labels = np.zeros((4, 4, 1, 2), int)
    labels[:2, :, :, 0] = 3
    labels[:1, :3, :, 1] = 3
    found = ejection_fractions("drawn", labels)
    assert found["lv_drawn"] == pytest.approx(100 * 5 / 8)
    assert np.isnan(found["rv_drawn"])


def test_the_command_measures_phantoms(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--dataset_dir", str(phantoms), "--choose_on", "train", "--split", "train"]
    main([*options, "--json", str(tmp_path / "function.json")])
    result = json.loads((tmp_path / "function.json").read_text())
    assert len(result["rows"]["train"]) == 3
    # Nothing leaves the slices of this phantom.
    assert result["agreement"]["lv"]["carried_given"]["train"]["median_absolute"] < 15
    assert "label automatic: LV" in capsys.readouterr().out


def test_the_table_in_the_code_is_that_of_the_benchmark() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "function.json").read_text())["better"]
    for basis, ventricles in BETTER.items():
        for ventricle, better in ventricles.items():
            found = measured[basis][ventricle]
            assert better == (found["by"], round(found["bias"], 1), round(found["limits"], 1))
