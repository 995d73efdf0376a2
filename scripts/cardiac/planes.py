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

"""Which plane of the heart an image lies in, by its header: short axis, or one of the long-axis views.

The left ventricle's long axis points from base to apex to the patient's left, front and feet. A short-axis slice is at
right angles to it; the long-axis views hold it and are turned about it by 60 degrees from one to the next, as the walls
that they cut in Cerqueira et al., Circulation 105:539 (2002).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHORT_AXIS, LONG_AXIS = "SAX", "LAX"
VIEWS = ("2CH", "3CH", "4CH")
# Short axis; two-, three- and four-chamber view; a long-axis view of unknown kind.
PLANES = (SHORT_AXIS, *VIEWS, LONG_AXIS)
# How a plane is known: from the header, from `--plane`, or not at all.
BASIS = ("read", "given", "unknown")
# From base to apex in RAS: left, anterior, inferior.
TO_APEX = np.array([-1.0, 1.0, -1.0]) / np.sqrt(3)
# Degrees between a slice's normal and the long axis; hearts differ by about 20.
SHORT_AXIS_WITHIN = 40.0
# Degrees between them from which on a slice holds the long axis rather than crosses it.
LONG_AXIS_BEYOND = 55.0
# Degrees from the patient's own axes within which a plane is a scout's, or the header was never filled in.
PATIENT_AXES_WITHIN = 5.0
# Degrees about the long axis from the patient's right at which the normals of three-chamber views begin: those of
# 3CH, 4CH and 2CH lie about 32, 92 and 152 degrees from it.
FIRST_VIEW = 2.0


def plane_of(affine: NDArray, to_apex: NDArray | None = None) -> str | None:
    """The plane of slices by their orientation.

    Args:
        affine: voxel index to RAS in mm, (4, 4); slices are its first two axes.
        to_apex: the long axis from base to apex in RAS, (3,), where it is known, such as from a short-axis stack of the
            same study; None takes that of most hearts, `TO_APEX`.

    Returns:
        One of `PLANES`, or None where the orientation tells none: along the patient's own axes, as files whose
        orientation was never published have it, or oblique between short and long axis.
    """
    axes = np.asarray(affine, dtype=float)[:3, :2]
    normal = np.cross(axes[:, 0], axes[:, 1])
    length = np.linalg.norm(normal)
    if not np.isfinite(length) or length == 0:
        return None
    normal /= length
    is_own = to_apex is not None
    to_apex = TO_APEX if to_apex is None else np.asarray(to_apex, dtype=float) / np.linalg.norm(to_apex)
    tilt = _degrees_between(normal, to_apex)
    straight = min(_degrees_between(normal, axis) for axis in np.eye(3)) < PATIENT_AXES_WITHIN
    # The stack that gave a study its long axis is a short-axis one however it lies to the patient.
    if straight and not (is_own and tilt <= SHORT_AXIS_WITHIN):
        return None
    if tilt <= SHORT_AXIS_WITHIN:
        return SHORT_AXIS
    if tilt < LONG_AXIS_BEYOND:
        return None
    # Names of views hold for hearts that lie as most do.
    if _degrees_between(to_apex, TO_APEX) > SHORT_AXIS_WITHIN or to_apex @ TO_APEX < 0:
        return LONG_AXIS
    right = np.array([1.0, 0.0, 0.0]) - to_apex[0] * to_apex
    turn = np.degrees(np.arctan2(normal @ np.cross(to_apex, right), normal @ right)) - FIRST_VIEW
    return ("3CH", "4CH", "2CH")[int(turn % 180 // 60)]


def is_long_axis(plane: str | None) -> bool:
    """Whether a plane is a long-axis view."""
    return plane is not None and plane != SHORT_AXIS


def _degrees_between(a: NDArray, b: NDArray) -> float:
    """Angle between two directions of unit length, either sense, from 0 to 90."""
    return float(np.degrees(np.arccos(min(abs(float(a @ b)), 1.0))))
