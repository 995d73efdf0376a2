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

"""Tests, adjustment and layout of the table against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.comparison import COLUMNS, annotate, compare, draw, format_table, holm, in_direction, wilcoxon_p

NAN = float("nan")


def make_rows(dice: list[float], **figures: float) -> list[dict]:
    rows = []
    for direction in ("ES_to_ED", "ED_to_ES"):
        for number, value in enumerate(dice):
            row = dict.fromkeys(COLUMNS, 1.0) | {"dice": value} | figures
            rows.append({"subject": f"s{number}", "direction": direction, **row})
    return rows


def test_wilcoxon_is_exact_for_few_subjects_and_leaves_nan_out() -> None:
    ours = np.arange(10.0)
    # All ten signs alike: 2 of 2**10 assignments are as extreme.
    assert wilcoxon_p(ours, ours - 1 - 0.1 * ours) == pytest.approx(2 / 1024)
    assert wilcoxon_p([*ours, NAN], [*(ours - 1 - 0.1 * ours), 3.0]) == pytest.approx(2 / 1024)
    # Ranks 1 (negative), 2 and 3: sums of at most 1 come from 2 of 8 assignments, and as many on the other side.
    assert wilcoxon_p([0.0, 2.0, 3.0], [1.0, 0.0, 0.0]) == pytest.approx(0.5)
    assert wilcoxon_p(ours, ours) == 1.0
    assert np.isnan(wilcoxon_p([NAN], [1.0]))


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, NAN, 0.03]) == pytest.approx([0.04, NAN, 0.04], nan_ok=True)


def test_every_method_is_tested_on_the_same_subjects_in_any_order() -> None:
    dice = list(np.linspace(80, 89, 10))
    scores = {
        "ours": make_rows(dice),
        "worse": make_rows([d - 1 - n / 10 for n, d in enumerate(dice)])[::-1],
        "same": make_rows(dice),
    }
    p = compare(in_direction(scores, "ES_to_ED"), "ours")
    assert p == {"worse": pytest.approx(2 * 2 / 1024), "same": 1.0}
    assert compare(in_direction(scores, "ES_to_ED"), "absent") == {}


def test_the_table_has_both_directions_and_says_what_does_not_exist(tmp_path: Path) -> None:
    scores = {"ours": make_rows([80.0, 82.0], seconds=2.5), "still": make_rows([60.0, 60.0], seconds=NAN)}
    titles = {"ours": "Ours", "still": "Initial"}
    text = format_table(scores, titles, {"ours": 123.4}, "ours")
    there, back = text.split("## ")[1:]
    assert there.startswith("ES to ED, 2 subjects")
    assert back.startswith("ED to ES, 2 subjects")
    ours, still = [[cell.strip() for cell in line.split("|")[1:-1]] for line in there.strip().splitlines()[-2:]]
    assert ours[:2] == ["Ours", "81.0 ± 1.0"]
    assert ours[-3:] == ["2.50 ± 0.00", "123", "–"]
    assert still[-3:] == ["–", "–", "0.5"]
    draw(scores, titles, tmp_path / "figures" / "table.png")
    picture = np.asarray(Image.open(tmp_path / "figures" / "table.png").convert("RGB"))
    assert picture.shape[1] > 1000
    # Both methods' colors are there.
    for color in ((255, 127, 14), (44, 160, 44)):
        assert (np.abs(picture.astype(int) - color).max(axis=-1) < 8).sum() > 20


def test_methods_far_below_the_best_are_named_alone(tmp_path: Path) -> None:
    scores = {"ours": make_rows([85.0, 84.0]), "near": make_rows([83.0, 84.0]), "still": make_rows([60.0, 60.0])}
    draw(scores, dict.fromkeys(scores, ""), tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    inks = [
        (np.abs(picture - color).max(axis=-1) < 8).sum() for color in ((255, 127, 14), (44, 160, 44), (214, 39, 40))
    ]
    # In both panels and the legend; the last one in the legend alone.
    assert min(inks[:2]) > 1.4 * inks[2] > 0


def test_labels_of_neighbors_do_not_lie_on_one_another() -> None:
    panel = Figure().subplots()
    panel.set_ylim(80.0, 86.0)
    points = [(0.5, 85.0), (0.5, 85.01), (0.55, 85.02), (0.5, 82.0), (0.001, 85.0), (0.5, NAN)]
    annotate([(panel, 1, point, str(number)) for number, point in enumerate(points)])
    heights = {int(text.get_text()): text.get_position()[1] for text in panel.texts}
    crowd = sorted(heights[number] for number in (0, 1, 2))
    assert crowd[0] == 85.0
    assert np.diff(crowd).min() >= 0.26
    assert (heights[3], heights[4]) == (82.0, 85.0)
    assert 5 not in heights
