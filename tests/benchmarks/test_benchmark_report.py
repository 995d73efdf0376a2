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

"""The document says what the JSON says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts.errors import InputError

from benchmarks import report

RESULT = {
    "command": "python -m benchmarks.step --reference PATH",
    "hardware": "one thread",
    "versions": {"torch": "2.13.0"},
    "steps": {
        "plain": {"milliseconds": {"median": 631.2, "q1": 12345.6, "q3": 0.01234}},
        "surgery": {"milliseconds": {"median": 1.0, "q1": 1.0, "q3": 1.0}, "folding_percent": 0.5, "kind": "ours"},
    },
}
DOCUMENT = """Before.

<!-- a.json steps -->
old
<!-- end -->

Between, 1.67.

<!-- a.json steps: kind, milliseconds -->
<!-- end -->
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text(json.dumps(RESULT))
    return tmp_path


def test_tables_hold_the_figures_and_the_rest_stays(results: Path) -> None:
    rendered = report.render(DOCUMENT, results)
    assert report.render(rendered, results) == rendered
    lines = rendered.splitlines()
    assert lines[:3] == DOCUMENT.splitlines()[:3]
    assert lines[3:7] == [
        "| step | ms | folding % | kind |",
        "| --- | --- | --- | --- |",
        "| plain | 631 [12346, 0.0123] |  |  |",
        "| surgery | 1 [1, 1] | 0.5 | ours |",
    ]
    assert "`python -m benchmarks.step --reference PATH`: one thread; torch 2.13.0." in lines
    assert "Between, 1.67." in lines
    assert "| step | kind | ms |" in lines
    assert "old" not in lines


def test_a_missing_file_or_figure_is_named(results: Path) -> None:
    with pytest.raises(InputError, match=r"b\.json: no such file; run the benchmark with --json"):
        report.render(DOCUMENT.replace("a.json", "b.json"), results)
    with pytest.raises(InputError, match=r"a\.json: lacks 'methods'"):
        report.render(DOCUMENT.replace("json steps", "json methods"), results)


def test_check_tells_an_edited_figure(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "performance.md"
    path.write_text(DOCUMENT)
    monkeypatch.setattr(report, "DOCUMENTS", (path,))
    monkeypatch.setattr(report.render, "__defaults__", (results,))
    report.main([])
    report.main(["--check"])
    path.write_text(path.read_text().replace("| 631 ", "| 431 "))
    with pytest.raises(InputError, match=r"performance\.md: is not what the results say"):
        report.main(["--check"])


def test_the_committed_document_says_what_the_committed_results_say() -> None:
    report.main(["--check"])
