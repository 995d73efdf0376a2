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

"""Volumes by counting by hand, the phantom's known contraction, and labels that lack something."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scripts.cardiac.function import CAVEAT, MUSCLE_DENSITY, measure_function, note_frames, remark_on, volume_rows
from scripts.cardiac.phantom import Phantom

SPACING = (1.5, 1.25, 8.0)  # 15 µL
COUNTS = {1: (30, 20, 36, 10), 2: (50, 56, 60, 55), 3: (40, 44, 20, 22)}  # voxels of each structure in each frame
TIMES = np.array([[0.0, 30.0, 60.0, 90.0], [10.0, 40.0, 70.0, 100.0]])


def cine(counts: dict[int, tuple[int, ...]], shape: tuple[int, ...] = (10, 9, 2)) -> np.ndarray:
    """Labels (X, Y, Z, T) with so many voxels of each value, wherever."""
    frames = []
    for numbers in zip(*counts.values()):
        flat = np.repeat([0, *counts], [np.prod(shape) - sum(numbers), *numbers])
        frames.append(np.random.default_rng(0).permutation(flat).reshape(shape))
    return np.stack(frames, axis=-1)


def test_numbers_by_hand():
    result = measure_function(cine(COUNTS), SPACING, TIMES, reference=1)
    voxel = 0.015
    expected = {
        "reference_frame": 1,
        "ed_frame": 2,
        "ed_time_ms": 35.0,
        "es_frame": 3,
        "es_time_ms": 65.0,
        "lv_volume_ml": [n * voxel for n in COUNTS[3]],
        "lv_edv_ml": 44 * voxel,
        "lv_esv_ml": 20 * voxel,
        "lv_sv_ml": 24 * voxel,
        "lv_ef_percent": 100 * 24 / 44,
        "rv_volume_ml": [n * voxel for n in COUNTS[1]],
        "rv_edv_ml": 20 * voxel,
        "rv_esv_ml": 36 * voxel,
        "rv_sv_ml": -16 * voxel,
        "rv_ef_percent": -80.0,
        "lv_mass_g": 56 * voxel * 1.05,
    }
    definitions = result.pop("definitions")
    assert result.pop("caveat") == CAVEAT
    assert list(result) == list(expected)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value), name
    assert set(definitions) == set(expected)
    assert all(definitions.values())
    assert "base is not seen" in CAVEAT
    json.dumps(result)


def test_volume_table():
    rows = volume_rows({"carried": cine(COUNTS)}, SPACING, TIMES)
    expected = {"frame": 3, "time_ms": 65.0, "lv_carried_ml": 0.3, "rv_carried_ml": 0.54, "myo_carried_ml": 0.9}
    assert rows[2] == pytest.approx(expected)
    assert [row["frame"] for row in rows] == [1, 2, 3, 4]
    both = volume_rows({"carried": cine({3: (3, 4)}), "segmented": cine({1: (5, 6), 3: (7, 8)})}, SPACING)
    assert both[1] == pytest.approx(
        {"frame": 2, "lv_carried_ml": 0.06, "lv_segmented_ml": 0.12, "rv_segmented_ml": 0.09}
    )
    one = {"carried": cine({1: (3, 4)})}
    assert [row["time_ms"] for row in volume_rows(one, SPACING, np.array([5.0, 45.0]))] == [5.0, 45.0]
    assert volume_rows({"carried": cine({1: (0, 0)})}, SPACING) == [{"frame": 1}, {"frame": 2}]


def test_phases_may_be_known():
    result = measure_function(cine(COUNTS), SPACING, TIMES, phases=(1, 4))
    assert (result["ed_frame"], result["es_frame"], result["es_time_ms"]) == (1, 4, 95.0)
    assert result["lv_ef_percent"] == pytest.approx(100 * (1 - 22 / 40))
    json.dumps(result)


@pytest.mark.parametrize("seed", range(3))
def test_ejection_fraction_of_the_phantom(seed):
    phantom = Phantom.random(seed, frames=5)
    labels = np.stack([phantom.label(frame) for frame in range(1, 6)], axis=-1)
    result = measure_function(labels, phantom.spacing)
    assert (result["ed_frame"], result["es_frame"]) == (1, phantom.end_systole)
    assert result["lv_ef_percent"] == pytest.approx(100 * phantom.contraction, abs=2)
    area = np.pi * phantom.inner**2 * (1 + phantom.shape[0] ** 2 / 2)
    assert result["lv_edv_ml"] == pytest.approx(area.sum() * phantom.spacing[2] / 1000, rel=0.02)


def test_absent_structures_have_no_keys():
    only_rv = measure_function(cine({1: (5, 9, 3)}), SPACING)
    assert (only_rv["ed_frame"], only_rv["es_frame"]) == (2, 3)
    assert only_rv["rv_ef_percent"] == pytest.approx(100 * 6 / 9)
    assert not any(name.startswith("lv_") for name in only_rv)
    only_lv = measure_function(cine({2: (8, 9), 3: (9, 5)}), SPACING)
    assert only_lv["lv_mass_g"] == pytest.approx(8 * 0.015 * MUSCLE_DENSITY)
    assert not any(name.startswith("rv_") for name in (*only_lv, *only_lv["definitions"]))
    assert "ed_time_ms" not in only_lv
    assert "lv_mass_g" not in measure_function(cine({3: (9, 5)}), SPACING)


@pytest.mark.parametrize("counts", [{1: (0, 0)}, {2: (7, 8)}])
def test_nothing_to_measure(counts):
    assert measure_function(cine(counts), SPACING) == {}


@pytest.mark.filterwarnings("error")
def test_no_division_by_zero():
    # The RV is absent at the LV's end diastole.
    result = measure_function(cine({1: (0, 4), 3: (9, 5)}), SPACING)
    assert result["rv_edv_ml"] == 0
    assert "rv_ef_percent" not in result


def test_one_frame_has_no_end_systole():
    result = measure_function(cine({2: (8,), 3: (9,)}), SPACING)
    assert set(result) == {"ed_frame", "lv_volume_ml", "lv_edv_ml", "lv_mass_g", "definitions", "caveat"}


def test_labels_without_frames_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 9, 2\)"):
        measure_function(np.zeros((10, 9, 2)), SPACING)


CALM = {"reference_frame": 2, "ed_frame": 2, "lv_sv_ml": 60.0, "rv_sv_ml": 45.0}
CALM |= {"lv_ef_percent": 50.0, "rv_ef_percent": 40.0}


def test_notes_tell_in_which_frames_figures_were_read() -> None:
    (read,) = note_frames(CALM)
    assert "The RV is read in the frames" in read
    assert note_frames({"ed_frame": 1, "lv_sv_ml": 60.0}) == []
    moved, _ = note_frames(CALM | {"ed_frame": 3})
    assert "End diastole is frame 3" in moved


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("LV 60 mL and RV 41 mL", {"rv_sv_ml": 41.0}),
        ("LV 60 mL and RV 90 mL", {"rv_sv_ml": 90.0}),
        ("LV 60 mL and RV 1 mL", {"rv_sv_ml": 1.0, "rv_ef_percent": 1.0}),
        ("The RV's ejection fraction is negative", {"rv_ef_percent": -4.0}),
        ("The LV's ejection fraction is negative", {"lv_ef_percent": -4.0}),
    ],
)
def test_a_remark_is_on_what_no_healthy_heart_shows(words: str, change: dict[str, float]) -> None:
    assert remark_on(CALM) == []
    (found,) = remark_on(CALM | change)
    assert words in found


def test_a_ventricle_that_is_labeled_alone_is_remarked_on_too() -> None:
    assert len(remark_on({"rv_sv_ml": -3.0, "rv_ef_percent": -4.0})) == 1
    assert remark_on({"rv_sv_ml": 45.0, "rv_ef_percent": 40.0}) == []
