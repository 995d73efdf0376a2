"""The notebook in docs/: its cells run, in one process, and print what it shows."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import matplotlib
import pytest
from conftest import ROOT

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
        shown = [line for output in cell["outputs"] for line in output.get("text", [])]
        assert printed.getvalue() == "".join(shown)
    assert len(names["plt"].get_fignums()) == 3
    names["plt"].close("all")
