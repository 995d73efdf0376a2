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
from scripts.cardiac.verdict import DO_NOT_USE, LOOK, PASSED, THRESHOLDS

from benchmarks.corruptions import CORRUPTIONS, Case
from benchmarks.verdict import summarize

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
        assert one.image.shape[:3] == case.image.shape[:3]
        assert one.image.dtype == np.float32
        assert np.isfinite(one.image).all()
        assert 1 <= one.reference <= one.image.shape[3]
        changed = [
            one.image.shape != case.image.shape or not np.array_equal(one.image, case.image),
            not np.array_equal(one.label, case.label),
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
    row = {"split": "val", "label": "auto", "level": 0}
    rows = [{**row, "kind": "clean", "grade": grade} for grade in (PASSED, PASSED, LOOK)]
    rows += [{**row, "kind": "blur", "level": 3, "grade": grade} for grade in (PASSED, LOOK, DO_NOT_USE)]
    assert summarize(rows) == {
        "val": {
            "clean": {"auto": {PASSED: 2, LOOK: 1, DO_NOT_USE: 0}},
            "called out": {"blur": {"3": {"called_out": 2, "of": 3}}},
        }
    }


def test_the_committed_measurement_used_the_thresholds_and_kinds_of_the_code() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "verdict.json").read_text())
    assert found["thresholds"] == THRESHOLDS
    assert {kind: tuple(value["severities"]) for kind, value in found["kinds"].items()} == {
        kind: tuple(value.severities) for kind, value in CORRUPTIONS.items()
    }
    assert found["summary"] == summarize(found["rows"])


def test_the_table_in_the_documents_is_what_was_measured() -> None:
    summary = json.loads((ROOT / "benchmarks" / "results" / "verdict.json").read_text())["summary"]
    text = (ROOT / "docs" / "verdict.md").read_text()
    for kind, levels in summary["val"]["called out"].items():
        cells = " | ".join(f"{levels[n]['called_out']} of {levels[n]['of']}" for n in ("1", "2", "3"))
        assert f"| {kind} |" in text
        assert f" {cells} |" in text[text.index(f"| {kind} |") :].splitlines()[0] + " "
