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

"""Corruptions are what they say, and what was measured with them is what documents and thresholds rest on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripts.cardiac.evidence import FIGURES
from scripts.cardiac.verdict import CALIBRATED, DO_NOT_USE, LOOK, PASSED, THRESHOLDS, worst
from scripts.errors import InputError

from benchmarks import verdict
from benchmarks.corruptions import CORRUPTIONS, Case
from benchmarks.verdict import (
    CALLED_OUT,
    CLEAN,
    LEAST,
    QUANTILE,
    REACHES,
    Measured,
    judge_case,
    set_limit,
    set_limits,
    summarize,
    tabulate,
    worst_values,
)

ROOT = Path(__file__).parents[2]


def beating(radius: float, seed: int) -> Case:
    """A bright disc in gray noise that shrinks and grows, in six slices and eight frames, with its label at first."""
    x, y = np.meshgrid(np.arange(48) - 24, np.arange(40) - 20, indexing="ij")
    size = radius * (1 - 0.3 * np.sin(np.pi * np.arange(8) / 8))
    disc = np.hypot(x, y)[..., None, None] < size
    image = 50 * np.random.default_rng(seed).random((48, 40, 6, 8)) + 200 * disc
    label = np.where(disc[..., 0], 3, np.where(np.hypot(x, y)[..., None] < radius + 4, 2, 0))
    label = np.where((label == 0) & (x[..., None] > 0), 1, label)
    label = np.repeat(label, 6, axis=2).astype(np.uint8)
    label[..., -1] = 0
    return Case(image.astype(np.float32), (1.5, 1.5, 8.0), 1, label)


@pytest.fixture(scope="module")
def cases() -> tuple[Case, Case, np.ndarray]:
    return beating(12, 0), beating(9, 1), np.random.default_rng(2).random((60, 30, 20)).astype(np.float32)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_kind_changes_a_case_and_leaves_what_it_was_given(kind: str, cases: tuple) -> None:
    case, other, long_axis = cases
    before = replace(case, image=case.image.copy(), label=case.label.copy())
    corruption = CORRUPTIONS[kind]
    found = [corruption.apply(case, severity, other, long_axis) for severity in corruption.severities]
    assert np.array_equal(case.image, before.image)
    assert np.array_equal(case.label, before.label)
    for one in found:
        assert one.image.shape[:3] == one.label.shape
        assert one.label.shape == case.label.shape or kind == "heart cut"
        assert one.image.dtype == np.float32
        assert np.isfinite(one.image).all()
        assert 1 <= one.reference <= one.image.shape[3]
        changed = [
            one.image.shape != case.image.shape or not np.array_equal(one.image, case.image),
            one.label.shape == case.label.shape and not np.array_equal(one.label, case.label),
            (one.reference, one.spacing, one.broken) != (case.reference, case.spacing, case.broken),
        ]
        assert sum(changed) >= 1
        assert not changed[0] or not corruption.of_label


@pytest.mark.parametrize("kind", ["noise", "blur", "shading", "slice shifted", "two hearts mixed", "slices mirrored"])
def test_the_graver_the_farther_from_the_clean_image(kind: str, cases: tuple) -> None:
    case, other, long_axis = cases
    corruption = CORRUPTIONS[kind]
    off = [np.abs(corruption.apply(case, s, other, long_axis).image - case.image).mean() for s in corruption.severities]
    assert 0 < off[0] <= off[1] <= off[2]
    assert off[0] < off[2]


def test_a_summary_counts_grades_and_what_is_called_out() -> None:
    clean = {"kind": CLEAN, "of": "stacks", "label": "drawn"}
    rows = [{**clean, "grade": grade} for grade in (PASSED, PASSED, LOOK)]
    rows += [{"kind": "blur", "level": 3, "grade": grade} for grade in (PASSED, LOOK, DO_NOT_USE)]
    found = summarize(rows)
    assert found["clean"] == {"stacks, drawn": {PASSED: 2, LOOK: 1, DO_NOT_USE: 0}}
    assert found["called out"] == {"blur": {"3": [2, 3]}}
    (kind,) = tabulate(found)["kinds"].values()
    assert kind["at 3"] == "2 of 3"


def test_a_limit_lies_beyond_clean_cases_on_the_bad_side() -> None:
    values = list(np.random.default_rng(0).permutation(np.arange(1.0, 101)))
    found = set_limit([*values, float("nan")], is_least=False, reach=1.5)
    assert found == {"cases": 100, "limit": 118, "median": 50, "percentile": 95, "worst": 100}
    least = set_limit([-value for value in values], is_least=True, reach=1.5)
    assert least == {"cases": 100, **{name: -value for name, value in found.items() if name != "cases"}}
    # Cases that are all alike leave at least a unit.
    assert set_limit([7.0] * 20, False, 2.0)["limit"] == 9
    # One of twenty may be infinite, two may not.
    assert set_limit([1.0] * 19 + [np.inf], False, 2.0)["limit"] == 3
    with pytest.raises(InputError, match="infinite"):
        set_limit([1.0] * 18 + [np.inf] * 2, False, 2.0)
    with pytest.raises(InputError, match="no clean case"):
        set_limit([float("nan")], False, 2.0)


def quality(off: float) -> dict:
    """That of a cine whose one frame is fine, and whose heart has a slice so many mm off."""
    figures = {"mse_before": 1.0, "mse_after": 0.01, "largest_displacement_mm": 5.0, "jacobian_min": 0.5}
    figures |= {"folding_percent": 0.0, "compressed_percent": 0.0, "inverse_error_mm_p95": 0.0, "blank_slices": 0}
    frames = [{"frame": t, **figures, "slices": [{"slice": 1, **figures}]} for t in (1, 2)]
    contours = {"dice_percent": 95.0, "heart": {"off_line": [{"slice": 1, "mm": off}]}}
    found = {"frames": frames, "reference_frame": 1, "cycle": {}, "image": {}, "contours": contours, "doubts": []}
    return found | {"thresholds": THRESHOLDS}


def test_a_case_is_judged_again_with_other_thresholds() -> None:
    assert [worst(judge_case(quality(9.0), {"off_line_mm": mm})) for mm in (8.0, 10.0)] == [LOOK, PASSED]
    assert [f.sentence for f in judge_case({**quality(0.0), "doubts": ["Odd."]}, {})] == ["Odd."]
    assert worst(judge_case({"refused": "No."}, {})) == DO_NOT_USE


def test_the_least_reach_is_taken_that_calls_out_few_clean_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("off_line_mm", "turned_degrees")
    monkeypatch.setattr(verdict, "FIGURES", {name: FIGURES[name] for name in names})
    monkeypatch.setattr(verdict, "CALLED_OUT", 0.05)
    # Two of forty are allowed, whatever calls them out; the percentile is that of the 38th.
    off, still = [3.7, 3.7] + [1.0] * 38, [10.0] * 40
    assert set_limits(dict(zip(names, (off, still))))[0] == REACHES[0]
    reach, found = set_limits(dict(zip(names, (off, [10.0] * 38 + [50.0] * 2))))
    assert (reach, found["off_line_mm"]["limit"]) == (2.75, 3.75)
    assert found["turned_degrees"]["limit"] == 10 + 2.75 * FIGURES["turned_degrees"].slack
    with pytest.raises(InputError, match="more clean cases than they may"):
        set_limits(dict(zip(names, ([1e6] + [1.0] * 19, [1.0] * 19 + [1e6]))))
    with pytest.raises(InputError, match="turned_degrees: no clean case"):
        set_limits(worst_values([quality(1.0), {"refused": "No."}]))


def test_what_was_measured_is_kept_by_its_content(
    cases: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(verdict, "register_case", lambda case: seen.append(case) or {"image": float("nan")})
    measured, case = Measured(tmp_path), cases[0]
    assert np.isnan([measured(case)["image"] for _ in range(2)]).all()
    assert len(seen) == 1
    for other in (replace(case, broken=1.0), replace(case, label=None), replace(case, image=case.image + 1)):
        measured(other)
    assert len(seen) == len(list(tmp_path.iterdir())) == 4


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / "verdict.json").read_text())


def test_the_thresholds_of_the_code_are_those_that_were_measured(committed: dict) -> None:
    """The file that the verdict reads has what the rule makes of the clean cases of `train`, and nothing else."""
    rule = committed["rule"]
    assert rule == {"quantile": QUANTILE, "least": LEAST, "called out": CALLED_OUT, "reach": rule["reach"]}
    assert {name: figure["limit"] for name, figure in committed["limits"].items()} == CALIBRATED
    assert CALIBRATED.keys() == FIGURES.keys()
    for name, figure in committed["limits"].items():
        way = (-1 if FIGURES[name].is_least else 1) * max(abs(figure["percentile"] - figure["median"]), LEAST)
        expected = figure["median"] + rule["reach"] * FIGURES[name].slack * way
        assert figure["limit"] == pytest.approx(expected, rel=0.02), name


def test_the_committed_tables_are_those_of_the_committed_rows(committed: dict) -> None:
    found = tabulate(summarize(committed["rows"]))
    assert json.loads(json.dumps(found)) == {name: committed[name] for name in found}
    assert committed["kinds"].keys() == CORRUPTIONS.keys()
