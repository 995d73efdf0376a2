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

"""Figures in words and digits, and which of them are bold."""

from __future__ import annotations

import pytest
from scripts.report import tables


def test_nested_function_and_odd_values() -> None:
    found = tables.function_tables(
        {"lv": {"edv_ml": 120.0, "ef_percent": float("nan")}, "lv_mass_g": 95.5, "curve": [1, 2]}, {}
    )
    assert found["ventricles"] == ["LV"]
    assert [cells for _, cells in found["measures"]] == [[("120", True)], [("–", True)]]
    assert found["others"] == [("LV mass, g", "95.5")]
    assert [tables.format_value(v) for v in (None, True, 7, 12345.6, 252.31, -0.5, 0.0, "x")] == [
        "–",
        "yes",
        "7",
        "12,346",
        "252",
        "−0.500",
        "0",
        "x",
    ]


def two_answers(bias: float, limits: float) -> dict:
    """Figures of both ventricles by both answers."""
    answers = {
        by: {f"{side}_{key}": number for side in ("lv", "rv") for key in ("edv_ml", "ef_percent")}
        | {f"{side}_volume_ml": [number, number / 2] for side in ("lv", "rv")}
        for by, number in (("carried", 50.0), ("segmented", 55.0))
    }
    main = {f"lv_{key}": 50.0 for key in ("edv_ml", "ef_percent")} | {
        f"rv_{key}": 55.0 for key in ("edv_ml", "ef_percent")
    }
    told = {"lv_measured_by": "carried", "lv_ef_bias_points": 0.1, "lv_ef_limits_points": 9.0}
    told |= {"rv_measured_by": "segmented", "rv_ef_bias_points": bias, "rv_ef_limits_points": limits}
    return {
        **main,
        **told,
        **answers,
        "label_basis": "automatic",
        "definitions": {"carried": "words"},
        "caveat": "words",
    }


@pytest.mark.parametrize(("bias", "limits", "bold"), [(-2.0, 14.0, True), (-7.0, 14.0, False), (-2.0, 16.0, False)])
def test_only_what_came_near_to_manual_contours_is_bold(bias: float, limits: float, bold: bool) -> None:
    found = tables.function_tables(two_answers(bias, limits), {})
    assert found["ventricles"] == ["LV carried", "LV segmented", "RV segmented", "RV carried"]
    numbers = [("50.0", True), ("55.0", False), ("55.0", bold), ("50.0", False)]
    assert [cells for _, cells in found["measures"]] == [numbers, numbers]
    assert found["headlines"] == [("LV EF 50 %", True), ("RV EF 55 %", bold)]
    assert found["bases"] == (
        "LV carried by the motion (55 % segmented in each frame); RV segmented in each frame (50 % carried by the motion)"
    )
    assert found["doubtful"] == ([] if bold else ["RV"])
    assert "LV: +0.1 ± 9.0" in found["limits"]
    assert found["others"] == found["definitions"] == []
    # A label without an RV carries none: the other answer stands alone.
    values = two_answers(bias, limits)
    values["carried"] = {key: value for key, value in values["carried"].items() if not key.startswith("rv_")}
    found = tables.function_tables(values, {})
    assert found["ventricles"] == ["LV carried", "LV segmented", "RV segmented"]
    assert found["bases"].endswith("; RV segmented in each frame")
    # With another segmentation than the measured one nothing is sure.
    values = {name: value for name, value in two_answers(bias, limits).items() if not name.endswith("_points")}
    found = tables.function_tables({**values, "unmeasured": "words"}, {})
    assert (found["doubtful"], found["limits"], found["unmeasured"]) == (["LV", "RV"], "", "words")
    assert not any(bold for _, cells in found["measures"] for _, bold in cells)
    # Carried labels of the RV alone tell nothing that could be relied on.
    alone = tables.function_tables({"lv_ef_percent": 50.0, "rv_ef_percent": 30.0}, {})
    assert alone["doubtful"] == ["RV"]
