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

"""Longitudinal strain of the left ventricle in a long-axis view: by how much the midline of its wall shortens.

Global longitudinal strain is (L - L0) / L0, where L is the length in a frame, and L0 in the reference, of the line through
the middle of the myocardium from one side of the base over the apex to the other, taken as a whole (Voigt et al., Eur
Heart J Cardiovasc Imaging 16:1 (2015)). Here the line is found once, in the label of the reference, and its points are
carried by the displacement, so that it follows tissue; `midline_length` measures a label that was drawn. Motion out of
the plane is not seen.
"""

from __future__ import annotations

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from scripts.cardiac.cines import LABELS
from scripts.cardiac.strain import of_slice

# Millimeters between points at which a label's wall is sampled.
PIXEL = 0.75
# Millimeters along the wall of which the middle is taken.
BIN = 2.0
# Millimeters of the Gaussian under which the line is smooth: steps between voxels would make it longer.
SMOOTH = 4.0
# Millimeters at each end whose direction the line keeps on its way out of the wall.
TANGENT = 10.0
# Share of the myocardium that must be in one piece; a wall in pieces has no line.
WHOLE = 0.9


def measure_longitudinal(fields: NDArray, label: NDArray, affine: NDArray, times: NDArray | None = None) -> list[dict]:
    """Longitudinal and radial strain of each frame of a long-axis view.

    Args:
        fields: (T, 2, X, Y, Z) in voxels, channel i along array axis i, on the reference's grid.
        label: of the reference frame, (X, Y, Z); 2 myocardium. Slices whose myocardium has no line (`midline`) are left
            out.
        affine: voxel index to RAS in mm, (4, 4), with orthogonal axes.
        times: milliseconds of each slice and frame (Z, T), or of each frame (T,).

    Returns:
        Rows of `frame` (from 1), `time_ms` (where times are known, mean over slices), `region` ("global"), `slice` and
        `sector` (None), `longitudinal` and `radial` (ratios), and `length_mm`, that of the lines of all slices. Empty
        where no slice has one.

    Raises:
        ValueError: where the shapes do not fit.
    """
    if fields.ndim != 5 or fields.shape[1] != 2 or fields.shape[2:] != label.shape:
        raise ValueError(
            f"fields (T, 2, X, Y, Z) and a label (X, Y, Z) are needed, got shapes {fields.shape} and {label.shape}."
        )
    spacing = voxel_sizes(affine)[:2]
    lines = {z: midline(label[..., z] == LABELS["myo"], spacing) for z in range(label.shape[2])}
    lines = {z: line for z, line in lines.items() if line is not None}
    rest = sum(map(polyline_length, lines.values()))
    rows = []
    for t, field in enumerate(fields if lines else ()):
        carried = sum(polyline_length(line + _sample(field[..., z], line, spacing)) for z, line in lines.items())
        across = np.concatenate([_across(field[..., z], line, spacing) for z, line in lines.items()])
        time = {} if times is None else {"time_ms": float(of_slice(times, None)[t])}
        # Rounding noise of the reference, which has no strain, would look like one; + 0.0 takes a sign from it.
        strains = {"longitudinal": carried / rest - 1, "radial": across.mean()}
        strains = {name: round(float(value), 9) + 0.0 for name, value in strains.items()}
        where = {"region": "global", "slice": None, "sector": None}
        rows.append({"frame": t + 1, **time, **where, **strains, "length_mm": float(carried)})
    return rows


def midline(wall: NDArray[np.bool_], spacing: NDArray) -> NDArray | None:
    """The line through the middle of a wall that is bent like a horseshoe, from one of its ends to the other.

    Points are ordered by how far they are from the two ends along the wall, and the middle is taken of those that are
    equally far; where the ends are cut the line is straight.

    Args:
        wall: (X, Y).
        spacing: of its voxels in mm, (2,).

    Returns:
        Points (N, 2) in mm from the center of voxel (0, 0), a millimeter apart; None where the wall is in pieces, is
        closed like a ring, or too short to have ends.
    """
    points, step = _points_of(wall, np.asarray(spacing, dtype=float))
    if points is None:
        return None
    graph = _graph_of(points, step)
    one = int(np.argmax(_finite(dijkstra(graph, indices=0))))
    from_one = dijkstra(graph, indices=one)
    whole = np.isfinite(from_one)
    if whole.mean() < WHOLE:
        return None
    other = int(np.argmax(_finite(from_one)))
    from_other = dijkstra(graph, indices=other)
    place = points[whole] * step
    along = (from_one - from_other)[whole] / 2
    number = np.floor((along - along.min()) / BIN).astype(int)
    counts = np.bincount(number)
    used = counts > 0
    middles = np.stack([np.bincount(number, place[:, i])[used] / counts[used] for i in range(2)], axis=1)
    thickness = len(place) * step**2 / max(np.ptp(along), step)
    # Points that are equally far from a corner of a cut end lie on an arc about it.
    cut = int(np.ceil(thickness / BIN))
    middles = middles[cut:-cut]
    if len(middles) * BIN < 2 * TANGENT or _is_ring(wall):
        return None
    middles = _smooth(middles)
    start, end = (_way_out(line, wall, spacing) for line in (middles[::-1], middles))
    return resample_polyline(np.concatenate([start[::-1], middles, end]))


