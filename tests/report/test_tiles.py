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

"""Pictures of slices: outlines where the label lies, in the colors of the legend, and a bar of its length."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from scripts.report import tiles
from scripts.report.view import View


def test_outlines_lie_on_the_borders() -> None:
    label = np.zeros((20, 16), np.uint8)
    label[5:15, 4:10] = 3
    view = View(0, [(0, "slice")], (slice(0, 20), slice(0, 16)), (40.0, 16.0), (0.0, 1.0), ("",) * 4)
    uri = tiles.draw_tile(np.zeros((20, 16), np.float32), label, view, tiles.TILE)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L")).T > 60
    # First axis to the right, in proportions of mm, with the area of the square.
    assert drawn.shape[0] / drawn.shape[1] == pytest.approx(40 / 16, rel=0.01)
    assert drawn.size == pytest.approx(tiles.TILE**2, rel=0.01)
    inside, voxel = np.argwhere(drawn), np.divide(drawn.shape, label.shape)
    np.testing.assert_allclose(inside.min(axis=0), voxel * (5, 4), atol=2)
    np.testing.assert_allclose(inside.max(axis=0), voxel * (15, 10), atol=2)


@pytest.mark.parametrize("present", [(3,), (2,), (1,), (2, 3)])
def test_outlines_have_the_colors_of_the_legend(present: tuple[int, ...]) -> None:
    """A label that lacks a structure has no outline of it, such as a cavity in the color of its myocardium's outer
    border."""
    label = np.zeros((20, 20), np.uint8)
    for value, part in ((2, slice(3, 17)), (3, slice(6, 14)), (1, slice(9, 11))):
        if value in present:
            label[part, part] = value
    view = View(0, [(0, "slice")], (slice(0, 20), slice(0, 20)), (20.0, 20.0), (0.0, 1.0), ("",) * 4)
    uri = tiles.draw_tile(np.zeros((20, 20), np.float32), label, view, tiles.TILE)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), int)
    for values, color in tiles.OUTLINES.values():
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        drawn = (np.abs(pixels - wanted).max(axis=-1) < 25).any()
        assert drawn == (values[0] in present), color


@pytest.mark.parametrize("extent", [(120.0, 80.0), (75.0, 150.0)])
def test_the_scale_bar_is_as_long_as_it_says(extent: tuple[float, float]) -> None:
    """On pixels that are longer along one axis."""
    view = View(0, [(0, "slice")], (slice(0, 30), slice(0, 40)), extent, (0.0, 1.0), ("",) * 4)
    uri = tiles.draw_tile(np.full((30, 40), 0.3, np.float32), None, view, tiles.TILE, True)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L")).T
    columns = np.flatnonzero((drawn > 200).any(axis=1))
    assert columns[-1] - columns[0] + 1 == pytest.approx(tiles.SCALE_BAR * drawn.shape[0] / extent[0], abs=2.5)
    assert np.flatnonzero((drawn > 200).any(axis=0))[0] > 0.9 * drawn.shape[1]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (7, 7), (8, 4), (9, 5), (12, 6), (15, 5)])
def test_rows_of_slices_are_even(count: int, columns: int) -> None:
    assert tiles.per_row(count) == columns
