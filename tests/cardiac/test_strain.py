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

"""Strain of motions whose strain is known by hand, of the phantom by another way, and sectors at known places."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation
from scripts.cardiac.phantom import Phantom
from scripts.cardiac.segments import MID, SECTORS, levels, sector_map
from scripts.cardiac.strain import measure_strain, segment_peaks, segment_strain, stretched_segments, summarize_strain

from benchmarks.strain import fiber_strain

SIZE, SPACING = (60, 44, 2), (1.2, 1.7, 8.0)
STRAIGHT = np.diag([*SPACING, 1.0])  # RAS along the array axes: anterior is axis 1
OBLIQUE = np.eye(4)
OBLIQUE[:3] = np.c_[Rotation.from_rotvec([25, -40, 70], degrees=True).as_matrix() * SPACING, [12.0, -80.0, 45.0]]
CENTER = (36.0, 37.4)  # mm, on a voxel


def heart(rv_angle: float | None = 180.0, slices: int = 2) -> np.ndarray:
    """A ring of 12 to 20 mm about `CENTER`, in contact with an RV from 60 degrees before `rv_angle` to 60 degrees
    after."""
    x, y = np.meshgrid(*(np.arange(n) * s - c for n, s, c in zip(SIZE, SPACING, CENTER)), indexing="ij")
    r, phi = np.hypot(x, y), np.rad2deg(np.arctan2(y, x))
    plane = np.select([r < 12, r < 20], [3, 2], 0)
    if rv_angle is not None:
        plane[(r >= 20) & (r < 28) & (np.abs((phi - rv_angle + 180) % 360 - 180) <= 60)] = 1
    return np.repeat(plane[..., None], slices, axis=2)


def linear(*gradients: np.ndarray, size: tuple[int, ...] = SIZE) -> np.ndarray:
    """Fields (T, 2, X, Y, Z) in voxels that map p to F p in mm about `CENTER`, one for each F of shape (2, 2)."""
    scale = np.array(SPACING[:2])
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")[:2], axis=-1)
    p = grid * scale - CENTER
    return np.stack([np.moveaxis((p @ gradient.T - p) / scale, -1, 0) for gradient in map(np.asarray, gradients)])


def values(rows: list[dict], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_scaling(affine, scale):
    rows = measure_strain(linear(scale * np.eye(2)), heart(), affine)
    assert len(rows) == 1 + 2 * 6
    for name in ("radial", "circumferential"):
        np.testing.assert_allclose(values(rows, name), scale - 1, atol=1e-12)


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("degrees", [2, 30])
def test_rotation_has_no_strain(affine, degrees):
    turn = Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2]
    rows = measure_strain(linear(turn), heart(), affine)
    assert np.abs([values(rows, "radial"), values(rows, "circumferential")]).max() < 1e-12


def test_rows():
    times = np.array([[0.0, 40.0], [10.0, 50.0]])
    rows = measure_strain(linear(np.eye(2), 0.9 * np.eye(2)), heart(), STRAIGHT, times=times)
    assert [row["frame"] for row in rows] == [1] * 13 + [2] * 13
    first, sector = rows[13], rows[13 + 6 + 3]
    assert first == pytest.approx(
        {**first, "region": "global", "slice": None, "sector": None, "segment": None, "time_ms": 45.0, "radial": -0.1}
    )
    assert first["voxels"] == (heart() == 2).sum() == sum(row["voxels"] for row in rows[14:])
    assert sector == pytest.approx(
        {**sector, "region": "inferior", "slice": 2, "sector": 3, "segment": 10, "time_ms": 50.0}
    )
    assert {tuple(row) for row in rows} == {tuple(first)}
    assert measure_strain(linear(np.eye(2)), heart(), STRAIGHT, times=[7.0])[5]["time_ms"] == 7
    assert "time_ms" not in measure_strain(linear(np.eye(2)), heart(), STRAIGHT)[0]
    json.dumps(rows)


def test_shear_by_hand():
    # F takes (0, 1) to (0.75, 1), of length 1.25, and keeps (1, 0).
    fields = linear([[1, 0.75], [0, 1]])
    label = np.zeros(SIZE, int)
    label[30, 22, 0] = 3
    label[30, 30, 0] = 2
    (row,) = measure_strain(fields, label, STRAIGHT)
    assert (row["radial"], row["circumferential"]) == pytest.approx((0.25, 0.0))
    # A quarter turn away the two change places.
    label[30, 30, 0], label[40, 22, 0] = 0, 2
    (row,) = measure_strain(fields, label, OBLIQUE)
    assert (row["radial"], row["circumferential"]) == pytest.approx((0.0, 0.25))
    # Along (3, 4) / 5 by hand: F e = (3 + 0.75 * 4, 4) / 5; across it, F (-4, 3) / 5 = (-4 + 0.75 * 3, 3) / 5.
    label[40, 22, 0] = 0
    label[30 - 17, 22 - 16, 0] = 2  # 20.4 and 27.2 mm away
    (row,) = measure_strain(fields, label, STRAIGHT)
    assert (row["radial"], row["circumferential"]) == pytest.approx(
        (np.hypot(6, 4) / 5 - 1, np.hypot(-1.75, 3) / 5 - 1)
    )


def test_wall_at_the_border_of_the_array():
    label = np.full((3, 3, 1), 2)
    label[1, 1] = 3
    rows = measure_strain(linear(1.2 * np.eye(2), size=label.shape), label, STRAIGHT)
    assert rows[0]["radial"] == pytest.approx(0.2)


@pytest.mark.parametrize(("size", "tolerance"), [(64, 0.02), (128, 0.006)])
@pytest.mark.parametrize("seed", range(2))
def test_phantom(seed, size, tolerance):
    phantom = Phantom.random(seed, size=(size, size), frames=5)
    label, es = phantom.label(1), phantom.end_systole
    fields = np.stack([phantom.field(frame, 1) for frame in (1, es)]).astype(np.float32)
    rows, exact, sectors = (
        measure_strain(fields, label, phantom.affine),
        fiber_strain(phantom, label, es),
        sector_map(label, phantom.affine),
    )
    count = 1 + sum(len(SECTORS[level]) for level in levels(label, phantom.affine).values())
    assert len(rows) == 2 * count
    for name, limit in (("radial", tolerance), ("circumferential", tolerance / 6)):
        assert np.abs(values(rows[:count], name)).max() < 1e-12
        assert rows[count][name] == pytest.approx(np.nanmean(exact[name]), abs=limit)
        for row in rows[count + 1 :]:
            z = row["slice"] - 1
            there = exact[name][..., z][sectors[..., z] == row["sector"]]
            assert row[name] == pytest.approx(there.mean(), abs=limit)
    summary = summarize_strain(rows)
    assert (summary["peak_radial_frame"], summary["peak_circumferential_frame"]) == (2, 2)
    assert summary["peak_radial"] > 0.1
    assert summary["peak_circumferential"] < -0.1


def turned_from(start: float, sense: int) -> np.ndarray:
    """Degrees of each voxel of a slice from a start, in a sense, about `CENTER`; (X, Y) in [0, 360)."""
    x, y = np.meshgrid(*(np.arange(n) * s - c for n, s, c in zip(SIZE, SPACING, CENTER)), indexing="ij")
    return (sense * (np.rad2deg(np.arctan2(y, x)) - start)) % 360


# The contact ends 60 degrees to either side of the RV; in a straight affine the anterior one has the larger axis 1.
@pytest.mark.parametrize(
    ("rv", "start", "sense"), [(180, 120, 1), (-170, 130, 1), (165, 105, 1), (20, 80, -1), (0, 60, -1), (-30, 30, -1)]
)
def test_sectors_go_from_the_anterior_insertion_through_the_septum(rv, start, sense):
    label = heart(rv)
    sectors = sector_map(label, STRAIGHT)
    turned, wall = turned_from(start, sense), label[..., 0] == 2
    assert ((sectors > 0) == (label == 2)).all()
    # Ends lie on voxels, hence four degrees of leeway.
    inside = wall & (np.abs(turned % 60 - 30) < 26)
    np.testing.assert_array_equal(sectors[..., 0][inside], turned[inside] // 60 + 1)
    beside = wall & binary_dilation(label[..., 0] == 1, np.ones((3, 3)))
    assert set(sectors[..., 0][beside & (np.abs(turned - 60) < 56)]) == {1, 2}
    assert [sector.region for sector in SECTORS[MID][:2]] == ["anteroseptal", "inferoseptal"]


def test_a_slice_follows_the_sense_of_the_stack():
    # In the second slice alone, the RV below the LV has its "anterior" end on the wrong side.
    label = np.concatenate([heart(180, 3), heart(-85, 1)], axis=2)
    alone, together = sector_map(label[..., 3:], STRAIGHT)[..., 0], sector_map(label, STRAIGHT)[..., 3]
    turned = turned_from(-85 - 60, 1)
    inside = (label[..., 3] == 2) & (np.abs(turned % 60 - 30) < 26)
    np.testing.assert_array_equal(together[inside], turned[inside] // 60 + 1)
    assert (alone[inside] != together[inside]).mean() > 0.5


def flip(axis: int):
    def change(array: np.ndarray, first: int) -> np.ndarray:
        return np.flip(array, first + axis)

    step = np.eye(4)
    step[axis, axis], step[axis, 3] = -1, (40, 36)[axis] - 1
    return change, step, [0, 1], np.where(np.arange(2) == axis, -1, 1)


def transpose():
    return lambda array, first: np.swapaxes(array, first, first + 1), np.eye(4)[[1, 0, 2, 3]], [1, 0], np.ones(2)


@pytest.mark.parametrize("change", [flip(0), flip(1), transpose()], ids=["flip 0", "flip 1", "transpose"])
@pytest.mark.parametrize("seed", range(3))
def test_other_axes_same_anatomy(change, seed):
    phantom = Phantom.random(seed, size=(40, 36), slices=2, frames=4, spacing=(3.2, 3.5, 8.0))
    label, fields = phantom.label(1), phantom.field(phantom.end_systole, 1)[None]
    turn, step, order, signs = change
    there = turn(fields, 2)[:, order] * signs.reshape(2, 1, 1, 1)
    expected = measure_strain(fields, label, phantom.affine)
    rows = measure_strain(there, turn(label, 0), phantom.affine @ step)
    assert len(rows) == len(expected) == 13
    for row, other in zip(rows, expected):
        assert row == pytest.approx(other)


@pytest.mark.parametrize("seed", range(12))
def test_septum_of_the_phantom(seed):
    # In its view axis 0 runs to the lateral wall and axis 1 down: the septum follows the anterior insertion
    # counterclockwise.
    phantom = Phantom.random(seed, slices=2)
    label = phantom.label(1)
    sectors = sector_map(label, phantom.affine)
    for z in range(2):
        places = {s: np.argwhere(sectors[..., z] == s).mean(axis=0) for s in range(1, 7)}
        septum, lateral = (places[1] + places[2]) / 2, (places[4] + places[5]) / 2
        assert septum[0] < lateral[0]
        assert places[1][1] < places[2][1]
        assert places[6][1] < places[3][1]
        beside = (label[..., z] == 2) & binary_dilation(label[..., z] == 1, np.ones((3, 3)))
        # Its contact is wider than the septum's 120 degrees, and starts with the first sector.
        assert {1, 2} <= set(sectors[..., z][beside]) <= {1, 2, 3}


def test_given_origin():
    inside = heart()[..., 0] == 2
    for rv, sense in ((None, -1), (70, 1), (-50, -1)):  # no RV: toward the patient's right, as the affine has it
        sectors = sector_map(heart(rv), STRAIGHT, sector_origin=10)[..., 0]
        np.testing.assert_array_equal(sectors[inside], turned_from(10, sense)[inside] // 60 + 1)
    mirrored = sector_map(heart(None), STRAIGHT * [-1, 1, 1, 1], sector_origin=10)[..., 0]
    np.testing.assert_array_equal(mirrored[inside], turned_from(10, 1)[inside] // 60 + 1)
    rows = measure_strain(linear(np.eye(2)), heart(None), STRAIGHT, sector_origin=10)
    assert len(rows) == 13


def test_a_slice_without_rv_takes_the_insertion_of_the_nearest_with_one():
    label = heart()
    label[..., 1][label[..., 1] == 1] = 0
    np.testing.assert_array_equal(sector_map(label, STRAIGHT), sector_map(heart(), STRAIGHT))
    rows = measure_strain(linear(0.9 * np.eye(2)), label, STRAIGHT)
    assert [row["slice"] for row in rows] == [None] + [1] * 6 + [2] * 6
    assert rows[0]["voxels"] == (label == 2).sum()


def test_without_rv_there_are_no_sectors_unless_a_segmentation_has_it():
    rows = measure_strain(linear(0.9 * np.eye(2)), heart(None), STRAIGHT)
    assert [row["segment"] for row in rows] == [None]
    rows = measure_strain(linear(0.9 * np.eye(2)), heart(None), STRAIGHT, anatomy=heart(-170))
    assert rows == measure_strain(linear(0.9 * np.eye(2)), heart(-170), STRAIGHT)
    # An RV of the label's own is the one that counts.
    mine = sector_map(heart(-170), STRAIGHT, anatomy=heart(20))
    np.testing.assert_array_equal(mine, sector_map(heart(-170), STRAIGHT))
    # An RV that touches in one voxel has no two ends.
    label = heart(None)
    label[0, 0], label[1, 1], label[2, 2] = 1, 1, 1
    assert not sector_map(label, STRAIGHT).any()


def test_strain_of_segments_is_the_mean_over_their_voxels() -> None:
    fields = linear(np.eye(2), np.diag([0.8, 0.9]))
    label = heart(slices=2)
    label[20:24, :, 1][label[20:24, :, 1] == 2] = 0  # fewer voxels in one slice
    rows = measure_strain(fields, label, STRAIGHT)
    # Both slices are mid-cavity: segments 7 to 12, over the voxels of both.
    curves, sectors = segment_strain(rows, "circumferential"), sector_map(label, STRAIGHT)
    assert list(curves) == [7, 8, 9, 10, 11, 12]
    x, y, _ = np.argwhere(sectors == 1).T
    p = np.stack([x * SPACING[0], y * SPACING[1]], axis=1)
    centers = [np.argwhere(label[..., z] == 3)[:, :2].mean(axis=0) * SPACING[:2] for z in (0, 1)]
    around = p - np.array(centers)[np.argwhere(sectors == 1)[:, 2]]
    along = np.stack([-around[:, 1], around[:, 0]], axis=1) / np.linalg.norm(around, axis=1, keepdims=True)
    exact = (np.linalg.norm(along * [0.8, 0.9], axis=1) - 1).mean()
    assert curves[8] == pytest.approx([0, exact])  # sector 1 is anteroseptal
    peaks = segment_peaks(rows)
    assert peaks["circumferential"][8] == pytest.approx(exact)
    assert peaks["radial"] == dict.fromkeys(range(7, 13), 0.0)
    assert segment_peaks([row for row in rows if row["sector"]]) == segment_peaks([]) == {}


def test_segments_that_stretch_are_those_of_the_wrong_sign() -> None:
    row = {"region": "septal", "slice": 1, "sector": 1, "voxels": 9}
    strains = {7: (-0.05, 0.02), 8: (0.02, -0.02), 9: (0.004, -0.004), 10: (-0.2, 0.3)}
    rows = [
        row | {"frame": t, "segment": n, "circumferential": sign * c, "radial": sign * r}
        for t, sign in ((1, 0.0), (2, 1.0), (3, -1.0))
        for n, (c, r) in strains.items()
    ]
    assert stretched_segments(rows, 1) == {"circumferential": {}, "radial": {}}
    assert stretched_segments(rows, 2) == {"circumferential": {8: 0.02}, "radial": {8: -0.02}}
    assert {name: set(found) for name, found in stretched_segments(rows, 3).items()} == {
        "circumferential": {7, 10},
        "radial": {7, 10},
    }


@pytest.mark.parametrize("absent", [2, 3])
@pytest.mark.filterwarnings("error")
def test_slices_without_wall_or_cavity_are_left_out(absent):
    label = heart()
    label[..., 0][label[..., 0] == absent] = 0
    rows = measure_strain(linear(np.eye(2)), label, STRAIGHT)
    assert {row["slice"] for row in rows} == {None, 2}
    assert rows[0]["voxels"] == (label[..., 1] == 2).sum()
    label[label == absent] = 0
    for nothing in (label, np.zeros_like(label)):
        assert measure_strain(linear(np.eye(2)), nothing, STRAIGHT) == []
    assert summarize_strain([]) == {}


@pytest.mark.filterwarnings("error")
def test_single_slice_and_part_of_a_wall():
    label = heart(slices=1)
    rows = measure_strain(linear(np.eye(2), size=(*SIZE[:2], 1)), label, STRAIGHT)
    assert len(rows) == 7
    label[33:][label[33:] == 2] = 0  # the lateral wall
    rows = measure_strain(linear(np.eye(2), size=(*SIZE[:2], 1)), label, STRAIGHT)
    assert {1, 2} <= {row["sector"] for row in rows} - {None} <= {1, 2, 3, 6}


def test_a_wall_voxel_on_the_center_is_left_out():
    label = np.zeros(SIZE, int)
    label[[29, 31], 22, 0], label[[30, 30], [22, 30], 0] = 3, 2
    (row,) = measure_strain(linear(1.1 * np.eye(2)), label, STRAIGHT)
    assert row["voxels"] == 1
    assert row["radial"] == pytest.approx(0.1)


def test_summary():
    rows = measure_strain(linear(np.eye(2), np.diag([0.6, 1.1]), 0.95 * np.eye(2), 1.03 * np.eye(2)), heart(), STRAIGHT)
    summary = summarize_strain(rows)
    assert summary["peak_radial"] == pytest.approx(0.03)
    assert (summary["peak_radial_frame"], summary["peak_circumferential_frame"]) == (4, 2)
    assert summary["peak_circumferential"] == min(row["circumferential"] for row in rows if row["region"] == "global")
    assert set(summary["definitions"]) >= {"peak_radial", "peak_circumferential"}


@pytest.mark.parametrize("stretched", [1.2, 1.4])
def test_there_are_no_peaks_from_a_reference_that_is_not_end_diastole(stretched: float) -> None:
    """As where the label is of end systole: the wall gets longer than there by more than it gets shorter."""
    rows = measure_strain(linear(np.eye(2), 0.95 * np.eye(2), stretched * np.eye(2)), heart(), STRAIGHT)
    assert summarize_strain(rows) == {}


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(60, 44, 3\)"):
        measure_strain(linear(np.eye(2)), np.zeros((60, 44, 3)), STRAIGHT)
    with pytest.raises(ValueError, match="fields"):
        measure_strain(linear(np.eye(2))[0], heart(), STRAIGHT)


def test_longitudinal_strain_of_a_heart_whose_base_descends() -> None:
    heart = Phantom.random(4, size=(48, 44), slices=10, frames=4, shortening=0.15)
    es, label = heart.end_systole, heart.label(1)
    rows = measure_strain(heart.field(es, 1)[None], label, heart.affine)
    (found,) = [row for row in rows if row["region"] == "global"]
    # The closed form's derivative along the axis, in mm.
    voxels = np.argwhere(label == 2).T.astype(float)
    ahead, behind = (heart.to_frame(voxels[:, None, None] + [[[[0]]], [[[0]]], [[[h]]]], es) for h in (1e-4, -1e-4))
    stretch = np.linalg.norm((ahead - behind)[:, 0, 0] * np.array(heart.spacing)[:, None] / 2e-4, axis=0) / 8.0
    assert found["longitudinal"] == pytest.approx(stretch.mean() - 1, abs=0.005)
    assert -0.16 < found["longitudinal"] < -0.12
    assert {row["region"] for row in rows} > {"anterior", "inferior"}
    # Of registered fields it is no measurement, so that nothing but the table tells it.
    peaks = summarize_strain([{**found, "longitudinal": 0.0, "circumferential": 0.0, "radial": 0.0}, found])
    assert peaks["peak_circumferential"] == found["circumferential"]
    assert not any("longitudinal" in key for key in (*peaks, *peaks["definitions"]))
    (flat,) = [
        row for row in measure_strain(heart.field(es, 1)[None, :2], label, heart.affine) if row["region"] == "global"
    ]
    assert "longitudinal" not in flat
