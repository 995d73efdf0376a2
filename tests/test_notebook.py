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

"""The notebook in docs/: its cells run, in one process, and print what it shows."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys

import matplotlib
import pytest
from conftest import ROOT

NUMBER = re.compile(r"\d+(?:\.\d+)?")
NOTEBOOK = ROOT / "docs" / "gsmorph.ipynb"


def test_cells_run_and_print_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    matplotlib.use("Agg")
    names: dict = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4
    for cell in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("".join(cell["source"]), names)
        shown = "".join(line for output in cell["outputs"] for line in output.get("text", []))
        assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", shown)
        # Processors round differently.
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed.getvalue(), shown)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02)
    assert len(names["plt"].get_fignums()) == 3
    names["plt"].close("all")
