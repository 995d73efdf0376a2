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

"""Curves over the cardiac cycle.

matplotlib is imported where it is used, so that training does without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scripts.cardiac.answers import CARRIED, SEGMENTED, WORDS
from scripts.cardiac.registrations import CineRegistration
from scripts.cardiac.segments import LEVELS, SECTORS
from scripts.cardiac.strain import segment_strain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
# Color and marker of a curve, by the first word of its name.
STYLES = {
    "LV": ("#c2410c", "o"),
    "RV": ("#0b63b0", "s"),
    "circumferential": ("#7a1fa2", "v"),
    "longitudinal": ("#b45309", "D"),
    "radial": ("#0f766e", "^"),
}
# Color of a wall's curve; apical walls have that of the two which they continue.
WALLS = {
    "anterior": "#0072b2",
    "anteroseptal": "#56b4e9",
    "septal": "#8b5cf6",
    "inferoseptal": "#cc79a7",
    "inferior": "#d55e00",
    "inferolateral": "#e69f00",
    "lateral": "#7c7c00",
    "anterolateral": "#009e73",
}
# Line of a curve, by what it rests on.
LINES = {CARRIED: "-", SEGMENTED: "--"}


def draw_curves(registration: CineRegistration, curves: Mapping[str, NDArray], label: str) -> Figure:
    """Curves over the cycle in ms, or over frames where the time is not known; end diastole and end systole marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axis = figure.subplots()
    time, unit = _time(registration)
    for name, values in curves.items():
        color, marker = STYLES[name.split()[0].rstrip(",")]
        line = next((line for by, line in LINES.items() if name.endswith(WORDS[by])), "-")
        fill = color if line == "-" else "white"
        style = {"color": color, "marker": marker, "markersize": 4, "markerfacecolor": fill, "linewidth": 1.8}
        axis.plot(time, values, line, label=name, **style)
    _finish(axis, registration)
    axis.set(xlabel=unit, ylabel=label)
    # Beside the curves, which may be anywhere in the axes.
    figure.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3.5)
    return figure


def draw_segments(registration: CineRegistration) -> Figure:
    """Strain of each segment over the cycle: a column a level, circumferential above radial."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    time, unit = _time(registration)
    rows = figure.subplots(2, len(LEVELS), sharex=True, sharey="row")
    shown = set()
    for axes, name in zip(rows, ("circumferential", "radial")):
        curves = segment_strain(registration.strain, name)
        for axis, level in zip(axes, LEVELS):
            for sector in SECTORS[level]:
                if sector.segment in curves:
                    axis.plot(time, 100 * curves[sector.segment], color=WALLS[sector.region], linewidth=1.8)
                    shown.add(sector.region)
            _finish(axis, registration)
        axes[0].set_ylabel(f"{name} strain, %")
    for axis, level in zip(rows[0], LEVELS):
        # Above the words at the lines of end diastole and end systole.
        axis.set_title(level, fontsize=12, pad=18)
    for axis in rows[1]:
        axis.set_xlabel(unit)
    lines = [Line2D([], [], color=color, linewidth=2, label=wall) for wall, color in WALLS.items() if wall in shown]
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _time(registration: CineRegistration) -> tuple[NDArray, str]:
    """Where the frames lie on the axis of a chart, (T,), and what that axis is called."""
    cine = registration.cine
    if cine.times is None:
        return np.arange(1, cine.frames + 1), "frame"
    return cine.times.mean(axis=0), "time after the trigger, ms"


def _finish(axis: Axes, registration: CineRegistration) -> None:
    """Mark end diastole and end systole, and zero."""
    r, (time, _) = registration, _time(registration)
    phases = {name: r.function.get(f"{name.lower()}_frame") for name in ("ED", "ES")}
    marked = sorted((number, name) for name, number in phases.items() if number and 1 <= number <= r.cine.frames)
    # Words lean away from each other, so that neighboring frames' do not collide.
    for (number, name), side in zip(marked, ("right", "left") if len(marked) == 2 else ("center",)):
        axis.axvline(time[number - 1], color="#6b7280", linewidth=1, linestyle=":", zorder=0)
        axis.annotate(name, (time[number - 1], 1.0), xycoords=("data", "axes fraction"), ha=side, va="bottom")
    axis.axhline(0, color="#6b7280", linewidth=1, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e7eb")


def volume_curves(function: Mapping[str, Any]) -> dict[str, NDArray]:
    """Volumes of the ventricles in mL (T,) from what `answers.measure_answers` returns."""
    answers = {by: function[by] for by in WORDS if by in function} or {CARRIED: function}
    return {
        f"{side}, {WORDS[by]}": np.array(figures[f"{side.lower()}_volume_ml"])
        for by, figures in answers.items()
        for side in ("LV", "RV")
        if f"{side.lower()}_volume_ml" in figures
    }


def strain_curves(rows: Iterable[Mapping[str, Any]], frames: int) -> dict[str, NDArray]:
    """Global strain in percent of every frame (T,), NaN where a frame has none, from ratios in rows of
    `strain.measure_strain` or `longitudinal.measure_longitudinal`; a stack's longitudinal strain is no measurement and is
    left out."""
    curves = {}
    rows = [row for row in rows if row["region"] == "global"]
    for name in ("circumferential", "longitudinal", "radial"):
        found = {row["frame"]: row[name] for row in rows if row.get(name) is not None}
        if found:
            curves[name] = 100 * np.array([found.get(t, np.nan) for t in range(1, frames + 1)], float)
    if "circumferential" in curves:
        curves.pop("longitudinal", None)
    return curves
