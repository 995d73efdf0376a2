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

"""Slices of one heart, and slices that cannot be: by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.cardiac.coherence import measure_slices

SPACING = (1.2, 1.6, 8.0)


def stack(*shifts: tuple[float, float], radius: float = 30.0) -> np.ndarray:
    """A label (X, Y, Z): a ventricle in each slice, moved by so many mm, with the RV along the first axis."""
    x, y = np.meshgrid(1.2 * (np.arange(120) - 60), 1.6 * (np.arange(100) - 50), indexing="ij")
    slices = []
    for a, b in shifts:
        label = np.where(np.hypot(x - a - radius, y - b) < 20, 1, 0)
        for value, size in ((2, radius), (3, 0.6 * radius)):
            label[np.hypot(x - a, y - b) < size] = value
        slices.append(label)
    return np.stack(slices, axis=-1).astype(np.uint8)


def test_slices_above_each_other_are_those_of_one_heart() -> None:
    found = measure_slices(stack(*[(0.0, 0.0)] * 4), SPACING)
    assert found["diameter_mm"] == pytest.approx(60, rel=0.02)
    assert [row["slice"] for row in found["off_line"]] == [2, 3]
    assert all(row["mm"] == pytest.approx(0) for row in found["off_line"])
    assert all(row["percent"] == pytest.approx(100) for row in found["overlap"])
    assert [row["slice"] for row in found["turned"]] == [1, 2, 3, 4]
    assert all(row["degrees"] == pytest.approx(0, abs=1e-5) for row in found["turned"])


def test_a_shifted_slice_is_as_far_off_the_line_as_it_was_shifted() -> None:
    shift = (12.0, 9.6)  # whole pixels
    found = measure_slices(stack((0, 0), (0, 0), shift, (0, 0), (0, 0)), SPACING)
    off = {row["slice"]: row["mm"] for row in found["off_line"]}
    assert off[3] == pytest.approx(np.hypot(*shift), rel=1e-6)
    assert off[2] == off[4] == pytest.approx(np.hypot(*shift) / 2)
    # A tilted axis is no shift.
    leaning = measure_slices(stack((0, 0), (6, 4.8), (12, 9.6)), SPACING)
    assert leaning["off_line"][0]["mm"] == pytest.approx(0, abs=1e-9)


def test_a_mirrored_slice_has_its_rv_on_the_other_side() -> None:
    label = stack(*[(0.0, 0.0)] * 5)
    label[..., 2] = label[::-1, :, 2]
    turned = {row["slice"]: row["degrees"] for row in measure_slices(label, SPACING)["turned"]}
    assert turned[3] == pytest.approx(180, abs=1)
    assert turned[1] == pytest.approx(0, abs=1)


def test_hearts_that_do_not_overlap_are_told() -> None:
    overlap = measure_slices(stack((-30, 0), (-30, 0), (31, 0)), SPACING)["overlap"]
    assert [row["slice"] for row in overlap] == [1, 2]
    assert (overlap[0]["percent"], overlap[1]["percent"]) == (100, 0)


def test_a_small_slice_at_the_end_may_lie_anywhere() -> None:
    label = stack(*[(0.0, 0.0)] * 4)
    label[..., 3] = 0
    label[5:9, 5:9, 3] = 2
    found = measure_slices(label, SPACING)
    assert [row["slice"] for row in found["off_line"]] == [2]
    assert [row["slice"] for row in found["overlap"]] == [1, 2]


def test_nothing_is_measured_where_there_is_no_heart() -> None:
    found = measure_slices(np.zeros((20, 20, 3), np.uint8), SPACING)
    assert found == {"diameter_mm": 0, "off_line": [], "overlap": [], "turned": [], "cut": []}


def test_a_heart_that_reaches_the_border_is_cut_there() -> None:
    whole = stack(*[(0.0, 0.0)] * 3)
    assert measure_slices(whole, SPACING)["cut"] == []
    cut = np.concatenate([whole[..., :1], whole[..., 1:2], whole[..., :1]], axis=2)
    cut[..., [0, 2]] = 0
    assert measure_slices(cut[40:], SPACING)["cut"] == [2]
    assert measure_slices(whole[:, :60], SPACING)["cut"] == [1, 2, 3]