def midline_length(label: NDArray, spacing: NDArray) -> float:
    """Length in mm of the midline of the myocardium in a label (X, Y) of one long-axis view; NaN where it has none."""
    line = midline(label == LABELS["myo"], spacing)
    return float("nan") if line is None else polyline_length(line)


def polyline_length(line: NDArray) -> float:
    """Length of a line of points (N, 2)."""
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())


def resample_polyline(line: NDArray, step: float = 1.0) -> NDArray:
    """A line of points (N, 2) with points about a step apart, ends kept."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    places = np.linspace(0, along[-1], max(round(along[-1] / step), 1) + 1)
    return np.stack([np.interp(places, along, line[:, i]) for i in range(2)], axis=1)


def _points_of(wall: NDArray[np.bool_], spacing: NDArray) -> tuple[NDArray[np.integer] | None, float]:
    """The largest piece of a wall on a finer grid without steps, as indices (N, 2) from its voxel (0, 0) on, and the
    grid's spacing in mm; None for a wall of no size."""
    if not wall.any():
        return None, PIXEL
    shape = np.ceil((np.array(wall.shape) - 1) * spacing / PIXEL).astype(int) + 1
    grid = np.stack(np.meshgrid(*(PIXEL * np.arange(n) for n in shape), indexing="ij")) / spacing[:, None, None]
    fine = ndimage.map_coordinates(wall.astype(float), grid, order=1, mode="nearest")
    fine = ndimage.gaussian_filter(fine, spacing.mean() / PIXEL / 2) > 0.5
    pieces, count = ndimage.label(fine, np.ones((3, 3)))
    if not count:
        return None, PIXEL
    sizes = np.bincount(pieces.ravel())[1:]
    if sizes.max() < WHOLE * sizes.sum():
        return None, PIXEL
    return np.argwhere(pieces == sizes.argmax() + 1), PIXEL


def _graph_of(points: NDArray[np.integer], step: float) -> coo_matrix:
    """The graph of neighbors, corners included, among points (N, 2), with distances in mm."""
    number = np.full(points.max(axis=0) + 2, -1)
    number[tuple(points.T)] = np.arange(len(points))
    rows, columns, weights = [], [], []
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        there = number[tuple((points + shift).T)]
        near = there >= 0
        rows.append(np.flatnonzero(near))
        columns.append(there[near])
        weights.append(np.full(near.sum(), step * np.hypot(*shift)))
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    graph = coo_matrix(entries, shape=(len(points), len(points)))
    return (graph + graph.T).tocsr()


def _finite(distances: NDArray) -> NDArray:
    """Distances with -1 where there is no way."""
    return np.where(np.isfinite(distances), distances, -1)


def _is_ring(wall: NDArray[np.bool_]) -> bool:
    """Whether a wall encloses something, as in a short-axis slice."""
    return bool((ndimage.binary_fill_holes(wall) & ~wall).sum() > 0.1 * wall.sum())


def _smooth(line: NDArray) -> NDArray:
    """A line of points about `BIN` apart without the jitter of its points; its ends go on straight."""
    width = round(4 * SMOOTH / BIN)
    before, after = 2 * line[0] - line[width:0:-1], 2 * line[-1] - line[-2 : -width - 2 : -1]
    padded = np.concatenate([before, line, after])
    return ndimage.gaussian_filter1d(padded, SMOOTH / BIN, axis=0)[len(before) : len(before) + len(line)]


def _way_out(line: NDArray, wall: NDArray[np.bool_], spacing: NDArray) -> NDArray:
    """Points from the last of a line on in its direction, up to where the wall ends, (N, 2)."""
    back = min(round(TANGENT / BIN), len(line) - 1)
    direction = line[-1] - line[-1 - back]
    direction /= np.linalg.norm(direction)
    steps = PIXEL * np.arange(1, round(4 * TANGENT / PIXEL))
    points = line[-1] + steps[:, None] * direction
    inside = ndimage.map_coordinates(wall.astype(float), (points / spacing).T, order=1, mode="constant") >= 0.5
    return points[: len(points) if inside.all() else int(np.argmin(inside))]


def _sample(field: NDArray, points: NDArray, spacing: NDArray) -> NDArray:
    """A displacement field (2, X, Y) in voxels at points (N, 2) in mm, (N, 2) in mm."""
    at = (points / spacing).T
    return np.stack([ndimage.map_coordinates(part, at, order=1, mode="nearest") for part in field], axis=1) * spacing


def _across(field: NDArray, line: NDArray, spacing: NDArray) -> NDArray:
    """Strain at right angles to a line at its points, (N,), from central differences over two voxels."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = tangent[:, ::-1] * [-1, 1]
    # F n = n + (grad u) n is the derivative along n.
    half = float(np.mean(spacing))
    after, before = (_sample(field, line + sign * half * normal, spacing) for sign in (1, -1))
    return np.linalg.norm(normal + (after - before) / (2 * half), axis=1) - 1
