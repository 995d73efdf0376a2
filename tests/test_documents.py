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

"""The comparison in the documents and the metadata is that of the committed scores."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections import defaultdict

import numpy as np
import pytest
from conftest import ROOT
from monai.bundle import ConfigParser

from benchmarks.comparison import COLUMNS as FIGURES
from benchmarks.comparison import DIRECTION_TITLES, compare, format_table, in_direction
from benchmarks.rows import ROWS
from benchmarks.table import OURS

RESULTS = ROOT / "benchmarks" / "results"
ES_TO_ED = ("dice", "hd95_voxel", "mse", "folding_percent")
# Direction and scores of each column after the first; None is the paper's.
COLUMNS = {
    "README.md": [*(("ES_to_ED", [key]) for key in ES_TO_ED), ("ED_to_ES", ["dice"])],
    "docs/benchmarks.md": [
        ("ES_to_ED", ["dice"]),
        ("ES_to_ED", ["dice_rv", "dice_myo", "dice_lv"]),
        *(("ES_to_ED", [key]) for key in ("hd95_mm", "hd95_voxel", "mse", "folding_percent", "seconds")),
        ("ES_to_ED", ["training s"]),
        ("ES_to_ED", ["p"]),
        *(("ED_to_ES", [key]) for key in ("dice", "hd95_voxel", "folding_percent")),
        None,
    ],
}
CARD = ("dice", "dice_rv", "dice_myo", "dice_lv", "hd95_mm", "hd95_voxel", "mse", "folding_percent")
DIGITS = dict(zip(CARD, (1, 1, 1, 1, 1, 2, 3, 3)))


def rows_of(text: str) -> list[list[str]]:
    """The cells of each line of the Markdown tables of a text."""
    lines = re.findall(r"^\|(.+)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


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
    assert list(scores) == [name for name in ROWS if name in scores]
    titles = {name: ROWS[name].title for name in scores}
    seconds = {cells[0]: cells[-2] for cells in rows_of(table)}
    training = {name: float(seconds[title]) for name, title in titles.items() if seconds[title] != "–"}
    assert table.endswith("\n" + format_table(scores, titles, training, OURS))


@pytest.fixture(scope="module")
def committed(table: str) -> dict[tuple[str, str], dict[str, str]]:
    """The cells of the committed tables by method and direction, then by score."""
    found = {}
    for direction, title in DIRECTION_TITLES.items():
        heading, *rows = rows_of(table.split(f"## {title}")[1].split("\n## ")[0])
        keys = [None, *FIGURES, "training s", "p"]
        assert len(keys) == len(heading)
        found |= {(cells[0], direction): dict(zip(keys, cells)) for cells in rows}
    return found


def as_in(cell: str, expected: list[str]) -> str:
    """Committed values as a cell of a document shows them: means alone where it shows no deviation."""
    return " / ".join(expected if "±" in cell else [value.split(" ± ")[0] for value in expected])


@pytest.mark.parametrize(("document", "rows"), [("README.md", 6), ("docs/benchmarks.md", None)])
def test_the_comparison_of_a_document_is_the_committed_one(document: str, rows: int | None, committed: dict) -> None:
    titles = {title for title, _ in committed} & {row.title for row in ROWS.values()}
    lines = {cells[0].strip("*"): cells[1:] for cells in rows_of((ROOT / document).read_text())}
    lines = {title: cells for title, cells in lines.items() if title in titles}
    assert len(lines) == (rows or len(titles))
    for title, cells in lines.items():
        for cell, column in zip(cells, COLUMNS[document], strict=True):
            if column:
                direction, keys = column
                assert cell == as_in(cell, [committed[title, direction][key] for key in keys]), (title, keys)


@pytest.fixture(scope="module")
def evaluation() -> dict:
    """The summary that evaluation wrote of the shipped weights."""
    return json.loads((RESULTS / "evaluation.json").read_text())


def test_the_evaluation_is_that_of_the_shipped_weights(evaluation: dict) -> None:
    for name, key in (("model", "weights_sha256"), ("depth", "depth_weights_sha256")):
        assert hashlib.sha256((ROOT / "models" / f"{name}.pt").read_bytes()).hexdigest() == evaluation[key]
    assert f"{evaluation['subjects']} test subjects" in evaluation["data"]


def test_the_figures_of_the_model_card_are_those_of_the_evaluation(evaluation: dict) -> None:
    lines = {cells[0]: cells[1:] for cells in rows_of((ROOT / "docs" / "README.md").read_text())}
    stages = {
        "unregistered": evaluation["initial"],
        "ES to ED": evaluation["registered"],
        "ED to ES": evaluation["ED_to_ES"]["registered"],
    }
    for name, figures in stages.items():
        for cell, key in zip(lines[name], CARD, strict=True):
            mean, std = (f"{figures[key][part]:.{DIGITS[key]}f}" for part in ("mean", "std"))
            assert cell == as_in(cell, [f"{mean} ± {std}"]), (name, key)


@pytest.mark.parametrize("document", ["README.md", "docs/inference.md", "docs/segmentation.md"])
def test_ejection_fractions_of_the_documents_are_those_of_the_benchmark(document: str) -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "function.json").read_text())["agreement"]
    text = (ROOT / document).read_text()
    for ventricle, answer in itertools.product(("lv", "rv"), ("carried_given", "segmented")):
        found = measured[ventricle][answer]["test"]
        bias = f"{found['bias']:+.1f}".replace("-0.0", "0.0")
        assert f"{bias} ± {found['limits']:.1f}" in text


def test_the_figures_of_the_metadata_are_those_of_the_evaluation(evaluation: dict) -> None:
    figures = json.loads((ROOT / "configs" / "metadata.json").read_text())["eval_metrics"]
    mean = {key: value["mean"] for key, value in evaluation["registered"].items()}
    assert figures["mean_dice"] == round(mean["dice"] / 100, 3)
    assert figures["hd95_voxel"] == round(mean["hd95_voxel"], 2)
    assert figures["folding_percent"] == round(mean["folding_percent"], 3)


def test_the_p_values_of_the_text_are_those_of_the_scores(scores: dict[str, list[dict]]) -> None:
    for direction in DIRECTION_TITLES:
        found = in_direction(scores, direction)
        mean = {name: np.mean([row["dice"] for row in rows.values()]) for name, rows in found.items()}
        p = compare(found, "shipped")
        assert sorted(mean, key=mean.get)[-2:] == ["shipped", "shipped_volume"]
        assert max(p[name] for name in p if name != "shipped_volume") < 0.0019
        assert max(value for name, value in compare(found, "shipped_volume").items() if name != "shipped") < 0.0019
        assert p["shipped_volume"] == pytest.approx({"ES_to_ED": 0.0134, "ED_to_ES": 0.0245}[direction], abs=5e-4)
        # What GSMorph cannot be told from.
        p = compare(found, OURS)
        differ = {"initial", "shipped", "shipped_volume"}
        differ |= {"syn", "gs_agr", "gsmorph_velocity"} if direction == "ES_to_ED" else set()
        assert {name for name in p if p[name] < 0.05} == differ
        level = [
            mean[name] for name in mean if name not in {*differ, "gs_agr", "gsmorph_velocity", "gsmorph_refined", "syn"}
        ]
        low, high = {"ES_to_ED": (85.3, 86.4), "ED_to_ES": (80.9, 81.9)}[direction]
        assert (round(min(level), 1), round(max(level), 1)) == (low, high)


def test_what_ships_has_the_figures_of_its_evaluation(scores: dict[str, list[dict]], evaluation: dict) -> None:
    for direction, figures in (("ES_to_ED", evaluation), ("ED_to_ES", evaluation["ED_to_ES"])):
        found = in_direction(scores, direction)["shipped_volume"].values()
        for key in ("dice", "dice_rv", "hd95_mm", "hd95_voxel", "folding_percent"):
            assert np.mean([row[key] for row in found]) == pytest.approx(figures["registered"][key]["mean"], abs=0.02)


def test_the_sensitivity_in_the_text_is_that_of_the_committed_runs() -> None:
    with (RESULTS / "sensitivity.csv").open(newline="") as file:
        runs = [row for row in csv.DictReader(file) if (row["seed"], row["momentum"]) == ("0", "0.0")]
    shown = {
        "batch 4": ("projection", 0.0, "4", "mean"),
        "batch 16 (a quarter of the steps)": ("projection", 0.0, "16", "mean"),
        "batch 4, last weights instead of their running mean": ("projection", 0.0, "4", "last"),
        **{f"λ = {weight:g}": ("weighted_sum", weight, "4", "mean") for weight in (0, 0.001, 0.003, 0.01, 0.03, 0.1)},
    }
    found = {
        (row["strategy"], float(row["weight"]), row["batch_size"], row["weights"], float(row["learning_rate"])): row
        for row in runs
    }
    lines = {cells[0]: cells[1:] for cells in rows_of((ROOT / "docs" / "benchmarks.md").read_text())}
    for title, run in shown.items():
        assert any(lines[title])
        for rate, cell in zip((3e-4, 1e-3, 3e-3), lines[title]):
            if cell:
                row = found[(*run, rate)]
                assert cell == f"{float(row['dice']):.1f} / {float(row['folding_percent']):.2f}", (title, rate)


@pytest.mark.parametrize(
    ("file", "section", "names"),
    [
        ("strain.json", "Strain and ejection fraction of phantoms", ("radial", "circumferential")),
        ("strain_depth.json", "Strain of phantoms whose base descends", ("radial", "circumferential", "longitudinal")),
    ],
)
def test_the_strain_in_the_text_is_that_of_the_committed_phantoms(
    file: str, section: str, names: tuple[str, ...]
) -> None:
    rows = json.loads((RESULTS / file).read_text())["rows"]
    error = lambda key, digits: "{:.{d}f} ({:.{d}f})".format(
        np.mean([row[key] for row in rows]), max(row[key] for row in rows), d=digits
    )
    text = (ROOT / "docs" / "benchmarks.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    lines = {cells[0]: cells[1:] for cells in rows_of(text)}
    for name in names:
        whole = lines[f"global {name}"]
        assert whole[1:] == [error(f"{name}_global_{field}", 3) for field in ("exact", "registered")]
        assert whole[0] == f"{np.mean([row[f'{name}_global'] for row in rows]):.2f}".replace("-", "−")
        cells = [error(f"{name}_worst_sector_{field}", 3) for field in ("exact", "registered")]
        assert lines[f"{name}, worst sector"][1:] == cells
    fraction = f"{np.mean([row['lv_ef_percent'] for row in rows]):.1f}", error("lv_ef_percent_registered", 1)
    assert (lines["ejection fraction, points"][0], lines["ejection fraction, points"][-1]) == fraction


def test_the_step_along_the_stack_is_trained_as_the_documents_say(evaluation: dict) -> None:
    recipe = ConfigParser.load_config_files([ROOT / "configs" / name for name in ("train.yaml", "depth.yaml")])
    bound = recipe["smoothness"]["bound"]
    assert recipe["smoothness"]["_target_"].endswith(".StretchLoss")
    assert (recipe["strategy"], recipe["granularity"]) == ("projection", "vector")
    assert f"`--smoothness#bound {bound}`, `StretchLoss`" in (ROOT / "docs" / "training.md").read_text()
    assert f"| surgery, bound {bound:g} (`models/depth.pt`) |" in (ROOT / "docs" / "experiments.md").read_text()
    dice = [stage["dice"]["mean"] for stage in (evaluation["registered"], evaluation["ED_to_ES"]["registered"])]
    assert "Dice is {:.1f} and {:.1f} % instead".format(*dice) in (ROOT / "CHANGELOG.md").read_text()


def test_what_is_said_of_weights_from_elsewhere_is_what_the_rows_say() -> None:
    result = json.loads((RESULTS / "transfer.json").read_text())
    text = (
        (ROOT / "docs" / "benchmarks.md").read_text().split("## A weight from another setting\n")[1].split("\n## ")[0]
    )
    words, readme = " ".join(text.split()), " ".join((ROOT / "README.md").read_text().split())
    mean = {name: f"{found['regret']:.1f}" for name, found in result["methods"].items()}
    largest = {name: f"{found['largest']:.1f}" for name, found in result["methods"].items()}
    other, norms = "λ of another setting", "λ of another setting × norms"
    assert f"loses {mean[other]} of Dice on average and {largest[other]} at most" in words
    assert f"surgery {mean['surgery']} and {largest['surgery']}, and the quotient" in words
    assert f"where it need not move, {mean[norms]} and {largest[norms]}." in words
    assert f"lost {mean[other]} of Dice on average and surgery {mean['surgery']}, within chance" in readme
    # A λ that is ten and a hundred times the chosen one.
    dice = {(run["setting"], run["decade"]): run["test"]["dice"] for run in result["runs"] if run["decade"] is not None}
    best = {name: max(decades, key=decades.get) for name, decades in _validated(result["runs"]).items()}
    for step, expected in (
        (1, "Ten times the best λ costs {:.1f} to {:.1f}"),
        (2, "a hundred times {:.1f} to {:.1f}."),
    ):
        costs = [dice[name, at] - dice[name, at + step] for name, at in best.items()]
        assert expected.format(min(costs), max(costs)) in words
    slack = result["methods"]["surgery, slack"]
    assert f"(regret {slack['regret']:.1f} on average, {slack['largest']:.1f} at most)" in words
    # Surgery with slack, Dice / folding beside those of the λ that was chosen.
    for title, words_of in (("ACDC, MSE", "with MSE"), ("LNCC", "with LNCC"), ("10 % noise", "with noise")):
        figures = {
            way: "{:.1f} / {:.2f}".format(*(row[f"test_{key}"] for key in ("dice", "folding_percent")))
            for way, row in (
                (key.removeprefix(f"{title}: "), row)
                for key, row in result["changes"].items()
                if key.startswith(f"{title}: ")
            )
        }
        (chosen,) = [figures[way] for way in figures if way.startswith("λ of")]
        assert f"{figures['surgery, slack']} {words_of} instead of {chosen}" in words


def _validated(runs: list[dict]) -> dict[str, dict[int, float]]:
    """Dice on `val` of weighted sums, by setting and decade."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        if run["decade"] is not None:
            found.setdefault(run["setting"], {})[run["decade"]] = run["val"]["dice"]
    return found
