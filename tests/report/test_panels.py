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

"""Panels of the field and of differences: their words are those of the figures they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scripts.report.panels import draw_differences, draw_field
from scripts.report.view import choose_view
from test_page import register_phantom


def test_folds_and_differences_are_counted() -> None:
    registered = register_phantom(slices=1, frames=3)
    view = choose_view(registered)
    z = view.slices[0][0]
    same = replace(registered, moved=np.repeat(registered.fixed[..., None], 3, axis=-1))
    words = [axis.get_xlabel() for axis in draw_differences(same, view).axes]
    assert "rms 0" in words
    assert any(word.startswith("rms ") and word != "rms 0" for word in words)
    assert any("no fold" in axis.get_xlabel() for axis in draw_field(registered, view).axes)
    fields = np.array(registered.fields)
    x, y = (part.start + 5 for part in view.box)
    fields[view.frame, 0, x, y, z] += 3.0
    words = " ".join(axis.get_xlabel() for axis in draw_field(replace(registered, fields=fields), view).axes)
    assert "folds in" in words
