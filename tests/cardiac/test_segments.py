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

"""Segments against the published scheme: their numbers, walls and angles, on slices whose insertions are known."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scripts.cardiac.segments import SECTORS, levels, sector_map

# Cerqueira et al., Circulation 105:539 (2002), their figures 2 and 4: names, and the middle of each segment in degrees,
# counterclockwise from the patient's left in a slice that is seen from the apex, anterior up.
PUBLISHED = {
    1: ("anterior", 90), 2: ("anteroseptal", 150), 3: ("inferoseptal", 210), 4: ("inferior", 270),
    5: ("inferolateral", 330), 6: ("anterolateral", 30), 7: ("anterior", 90), 8: ("anteroseptal", 150),
    9: ("inferoseptal", 210), 10: ("inferior", 270), 11: ("inferolateral", 330), 12: ("anterolateral", 30),
    13: ("anterior", 90), 14: ("septal", 180), 15: ("inferior", 270), 16: ("lateral", 0),
}  # fmt: skip
SIZE, SPACING, CENTER = (66, 60), (1.3, 1.6), (33, 29)
# Shown as readers see it: array axis 0 to the patient's left, axis 1 to the back, slices from base to apex, which goes
# down. The view is level, which keeps anterior up.
DISPLAYED = np.array([[-1.3, 0, 0, 0], [0, -1.6, 0, 0], [0, 0, -8.0, 0], [0, 0, 0, 1.0]])


def ventricle(slices: int = 6, rv_slices: int = 4) -> np.ndarray:
    """A cone of `slices`, wide at slice 1, whose RV touches it from 120 to 240 degrees, as the published septum."""
    x, y = np.meshgrid(*(np.arange(n) - c for n, c in zip(SIZE, CENTER)), indexing="ij")
    right, up = x * SPACING[0], -y * SPACING[1]
    radius, phi = np.hypot(right, up), np.rad2deg(np.arctan2(up, right)) % 360
    label = np.zeros((*SIZE, slices), np.uint8)
    for z in range(slices):
        outer = 26 - 2 * z
        label[..., z] = np.select([radius < outer - 8, radius < outer], [3, 2], 0)
        if z < rv_slices:
            label[(radius >= outer) & (radius < outer + 8) & (np.abs(phi - 180) <= 60), z] = 1
    return label


def segment_map(label: np.ndarray, affine: np.ndarray) -> np.ndarray:
    sectors, level = sector_map(label, affine), levels(label, affine)
    found = np.zeros(label.shape, int)
    for z in range(label.shape[2]):
        numbers = np.array([0, *(sector.segment for sector in SECTORS[level[z]])])
        found[..., z] = numbers[sectors[..., z]]
    return found


def test_segments_are_those_published() -> None:
    label = ventricle()
    found = segment_map(label, DISPLAYED)
    assert ((found > 0) == (label == 2)).all()
    names = {sector.segment: sector.region for ring in SECTORS.values() for sector in ring}
    assert names == {number: name for number, (name, _) in PUBLISHED.items()}
    for number, (_, degrees) in PUBLISHED.items():
        x, y, z = np.argwhere(found == number).T
        assert set(z) == {0: {0, 1}, 1: {2, 3}, 2: {4, 5}}[(number - 1) // 6]
        p = (x - CENTER[0]) * SPACING[0] - 1j * (y - CENTER[1]) * SPACING[1]
        aside = np.rad2deg(np.angle(p * np.exp(-1j * np.deg2rad(degrees))))
        half = 30 if number < 13 else 45
        # Insertions lie on voxels.
        assert np.abs(aside).max() < half + 4
        assert np.abs(aside).max() > half - 5
        assert abs(aside.mean()) < 4


@pytest.mark.parametrize(
    "orientation",
    [[[0, -1], [1, 1], [2, 1]], [[1, 1], [0, 1], [2, 1]], [[1, -1], [0, 1], [2, -1]], [[0, 1], [1, 1], [2, -1]]],
    ids=["mirrored", "transposed", "turned, from the apex", "from the apex"],
)
def test_another_grid_has_the_same_segments(orientation: list[list[int]]) -> None:
    label = ventricle()
    stored = apply_orientation(label, orientation)
    affine = DISPLAYED @ inv_ornt_aff(orientation, label.shape)
    np.testing.assert_array_equal(
        segment_map(stored, affine), apply_orientation(segment_map(label, DISPLAYED), orientation)
    )


@pytest.mark.parametrize(
    ("slices", "expected"),
    [(1, "m"), (2, "mm"), (3, "bma"), (4, "bmma"), (5, "bbmaa"), (6, "bbmmaa"), (7, "bbmmmaa"), (9, "bbbmmmaaa")],
)
def test_levels_are_thirds_of_the_slices_with_a_wall(slices: int, expected: str) -> None:
    label = np.concatenate([np.zeros((*SIZE, 2), np.uint8), ventricle(slices)], axis=2)
    found = levels(label, DISPLAYED)
    assert list(found) == list(range(2, slices + 2))
    assert "".join(level[0] for level in found.values()) == expected
    back = levels(label[..., ::-1], DISPLAYED)
    assert "".join(level[0] for level in back.values()) == expected[::-1]


def test_ends_that_are_alike_are_told_by_the_affine() -> None:
    label = np.repeat(ventricle(1), 3, axis=2)
    assert list(levels(label, DISPLAYED).values()) == ["basal", "mid", "apical"]
    assert list(levels(label, DISPLAYED @ np.diag([1, 1, -1, 1])).values()) == ["apical", "mid", "basal"]
