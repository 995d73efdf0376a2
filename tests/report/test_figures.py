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

"""Pictures: that they are drawn, and that colors mean directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread
from scripts.report.figures import color_wheel, draw_pair


def test_colors_tell_direction_and_length() -> None:
    angles = np.linspace(-np.pi, np.pi, 12, endpoint=False)
    colors = color_wheel(np.stack([np.cos(angles), np.sin(angles)])[:, :, None], 1.0)[:, 0]
    assert len(np.unique(colors.round(3), axis=0)) == 12
    np.testing.assert_array_equal(color_wheel(np.zeros((2, 3, 3)), 1.0), 1.0)
    half, whole = (color_wheel(np.full((2, 1, 1), length / 2**0.5), 1.0)[0, 0] for length in (0.5, 1.0))
    assert half.min() > whole.min()


def test_picture_shows_the_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    moving, fixed = rng.random((2, 40, 30))
    for name, field in (("moving", rng.normal(0, 1, (2, 40, 30))), ("still", np.zeros((2, 40, 30)))):
        path = tmp_path / f"{name}.png"
        draw_pair(moving, fixed, moving, field, path, title="a pair")
        picture = imread(path)
        assert picture.shape[0] > 600
        assert picture.shape[1] > 1200
        # Not blank: each quarter of the width holds more than background.
        assert all(part.std() > 0.05 for part in np.array_split(picture[..., 0], 4, axis=1))
    # The same pair without images that differ, and constant ones, are drawn too.
    draw_pair(np.ones((8, 8)), np.ones((8, 8)), np.ones((8, 8)), np.zeros((2, 8, 8)), tmp_path / "constant.png")
    assert (tmp_path / "constant.png").stat().st_size > 5000
