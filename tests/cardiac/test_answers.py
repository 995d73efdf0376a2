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

"""Two answers side by side: whose figures are shown, and what is said where one of them lacks a ventricle."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scripts.cardiac.answers import BETTER, BY_SEGMENTATION, CARRIED, GIVEN, NOT_MEASURED, SEGMENTED, measure_answers
from scripts.cardiac.cines import LABELS
from scripts.cardiac.function import measure_function

SPACING = (1.5, 1.5, 8.0)
TIMES = np.array([0.0, 40.0, 80.0, 120.0])


def frames(lv: tuple[int, ...], rv: tuple[int, ...]) -> NDArray:
    """Labels (X, Y, Z, T) with so many voxels of each in each frame, and 20 of myocardium."""
    rows = [np.repeat([3, 1, 2, 0], [a, b, 20, 280 - a - b]) for a, b in zip(lv, rv)]
    return np.stack([row.reshape(10, 15, 2) for row in rows], axis=-1)


motion = frames((80, 60, 44, 70), (90, 84, 81, 88))
single = frames((80, 56, 40, 90), (100, 70, 60, 95))


@pytest.mark.parametrize("basis", [GIVEN, BY_SEGMENTATION])
def test_each_ventricle_is_that_of_the_better_answer(basis: str) -> None:
    result = measure_answers({CARRIED: motion, SEGMENTED: single}, basis, SPACING, TIMES, reference=1)
    # Those of the segmentation, smoothed over three frames: the last frame has the largest LV by it.
    assert (result["ed_frame"], result["es_frame"]) == (4, 3)
    assert result["label_basis"] == basis
    for ventricle, better in BETTER[basis].items():
        assert result[f"{ventricle}_measured_by"] == better.by
        for figure in ("edv_ml", "esv_ml", "sv_ml", "ef_percent", "volume_ml"):
            assert result[f"{ventricle}_{figure}"] == result[better.by][f"{ventricle}_{figure}"]
        assert result[f"{ventricle}_ef_limits_points"] == better.limits
        assert result[f"{ventricle}_ef_bias_points"] == better.bias
    assert result[CARRIED]["lv_ef_percent"] == pytest.approx(100 * (1 - 44 / 70))
    assert result[SEGMENTED]["rv_ef_percent"] == pytest.approx(100 * (1 - 60 / 95))
    named = set(result) - {"definitions", "caveat", "notes", "remarks"}
    assert set(result["definitions"]) == named
    json.dumps(result)


def test_carried_alone_is_what_it_was() -> None:
    result = measure_answers({CARRIED: motion}, GIVEN, SPACING, TIMES, reference=1)
    alone = measure_function(motion, SPACING, TIMES, reference=1)
    assert {name: result[name] for name in alone if name != "definitions"} == {
        name: alone[name] for name in alone if name != "definitions"
    }
    assert SEGMENTED not in result
    # Limits are those of the better answer, and of no other.
    for ventricle, better in BETTER[GIVEN].items():
        assert (f"{ventricle}_ef_limits_points" in result) == (better.by == CARRIED)


def test_another_segmentation_has_no_limits_and_is_said_to_have_none() -> None:
    both = {CARRIED: motion, SEGMENTED: single}
    known, unknown = (measure_answers(both, GIVEN, SPACING, is_measured=measured) for measured in (True, False))
    limits = {f"{ventricle}_ef_{name}_points" for ventricle in ("lv", "rv") for name in ("bias", "limits")}
    assert set(known) - set(unknown) == limits
    assert unknown["unmeasured"] == NOT_MEASURED
    assert not limits & set(unknown["definitions"])
    assert unknown["lv_ef_percent"] == known["lv_ef_percent"]
    # Nothing was segmented.
    assert "unmeasured" not in measure_answers({CARRIED: motion}, GIVEN, SPACING, is_measured=False)


def test_fields_along_the_stack_are_not_said_to_stay_in_plane() -> None:
    both = {CARRIED: motion, SEGMENTED: single}
    in_plane = measure_answers(both, GIVEN, SPACING)
    along = measure_answers(both, GIVEN, SPACING, in_plane=False)
    assert "in-plane" in in_plane["caveat"]
    assert "in-plane" not in along["caveat"]
    assert {**along, "caveat": in_plane["caveat"]} == in_plane


def test_a_ventricle_that_one_answer_lacks_comes_from_the_other() -> None:
    only_lv = np.where(motion == LABELS["rv"], 0, motion)
    result = measure_answers({CARRIED: only_lv, SEGMENTED: single}, GIVEN, SPACING)
    assert result["rv_measured_by"] == SEGMENTED
    assert "rv_ef_percent" not in result[CARRIED]
    only_rv = np.where(motion == LABELS["rv"], motion, 0)
    assert measure_answers({CARRIED: only_rv, SEGMENTED: single}, GIVEN, SPACING)["lv_measured_by"] == SEGMENTED


def test_a_slice_has_phases_and_no_volume() -> None:
    result = measure_answers({CARRIED: motion, SEGMENTED: single}, GIVEN, SPACING, is_stack=False)
    assert set(result) == {"ed_frame", "es_frame", "label_basis", "definitions", "caveat"}


def test_nothing_labeled_is_nothing_measured() -> None:
    assert measure_answers({CARRIED: 0 * motion}, GIVEN, SPACING) == {}
