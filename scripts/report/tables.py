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

"""Figures as tables: names in words, units, and numbers of as many digits as count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scripts.cardiac.answers import WORDS
from scripts.cardiac.segments import SECTORS

# What a ventricle's figures are called, by their keys behind "lv_" and "rv_".
MEASURES = {
    "edv_ml": "End-diastolic volume (EDV), mL",
    "esv_ml": "End-systolic volume (ESV), mL",
    "sv_ml": "Stroke volume (SV), mL",
    "ef_percent": "Ejection fraction (EF), %",
}
# And what is told of these.
OF_A_MEASURE = ("measured_by", "ef_bias_points", "ef_limits_points")
# Largest bias and 1.96 standard deviations, in points of the ejection fraction, of figures that are printed bold.
NEAR_ENOUGH = (5.0, 15.0)
# Keys that do not explain themselves.
NAMES = {
    "inverse_error_mm_p95": "Inverse error (95 %), mm",
    "inverse_error_mm_max": "Inverse error (worst), mm",
    "back_between_slices_mm_p95": "There and back between slices (95 %), mm",
    "unconverged_voxels": "Not inverted, voxels",
    "largest_displacement_mm": "Largest shift, mm",
    "mse_before": "Error before",
    "mse_after": "Error after",
    "step_mm_mean": "Step from frame to frame (mean), mm",
    "step_mm_max": "Step from frame to frame (largest), mm",
    "temporal_roughness_mm": "Step out of line (mean), mm",
    "jump_ratio": "Step out of line (largest), of the mean step",
    "jump_frame": "Where that is, frame",
    "closure_mm": "Step from the last frame to the first, mm",
    "closure_ratio": "Step from the last frame to the first, of the largest",
    "compressed_percent": "Compressed, %",
    "compressed_determinant": "Called compressed: Jacobian determinant under",
    "moved_mm": "Called still: largest shift under, mm",
    "mse_after_to_before": "Error after, of the error before",
    "mse_of_a_slice_to_median": "Error after in a slice, of the median slice",
    "share_of_the_largest_mse_before": "Called alike from the start: error before, of the largest",
    "unconverged_voxels_error": "Called not inverted: error over, voxels",
    "least_likeness_of_others_percent": "Likeness of neighboring slices, of the others' (least), %",
    "mirrored_likeness_points": "Neighboring slices more alike when mirrored, points",
    "collapsed_determinant": "Called collapsed: Jacobian determinant under",
    "least_detail_percent": "Fine detail of the image (least), % of its contrast",
    "most_detail_percent": "Fine detail of the image (most), % of its contrast",
    "most_shading": "Brightness of one side, times that of the other",
    "least_width_mm": "Width of the image (least), mm",
    "least_diameter_mm": "Diameter of the left ventricle (least), mm",
    "most_diameter_mm": "Diameter of the left ventricle (most), mm",
    "contour_dice_percent": "Dice of both contours (least), %",
    "contour_dice_percent_unusable": "Dice of both contours, of no use under, %",
    "wall_change_percent": "Change of the myocardium's volume that is remarked, %",
    "volume_departure_percent": "Carried left ventricular volume: jump for a single frame that is remarked, % of the largest",
    "volume_closure_percent": "Left ventricular volume: last step to the first frame, % of all change",
    "volume_step_percent": "Left ventricular volume: largest step, % of all change",
    "volume_reversal_percent": "Left ventricular volume: rise within its fall, % of all change",
    "off_line_mm": "Slice off the line of its neighbors, mm",
    "least_overlap_percent": "Dice of a slice with the next one (least), %",
    "turned_degrees": "RV on another side than in most slices, degrees",
    "distance_mm_of_a_slice": "Contours of a slice apart, mm",
    "distance_mm_of_a_frame": "Contours of a frame apart, mm",
    "ef_difference_points": "Difference of ejection fractions, points",
    "ef_difference_points_remarked": "Difference of ejection fractions that is remarked, points",
    "label_fit_points": "Label fits another frame better, points of Dice",
}
UNITS = {"ml": "mL", "g": "g", "percent": "%", "mm": "mm", "ms": "ms"}
ACRONYMS = ("lv", "rv", "ed", "es", "mse", "edv", "esv", "sv", "ef")


def function_tables(values: Mapping[str, Any], peaks: Mapping[str, Any]) -> dict[str, Any]:
    """The ventricles side by side, what is not of one ventricle, what the figures mean, and what to beware of.

    A ventricle has a column for each answer, that which "measured_by" names first. A cell is its text and whether it is
    relied on: no other is printed bold.
    """
    answers = {by: values[by] for by in WORDS if by in values}
    apart = {"definitions", "caveat", "notes", "remarks", "unmeasured", "label_basis", *answers}
    figures = flatten({key: value for key, value in values.items() if key not in apart})
    sides = [side for side in ("lv", "rv") if any(f"{side}_{key}" in figures for key in MEASURES)]
    unmeasured = values.get("unmeasured")
    relied_on = {side: not unmeasured and _is_relied_on(figures, side) for side in sides}
    columns, bases = [], []
    for side in sides:
        by, others = figures.get(f"{side}_measured_by"), _other_answers(figures, answers, side)
        columns.append((f"{side.upper()} {by or ''}".rstrip(), figures, side, relied_on[side]))
        columns += [(f"{side.upper()} {other}", found, side, False) for other, found in others.items()]
        if by:
            second = [f" ({_whole(found.get(f'{side}_ef_percent'))} % {WORDS[o]})" for o, found in others.items()]
            bases.append(f"{side.upper()} {WORDS[by]}{''.join(second)}")
    measures = [
        (name, [(found.get(f"{side}_{key}"), bold) for _, found, side, bold in columns])
        for key, name in MEASURES.items()
    ]
    limits = [
        f"{side.upper()}: {figures[f'{side}_ef_bias_points']:+.1f} ± {figures[f'{side}_ef_limits_points']:.1f}"
        for side in sides
        if f"{side}_ef_bias_points" in figures
    ]
    named = {f"{side}_{key}" for side in sides for key in (*MEASURES, *OF_A_MEASURE)}
    rest = {key: value for key, value in figures.items() if key not in named}
    for name in ("circumferential", "longitudinal", "radial"):
        if f"peak_{name}" in peaks:
            rest[f"peak_global_{name}_strain_percent"] = 100 * peaks[f"peak_{name}"]
    return {
        "headlines": [
            (f"{side.upper()} EF {_whole(figures[f'{side}_ef_percent'])} %", relied_on[side])
            for side in sides
            if f"{side}_ef_percent" in figures
        ],
        "bases": "; ".join(bases),
        "ventricles": [heading for heading, *_ in columns],
        "measures": [
            (name, [(format_value(value), bold) for value, bold in row])
            for name, row in measures
            if any(value is not None for value, _ in row)
        ],
        "limits": "; ".join(limits).replace("-", "−"),
        "unmeasured": unmeasured,
        "doubtful": [side.upper() for side in sides if not relied_on[side]],
        "others": name_values(rest),
        "definitions": name_values(
            {key: text for key, text in (values.get("definitions") or {}).items() if key not in answers}
        ),
        "caveat": values.get("caveat"),
        "notes": values.get("notes") or [],
    }


def _other_answers(figures: Mapping[str, Any], answers: Mapping[str, Mapping], side: str) -> dict[str, Mapping]:
    """The answers that have figures of a ventricle, less that which "measured_by" names."""
    by = figures.get(f"{side}_measured_by")
    return {
        other: found
        for other, found in answers.items()
        if other != by and any(f"{side}_{key}" in found for key in MEASURES)
    }


def _is_relied_on(figures: Mapping[str, Any], side: str) -> bool:
    """Whether a ventricle's ejection fraction came near enough to that of manual contours, `NEAR_ENOUGH`; where that was
    not measured, the left one's alone: the right one's base leaves its slices."""
    names = (f"{side}_ef_bias_points", f"{side}_ef_limits_points")
    if not all(name in figures for name in names):
        return side == "lv"
    return all(abs(figures[name]) <= limit for name, limit in zip(names, NEAR_ENOUGH))


def _whole(percent: float | None) -> str:
    """An ejection fraction in words: its limits of agreement are points, so that a tenth says nothing."""
    return "–" if percent is None or percent != percent else f"{round(percent)}".replace("-", "−")


def slices_of_levels(rows: Iterable[Mapping[str, Any]]) -> str:
    """Which slices are basal, mid-cavity and apical, in words, by the rows of `strain.measure_strain`."""
    level_of = {sector.segment: level for level, ring in SECTORS.items() for sector in ring}
    found: dict[str, set[int]] = {}
    for row in rows:
        if row.get("segment"):
            found.setdefault(level_of[row["segment"]], set()).add(row["slice"])
    return "; ".join(f"{level}: {', '.join(map(str, sorted(found[level])))}" for level in SECTORS if level in found)


def frame_table(rows: list[Mapping[str, Any]], numbered: bool = True) -> dict[str, Any]:
    """Columns and cells of the quality of each frame; a cell is its text and whether to look at it. A pair's one row has
    no number."""
    suspect = {
        "folding_percent": lambda value, row: value > 0,
        "jacobian_min": lambda value, row: value <= 0,
        "mse_after": lambda value, row: value > row.get("mse_before", math.inf) + 1e-6,
    }
    rows = [{key: value for key, value in flatten(row).items() if numbered or key != "frame"} for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for row in rows:
        row["cells"] = [
            (format_value(row.get(k)), row.get(k) is not None and k in suspect and suspect[k](row[k], row))
            for k in keys
        ]
    return {"columns": [describe(key) for key in keys], "rows": [row["cells"] for row in rows]}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by "_"; lists, which are curves, left out."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}_")
        elif not isinstance(value, (list, tuple, np.ndarray)):
            flat[f"{prefix}{key}"] = value
    return flat


def name_values(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys in words and values as text."""
    return [(describe(key), format_value(value)) for key, value in values.items()]


def threshold_rows(quality: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Thresholds in words, each with its limit and what was measured, empty where it has no measure."""
    found = flatten(quality.get("measured") or {})
    return [
        (describe(key), format_value(limit), format_value(found[key]) if key in found else "")
        for key, limit in flatten(quality.get("thresholds") or {}).items()
    ]


def describe(key: str) -> str:
    """A key in words, its unit behind a comma."""
    words = key.split("_")
    name = " ".join(word.upper() if word in ACRONYMS else word for word in words if word not in UNITS)
    return NAMES.get(key) or ", ".join([name[:1].upper() + name[1:], *(UNITS[word] for word in words if word in UNITS)])


def format_value(value: Any) -> str:
    """A number with three significant digits, at most three decimals and no digit of its whole part lost, other values as
    they are."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if value is None or value != value:
        return "–"
    if not isinstance(value, (float, np.floating)) or math.isinf(value):
        return str(value)
    digits = 0 if abs(value) >= 100 or value == 0 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", "−")
