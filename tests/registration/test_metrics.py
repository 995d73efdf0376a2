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

"""Figures of a subject against plain counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scripts.registration.metrics import (
    dice_percent,
    folding_percent,
    hd95_mm,
    hd95_voxel,
    overlap,
    summarize,
    volume_error,
)


def ball(center: tuple[float, ...], radius: float, shape: tuple[int, ...] = (24, 24, 6)) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm(grid - np.array(center), axis=-1) <= radius


def surface_points(mask: np.ndarray) -> np.ndarray:
    """Voxels with a neighbor over a face that is background or outside, found one by one."""
    padded = np.pad(mask, 1)
    points = []
    for index in np.argwhere(mask):
        steps = [s * np.eye(mask.ndim, dtype=int)[a] for a in range(mask.ndim) for s in (-1, 1)]
        if any(not padded[tuple(index + 1 + step)] for step in steps):
            points.append(index)
    return np.array(points)


def directed(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...] | int = 1) -> np.ndarray:
    return cKDTree(surface_points(b) * spacing).query(surface_points(a) * spacing)[0]


A, B = ball((11, 12, 3), 6), ball((13, 12, 3), 5)


def test_dice_counts() -> None:
    assert dice_percent(A, B) == pytest.approx(100 * 2 * (A & B).sum() / (A.sum() + B.sum()))
    assert dice_percent(A, A) == 100
    assert np.isnan(dice_percent(A & False, A & False))
    assert dice_percent(A, A & False) == 0


def test_hd95_voxel_pools_both_directions() -> None:
    pooled = np.concatenate([directed(A, B), directed(B, A)])
    assert hd95_voxel(A, B) == pytest.approx(np.percentile(pooled, 95))
    assert hd95_voxel(A, A) == 0
    assert np.isnan(hd95_voxel(A, A & False))


def test_hd95_mm_is_the_larger_direction_at_true_spacing() -> None:
    spacing = (1.5, 2.5, 8.0)
    box = np.zeros((20, 20, 8), bool)
    box[6:12, 6:12, 2:5] = True
    for axis, length in enumerate(spacing):
        assert hd95_mm(box, np.roll(box, 2, axis), spacing) == pytest.approx(2 * length)
    # A tongue that sticks out is far from the box, and nothing of the box is far from it.
    tongue = box.copy()
    tongue[12:18, 8:11, 3] = True
    assert (
        hd95_mm(box, tongue, spacing)
        == hd95_mm(tongue, box, spacing)
        == pytest.approx(np.percentile(directed(tongue, box, spacing), 95))
    )
    assert np.percentile(directed(tongue, box, spacing), 95) > np.percentile(directed(box, tongue, spacing), 95) + 4
    assert hd95_mm(A, A, spacing) == 0
    assert np.isnan(hd95_mm(A, A & False, spacing))


def test_of_a_lone_slice_the_outline_counts() -> None:
    disk = lambda x, radius: ball((x, 30), radius, (60, 60))[..., None]
    scores = overlap(disk(30, 20), disk(33, 20), {"lv": 1}, (1.5, 1.5, 8.0))
    pooled = np.concatenate(
        [
            directed(*(mask[..., 0] for mask in pair), (1, 1))
            for pair in ((disk(30, 20), disk(33, 20)), (disk(33, 20), disk(30, 20)))
        ]
    )
    assert scores["hd95_voxel"] == pytest.approx(np.percentile(pooled, 95)) == 3
    assert scores["hd95_mm"] == pytest.approx(4.5)
    assert scores["dice"] == dice_percent(disk(30, 20), disk(33, 20))


def test_an_absent_structure_is_left_out_of_the_mean() -> None:
    moved, fixed = A.astype(np.uint8) * 3, B.astype(np.uint8) * 3
    scores = overlap(moved, fixed, {"rv": 1, "lv": 3}, (1, 1, 1))
    assert np.isnan(scores["dice_rv"])
    assert scores["dice"] == scores["dice_lv"] == pytest.approx(dice_percent(A, B))
    # One that only one side has counts as missed.
    fixed[0, 0, 0] = 1
    assert overlap(moved, fixed, {"rv": 1, "lv": 3}, (1, 1, 1))["dice"] == pytest.approx(dice_percent(A, B) / 2)


def test_the_volume_error_is_that_of_the_ejection_fraction() -> None:
    ed, es, moved = ball((11, 12, 3), 6), ball((11, 12, 3), 4), ball((11, 12, 3), 5)
    fraction = lambda mask: 100 * (1 - mask.sum() / ed.sum())
    assert volume_error(moved, es, ed) == pytest.approx(fraction(es) - fraction(moved))
    assert volume_error(ed, es, ed) == pytest.approx(fraction(es))
    # Back from end systole it is the error of the end-diastolic volume.
    assert volume_error(moved, ed, es) == pytest.approx(-fraction(moved))
    assert np.isnan(volume_error(ed & False, ed & False, ed & False))


def test_folding_of_a_field_that_folds_in_a_known_strip() -> None:
    field = torch.zeros(2, 20, 10, 2)
    x = torch.arange(20.0)
    # Along x the map x + u(x) runs backwards between 8 and 12: a slope of -2 in u.
    field[0, :, :, 0] = torch.where(x < 8, 0, torch.where(x > 12, -8, -2 * (x - 8)))[:, None]
    slope = np.gradient(field[0, :, 0, 0].numpy())
    assert folding_percent(field) == pytest.approx(100 * np.mean(1 + slope <= 0) / 2)
    assert folding_percent(field, (slice(0, 5), slice(None))) == 0


def test_summary_leaves_nan_out_and_takes_the_population_deviation() -> None:
    rows = [{"a": 1.0, "b": float("nan")}, {"a": 4.0, "b": float("nan")}, {"a": float("nan"), "b": float("nan")}]
    summary = summarize(rows)
    assert summary["a"] == {"mean": 2.5, "std": 1.5}
    assert np.isnan(summary["b"]["mean"])


def test_errors_of_volumes_do_not_cancel_in_their_mean_absolute() -> None:
    rows = [{"volume_error_lv": value} for value in (-3.0, 5.0, float("nan"))]
    assert summarize(rows)["volume_error_lv"] == {"mean": 1.0, "std": 4.0, "mean_absolute": 4.0}
    assert np.isnan(summarize(rows[2:])["volume_error_lv"]["mean_absolute"])
