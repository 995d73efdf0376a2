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

"""Sharpness, light and likeness of slices: how they change with what is done to an image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scripts.cardiac.appearance import fine_detail, likeness, measure_image, shading

SPACING = (1.5, 1.2, 8.0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A stack (X, Y, Z) with structures of some millimeters that go on from slice to slice."""
    rough = np.random.default_rng(0).normal(size=(100, 120, 4))
    return 300 + 100 * ndimage.gaussian_filter(rough, (3, 3, 2)) / 0.05


def test_the_more_blur_the_less_detail_and_the_more_noise_the_more(image: np.ndarray) -> None:
    blurred = [fine_detail(ndimage.gaussian_filter(image, (s, s, 0)), SPACING) for s in (0, 1, 2, 4)]
    assert (np.diff(blurred) < 0).all()
    noise = np.random.default_rng(1).normal(size=image.shape)
    noisy = [fine_detail(image + s * image.std() * noise, SPACING) for s in (0, 0.2, 0.5, 2)]
    assert (np.diff(noisy) > 0).all()
    assert noisy[-1] < 100
    assert fine_detail(7 * image - 90, SPACING) == pytest.approx(blurred[0])


def test_shading_is_the_ratio_of_both_sides() -> None:
    ramp = np.exp(np.linspace(0, np.log(8), 90))[:, None, None] * np.ones((1, 80, 3))
    ramp[::7, ::7] = 0  # black, as air
    assert shading(ramp, SPACING) == pytest.approx(8, rel=0.1)
    assert shading(50 * ramp, SPACING) == pytest.approx(shading(ramp, SPACING), rel=0.05)
    assert shading(ramp.swapaxes(0, 1), SPACING) == pytest.approx(shading(ramp, SPACING), rel=0.05)
    assert shading(np.random.default_rng(0).random((90, 80, 3)), SPACING) == pytest.approx(1, abs=0.1)


def test_slices_of_one_body_are_alike_wherever_they_are_shifted(image: np.ndarray) -> None:
    one = image[..., 0]
    assert likeness(one, one, SPACING)[0] == pytest.approx(100)
    assert likeness(one, 2 * one + 5, SPACING)[0] == pytest.approx(100)
    moved = np.roll(one, (4, -5), axis=(0, 1))  # 6 mm along both
    assert likeness(one, moved, SPACING)[0] > 95
    assert likeness(one, -one, SPACING)[0] < 50
    assert np.isnan(likeness(one, np.ones_like(one), SPACING)).all()
    assert np.isnan(likeness(one[:20, :20], one[:20, :20], SPACING)).all()


def test_a_mirrored_slice_is_alike_when_it_is_mirrored_back(image: np.ndarray) -> None:
    one = image[..., 0]
    for other in (one[::-1], one[:, ::-1], np.roll(one, (4, -5), axis=(0, 1))[::-1]):
        plain, mirrored = likeness(one, other, SPACING)
        assert plain < 50
        assert mirrored > 90
    plain, mirrored = likeness(one, one, SPACING)
    assert mirrored < 50 < plain


def test_figures_of_a_stack(image: np.ndarray) -> None:
    found = measure_image(image, SPACING)
    assert found["width_mm"] == 150
    assert len(found["likeness_percent"]) == len(found["mirrored_percent"]) == 3
    assert all(plain > mirrored for plain, mirrored in zip(found["likeness_percent"], found["mirrored_percent"]))
    flat = measure_image(np.ones((30, 30, 1)), SPACING)
    assert np.isnan([flat["detail_percent"], flat["shading"]]).all()
    assert flat["likeness_percent"] == []
