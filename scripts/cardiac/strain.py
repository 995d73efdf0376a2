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

"""Radial and circumferential strain of the left ventricular wall from displacement fields, with those of volumes
longitudinal strain as well.

The displacement u of a frame takes the reference's point x to x + u(x). With F = I + grad u in mm, at the reference's
voxels (central differences), a fiber along the unit vector e changes its length by the engineering strain (Lagrangian,
relative to the reference frame) sqrt(e' F' F e) - 1, a ratio: -0.2 is a shortening by 20 %. A rigid motion has none.
Unit vectors point away from the centroid of the LV cavity of the same slice in the reference (radial), at a right angle
to that (circumferential), and through the slices (longitudinal). In-plane fields do not see motion through the slices:
they have no longitudinal strain, and `longitudinal` has that of long-axis views.

Sectors are the six of basal and mid-cavity slices in Cerqueira et al., Circulation 105:539 (2002), 60 degrees each
about the same center, in every slice (apical ones too). They start at the anterior insertion of the RV and go through
the septum, numbered as in `SECTORS`; sector s is that paper's segment s % 6 + 1 (basal) or + 7 (mid-cavity).
"""

from __future__ import annotations

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scripts.cardiac.cines import LABELS

RV, MYOCARDIUM, LV = (LABELS[name] for name in ("rv", "myo", "lv"))
SECTORS = ("anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral", "anterior")
APEX = np.array([-1.0, 1.0, -1.0])  # from base to apex in RAS: left, anterior, inferior
ANTERIOR = np.array([0.0, 1.0, 1.0])  # what an upright heart's "anterior" wall faces in RAS: anterior and superior
DEFINITIONS = {
    "strain": "engineering strain sqrt(e' F' F e) - 1 with F = I + grad u, a ratio relative to the reference frame; "
    "in-plane where fields are",
    "average": "mean over the myocardium's voxels (label 2) of the reference, in slices with an LV cavity",
    "peak_circumferential": "the most negative global circumferential strain of the cycle; none where the reference is "
    "not near end diastole",
    "peak_radial": "the largest global radial strain of the cycle; none either",
    "peak_longitudinal": "the most negative global longitudinal strain of the cycle, from fields of volumes alone",
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


def measure_strain(
    fields: NDArray, label: NDArray, affine: NDArray, sector_origin: float | None = None, times: NDArray | None = None
) -> list[dict]:
    """Strain of each frame, over the whole myocardium and in six sectors a slice.

    Args:
        fields: (T, d, X, Y, Z) in voxels, channel i along array axis i, on the reference's grid; d = 2 in-plane, or 3.
        label: of the reference frame, (X, Y, Z); 1 RV, 2 myocardium, 3 LV cavity. Slices without cavity or myocardium
            are left out.
        affine: voxel index to RAS in mm, (4, 4), with orthogonal axes.
        sector_origin: angle of the anterior RV insertion, see `sector_map`.
        times: milliseconds of each slice and frame (Z, T), or of each frame (T,).

    Returns:
        Rows of `frame` (from 1), `time_ms` (where times are known; of the slice, or the mean over slices), `region`
        ("global" or a name of `SECTORS`), `slice` and `sector` (from 1; None in global rows), `radial`,
        `circumferential` and, where d = 3, `longitudinal` (ratios), and `voxels` (how many were averaged). A sector
        without myocardium has no row. Empty where no slice can be measured.

    Raises:
        ValueError: where the shapes do not fit.
    """
    if fields.ndim != 5 or fields.shape[1] not in (2, 3) or fields.shape[2:] != label.shape or min(label.shape[:2]) < 2:
        raise ValueError(
            f"fields (T, d, X, Y, Z) and a label (X, Y, Z) are needed, got shapes {fields.shape} and {label.shape}."
        )
    spacing, centers = voxel_sizes(affine)[:2], _lv_centers(label, affine)
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
    gradient = _deformation_gradient(fields, voxels, voxel_sizes(affine)[: fields.shape[1]])
    # (T, N) each.
    strains = {
        name: np.linalg.norm(np.einsum("tnij,nj->tni", gradient, e), axis=-1) - 1 for name, e in directions.items()
    }

    sectors = sector_map(label, affine, sector_origin)[tuple(voxels.T)]
    groups = [({"region": "global", "slice": None, "sector": None}, np.ones(len(voxels), bool))]
    for z in centers:
        for number, name in enumerate(SECTORS, start=1):
            groups.append(
                ({"region": name, "slice": z + 1, "sector": number}, (voxels[:, 2] == z) & (sectors == number))
            )
    rows = []
    for t in range(len(fields)):
        for where, mask in groups:
            if mask.any():
                time = {} if times is None else {"time_ms": float(of_slice(times, where["slice"])[t])}
                # Rounding noise of the reference, which has no strain, would look like one; + 0.0 takes a sign from it.
                means = {name: round(float(values[t, mask].mean()), 9) + 0.0 for name, values in strains.items()}
                rows.append({"frame": t + 1, **time, **where, **means, "voxels": int(mask.sum())})
    return rows


def summarize_strain(rows: list[dict]) -> dict[str, object]:
    """Global peak strains (ratios) with their frames (from 1) and definitions, from rows of `measure_strain` or
    `longitudinal.measure_longitudinal`; {} from no rows, and where the reference is not near end diastole, from which
    peaks are counted."""
    cycle = [row for row in rows if row["region"] == "global"]
    if not cycle:
        return {}
    names = [name for name in ("circumferential", "longitudinal") if name in cycle[0]]
    along = [row[names[0]] for row in cycle]
    if max(along) > NEAR_END_DIASTOLE * (max(along) - min(along)):
        return {}
    peaks = {name: min(cycle, key=lambda row, name=name: row[name]) for name in names}
    peaks["radial"] = max(cycle, key=lambda row: row["radial"])
    found: dict[str, object] = {}
    for name, row in peaks.items():
        found |= {f"peak_{name}": row[name], f"peak_{name}_frame": row["frame"]}
    return {**found, "definitions": dict(DEFINITIONS if names[0] == "circumferential" else LONG_AXIS_DEFINITIONS)}


def sector_map(label: NDArray, affine: NDArray, sector_origin: float | None = None) -> NDArray[np.uint8]:
    """Sector of each myocardial voxel, numbered as in `SECTORS` from 1, shape (X, Y, Z); 0 elsewhere and in slices
    without sectors.

    Angles are taken about the LV center in in-plane mm, from array axis 0 toward array axis 1. A slice's sectors start
    at the anterior end of its contact with the RV and go to the other end, see `_contact_ends`; which of the two is
    anterior is decided once for the stack, by the sum over its slices. A slice that does not touch the RV has no
    sectors.

    Args:
        label, affine: as `measure_strain` takes them.
        sector_origin: angle of the anterior insertion in degrees, which then holds for all slices. The septum lies on
            the side of the RV's mean direction over the stack. Where no RV is labeled at all, it lies in the sense of a
            right-handed turn about the axis from base to apex, which points left, anterior and inferior in the patient
            (`APEX`): counterclockwise as seen from the apex, the usual display of a short-axis view.
    """
    sectors = np.zeros(label.shape, np.uint8)
    spacing, centers = voxel_sizes(affine)[:2], _lv_centers(label, affine)
    if sector_origin is None:
        ends = {z: _contact_ends(label[..., z], affine, center) for z, center in centers.items()}
        ends = {z: found for z, found in ends.items() if found is not None}
        sense = 1 if sum(lead for _, _, lead in ends.values()) >= 0 else -1
        starts = {z: low if sense == 1 else high for z, (low, high, _) in ends.items()}
    else:
        starts = dict.fromkeys(centers, np.deg2rad(sector_origin))
        sense = _septal_sense(label, affine, centers, np.deg2rad(sector_origin))
    for z, start in starts.items():
        x, y = np.nonzero(label[..., z] == MYOCARDIUM)
        turned = sense * (angle(np.stack([x, y], axis=1) * spacing - centers[z]) - start)
        # A hair of tolerance keeps the insertion itself in the first sector.
        sectors[x, y, z] = np.minimum(np.mod(turned + 1e-9, 2 * np.pi) // (np.pi / 3), 5) + 1
    return sectors


def _contact_ends(plane: NDArray, affine: NDArray, center: NDArray) -> tuple[float, float, float] | None:
    """The two ends of the contact of RV and LV in a slice, its RV insertions.

    The contact is the myocardium that touches the RV (by a face or a corner of a voxel). Its ends are the extremes of
    the angle from the direction of the RV's centroid, which lies between them, so that no angle wraps around. The
    anterior one lies farther along `ANTERIOR`. RAS y alone does not tell the ends apart in a short-axis view, where the
    septum may run nearly level in y; where a plane is level in z (an affine without orientation), it is RAS y that
    decides.

    Args:
        plane: label of the slice, (X, Y).
        affine: voxel index to RAS in mm, (4, 4).
        center: of the LV in in-plane mm, (2,).

    Returns:
        Angles of the end that the septum follows in the positive sense (from axis 0 toward axis 1) and of the other, in
        radians, and how much farther along `ANTERIOR` the first lies. None where RV and myocardium do not touch, or in
        one direction alone.
    """
    contact = np.argwhere((plane == MYOCARDIUM) & binary_dilation(plane == RV, np.ones((3, 3))))
    if not len(contact):
        return None
    spacing = voxel_sizes(affine)[:2]
    toward_rv = angle(np.argwhere(plane == RV).mean(axis=0) * spacing - center)
    aside = np.angle(np.exp(1j * (angle(contact * spacing - center) - toward_rv)))
    low, high = aside.argmin(), aside.argmax()
    if aside[low] == aside[high]:
        return None
    forward = contact @ (ANTERIOR @ np.asarray(affine)[:3, :2])
    return float(toward_rv + aside[low]), float(toward_rv + aside[high]), float(forward[low] - forward[high])


def _septal_sense(label: NDArray, affine: NDArray, centers: dict[int, NDArray], origin: float) -> int:
    """The sense (1 or -1) in which the septum follows an insertion at a given angle (radians), see `sector_map`."""
    rvs = {z: np.argwhere(label[..., z] == RV) for z in centers}
    directions = [
        np.exp(1j * angle(rv.mean(axis=0) * voxel_sizes(affine)[:2] - centers[z])) for z, rv in rvs.items() if len(rv)
    ]
    side = (
        (np.sum(directions) * np.exp(-1j * origin)).imag
        if directions
        else np.cross(affine[:3, 0], affine[:3, 1]) @ APEX
    )
    return 1 if side >= 0 else -1


def _deformation_gradient(fields: NDArray, voxels: NDArray[np.integer], spacing: NDArray) -> NDArray:
    """F = S (I + grad u) S^-1 at voxels (N, 3) of fields (T, d, X, Y, Z) in voxels, with S = diag(spacing), shape (T,
    N, d, d).

    Central differences, one-sided at the border of the array; F has no unit, its axes are the first d array axes.
    """
    columns, axes = [], fields.shape[1]
    for axis in range(axes):
        step = np.eye(3, dtype=int)[axis]
        low, high = np.maximum(voxels - step, 0), np.minimum(voxels + step, np.array(fields.shape[2:]) - 1)
        after, before = (fields[(slice(None), slice(None), *at.T)].astype(float) for at in (high, low))
        # A stack of one slice has no difference through it.
        columns.append((after - before) / np.maximum(high - low, 1)[:, axis])
    # (T, d, N) for each derivative.
    gradient = np.moveaxis(np.stack(columns, axis=-1), 1, 2)
    return np.eye(axes) + gradient * spacing[:, None] / spacing


def _lv_centers(label: NDArray, affine: NDArray) -> dict[int, NDArray]:
    """Centroid of the LV cavity in in-plane mm (2,) for each slice (from 0) that has both cavity and myocardium."""
    measured = [z for z in range(label.shape[2]) if all((label[..., z] == value).any() for value in (MYOCARDIUM, LV))]
    return {z: np.argwhere(label[..., z] == LV).mean(axis=0) * voxel_sizes(affine)[:2] for z in measured}


def angle(p: NDArray) -> NDArray:
    """Angle in radians of vectors (..., 2), from the first axis toward the second."""
    return np.arctan2(p[..., 1], p[..., 0])


def of_slice(times: NDArray, number: int | None) -> NDArray:
    """Milliseconds of each frame (T,) in a slice (from 1; None: the mean over slices), from times (Z, T) or (T,)."""
    times = np.asarray(times, dtype=float)
    return times if times.ndim == 1 else times.mean(axis=0) if number is None else times[number - 1]
