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

"""Two labels of a cine against each other: by hand, in world coordinates by SciPy, and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial.distance import cdist
from scripts.cardiac.agreement import (
    compare_slices,
    distance,
    fit_label,
    lone_departures,
    measure_curve,
    summarize_agreement,
    wall_change,
)

SIZE = (64, 72)
# Turned about all axes, with pixels of 1.1 x 1.7 mm and slices of 8 mm.
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([1.1, 1.7, 8.0])
AFFINE[:3, 3] = [31.0, -12.0, 7.0]
SPACING = voxel_sizes(AFFINE)


def disc(radius: float, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """A disc (X, Y), radius and place of its center in mm."""
    x, y = np.meshgrid(*(length * (np.arange(n) - n / 2) for n, length in zip(SIZE, SPACING)), indexing="ij")
    return np.hypot(x - shift[0], y - shift[1]) <= radius


def heart(shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """A label map (X, Y): a cavity of 18 mm radius in a wall of 10 mm, and an RV beside it."""
    label = np.where(disc(14, (shift[0] + 30, shift[1])), 1, 0)
    label[disc(28, shift)] = 2
    label[disc(18, shift)] = 3
    return label.astype(np.uint8)


def cine(*frames: np.ndarray) -> np.ndarray:
    """Frames (X, Y) as a cine (X, Y, 1, T)."""
    return np.stack(frames, axis=-1)[:, :, None]


def farthest_in_world(one: np.ndarray, two: np.ndarray) -> float:
    """The 95 % Hausdorff distance between border pixels by their places in mm."""
    points = []
    for mask in (one, two):
        index = np.argwhere(mask & ~ndimage.binary_erosion(np.pad(mask, 1))[1:-1, 1:-1])
        points.append(apply_affine(AFFINE, np.pad(index, ((0, 0), (0, 1)))))
    between = cdist(*points)
    return max(np.percentile(between.min(axis=axis), 95) for axis in (0, 1))


def test_a_label_agrees_with_itself() -> None:
    labels = cine(heart(), heart((5.0, 3.0)))
    rows = compare_slices(labels, labels, SPACING)
    assert {(row["frame"], row["slice"], row["structure"]) for row in rows} == {
        (t, 1, name) for t in (1, 2) for name in ("rv", "myo", "lv", "epi")
    }
    for row in rows:
        assert row["dice_percent"] == 100
        assert row["distance_mm"] == 0
        assert row["carried_mm2"] == row["segmented_mm2"] > 0


@pytest.mark.parametrize("shift", [(2.2, 0.0), (0.0, 6.8), (6.6, 5.1), (-11.0, 3.4)])
def test_the_distance_of_a_shifted_disc_is_the_shift(shift: tuple[float, float]) -> None:
    # By whole pixels, whose rounding changes nothing.
    row = next(row for row in compare_slices(cine(heart()), cine(heart(shift)), SPACING) if row["structure"] == "lv")
    assert row["distance_mm"] == pytest.approx(np.hypot(*shift), abs=max(SPACING[:2]))
    assert row["distance_mm"] == pytest.approx(farthest_in_world(heart() == 3, heart(shift) == 3))


@pytest.mark.parametrize("seed", range(4))
def test_distances_of_ragged_masks_are_those_in_world_coordinates(seed: int) -> None:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(2, *SIZE)), (0, 4, 4))
    one, two = smooth > 0.5 * smooth.std()
    assert distance(one, two, SPACING[:2]) == pytest.approx(farthest_in_world(one, two))
    assert distance(two, one, SPACING[:2]) == distance(one, two, SPACING[:2])


def test_the_farther_the_less_they_agree() -> None:
    shifts = np.arange(0, 12, 1.7)
    rows = [
        row
        for s in shifts
        for row in compare_slices(cine(heart()), cine(heart((0.0, s))), SPACING)
        if row["structure"] == "epi"
    ]
    assert (np.diff([row["dice_percent"] for row in rows]) < 0).all()
    assert (np.diff([row["distance_mm"] for row in rows]) > 0).all()


def test_areas_and_dice_by_hand() -> None:
    one, two = (np.zeros((6, 5, 1, 1), np.uint8) for _ in range(2))
    one[1:3, 1:4], two[1:3, 2:4] = 3, 3
    lv, epi = compare_slices(one, two, (2.0, 0.5, 8.0))
    assert (lv["structure"], epi["structure"]) == ("lv", "epi")
    assert lv["dice_percent"] == epi["dice_percent"] == pytest.approx(80)
    assert (lv["carried_mm2"], lv["segmented_mm2"]) == (6, 4)
    assert lv["distance_mm"] == pytest.approx(0.5)


def test_what_one_of_them_lacks_has_no_distance_and_what_both_lack_no_row() -> None:
    empty = np.zeros(SIZE, np.uint8)
    rows = compare_slices(cine(heart(), empty), cine(empty, empty), SPACING)
    assert {row["frame"] for row in rows} == {1}
    assert all(row["dice_percent"] == 0 and np.isnan(row["distance_mm"]) for row in rows)


def test_the_reference_is_left_out() -> None:
    labels = cine(heart(), heart(), heart())
    assert {row["frame"] for row in compare_slices(labels, labels, SPACING, reference=2)} == {1, 3}


def test_labels_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        compare_slices(cine(heart()), cine(heart(), heart()), SPACING)
    with pytest.raises(ValueError, match="one shape"):
        compare_slices(heart(), heart(), SPACING)


def test_the_summary_leaves_out_slices_that_one_label_mostly_lacks() -> None:
    empty = np.zeros(SIZE, np.uint8)
    # Three frames of three slices: agreed upon, 6.8 mm apart, and at the base where the segmentation has it once.
    carried = np.stack([cine(*[heart()] * 3)[:, :, 0]] * 3, axis=2)
    segmented = carried.copy()
    segmented[:, :, 1] = cine(*[heart((0.0, 6.8))] * 3)[:, :, 0]
    segmented[:, :, 2, 1:] = empty[..., None]
    found = summarize_agreement(compare_slices(carried, segmented, SPACING))
    assert [row["slice"] for row in found["slices"]] == [1, 2]
    assert [row["distance_mm"] for row in found["slices"]] == pytest.approx([0, 6.8], abs=0.1)
    assert [row["frame"] for row in found["frames"]] == [1, 2, 3]
    one, two = (np.isin(label[:, :, :2], (2, 3)) for label in (carried, segmented))
    assert found["dice_percent"] == pytest.approx(200 * (one & two).sum() / (one.sum() + two.sum()))
    nothing = summarize_agreement(compare_slices(carried, np.zeros_like(carried), SPACING))
    assert np.isnan(nothing["dice_percent"])
    assert nothing["slices"] == nothing["frames"] == []


def test_a_slice_that_the_ventricle_leaves_in_systole_does_not_count() -> None:
    empty = np.zeros(SIZE, np.uint8)
    small = np.where(disc(12), 2, 0).astype(np.uint8)
    carried = np.stack([cine(*[heart()] * 4)[:, :, 0]] * 3, axis=2)
    segmented = carried.copy()
    segmented[:, :, 0] = cine(heart(), small, empty, heart())[:, :, 0]
    found = summarize_agreement(compare_slices(carried, segmented, SPACING))
    assert found["left_in_systole"] == [{"slice": 1, "frame": 3}]
    assert [row["slice"] for row in found["slices"]] == [2, 3]
    # In the middle of the stack nothing moves out.
    middle = summarize_agreement(compare_slices(carried, segmented[:, :, [1, 0, 2]], SPACING))
    assert middle["left_in_systole"] == []
    assert [row["slice"] for row in middle["slices"]] == [1, 2, 3]


def test_curves_by_hand() -> None:
    beat = 100 - 50 * np.sin(np.pi * np.arange(10) / 10)
    found = measure_curve(beat)
    assert found["change_percent"] == pytest.approx(50)
    assert found["closure_percent"] == pytest.approx(100 * (100 - beat[-1]) / 50)
    assert found["step_percent"] == pytest.approx(100 * np.abs(np.diff(beat)).max() / 50)
    assert found["step_frame"] == 1
    half = measure_curve(beat[:6])
    assert half["closure_percent"] == pytest.approx(100)
    exchanged = beat.copy()
    exchanged[[5, 9]] = exchanged[[9, 5]]
    assert measure_curve(exchanged)["reversal_frame"] == 6
    assert measure_curve(exchanged)["reversal_percent"] == pytest.approx(100 * (exchanged[5] - exchanged[4]) / 50)
    # Wherever the cine begins.
    turned = measure_curve(np.roll(exchanged, 3))
    assert turned["reversal_percent"] == pytest.approx(measure_curve(exchanged)["reversal_percent"])
    assert turned["reversal_frame"] == 9
    late = beat.copy()
    late[8] = 55
    assert measure_curve(late)["reversal_percent"] == pytest.approx(100 * (beat[7] - 55) / 50)
    assert (found["reversal_percent"], measure_curve(late)["reversal_frame"]) == (0, 9)
    assert measure_curve(np.array([100.0, 99, 98, 99])) == measure_curve(beat[:3]) == measure_curve(np.zeros(9)) == {}


BEAT = np.array([80.0, 79, 73, 64, 56, 47, 42, 43.5, 42.5, 47, 60, 76])


def test_a_frame_that_dips_alone_departs_by_its_smaller_step() -> None:
    assert lone_departures(BEAT, BEAT).tolist() == [0] * 12
    dip = BEAT.copy()
    dip[8] = 35.0
    expected = np.zeros(12)
    expected[7] = 100 * (1.5 - 1.0) / 80  # a bump that the other curve has for the most part
    expected[8] = 100 * min(43.5 - 35, 47 - 35) / 80 - 100 * min(43.5 - 42.5, 47 - 42.5) / 80
    found = lone_departures(dip, BEAT)
    assert found == pytest.approx(expected)
    # Neither the other one's dip, nor the ends count.
    assert lone_departures(BEAT, dip).max() < 2
    ends = BEAT.copy()
    ends[[0, -1]] = 40.0
    assert lone_departures(ends, BEAT)[[0, -1]].tolist() == [0, 0]


def test_a_sharp_end_systole_is_no_departure_where_both_see_it() -> None:
    sharp = np.array([100.0, 90, 60, 30, 60, 90])
    assert lone_departures(sharp, sharp + 3).max() < 1
    assert lone_departures(sharp, np.linspace(100, 90, 6)).argmax() == 3
    for nothing in (np.zeros(5), np.array([3.0, 1.0])):
        assert lone_departures(nothing, nothing).tolist() == [0] * len(nothing)


def test_muscle_that_keeps_its_volume_and_muscle_that_does_not() -> None:
    for volume, reference, percent, frame in (
        ([90.0, 90.0], 1, 0, 1),
        ([90.0, 90.0, 108.0], 1, 20, 3),
        ([90.0, 90.0, 108.0], 3, 100 / 6, 1),
        ([0.0, 0.0, 0.0], 2, np.nan, 2),
    ):
        found = wall_change(np.array(volume), reference)
        assert found["wall_change_percent"] == pytest.approx(percent, nan_ok=True)
        assert found["wall_change_frame"] == frame


def test_labels_that_share_no_slice_are_far_apart_everywhere() -> None:
    one = np.zeros((*SIZE, 4, 2), np.uint8)
    two = one.copy()
    one[:, :, 0], two[:, :, 2] = heart()[..., None], heart()[..., None]
    found = summarize_agreement(compare_slices(one, two, SPACING))
    assert found["dice_percent"] == 0
    assert [row["distance_mm"] for row in found["slices"]] == [np.inf, np.inf]


def test_a_label_fits_the_frame_that_it_was_drawn_on() -> None:
    """Cavities that shrink and grow: the label of the third one."""
    radii = (20, 18, 16, 18, 20)
    frames = np.stack([np.where(disc(r), 3, 0) for r in radii], axis=-1)[:, :, None].astype(np.uint8)
    empty = np.zeros_like(frames)
    # A slice that a frame leaves does not count.
    left = frames.copy()
    left[..., 1] = 0
    segmented = np.concatenate([frames, empty, left], axis=2)
    label = np.concatenate([frames, frames, frames], axis=2)[..., 2]
    fits = fit_label(label, segmented)
    assert fits.index(max(fits)) == 2
    areas = [disc(r).sum() for r in radii]
    assert fits == pytest.approx([200 * areas[2] / (areas[2] + area) for area in areas])
    assert fit_label(label, empty.repeat(3, axis=2)) == []
