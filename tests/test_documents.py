"""The comparison in the documents and the metadata is that of the committed scores."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.rows import ROWS

SCORES = ROOT / "benchmarks" / "results" / "table.csv"
ES_TO_ED = ("dice", "hd95_voxel", "mse", "folding_percent")
COLUMNS = {
    "README.md": [("ES_to_ED", [key]) for key in ES_TO_ED] + [("ED_to_ES", ["dice"])],
    "docs/README.md": [
        ("ES_to_ED", ["dice"]),
        ("ES_to_ED", ["dice_rv", "dice_myo", "dice_lv"]),
        *(("ES_to_ED", [key]) for key in ("hd95_mm", "hd95_voxel", "mse", "folding_percent")),
    ],
}


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str, str], list[float]]:
    """By method, direction and figure, a value a subject."""
    found = defaultdict(list)
    with SCORES.open(newline="") as file:
        for row in csv.DictReader(file):
            for keys in COLUMNS.values():
                for key in {key for _, group in keys for key in group}:
                    found[row["method"], row["direction"], key].append(float(row[key]))
    return found


@pytest.mark.parametrize("document", COLUMNS)
def test_the_comparison_of_a_document_is_that_of_the_scores(document: str, scores: dict) -> None:
    lines = re.findall(r"^\| (.+) \|$", (ROOT / document).read_text(), re.MULTILINE)
    table = {cells[0].strip("*"): cells[1:] for line in lines if len(cells := line.split(" | ")) > 6}
    for name, row in ROWS.items():
        for cell, (direction, keys) in zip(table[row.title], COLUMNS[document]):
            values = [scores[name, direction, key] for key in keys]
            expected = [np.mean(value) for value in values]
            if "±" in cell:
                expected.append(np.std(values[0]))
            for number, value in zip(re.findall(r"[\d.]+", cell), expected, strict=True):
                assert number == f"{value:.{len(number.partition('.')[2])}f}", (row.title, keys, cell)


def test_the_figures_of_the_metadata_are_those_of_the_shipped_weights(scores: dict) -> None:
    figures = json.loads((ROOT / "configs" / "metadata.json").read_text())["eval_metrics"]
    mean = lambda key: np.mean(scores["shipped", "ES_to_ED", key])
    assert figures["mean_dice"] == round(mean("dice") / 100, 3)
    assert figures["hd95_voxel"] == round(mean("hd95_voxel"), 2)
    assert figures["folding_percent"] == round(mean("folding_percent"), 3)
