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

"""Bull's-eyes against the published figure, and against a heart as it is displayed."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Wedge
from scripts.cardiac.segments import SECTORS, levels, sector_map
from scripts.cardiac.strain import measure_strain, segment_peaks
from scripts.report.bullseye import draw_bullseyes, wedges

from tests.cardiac.test_segments import CENTER, DISPLAYED, PUBLISHED, SPACING, segment_map, ventricle


def test_wedges_are_those_published() -> None:
    found = wedges()
    assert set(found) == set(PUBLISHED)
    for segment, (_, degrees) in PUBLISHED.items():
        inner, outer, start, end = found[segment]
        assert ((start + end) / 2 - degrees) % 360 == pytest.approx(0)
        assert end - start == (60 if segment < 13 else 90)
        assert (inner, outer) == ((0.75, 1.0), (0.5, 0.75), (0.25, 0.5))[(segment - 1) // 6]


def test_a_segment_is_drawn_where_it_lies_in_the_displayed_slice() -> None:
    found = segment_map(ventricle(), DISPLAYED)
    for segment, (_, _, start, end) in wedges().items():
        x, y, _ = np.argwhere(found == segment).mean(axis=0)
        lies = np.rad2deg(np.arctan2(-(y - CENTER[1]) * SPACING[1], (x - CENTER[0]) * SPACING[0]))
        assert abs((lies - (start + end) / 2 + 180) % 360 - 180) < 5


def test_values_are_strain_in_closed_form() -> None:
    """A map that shrinks by a tenth: every fiber is shorter by a tenth, in every segment."""
    label = ventricle()
    x, y = np.meshgrid(*(np.arange(n, dtype=float) for n in label.shape[:2]), indexing="ij")
    u = np.stack([-0.1 * (x - CENTER[0]), -0.1 * (y - CENTER[1])])[..., None].repeat(label.shape[2], axis=-1)
    peaks = segment_peaks(measure_strain(np.stack([np.zeros_like(u), u]), label, DISPLAYED))
    assert set(peaks["circumferential"]) == set(range(1, 17))
    np.testing.assert_allclose(list(peaks["circumferential"].values()), -0.1)
    figure = draw_bullseyes(peaks)
    left, right = [axis for axis in figure.axes if any(isinstance(patch, Wedge) for patch in axis.patches)]
    words = [text.get_text() for text in left.texts]
    assert words.count("−10") == 16
    assert words[words.index("17") - 1] == "–"
    assert {str(number) for number in range(1, 18)} <= set(words)
    assert [text.get_text() for text in right.texts].count("0") == 16


def test_what_was_not_measured_is_blank() -> None:
    figure = draw_bullseyes({"circumferential": {2: -0.2, 9: float("nan")}})
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words[words.index("2") - 1] == "−20"
    assert words.count("–") == 16
    assert words[words.index("9") - 1] == "–"


def test_what_rounds_to_nothing_has_no_sign() -> None:
    figure = draw_bullseyes({"circumferential": {4: -0.004, 9: -0.006}})
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words[words.index("4") - 1] == "0"
    assert words[words.index("9") - 1] == "−1"


def test_a_segment_that_stretches_is_hatched_with_its_strain_at_end_systole() -> None:
    figure = draw_bullseyes(
        {"circumferential": {2: -0.05, 9: -0.2}}, {"circumferential": {2: 0.031}, "radial": {9: -0.1}}
    )
    patches = [patch for patch in figure.axes[0].patches if isinstance(patch, Wedge)]
    assert sum(patch.get_hatch() is not None for patch in patches) == 1
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words[words.index("2, ES +3") - 1] == "−5"
    assert words[words.index("9") - 1] == "−20"


def test_levels_and_sectors_agree() -> None:
    label = ventricle()
    sectors = sector_map(label, DISPLAYED)
    assert [int(sectors[..., z].max()) for z in range(6)] == [
        len(SECTORS[level]) for level in levels(label, DISPLAYED).values()
    ]
