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

"""Whether the slices of a label are those of one heart: whole, of a plausible size, one above the other, the RV on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scripts.cardiac.cines import LABELS

VENTRICLE = (LABELS["myo"], LABELS["lv"])
WELL_SEEN = 0.3  # of the largest slice's area; smaller ones, at apex and base, may lie anywhere
RV_MM2 = 300.0  # area from which the RV has a side


def measure_slices(label: NDArray, spacing: Sequence[float]) -> dict[str, object]:
    """Figures of a label (X, Y, Z) with voxels of a size in mm: 1 RV, 2 myocardium, 3 LV cavity.

    Returns:
        "diameter_mm", of a circle with the area of the largest slice of the left ventricle, wall included, 0 without one;
        and lists that are empty where there is nothing to compare, of slices with at least `WELL_SEEN` of the largest area:
        "off_line", dicts of `slice` (from 1) and `mm` by which the center of the ventricle lies off the middle between those
        of its neighbors; "overlap", of `slice` and `percent`, the Dice with the ventricle of the next slice; "turned", of
        `slice` and `degrees` by which the RV's direction differs from the median of all slices. "cut" lists the slices, of
        any size, in which the ventricle reaches the border of the image.
    """
    masks = np.isin(label, VENTRICLE)
    areas = masks.sum(axis=(0, 1)) * float(np.prod(spacing[:2]))
    seen = [int(z) for z in np.flatnonzero(areas >= WELL_SEEN * max(areas.max(), 1e-9))]
    centers = {z: _center(masks[..., z], spacing) for z in seen}
    trios = [(z - 1, z, z + 1) for z in seen if {z - 1, z + 1} <= centers.keys()]
    pairs = [(z, z + 1) for z in seen if z + 1 in centers]
    off = [float(np.linalg.norm(centers[z] - (centers[a] + centers[b]) / 2)) for a, z, b in trios]
    overlaps = [
        2 * (masks[..., a] & masks[..., b]).sum() / (masks[..., a].sum() + masks[..., b].sum()) for a, b in pairs
    ]
    return {
        "diameter_mm": float(2 * np.sqrt(areas.max() / np.pi)),
        "off_line": [{"slice": z + 1, "mm": mm} for (_, z, _), mm in zip(trios, off)],
        "overlap": [{"slice": z + 1, "percent": 100 * float(dice)} for (z, _), dice in zip(pairs, overlaps)],
        "turned": _turns(label, spacing, centers),
        "cut": [z + 1 for z in range(label.shape[2]) if _reaches_border(masks[..., z])],
    }


def _reaches_border(mask: NDArray) -> bool:
    """Whether a mask (X, Y) has one of the outermost pixels."""
    return bool(mask.any() and mask.sum() > mask[1:-1, 1:-1].sum())


def _center(mask: NDArray, spacing: Sequence[float]) -> NDArray:
    """Center of a mask (X, Y) in mm."""
    return np.argwhere(mask).mean(axis=0) * np.asarray(spacing[:2], dtype=float)


def _turns(label: NDArray, spacing: Sequence[float], centers: dict[int, NDArray]) -> list[dict]:
    """Slices and the angle in degrees between the RV's direction and the median direction of all."""
    ways = {}
    for z, center in centers.items():
        rv = label[..., z] == LABELS["rv"]
        if rv.sum() * np.prod(spacing[:2]) >= RV_MM2:
            way = _center(rv, spacing) - center
            ways[z] = way / max(float(np.linalg.norm(way)), 1e-9)
    if len(ways) < 3:
        return []
    middle = np.median(list(ways.values()), axis=0)
    middle = middle / max(float(np.linalg.norm(middle)), 1e-9)
    angles = {z: np.degrees(np.arccos(np.clip(way @ middle, -1, 1))) for z, way in ways.items()}
    return [{"slice": z + 1, "degrees": float(angle)} for z, angle in angles.items()]
