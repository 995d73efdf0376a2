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

"""Radial and circumferential strain of the left ventricular wall from displacement fields, with motion along the
stack longitudinal strain as well.

The displacement u of a frame takes the reference's point x to x + u(x). With F = I + grad u in mm, at the reference's
voxels (central differences), a fiber along the unit vector e changes its length by the engineering strain (Lagrangian,
relative to the reference frame) sqrt(e' F' F e) - 1, a ratio: -0.2 is a shortening by 20 %. A rigid motion has none.
Unit vectors point away from the centroid of the LV cavity of the same slice in the reference (radial), at a right angle
to that (circumferential), and through the slices (longitudinal). In-plane fields do not see motion through the slices:
they have no longitudinal strain, and `longitudinal` has that of long-axis views.

Sectors are those of `segments`: six in basal and mid-cavity slices, four in apical ones.
"""

from __future__ import annotations

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scripts.cardiac.segments import MYOCARDIUM, SECTORS, levels, lv_centers, sector_map
from scripts.files import one_by_one

DEFINITIONS = {
    "strain": "engineering strain sqrt(e' F' F e) - 1 with F = I + grad u, a ratio relative to the reference frame; "
    "in-plane where fields are",
    "average": "mean over the myocardium's voxels (label 2) of the reference, in slices with an LV cavity",
    "peak_circumferential": "the most negative global circumferential strain of the cycle; none where the reference is "
    "not near end diastole",
    "peak_radial": "the largest global radial strain of the cycle; none either",
}
# Of a long-axis view, see `longitudinal`.
LONG_AXIS_DEFINITIONS = {
    "strain": "engineering strain, a ratio relative to the reference frame, in the plane of a long-axis view",
    "longitudinal": "change of the length of the line through the middle of the myocardium (label 2), from one side of "
    "the base over the apex to the other, as its points are carried (Voigt et al. 2015)",
    "radial": "strain across the wall, sqrt(n' F' F n) - 1 with F = I + grad u, mean over that line's points, "
    "at right angles to it",
    "peak_longitudinal": "the most negative longitudinal strain of the cycle; none where the reference is not near "
    "end diastole",
    "peak_radial": "the largest radial strain of the cycle; none either",
}
# Of the range of global circumferential strain: a wall that gets longer than the reference's by more was not at end
# diastole there.
NEAR_END_DIASTOLE = 0.25
STRETCHED = 0.005  # strain of the wrong sign from which a segment counts as stretched: less is printed as 0 %


def measure_strain(
    fields: NDArray,
    label: NDArray,
    affine: NDArray,
    sector_origin: float | None = None,
    times: NDArray | None = None,
    anatomy: NDArray | None = None,
) -> list[dict]:
    """Strain of each frame, over the whole myocardium and in the sectors of each slice.

    Args:
        fields: (T, d, X, Y, Z) in voxels, channel i along array axis i, on the reference's grid; d = 2 in-plane, or 3.
        label: of the reference frame, (X, Y, Z); 1 RV, 2 myocardium, 3 LV cavity. Slices without cavity or myocardium
            are left out.
        affine: voxel index to RAS in mm, (4, 4), with orthogonal axes.
        sector_origin: angle of the anterior RV insertion, see `segments.sector_map`.
        times: milliseconds of each slice and frame (Z, T), or of each frame (T,).
        anatomy: label (X, Y, Z) that tells the RV insertions where `label` has no RV.

    Returns:
        Rows of `frame` (from 1), `time_ms` (where times are known; of the slice, or the mean over slices), `region`
        ("global" or a wall), `slice`, `sector` (both from 1) and `segment` (see `segments`; all three None in global
        rows), `radial`, `circumferential` and, where d = 3, `longitudinal` (ratios), and `voxels` (how many were
        averaged). A sector without myocardium has no row. Empty where no slice can be measured.

    Raises:
        ValueError: where the shapes do not fit.
    """
    if fields.ndim != 5 or fields.shape[1] not in (2, 3) or fields.shape[2:] != label.shape or min(label.shape[:2]) < 2:
        raise ValueError(
            f"fields (T, d, X, Y, Z) and a label (X, Y, Z) are needed, got shapes {fields.shape} and {label.shape}."
        )
    spacing, centers = voxel_sizes(affine)[:2], lv_centers(label, affine)
    voxels = np.argwhere((label == MYOCARDIUM) & np.isin(np.arange(label.shape[2]), list(centers)))
    offsets = voxels[:, :2] * spacing - np.array([centers[z] for z in voxels[:, 2]]).reshape(-1, 2)
    # A wall's voxel on the very center has no direction.
    voxels, offsets = (rows[(offsets != 0).any(axis=1)] for rows in (voxels, offsets))
    if not len(voxels):
        return []
    radial = offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
    directions = {"radial": radial, "circumferential": radial[:, ::-1] * [-1, 1]}
    if fields.shape[1] == 3:
        directions = {name: np.pad(e, ((0, 0), (0, 1))) for name, e in directions.items()}
        directions["longitudinal"] = np.broadcast_to([0.0, 0.0, 1.0], (len(voxels), 3))
    # (N,) of each frame, one after the other: fields may not fit into memory.
    strains: dict[str, list[NDArray]] = {name: [] for name in directions}
    for field in one_by_one(fields):
        gradient = _deformation_gradient(field, voxels, voxel_sizes(affine)[: fields.shape[1]])
        for name, e in directions.items():
            strains[name].append(np.linalg.norm(np.einsum("nij,nj->ni", gradient, e), axis=-1) - 1)

    sectors, level = sector_map(label, affine, sector_origin, anatomy)[tuple(voxels.T)], levels(label, affine)
    groups = [({"region": "global", "slice": None, "sector": None, "segment": None}, np.ones(len(voxels), bool))]
    for z in centers:
        for number, sector in enumerate(SECTORS[level[z]], start=1):
            where = {"region": sector.region, "slice": z + 1, "sector": number, "segment": sector.segment}
            groups.append((where, (voxels[:, 2] == z) & (sectors == number)))
    rows = []
    for t in range(len(fields)):
        for where, mask in groups:
            if mask.any():
                time = {} if times is None else {"time_ms": float(of_slice(times, where["slice"])[t])}
                # Rounding noise of the reference, which has no strain, would look like one; + 0.0 takes a sign from it.
                means = {name: round(float(values[t][mask].mean()), 9) + 0.0 for name, values in strains.items()}
                rows.append({"frame": t + 1, **time, **where, **means, "voxels": int(mask.sum())})
    return rows


