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

"""How a reader expects to see a short-axis slice: the patient's left to the right, the front and the head up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from scripts.cardiac.registrations import Registration
from scripts.files import let_go

# Where a slice's first and second axis point to as it is shown, in RAS: left; back and feet.
RIGHTWARDS, DOWNWARDS = np.array([-1.0, 0.0, 0.0]), np.array([0.0, -1.0, -1.0]) / np.sqrt(2)
# Cosine (1 degree) beyond which an axis is one of the body's. No heart lies so: such a header has lost where it lay.
ALONG_THE_BODY = 0.9998
# Cosine from which a direction is named by a letter.
NAMED = 0.35
# What a registration, of either type, has on the grid of its cine.
IMAGES = {"moved", "fixed", "label", "labels", "segmented"}
IMAGES |= {"moving_label", "moved_label", "fixed_label", "carried_label", "fixed_segmented"}

Kind = TypeVar("Kind", bound=Registration)


def _directions(affine: NDArray) -> NDArray:
    """Unit vectors along a grid's axes in RAS, a column each, (3, 3)."""
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def _is_known(affine: NDArray) -> bool:
    """Whether an affine (4, 4) tells how slices lie in the body; not where its axes are the body's own, as in files
    that lost their orientation."""
    axes = _directions(affine)
    return bool(np.abs(axes).max(axis=0).min() < ALONG_THE_BODY)


def display_orientation(affine: NDArray) -> NDArray[np.integer]:
    """Which axis of a stack is shown along which, and which way: (3, 2), a row (axis as shown, 1 or -1) for each axis
    of the array, as nibabel's orientations are. Slices stay in their order."""
    axes = _directions(affine)
    right, down = RIGHTWARDS @ axes[:, :2], DOWNWARDS @ axes[:, :2]
    first = int(abs(right[1]) + abs(down[0]) > abs(right[0]) + abs(down[1]))
    orientation = np.array([[0, 1], [0, 1], [2, 1]])
    orientation[first] = 0, 1 if right[first] >= 0 else -1
    orientation[1 - first] = 1, 1 if down[1 - first] >= 0 else -1
    return orientation


class _EachFrame(Sequence):
    """What a function makes of each frame, when it is asked for: all at once might not fit into memory."""

    def __init__(self, frames: Sequence[NDArray], function: Callable[[NDArray], NDArray]) -> None:
        self.frames = frames
        self.function = function

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, frame: int) -> NDArray:
        made = self.function(self.frames[frame])
        let_go(self.frames)
        return made


def as_displayed(registration: Kind) -> Kind:
    """The same registration, its in-plane axes exchanged and turned so that the first runs to the right and the second
    downwards as readers expect; as it is where its affine does not tell (`_is_known`)."""
    r, affine = registration, registration.cine.affine
    if not _is_known(affine):
        return r
    orientation = display_orientation(affine)

    def turn(array: NDArray | None) -> NDArray | None:
        return None if array is None else apply_orientation(array, orientation)

    def turn_field(field: NDArray) -> NDArray:
        """(2, X, Y, Z); channels follow their axes."""
        turned = turn(field.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
        sources = np.argsort(orientation[:2, 0])
        return turned[sources] * orientation[sources, 1].reshape(2, 1, 1, 1)

    grid = affine @ inv_ornt_aff(orientation, r.cine.image.shape[:3])
    cine = replace(r.cine, image=turn(r.cine.image), affine=grid, valid=turn(r.cine.valid))
    turned = {name: _EachFrame(getattr(r, name), turn_field) for name in ("fields", "inverses")}
    turned |= {name: turn(getattr(r, name)) for name in IMAGES & {one.name for one in fields(r) if one.init}}
    return replace(r, cine=cine, **turned)


def edge_letters(affine: NDArray) -> tuple[str, str, str, str]:
    """What lies beyond the left, right, upper and lower edge of a slice as it is shown (first axis to the right, second
    downwards): letters of L, R, A, P, S and I, the nearest first; empty where the affine does not tell."""
    if not _is_known(affine):
        return "", "", "", ""
    axes = _directions(affine)

    def letters(direction: NDArray) -> str:
        order = np.argsort(-np.abs(direction))
        return "".join("RAS"[i] if direction[i] > 0 else "LPI"[i] for i in order if abs(direction[i]) >= NAMED)

    right, down = axes[:, 0], axes[:, 1]
    return letters(-right), letters(right), letters(-down), letters(down)
