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

"""Curves: what is missing has none, and both answers have one."""

from __future__ import annotations

import numpy as np
from scripts.report.charts import draw_curves, strain_curves, volume_curves
from test_page import register_phantom
from test_tables import two_answers


def test_strain_of_missing_rows() -> None:
    rows = [
        {"frame": 1, "region": "global", "slice": None, "sector": None, "radial": 0.0, "circumferential": 0.0},
        {"frame": 2, "region": "septal", "slice": 1, "sector": 1, "radial": 9.0, "circumferential": 9.0},
        {"frame": 3, "region": "global", "slice": None, "sector": None, "radial": None, "circumferential": -0.2},
    ]
    curves = strain_curves(rows, 3)
    np.testing.assert_allclose(curves["circumferential"], [0, np.nan, -20])
    np.testing.assert_allclose(curves["radial"], [0, np.nan, np.nan])
    assert strain_curves([], 3) == {}
    # Longitudinal strain of a stack is no measurement; that of a long-axis view, which has no circumferential one, is.
    assert set(strain_curves([{**row, "longitudinal": -0.2} for row in rows], 3)) == {"circumferential", "radial"}
    long_axis = [{"frame": 1, "region": "global", "radial": 0.0, "longitudinal": -0.2}]
    assert set(strain_curves(long_axis, 1)) == {"longitudinal", "radial"}


def test_volumes_are_those_of_each_answer() -> None:
    curves = volume_curves(two_answers(0, 0))
    assert list(curves) == [
        "LV, carried by the motion",
        "RV, carried by the motion",
        "LV, segmented in each frame",
        "RV, segmented in each frame",
    ]
    np.testing.assert_allclose(curves["RV, segmented in each frame"], [55, 27.5])
    assert list(volume_curves({"lv_volume_ml": [1.0]})) == ["LV, carried by the motion"]


def test_no_two_curves_of_a_chart_look_alike() -> None:
    registered = register_phantom(slices=1, frames=3, label=False)
    line = np.arange(3.0)
    for names in (("circumferential", "longitudinal", "radial"), volume_curves(two_answers(0, 0))):
        (axis,) = draw_curves(registered, dict.fromkeys(names, line), "%").axes
        lines = [one for one in axis.get_lines() if one.get_marker() != "None"]
        looks = {(one.get_color(), one.get_marker(), one.get_linestyle(), one.get_markerfacecolor()) for one in lines}
        assert len(looks) == len(lines) == len(names)
