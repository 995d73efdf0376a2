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

"""What is shown: end systole beside the reference, and the heart wherever it lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scripts.cardiac.segments import levels
from scripts.report.view import beating_box, choose_view
from test_page import register_phantom


def test_end_systole_is_shown_beside_the_reference() -> None:
    registered = register_phantom()
    view = choose_view(registered)
    assert view.frame == registered.function["es_frame"] - 1
    other = replace(registered, function={**registered.function, "es_frame": 2})
    assert choose_view(other).frame == 1


def test_the_slice_of_a_level_is_not_an_outer_one() -> None:
    """Of six slices, the heart may leave the first in systole, and the last shows its tip alone."""
    registered = register_phantom(slices=6)
    names = list(levels(registered.label, registered.cine.affine).values())
    assert all(names.count(name) == 2 for name in names)
    shown = {title.partition(",")[0]: z for z, title in choose_view(registered).slices}
    assert {shown[names[0]], shown[names[-1]]} == {1, 4}


def test_a_heart_in_a_corner_fills_the_view_without_a_label() -> None:
    """A vessel that beats more, but is small, does not draw the view away."""
    image = np.zeros((200, 180, 3, 6), np.float32)
    for t in range(6):
        image[130 - 2 * t : 170 + 2 * t, 120 - 2 * t : 160 + 2 * t, :, t] = 1.0
        image[20:25, 20:25, :, t] = 4.0 * (t % 2)
    x, y = beating_box(image[..., 1:], image[..., 0], (1.5, 1.5))
    assert (x.stop - x.start, y.stop - y.start) == (100, 100)
    assert x.start <= 120 < 180 <= x.stop
    assert y.start <= 110 < 170 <= y.stop
