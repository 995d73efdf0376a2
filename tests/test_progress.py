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

"""A stage moves while it lasts."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from scripts import progress


def test_seconds_go_on_while_nothing_is_counted(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_BEAT_OF_LOG", 0.01)
    with progress.stage("reading"):
        time.sleep(0.3)
    assert capsys.readouterr().err.count("reading") >= 5


def test_a_log_has_fewer_lines_than_a_terminal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        with progress.stage("reading", 5) as bar:
            for _ in range(5):
                time.sleep(0.15)
                bar.update()
        drawn.append(capsys.readouterr().err.count("reading"))
    assert drawn[0] >= 4
    assert drawn[1] == 1


def test_nothing_is_drawn_where_it_is_not_shown(capsys: pytest.CaptureFixture) -> None:
    with progress.stage("reading", 3, shown=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_is_over() -> None:
    with pytest.raises(ValueError, match="inside"), progress.stage("reading") as bar:
        raise ValueError("inside")
    assert bar.disable


STAGES = """
import time
from scripts import progress
progress._BEAT_OF_LOG = 0.01
for _ in range(2):
    with progress.stage("reading", {total}) as bar:
        time.sleep(0.5)
        {step}
"""


@pytest.mark.parametrize(("total", "step"), [(None, ""), (3, "bar.update(); bar.refresh()")])
def test_a_run_that_nobody_reads_any_longer_ends(total: int | None, step: str) -> None:
    reader, writer = os.pipe()
    code = STAGES.format(total=total, step=step)
    run = subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=writer, cwd=ROOT)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    try:
        assert run.wait(timeout=60) != 0
    finally:
        run.kill()
