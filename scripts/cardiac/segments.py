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

"""Segments of the left ventricular wall: those of Cerqueira et al., Circulation 105:539 (2002), the American Heart
Association's.

Slices with a wall and a cavity are basal, mid-cavity and apical by thirds of their number, see `levels`. Basal and
mid-cavity ones have six sectors of 60 degrees about the center of the LV, apical ones four of 90, see `Sector`: segments
1 to 6, 7 to 12 and 13 to 16. Short-axis slices do not show segment 17, the apex.

The septum takes 120 degrees from the anterior to the inferior insertion of the RV: a basal slice's sectors start at the
anterior one and go through the septum. The septal sector of apical slices has the same middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scripts.cardiac.cines import LABELS

RV, MYOCARDIUM, LV = (LABELS[name] for name in ("rv", "myo", "lv"))
APEX = np.array([-1.0, 1.0, -1.0])  # from base to apex in RAS: left, anterior, inferior
ANTERIOR = np.array([0.0, 1.0, 1.0])  # what an upright heart's "anterior" wall faces in RAS: anterior and superior
BASAL, MID, APICAL = LEVELS = ("basal", "mid", "apical")


@dataclass(frozen=True)
class Sector:
    """A sector of a slice."""

    segment: int
    """Number of the segment that it is of."""
    region: str
    """The wall in words."""
    start: float
    """Degrees from the anterior insertion toward the septum at which it begins."""
    width: float
    """Degrees that it takes."""


def _ring(first: int, walls: tuple[str, ...], start: float) -> tuple[Sector, ...]:
    """The sectors of a slice, in the order in which the septum follows the anterior insertion; the anterior wall, which
    comes last, has the first number."""
    count = len(walls)
    width = 360 / count
    return tuple(Sector(first + (i + 1) % count, wall, start + i * width, width) for i, wall in enumerate(walls))


SIX = ("anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral", "anterior")
# The sectors of a slice by its level, numbered from 1 in their order. The septum's middle is at 60 degrees.
SECTORS = {
    BASAL: _ring(1, SIX, 0.0),
    MID: _ring(7, SIX, 0.0),
    APICAL: _ring(13, ("septal", "inferior", "lateral", "anterior"), 15.0),
}


def levels(label: NDArray, affine: NDArray) -> dict[int, str]:
    """Which slices (from 0) are basal, mid-cavity and apical: thirds of those that have LV cavity and myocardium.
    Fewer than three cannot be told apart: they count as mid-cavity.

    The base is where the ventricle is wider; where its ends are alike, it is the end that the affine tells.

    Args:
        label: (X, Y, Z); 2 myocardium, 3 LV cavity.
        affine: voxel index to RAS in mm, (4, 4).
    """
    slices = list(lv_centers(label, affine))
    if len(slices) < len(LEVELS):
        return dict.fromkeys(slices, MID)
    third = len(slices) // 3
    area = np.isin(label[..., slices], (MYOCARDIUM, LV)).sum(axis=(0, 1))
    narrower = float(area[:third].sum() - area[-third:].sum())
    if abs(narrower) < 0.02 * area.sum():
        narrower = float(affine[:3, 2] @ APEX)
    ordered = slices if narrower >= 0 else slices[::-1]
    found = {z: LEVELS[int(3 * (i + 0.5) / len(slices))] for i, z in enumerate(ordered)}
    return {z: found[z] for z in slices}


def sector_map(
    label: NDArray, affine: NDArray, sector_origin: float | None = None, anatomy: NDArray | None = None
) -> NDArray[np.uint8]:
    """Sector of each myocardial voxel, numbered from 1 as in `SECTORS`, shape (X, Y, Z); 0 elsewhere and in slices
    without sectors.

    Angles are taken about the LV center in in-plane mm, from array axis 0 toward array axis 1. A slice's sectors start
    at the anterior end of its contact with the RV and go to the other end, see `_contact_ends`; which of the two is
    anterior is decided once for the stack, by the sum over its slices. A slice that does not touch the RV, as at the
    apex, starts where the nearest slice does that touches it. Without such a slice there are no sectors.

    Args:
        label, affine: as `strain.measure_strain` takes them.
        sector_origin: angle of the anterior insertion in degrees, which then holds for all slices. The septum lies on
            the side of the RV's mean direction over the stack. Where no RV is labeled at all, it lies in the sense of a
            right-handed turn about the axis from base to apex, which points left, anterior and inferior in the patient
            (`APEX`): counterclockwise as seen from the apex, the usual display of a short-axis view.
        anatomy: label whose RV and myocardium tell the insertions where `label` has no RV, as a segmentation has them.
    """
    sectors = np.zeros(label.shape, np.uint8)
    spacing, centers = voxel_sizes(affine)[:2], lv_centers(label, affine)
    if anatomy is None or (label == RV).any():
        anatomy = label
    if sector_origin is None:
        ends = {z: _contact_ends(anatomy[..., z], affine, center) for z, center in centers.items()}
        ends = {z: found for z, found in ends.items() if found is not None}
        sense = 1 if sum(lead for _, _, lead in ends.values()) >= 0 else -1
        known = {z: low if sense == 1 else high for z, (low, high, _) in ends.items()}
        starts = {z: known[min(known, key=lambda other, z=z: abs(other - z))] for z in centers if known}
    else:
        starts = dict.fromkeys(centers, np.deg2rad(sector_origin))
        sense = _septal_sense(anatomy, affine, centers, np.deg2rad(sector_origin))
    level = levels(label, affine)
    for z, start in starts.items():
        x, y = np.nonzero(label[..., z] == MYOCARDIUM)
        turned = np.rad2deg(sense * (_angle(np.stack([x, y], axis=1) * spacing - centers[z]) - start))
        ring = SECTORS[level[z]]
        # A hair of tolerance keeps the insertion itself in the first sector.
        around = np.mod(turned - ring[0].start + 1e-7, 360) // ring[0].width
        sectors[x, y, z] = np.minimum(around, len(ring) - 1) + 1
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
    toward_rv = _angle(np.argwhere(plane == RV).mean(axis=0) * spacing - center)
    aside = np.angle(np.exp(1j * (_angle(contact * spacing - center) - toward_rv)))
    low, high = aside.argmin(), aside.argmax()
    if aside[low] == aside[high]:
        return None
    forward = contact @ (ANTERIOR @ np.asarray(affine)[:3, :2])
    return float(toward_rv + aside[low]), float(toward_rv + aside[high]), float(forward[low] - forward[high])


def _septal_sense(label: NDArray, affine: NDArray, centers: dict[int, NDArray], origin: float) -> int:
    """The sense (1 or -1) in which the septum follows an insertion at a given angle (radians), see `sector_map`."""
    rvs = {z: np.argwhere(label[..., z] == RV) for z in centers}
    directions = [
        np.exp(1j * _angle(rv.mean(axis=0) * voxel_sizes(affine)[:2] - centers[z])) for z, rv in rvs.items() if len(rv)
    ]
    side = (
        (np.sum(directions) * np.exp(-1j * origin)).imag
        if directions
        else np.cross(affine[:3, 0], affine[:3, 1]) @ APEX
    )
    return 1 if side >= 0 else -1


def lv_centers(label: NDArray, affine: NDArray) -> dict[int, NDArray]:
    """Centroid of the LV cavity in in-plane mm (2,) for each slice (from 0) that has both cavity and myocardium."""
    measured = [z for z in range(label.shape[2]) if all((label[..., z] == value).any() for value in (MYOCARDIUM, LV))]
    return {z: np.argwhere(label[..., z] == LV).mean(axis=0) * voxel_sizes(affine)[:2] for z in measured}


def _angle(p: NDArray) -> NDArray:
    """Angle in radians of vectors (..., 2), from the first axis toward the second."""
    return np.arctan2(p[..., 1], p[..., 0])
