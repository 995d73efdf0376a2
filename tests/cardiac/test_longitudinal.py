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

"""Longitudinal strain on walls and motions whose figures are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scripts.cardiac.longitudinal import (
    measure_longitudinal,
    midline,
    midline_length,
    polyline_length,
    resample_polyline,
)

SPACING = np.array([1.5, 1.25])
AFFINE = np.diag([*SPACING, 8.0, 1.0])
CENTER = np.array([60.0, 40.0])
INNER, OUTER, DEPTH = 20.0, 28.0, 70.0


def horseshoe(angle: float = 0.0, stretch: float = 1.0, shape: tuple[int, int] = (96, 110)) -> np.ndarray:
    """A ventricle in a long-axis view, open at the base, (X, Y): half an ellipse whose wall is 8 mm thick, turned about
    its base by an angle in degrees and stretched along its axis."""
    x = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) * SPACING - CENTER
    turn = np.deg2rad(angle)
    across, down = x @ [np.cos(turn), np.sin(turn)], x @ [-np.sin(turn), np.cos(turn)] / stretch
    inside = [(across / r) ** 2 + (down / (DEPTH - OUTER + r)) ** 2 <= 1 for r in (INNER, OUTER)]
    label = np.zeros(shape, np.uint8)
    label[inside[1] & (down >= 0)] = 2
    label[inside[0] & (down >= 0)] = 3
    return label


def half_ellipse(stretch: float = 1.0) -> float:
    """Length of the middle of the wall of `horseshoe`, by its parametric form."""
    t, middle = np.linspace(0, np.pi, 2001), (INNER + OUTER) / 2
    return polyline_length(np.stack([middle * np.cos(t), stretch * (DEPTH - OUTER + middle) * np.sin(t)], axis=1))


def linear_field(label: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """u = (M - 1)(x - center) in mm as a field (2, X, Y) in voxels."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in label.shape), indexing="ij"))
    x = grid * SPACING[:, None, None] - CENTER[:, None, None]
    return np.einsum("ij,jxy->ixy", matrix - np.eye(2), x) / SPACING[:, None, None]


@pytest.mark.parametrize("angle", [0, 30, -20])
@pytest.mark.parametrize("stretch", [1.0, 0.8])
def test_the_midline_is_as_long_as_the_middle_of_the_wall(angle: float, stretch: float) -> None:
    assert midline_length(horseshoe(angle, stretch), SPACING) == pytest.approx(half_ellipse(stretch), rel=0.02)


def test_the_midline_has_points_a_millimeter_apart_and_stays_in_the_wall() -> None:
    label = horseshoe(15)
    line = midline(label == 2, SPACING)
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    assert abs(steps - 1).max() < 0.05
    at = np.round(line / SPACING).astype(int)
    assert (label[tuple(at.T)] == 2).mean() > 0.97


@pytest.mark.parametrize("shrink", [1.0, 0.8])
def test_shortening_along_the_axis_is_what_the_line_says(shrink: float) -> None:
    label, matrix = horseshoe(), np.diag([1.0, shrink])
    fields = np.stack([0 * linear_field(label, matrix), linear_field(label, matrix)])[..., None]
    rows = measure_longitudinal(fields, label[..., None], AFFINE, times=np.array([0.0, 300.0]))
    assert [row["frame"] for row in rows] == [1, 2]
    assert [row["time_ms"] for row in rows] == [0.0, 300.0]
    assert rows[0]["longitudinal"] == rows[0]["radial"] == 0
    assert rows[1]["longitudinal"] == pytest.approx(half_ellipse(shrink) / half_ellipse() - 1, abs=0.005)
    # The label of the second frame, as it would be drawn.
    drawn = midline_length(horseshoe(stretch=shrink), SPACING) / midline_length(label, SPACING) - 1
    assert rows[1]["longitudinal"] == pytest.approx(drawn, abs=0.02)


def test_a_uniform_shrinking_is_the_same_strain_in_both_directions() -> None:
    label = horseshoe()
    fields = linear_field(label, 0.9 * np.eye(2))[None, ..., None]
    (row,) = measure_longitudinal(fields, label[..., None], AFFINE)
    assert row["longitudinal"] == pytest.approx(-0.1, abs=1e-3)
    assert row["radial"] == pytest.approx(-0.1, abs=1e-3)
    assert "time_ms" not in row


def test_a_rigid_motion_has_no_strain() -> None:
    label, turn = horseshoe(), np.deg2rad(20)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    fields = (linear_field(label, matrix) + 3)[None, ..., None]
    (row,) = measure_longitudinal(fields, label[..., None], AFFINE)
    assert row["longitudinal"] == pytest.approx(0, abs=1e-6)
    assert row["radial"] == pytest.approx(0, abs=1e-6)


def ring() -> np.ndarray:
    """A short-axis slice."""
    x = np.stack(np.meshgrid(np.arange(96), np.arange(110), indexing="ij"), axis=-1) * SPACING - 70
    radius = np.linalg.norm(x, axis=-1)
    return np.where(radius < 20, 3, np.where(radius < 30, 2, 0))


def in_pieces() -> np.ndarray:
    label = horseshoe()
    label[:, 45:60][label[:, 45:60] == 2] = 0
    return label


def dot() -> np.ndarray:
    label = np.zeros((96, 110), np.uint8)
    label[40:44, 40:44] = 2
    return label


@pytest.mark.parametrize("label", [ring, in_pieces, dot, lambda: np.zeros((96, 110), np.uint8)])
def test_a_wall_without_two_ends_has_no_line(label: Callable[[], np.ndarray]) -> None:
    assert np.isnan(midline_length(label(), SPACING))
    fields = np.zeros((2, 2, 96, 110, 1))
    assert measure_longitudinal(fields, label()[..., None], AFFINE) == []


def test_several_slices_are_measured_as_one() -> None:
    label = np.stack([horseshoe(), horseshoe(0, 0.8), ring()], axis=-1)
    fields = np.zeros((1, 2, *label.shape))
    fields[0, :, :, :, 0] = linear_field(label[..., 0], 0.9 * np.eye(2))
    (row,) = measure_longitudinal(fields, label, AFFINE)
    first, second = (midline_length(label[..., z], SPACING) for z in (0, 1))
    assert row["longitudinal"] == pytest.approx(-0.1 * first / (first + second), abs=1e-3)
    assert row["length_mm"] == pytest.approx(0.9 * first + second, rel=1e-3)


def test_stops_at_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="are needed, got shapes"):
        measure_longitudinal(np.zeros((1, 2, 5, 5, 1)), np.zeros((5, 6, 1)), AFFINE)


def test_resampling_keeps_ends_and_length() -> None:
    line = np.array([[0.0, 0.0], [0.0, 7.3], [4.1, 7.3]])
    new = resample_polyline(line)
    np.testing.assert_allclose(new[[0, -1]], line[[0, -1]])
    assert polyline_length(new) == pytest.approx(polyline_length(line), rel=0.05)