def summarize_strain(rows: list[dict]) -> dict[str, object]:
    """Global peak strains (ratios) with their frames (from 1) and definitions, from rows of `measure_strain` or
    `longitudinal.measure_longitudinal`; {} from no rows, and where the reference is not near end diastole, from which
    peaks are counted. A stack has no longitudinal peak, although its rows tell that strain: on phantoms it is off by half
    of itself (docs/benchmarks.md)."""
    cycle = [row for row in rows if row["region"] == "global"]
    if not cycle:
        return {}
    name = "circumferential" if "circumferential" in cycle[0] else "longitudinal"
    along = [row[name] for row in cycle]
    if max(along) > NEAR_END_DIASTOLE * (max(along) - min(along)):
        return {}
    peaks = {name: min(cycle, key=lambda row: row[name]), "radial": max(cycle, key=lambda row: row["radial"])}
    found: dict[str, object] = {}
    for kind, row in peaks.items():
        found |= {f"peak_{kind}": row[kind], f"peak_{kind}_frame": row["frame"]}
    return {**found, "definitions": dict(DEFINITIONS if name == "circumferential" else LONG_AXIS_DEFINITIONS)}


def segment_strain(rows: list[dict], name: str) -> dict[int, NDArray]:
    """Strain of each segment over the frames (T,), the mean over its voxels in all slices, by its number.

    Args:
        rows: of `measure_strain`.
        name: "radial" or "circumferential".

    Returns:
        Ratios by the numbers of `segments`, NaN in frames without a row; segments without any are left out.
    """
    frames = max((row["frame"] for row in rows), default=0)
    sums: dict[int, NDArray] = {}
    for row in rows:
        if row.get("segment"):
            total = sums.setdefault(row["segment"], np.zeros((2, frames)))
            total[:, row["frame"] - 1] += row["voxels"] * np.array([row[name], 1.0])
    with np.errstate(invalid="ignore"):
        return {segment: total[0] / total[1] for segment, total in sorted(sums.items())}


def segment_peaks(rows: list[dict]) -> dict[str, dict[int, float]]:
    """Peak strain of each segment, a ratio by its number: the most negative circumferential and the largest radial one
    of the cycle; {} where `summarize_strain` gives no peaks, and without segments."""
    if not summarize_strain(rows):
        return {}
    peaks = {"circumferential": np.nanmin, "radial": np.nanmax}
    found = {
        name: {n: float(peak(curve)) for n, curve in segment_strain(rows, name).items()} for name, peak in peaks.items()
    }
    return {name: values for name, values in found.items() if values}


def stretched_segments(rows: list[dict], frame: int) -> dict[str, dict[int, float]]:
    """Strain in a frame (from 1) of the segments that lengthen along the circumference, or thin, there instead of
    contracting: ratios by number, under the names of `segment_peaks`. A peak does not show them: it may come at any time.
    """
    signs = {"circumferential": 1, "radial": -1}
    at = {name: {n: float(c[frame - 1]) for n, c in segment_strain(rows, name).items()} for name in signs}
    return {name: {n: v for n, v in at[name].items() if sign * v > STRETCHED} for name, sign in signs.items()}


def _deformation_gradient(field: NDArray, voxels: NDArray[np.integer], spacing: NDArray) -> NDArray:
    """F = S (I + grad u) S^-1 at voxels (N, 3) of a field (d, X, Y, Z) in voxels, with S = diag(spacing), shape (N, d,
    d).

    Central differences, one-sided at the border of the array; F has no unit, its axes are the first d array axes.
    """
    columns, axes = [], len(field)
    for axis in range(axes):
        step = np.eye(3, dtype=int)[axis]
        low, high = np.maximum(voxels - step, 0), np.minimum(voxels + step, np.array(field.shape[1:]) - 1)
        after, before = (field[(slice(None), *at.T)].astype(float) for at in (high, low))
        # A stack of one slice has no difference through it.
        columns.append((after - before) / np.maximum(high - low, 1)[:, axis])
    # (d, N) for each derivative.
    gradient = np.moveaxis(np.stack(columns, axis=-1), 0, 1)
    return np.eye(axes) + gradient * spacing[:, None] / spacing


def of_slice(times: NDArray, number: int | None) -> NDArray:
    """Milliseconds of each frame (T,) in a slice (from 1; None: the mean over slices), from times (Z, T) or (T,)."""
    times = np.asarray(times, dtype=float)
    return times if times.ndim == 1 else times.mean(axis=0) if number is None else times[number - 1]
