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

"""From the scores of several methods on the same pairs to a table, its tests and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import wilcoxon
from scripts.registration.metrics import summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Figure of a scored pair: its heading and its digits.
COLUMNS = {
    "dice": ("Dice %", 1),
    "dice_rv": ("RV", 1),
    "dice_myo": ("Myo", 1),
    "dice_lv": ("LV", 1),
    "hd95_mm": ("HD95 mm", 1),
    "hd95_voxel": ("HD95 voxels", 2),
    "mse": ("MSE ×10⁻²", 3),
    "folding_percent": ("folding %", 3),
    "seconds": ("s a subject", 2),
}
# Points of Dice below the best method within which the figure shows methods.
CROWDED = 9.0
DIRECTION_TITLES = {"ES_to_ED": "ES to ED", "ED_to_ES": "ED to ES"}


def wilcoxon_p(ours: Sequence[float], others: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired figures; 1 where no pair differs, NaN without a pair.

    Args:
        ours: a figure a subject; NaN leaves a pair out.
        others: the same figure of the same subjects, in the same order.
    """
    difference = np.subtract(ours, others)
    difference = difference[~np.isnan(difference)]
    if len(difference) == 0:
        return float("nan")
    return float(wilcoxon(difference).pvalue) if difference.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm, Scand. J. Statist. 1979); NaN stays and does not count."""
    p = np.asarray(p_values, dtype=float)
    order = [n for n in np.argsort(p) if not np.isnan(p[n])]
    adjusted, largest = np.full(len(p), np.nan), 0.0
    for rank, n in enumerate(order):
        largest = max(largest, min((len(order) - rank) * p[n], 1.0))
        adjusted[n] = largest
    return adjusted.tolist()


def in_direction(scores: Mapping[str, Sequence[dict]], direction: str) -> dict[str, dict[str, dict]]:
    """The scored pairs of one direction, by method and subject."""
    return {
        name: {row["subject"]: row for row in rows if row["direction"] == direction} for name, rows in scores.items()
    }


def compare(scores: Mapping[str, Mapping[str, dict]], ours: str, figure: str = "dice") -> dict[str, float]:
    """Holm-adjusted p of `ours` against every other method, on the subjects of one direction; empty without `ours`."""
    if ours not in scores:
        return {}
    others = [name for name in scores if name != ours]
    paired = lambda name: [scores[name][subject][figure] for subject in scores[ours]]
    return dict(zip(others, holm([wilcoxon_p(paired(ours), paired(name)) for name in others])))


def _format_cell(figure: Mapping[str, float], digits: int) -> str:
    """Mean ± standard deviation; a dash where there is none."""
    return "–" if np.isnan(figure["mean"]) else f"{figure['mean']:.{digits}f} ± {figure['std']:.{digits}f}"


def format_table(
    scores: Mapping[str, Sequence[dict]], titles: Mapping[str, str], training: Mapping[str, float], ours: str
) -> str:
    """A Markdown table for each direction: a line for each method, mean ± standard deviation over subjects.

    Args:
        scores: scored pairs by method: "subject", "direction" and the figures of `COLUMNS`.
        titles: what a method is called.
        training: seconds of training, where a method was trained.
        ours: the method that the others are tested against.
    """
    parts = []
    for direction, name_of_direction in DIRECTION_TITLES.items():
        chosen = in_direction(scores, direction)
        p = compare(chosen, ours)
        headings = ["method", *(heading for heading, _ in COLUMNS.values()), "training s", "p"]
        lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
        for name, rows in chosen.items():
            summary = summarize([{key: row[key] for key in COLUMNS} for row in rows.values()])
            cells = [_format_cell(summary[key], digits) for key, (_, digits) in COLUMNS.items()]
            cells += ["–" if np.isnan(training.get(name, np.nan)) else f"{training[name]:.0f}"]
            cells += ["–" if np.isnan(p.get(name, np.nan)) else f"{p[name]:.3g}"]
            lines.append(f"| {titles[name]} | {' | '.join(cells)} |")
        count = len(next(iter(chosen.values())))
        parts.append(f"## {name_of_direction}, {count} subject{'s' * (count != 1)}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def annotate(labels: Sequence[tuple[Axes, int, tuple[float, float], str]]) -> None:
    """Write each label beside its point, those that would lie on one another shifted upwards.

    Args:
        labels: axes with a logarithm along x, side (1 right, -1 left), the point, and the text.
    """
    from matplotlib.transforms import offset_copy

    placed: list[tuple] = []
    # A method without labels has no Dice and no point.
    labels = [label for label in labels if not np.isnan(label[2][1])]
    for panel, side, (x, y), text in sorted(labels, key=lambda label: label[2][1]):
        gap, column, height = 0.045 * np.diff(panel.get_ylim())[0], np.log10(x + 1e-3), y
        for other, other_side, other_column, other_height in placed:
            near = (other, other_side) == (panel, side) and abs(other_column - column) < 0.3
            height = max(height, other_height + gap) if near and abs(other_height - height) < gap else height
        placed.append((panel, side, column, height))
        beside = offset_copy(panel.transData, panel.figure, 7 * side, 0, units="points")
        style = {"ha": "left" if side > 0 else "right", "va": "center", "fontsize": 8}
        leader = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.4", "shrinkA": 0, "shrinkB": 0}
        panel.annotate(text, (x, y), (x, height), textcoords=beside, annotation_clip=False, arrowprops=leader, **style)


def draw(scores: Mapping[str, Sequence[dict]], titles: Mapping[str, str], path: str | Path) -> None:
    """Dice against folding, a point a method, a panel a direction; methods far below the best one are named with their Dice.

    Args:
        scores: as `format_table` takes them.
        titles: what a method is called.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, (direction, title) in zip(figure.subplots(1, 2, sharex=True), DIRECTION_TITLES.items()):
        points = {}
        for name, rows in in_direction(scores, direction).items():
            summary = summarize([{key: row[key] for key in ("folding_percent", "dice")} for row in rows.values()])
            points[name] = tuple(summary[key]["mean"] for key in ("folding_percent", "dice"))
        best = max((y for _, y in points.values()), default=0.0)
        seen = {name: at for name, at in points.items() if at[1] > best - CROWDED}
        # One good method alone is nothing to compare.
        seen = seen if len(seen) > 1 else points
        together: dict[tuple, list[int]] = {}
        below = []
        for number, (name, (x, y)) in enumerate(points.items(), 1):
            style = {"color": f"C{number % 10}", "marker": "osD^v"[number // 10 % 5]}
            at = (x, y) if name in seen else (np.nan, np.nan)
            axes.plot(*at, **style, markersize=7, linestyle="none", label=f"{number} {titles[name]}")
            if name in seen:
                together.setdefault((round(x, 1), round(y, 1)), []).append(number)
            elif not np.isnan(y):
                below.append(f"{number} ({y:.1f})")
        labels = []
        for numbers in together.values():
            at = list(points.values())[numbers[0] - 1]
            # To the right and to the left in turn: neighbors in the table are often neighbors here. Left of no folding is
            # the axis.
            side = 1 if numbers[0] % 2 or at[0] < 0.001 else -1
            labels.append((axes, side, at, ", ".join(map(str, numbers))))
        if below:
            axes.text(0.02, 0.02, f"below: {', '.join(below)}", transform=axes.transAxes, fontsize=9)
        largest = max([0.01, *(x for x, _ in points.values())])
        axes.set_xscale("symlog", linthresh=0.001)
        axes.set_xlim(left=-0.0003, right=2 * largest)
        axes.margins(y=0.1)
        axes.grid(alpha=0.3)
        annotate(labels)
        axes.set_xlabel("folding, % of pixels (linear up to 0.001)")
        axes.set_ylabel("Dice, %")
        axes.set_title(title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
