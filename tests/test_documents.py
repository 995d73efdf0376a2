"""The comparison in the documents and the metadata is that of the committed scores."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.comparison import COLUMNS as FIGURES
from benchmarks.comparison import DIRECTION_TITLES, compare, format_table, in_direction
from benchmarks.rows import ROWS
from benchmarks.table import OURS

RESULTS = ROOT / "benchmarks" / "results"
ES_TO_ED = ("dice", "hd95_voxel", "mse", "folding_percent")
COLUMNS = {
    "README.md": [*(("ES_to_ED", [key]) for key in ES_TO_ED), ("ED_to_ES", ["dice"])],
    "docs/README.md": [
        ("ES_to_ED", ["dice"]),
        ("ES_to_ED", ["dice_rv", "dice_myo", "dice_lv"]),
        *(("ES_to_ED", [key]) for key in ("hd95_mm", "hd95_voxel", "mse", "folding_percent", "seconds")),
        ("ES_to_ED", ["training s"]),
        ("ES_to_ED", ["p"]),
        *(("ED_to_ES", [key]) for key in ("dice", "hd95_voxel", "folding_percent")),
    ],
}


def rows_of(text: str) -> list[list[str]]:
    """The cells of each line of the Markdown tables of a text."""
    return [line.split(" | ") for line in re.findall(r"^\| (.+) \|$", text, re.MULTILINE)]


@pytest.fixture(scope="module")
def scores() -> dict[str, list[dict]]:
    """The scored pairs of each method."""
    found = defaultdict(list)
    with (RESULTS / "table.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["method"]].append({**row, **{key: float(row[key] or "nan") for key in FIGURES}})
    return found


@pytest.fixture(scope="module")
def table() -> str:
    """The committed tables."""
    return (RESULTS / "table.md").read_text()


def test_the_committed_table_is_that_of_the_committed_scores(table: str, scores: dict[str, list[dict]]) -> None:
    assert list(scores) == list(ROWS)
    titles = {name: row.title for name, row in ROWS.items()}
    seconds = {cells[0]: cells[-2] for cells in rows_of(table)}
    training = {name: float(seconds[title]) for name, title in titles.items() if seconds[title] != "–"}
    assert table.endswith("\n" + format_table(scores, titles, training, OURS))


@pytest.mark.parametrize("document", COLUMNS)
def test_the_comparison_of_a_document_is_the_committed_one(document: str, table: str) -> None:
    expected = {}
    for direction, title in DIRECTION_TITLES.items():
        heading, *rows = rows_of(table.split(f"## {title}")[1].split("\n## ")[0])
        keys = [None, *FIGURES, "training s", "p"]
        assert len(keys) == len(heading)
        expected |= {(cells[0], direction): dict(zip(keys, cells)) for cells in rows}
    lines = {cells[0].strip("*"): cells[1:] for cells in rows_of((ROOT / document).read_text()) if len(cells) > 6}
    for row in ROWS.values():
        *cells, _ = lines[row.title]  # the last one is the paper's
        for cell, (direction, keys) in zip(cells, COLUMNS[document], strict=True):
            found = [expected[row.title, direction][key] for key in keys]
            # Means alone in some columns.
            found = found if "±" in cell else [value.split(" ± ")[0] for value in found]
            assert cell == " / ".join(found), (row.title, keys)


def test_the_figures_of_the_metadata_are_those_of_the_shipped_weights(scores: dict[str, list[dict]]) -> None:
    figures = json.loads((ROOT / "configs" / "metadata.json").read_text())["eval_metrics"]
    mean = lambda key: np.mean([row[key] for row in scores["shipped"] if row["direction"] == "ES_to_ED"])
    assert figures["mean_dice"] == round(mean("dice") / 100, 3)
    assert figures["hd95_voxel"] == round(mean("hd95_voxel"), 2)
    assert figures["folding_percent"] == round(mean("folding_percent"), 3)


def test_the_p_values_of_the_text_are_those_of_the_scores(scores: dict[str, list[dict]]) -> None:
    for direction in DIRECTION_TITLES:
        found = in_direction(scores, direction)
        mean = {name: np.mean([row["dice"] for row in rows.values()]) for name, rows in found.items()}
        assert max(mean, key=mean.get) == "shipped"
        assert {round(p, 3) for p in compare(found, "shipped").values()} == {0.033}
    # From ED to ES.
    p = compare(found, "diffeomorphic_demons")
    moved = [name for name, row in ROWS.items() if row.kind == "learned" and mean[name] > 79]
    assert all(mean[name] > mean["diffeomorphic_demons"] and p[name] < 0.0415 for name in moved)
    assert len(moved) == 8
