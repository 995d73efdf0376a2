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

"""What a report shows of a registration: which frame beside the fixed image, which slices, cropped to the heart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scripts.cardiac.cines import smooth_slices
from scripts.cardiac.registrations import Registration
from scripts.cardiac.segments import LEVELS, levels
from scripts.files import one_by_one
from scripts.report.orientation import edge_letters
from scripts.report.subjects import subject_of

MARGIN = 15.0  # mm around a labeled heart
HEART = 150.0  # mm, the side of what is shown without a label


@dataclass(frozen=True)
class View:
    """What is shown of a cine."""

    frame: int
    """End systole, or where there is none the frame with the largest mean displacement; counted from 0."""
    slices: list[tuple[int, str]]
    """Index and title, up to three."""
    box: tuple[slice, slice]
    """In-plane crop around the heart."""
    extent: tuple[float, float]
    """Of the crop, in mm."""
    window: tuple[float, float]
    """Intensities shown black and white."""
    letters: tuple[str, str, str, str]
    """Beyond the left, right, upper and lower edge, `orientation.edge_letters`."""


def choose_view(registration: Registration) -> View:
    """Frame, slices and crop: around what is outlined in all frames, otherwise around what beats."""
    r, cine, subject = registration, registration.cine, subject_of(registration)
    spacing = cine.spacing[:2]
    named = r.labels is not None and bool(np.any(r.labels))
    if named:
        heart = r.label > 0
        for t in range(cine.frames):
            heart |= subject.outlined(t) > 0
    else:
        heart = np.zeros(cine.image.shape[:3], bool)
        heart[beating_box(cine.image, r.fixed, spacing)] = True
    places = _level_slices(r.label, cine.affine) if named else {}
    if not places:
        z = np.flatnonzero(heart.any(axis=(0, 1)))
        places = {int(z[i]): "" for i in sorted({int((2 * k + 1) * len(z) / 6) for k in range(3)})}
    picks = list(places)
    bounds = []
    for axis, step in enumerate(spacing):
        inside = np.flatnonzero(heart.any(axis=(1 - axis, 2)))
        margin = math.ceil(MARGIN / step) if named else 0
        bounds.append(slice(int(max(inside[0] - margin, 0)), int(min(inside[-1] + margin + 1, heart.shape[axis]))))
    box = (bounds[0], bounds[1])
    window = np.percentile(r.fixed[(*box, picks)], (0.5, 99.5))
    motion = [np.hypot(u[0] * spacing[0], u[1] * spacing[1])[box].mean() for u in one_by_one(r.fields)]
    return View(
        frame=subject.frame_beside(motion),
        slices=[(i, f"{place}slice {i + 1} of {heart.shape[2]}") for i, place in places.items()],
        box=box,
        extent=tuple((b.stop - b.start) * step for b, step in zip(box, spacing)),
        window=(float(window[0]), float(max(window[1], window[0] + 1e-6))),
        letters=edge_letters(cine.affine),
    )


def _level_slices(label: NDArray, affine: NDArray) -> dict[int, str]:
    """The middle slice of each level, from base to apex, and the level's name before a comma; of two in the middle the
    one nearer to the heart's, since the heart may leave the outer ones. {} where the label does not tell all three."""
    level = levels(label, affine)
    slices = {name: [z for z, other in level.items() if other == name] for name in LEVELS}
    if not all(slices.values()):
        return {}
    center = np.mean(list(level))

    def middle(z: list[int]) -> int:
        return min(z, key=lambda one: (abs(one - np.mean(z)), abs(one - center)))

    return {middle(z): f"{name}, " for name, z in slices.items()}


def beating_box(image: NDArray, fixed: NDArray, spacing: Sequence[float]) -> tuple[slice, slice]:
    """A window of `HEART` mm, or what the image has of it, around what varies most over time in the mean of all slices.

    Args:
        image: (X, Y, Z, T).
        fixed: (X, Y, Z), which counts as one frame more.
        spacing: pixel size in mm, (2,).
    """
    sigma = [HEART / 12 / s for s in spacing]  # that of a wall and its motion
    slices = zip(smooth_slices(image), smooth_slices(fixed[..., None]))
    varies = np.mean([np.concatenate(pair, axis=-1).std(axis=-1) for pair in slices], axis=0)
    spread = ndimage.gaussian_filter(varies, sigma)
    parts, count = ndimage.label(spread > 0.5 * spread.max())
    # A heart is larger than a vessel or a bowel that varies as much.
    largest = parts == 1 + np.bincount(parts.flat)[1:].argmax() if count else np.ones_like(parts)
    center, halves = ndimage.center_of_mass(spread * largest + 1e-9), [HEART / s / 2 for s in spacing]
    starts = [min(max(round(c - h), 0), max(n - round(2 * h), 0)) for c, h, n in zip(center, halves, parts.shape)]
    return slice(starts[0], starts[0] + round(2 * halves[0])), slice(starts[1], starts[1] + round(2 * halves[1]))
