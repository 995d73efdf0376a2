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

"""Figures with their places, read off what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.cardiac.evidence import FIGURES, Evidence, measured
from scripts.cardiac.verdict import THRESHOLDS

CURVE = {
    "change_percent": 50.0,
    "closure_percent": 5.0,
    "step_percent": 30.0,
    "reversal_percent": 15.0,
    "reversal_frame": 4,
}


def evidence(
    image: dict | None = None, contours: dict | None = None, cycle: dict | None = None, **limit: float
) -> Evidence:
    return Evidence([], cycle or {}, limit, image or {}, contours or {})


@pytest.mark.parametrize("name", FIGURES)
def test_what_was_not_measured_has_no_worst_value_and_is_nowhere_beyond(name: str) -> None:
    nothing = evidence(**{name: 0.0})
    assert np.isnan(FIGURES[name].worst(nothing))
    assert nothing.beyond(name) == []


def test_slices_are_compared_with_the_others_but_not_at_the_ends() -> None:
    """By hand: each of the inner pairs against the median of the other four."""
    e = evidence({"likeness_percent": [10.0, 80.0, 40.0, 90.0, 20.0]}, least_likeness_of_others_percent=120.0)
    others = [[10, 40, 90, 20], [10, 80, 90, 20], [10, 80, 40, 20]]
    found = [100 * own / np.median(rest) for own, rest in zip((80, 40, 90), others)]
    assert e.likeness_of_others == [((None, z), pytest.approx(value)) for z, value in zip((2, 3, 4), found)]
    assert FIGURES["least_likeness_of_others_percent"].worst(e) == pytest.approx(min(found))
    assert e.beyond("least_likeness_of_others_percent") == [(None, 3)]
    blank = evidence({"likeness_percent": [80.0, np.nan, np.nan, 40.0, 80.0]})
    assert blank.likeness_of_others == [((None, 4), 50.0)]
    for few in ([], [50.0], [50.0, 20.0], [np.nan] * 4):
        assert evidence({"likeness_percent": few}).likeness_of_others == []


def test_slices_that_are_more_alike_when_mirrored() -> None:
    image = {"likeness_percent": [80.0, 20.0], "mirrored_percent": [50.0, 70.0], "width_mm": 300.0}
    e = evidence(image, mirrored_likeness_points=5.0)
    assert [value for _, value in e.mirrored] == [0, 50]
    assert e.beyond("mirrored_likeness_points") == [(None, 2)]
    assert evidence({**image, "width_mm": 140.0}).mirrored == []


def test_a_label_that_fits_another_frame_names_it() -> None:
    contours = {"label_fit_percent": [90.0, 95.0, 80.0], "reference": 3}
    e = evidence(contours=contours, label_fit_points=10.0)
    assert e.label_fits == [((2, None), 15.0)]
    assert e.beyond("label_fit_points") == [(2, None)]
    assert evidence(contours={**contours, "reference": 2}).label_fits == [((2, None), 0.0)]
    assert evidence(contours={**contours, "label_fit_percent": []}).label_fits == []


def test_a_volume_leaps_only_where_both_curves_do() -> None:
    curves = {"carried": CURVE, "segmented": {**CURVE, "reversal_percent": 90.0, "reversal_frame": 7}}
    e = evidence(contours={"curves": curves})
    assert e.curves("reversal_percent") == [((4, None), 15.0)]
    # A curve that hardly changes has no course.
    still = {"carried": CURVE, "segmented": {"wall_change_percent": 2.0}}
    assert evidence(contours={"curves": still}).curves("reversal_percent") == []


def test_what_is_held_against_a_threshold_is_the_worst_of_the_case() -> None:
    row = {"slice": 1, "mse_after": 0.2}
    frames = [
        {
            "frame": t,
            "slices": [row],
            "mse_before": 0.4,
            "mse_after": after,
            "folding_percent": folds,
            "jacobian_min": least,
        }
        | {"compressed_percent": 0.0, "inverse_error_mm_p95": 0.02, "largest_displacement_mm": 3.0}
        for t, after, folds, least in ((2, 0.1, 0.5, -1.0), (3, 0.2, 0.0, 0.4))
    ]
    e = Evidence(frames, {"closure_ratio": 1.5}, THRESHOLDS, {"width_mm": 200.0}, {"dice_percent": 91.0})
    found = measured(e)
    assert set(found) <= set(THRESHOLDS)
    expected = {"folding_percent": 0.5, "collapsed_determinant": -1.0, "mse_after": 0.2, "mse_after_to_before": 0.5}
    expected |= {"mse_of_a_slice_to_median": 1.0, "moved_mm": 3.0, "least_width_mm": 200.0, "closure_ratio": 1.5}
    expected |= {"contour_dice_percent": 91.0, "contour_dice_percent_unusable": 91.0}
    assert expected.items() <= found.items()
    # Nothing that was not measured, and nothing that only says what counts.
    assert not {"least_diameter_mm", "wall_change_percent", "off_line_mm", "compressed_determinant"} & set(found)


def test_ejection_fractions_part_by_their_difference() -> None:
    e = evidence(contours={"ejection_percent": {"carried": 41.0, "segmented": 54.0}}, ef_difference_points=12.0)
    assert FIGURES["ef_difference_points"].worst(e) == 13
    assert e.beyond("ef_difference_points") == [(None, None)]


def test_the_worst_is_the_largest_or_the_least() -> None:
    rows = {"off_line": [{"slice": 2, "mm": 3.0}, {"slice": 3, "mm": 9.0}], "overlap": [{"slice": 1, "percent": 80.0}]}
    rows["overlap"].append({"slice": 2, "percent": float("nan")})
    e = evidence(contours={"heart": rows}, off_line_mm=5.0, least_overlap_percent=85.0)
    assert FIGURES["off_line_mm"].worst(e) == 9
    assert FIGURES["least_overlap_percent"].worst(e) == 80
    assert e.beyond("off_line_mm", "least_overlap_percent") == [(None, 3), (None, 1)]
