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

"""Where two answers part: contours that the registration carries from one frame, and contours that a network draws in each
frame by itself.

Both see the same images, but err in different ways: where they agree, neither is likely to be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scripts.cardiac.cines import LABELS
from scripts.cardiac.coherence import WELL_SEEN
from scripts.files import let_go, one_by_one
from scripts.registration.metrics import dice_percent

# The outer border of the left ventricle, cavity and wall together, is compared beside what labels name.
STRUCTURES = {**{name: (value,) for name, value in LABELS.items()}, "epi": (LABELS["myo"], LABELS["lv"])}


def compare_slices(
    carried: NDArray, segmented: NDArray, spacing: Sequence[float], reference: int | None = None
) -> list[dict]:
    """Dice and distance between two labels of a cine, by structure, slice and frame.

    Args:
        carried: labels (X, Y, Z, T); 1 RV, 2 myocardium, 3 LV cavity.
        segmented: the same shape and values.
        spacing: voxel size in mm along X, Y and Z.
        reference: frame, counted from 1, that is left out: there, one of the labels may come from the other.

    Returns:
        Rows of `frame` and `slice` (from 1), `structure` ("rv", "myo", "lv", and "epi" for the last two together),
        `dice_percent`, `distance_mm` (`distance`; NaN where one of them lacks the structure), and both areas, `carried_mm2`
        and `segmented_mm2`. A structure that neither has in a slice and frame has no row.

    Raises:
        ValueError: for labels of other or unequal shapes.
    """
    if carried.ndim != 4 or carried.shape != segmented.shape:
        raise ValueError(f"two labels (X, Y, Z, T) of one shape are needed, got {carried.shape} and {segmented.shape}.")
    pixel, rows = float(np.prod(spacing[:2])), []
    for t, z in np.ndindex(carried.shape[3], carried.shape[2]):
        if z == 0:
            let_go(carried, segmented)  # a long cine's are in files
        if t + 1 == reference:
            continue
        for name, values in STRUCTURES.items():
            one, two = (np.isin(label[:, :, z, t], values) for label in (carried, segmented))
            if one.any() or two.any():
                rows.append(
                    {
                        "frame": t + 1,
                        "slice": z + 1,
                        "structure": name,
                        "dice_percent": float(dice_percent(one, two)),
                        "distance_mm": distance(one, two, spacing[:2]),
                        "carried_mm2": float(one.sum() * pixel),
                        "segmented_mm2": float(two.sum() * pixel),
                    }
                )
    return rows


def distance(one: NDArray[np.bool_], two: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """95 % Hausdorff distance in mm of the borders of two masks (X, Y), the larger of both directions; NaN where either is
    empty.

    Args:
        one: mask.
        two: mask of the same shape.
        spacing: pixel size in mm, (2,).
    """
    if not one.any() or not two.any():
        return float("nan")
    box = ndimage.find_objects((one | two).astype(np.uint8))[0]
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (np.pad(m[box], 1) for m in (one, two))]
    ways = zip(borders, borders[::-1])
    return max(float(np.percentile(ndimage.distance_transform_edt(~to, spacing)[of], 95)) for of, to in ways)


def summarize_agreement(rows: Sequence[dict], structure: str = "epi") -> dict[str, object]:
    """How well two labels agree on a structure, over the slices that both of them hold in at least half of the frames, at
    `WELL_SEEN` of the largest area: which slices belong to a ventricle is a convention, and at its ends labels may differ.
    Slices at the ends that the segmented ventricle leaves in systole do not count, either.

    Args:
        rows: of `compare_slices`.
        structure: one of STRUCTURES.

    Returns:
        "dice_percent" over all these slices and frames, NaN without any; "slices", a dict of `slice` and the median
        `distance_mm` over frames for each of these; "frames", the same over slices; "left_in_systole", a dict of
        `slice` and `frame`, where it is smallest, for each that the ventricle leaves. Labels that never share a slice
        are compared in all. A slice and frame that one of them lacks counts as infinitely far.
    """
    chosen = [row for row in rows if row["structure"] == structure]
    both = [row for row in chosen if not np.isnan(row["distance_mm"])]
    frames = {row["frame"] for row in rows}
    held = {z for z in {row["slice"] for row in both} if sum(r["slice"] == z for r in both) * 2 >= len(frames)}
    sizes = {z: np.median([r["carried_mm2"] + r["segmented_mm2"] for r in both if r["slice"] == z]) for z in held}
    held = {z for z in held if sizes[z] >= WELL_SEEN * max(sizes.values())}
    left = _left_in_systole(chosen, sorted(held))
    held -= {place["slice"] for place in left}
    # Two that lie in no slice together are far apart everywhere.
    apart = not both and any(row["carried_mm2"] for row in chosen) and any(row["segmented_mm2"] for row in chosen)
    counted = [row for row in chosen if row["slice"] in held or apart]
    areas = sum(row["carried_mm2"] + row["segmented_mm2"] for row in counted)
    shared = sum(row["dice_percent"] * (row["carried_mm2"] + row["segmented_mm2"]) for row in counted)

    def medians(key: str) -> list[dict]:
        numbers = sorted({row[key] for row in counted})
        far = [[_far(row) for row in counted if row[key] == number] for number in numbers]
        return [{key: number, "distance_mm": float(np.median(values))} for number, values in zip(numbers, far)]

    return {
        "dice_percent": shared / areas if areas else float("nan"),
        "slices": medians("slice"),
        "frames": medians("frame"),
        "left_in_systole": left,
    }


def _left_in_systole(rows: Sequence[dict], slices: Sequence[int]) -> list[dict]:
    """Slices at either end of a stack in which what is segmented falls below half of its largest area, each with the frame
    in which it is smallest: the base moves out of them, and contours carried in-plane stay there."""
    areas = {z: {row["frame"]: row["segmented_mm2"] for row in rows if row["slice"] == z} for z in slices}
    leaves = [min(areas[z].values()) < 0.5 * max(areas[z].values()) for z in slices]
    first = leaves.index(False) if False in leaves else 0
    last = leaves[::-1].index(False) if False in leaves else 0
    ends = [*slices[:first], *slices[len(slices) - last :]]
    return [{"slice": z, "frame": min(areas[z], key=areas[z].__getitem__)} for z in ends]


def fit_label(label: NDArray, segmented: NDArray) -> list[float]:
    """How well the LV cavity of a label fits that of each frame: Dice in percent, a list of T, over the slices in which the
    label and all frames have one; empty without such a slice.

    Args:
        label: (X, Y, Z).
        segmented: (X, Y, Z, T).
    """
    drawn, frames = label == LABELS["lv"], np.moveaxis(segmented, -1, 0)
    held = drawn.any(axis=(0, 1))
    for frame in one_by_one(frames):
        held = held & (frame == LABELS["lv"]).any(axis=(0, 1))
    if not held.any():
        return []
    return [float(dice_percent(drawn[:, :, held], frame[:, :, held] == LABELS["lv"])) for frame in one_by_one(frames)]


def _far(row: dict) -> float:
    return float("inf") if np.isnan(row["distance_mm"]) else row["distance_mm"]


def measure_curve(volume: NDArray) -> dict[str, float]:
    """How a volume behaves over a heartbeat, which is a circle: it falls and rises once, and does not leap.

    Args:
        volume: (T,), of at least 4 frames, the first of which follows the last.

    Returns:
        "change_percent", by how much the volume changes, of its maximum; and in percent of that change: "closure_percent",
        the step from the last frame to the first; "step_percent", the largest step between others, and "step_frame",
        counted from 1, from which it starts; "reversal_percent", by how much it rises at most on its way from the largest
        to the smallest volume, or falls on its way back, and "reversal_frame", the frame up to which it does so, counted
        from 1. Empty for fewer frames, or where it changes by less than 5 %: noise has no course.
    """
    volume = np.asarray(volume, dtype=np.float64)
    change = float(np.ptp(volume))
    if len(volume) < 4 or change <= 0.05 * volume.max():
        return {}
    first = int(volume.argmax())
    beat = np.append(np.roll(volume, -first), volume[first])
    least = int(beat.argmin())
    fall, rise = beat[: least + 1], beat[least:]
    back = np.append(fall[:-1] - np.minimum.accumulate(fall)[:-1], np.maximum.accumulate(rise) - rise)
    return {
        "change_percent": 100 * change / float(volume.max()),
        "closure_percent": 100 * float(abs(volume[-1] - volume[0])) / change,
        "step_percent": 100 * float(np.abs(np.diff(volume)).max()) / change,
        "step_frame": int(np.abs(np.diff(volume)).argmax()) + 1,
        "reversal_percent": 100 * float(back.max()) / change,
        "reversal_frame": (first + int(back.argmax())) % len(volume) + 1,
    }


def lone_departures(volume: NDArray, other: NDArray) -> NDArray:
    """By how much a volume (T,) lies above or below both its neighbors where another curve (T,) does not do the same, in each
    frame, in percent of the largest volume; 0 where it lies between them, and at both ends."""
    own, others = (_departures(np.asarray(curve, dtype=np.float64)) for curve in (volume, other))
    return np.minimum(np.abs(own), np.abs(own - others))


def _departures(volume: NDArray) -> NDArray:
    """By how much a volume (T,) lies above (below: negative) both its neighbors, as `lone_departures` has it."""
    found = np.zeros(len(volume))
    if len(volume) < 3 or not volume.max():
        return found
    before, after = volume[1:-1] - volume[:-2], volume[1:-1] - volume[2:]
    found[1:-1] = np.where(before * after > 0, np.sign(before) * np.minimum(np.abs(before), np.abs(after)), 0.0)
    return 100 * found / volume.max()


def wall_change(volume: NDArray, reference: int) -> dict[str, float]:
    """How much the volume of the myocardium (T,) changes; muscle keeps its volume.

    Returns:
        "wall_change_percent", by how much it differs from that in the reference (counted from 1), at most over all frames,
        NaN where the reference has none; "wall_change_frame", where.
    """
    rest = float(volume[reference - 1])
    if not rest:
        return {"wall_change_percent": float("nan"), "wall_change_frame": reference}
    change = np.abs(np.asarray(volume) / rest - 1)
    return {"wall_change_percent": float(100 * change.max()), "wall_change_frame": int(change.argmax()) + 1}
