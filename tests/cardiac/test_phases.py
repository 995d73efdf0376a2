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

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scripts import files
from scripts.cardiac.phantom import Phantom
from scripts.cardiac.phases import (
    contracted_frames,
    enclosed_share,
    find_contours,
    find_phases,
    lower_base,
    shows_short_axis,
)

SPACING = (1.5, 1.5, 8.0)


@pytest.fixture(scope="module")
def labels() -> NDArray:
    """Of a phantom's frames; the first is end diastole."""
    phantom = Phantom.random((0, 3), size=(96, 96), slices=4, frames=8)
    return np.stack([phantom.label(t) for t in range(1, 9)], axis=-1)


def long_axis() -> NDArray:
    """A U of myocardium around an LV that is open at its base, an atrium's blood beyond."""
    label = np.zeros((60, 40, 1), np.uint8)
    label[10:50, 8:32] = 2
    label[20:50, 14:26] = 3
    return label


def test_phases_are_those_of_the_phantom(labels: NDArray) -> None:
    ed, es = find_phases(labels, SPACING)
    volumes = (labels == 3).sum((0, 1, 2))
    assert (ed, es) == (1, volumes.argmin() + 1)
    # Whichever frame the cine begins with.
    assert find_phases(np.roll(labels, 3, axis=3), SPACING) == (4, (volumes.argmin() + 3) % 8 + 1)


def test_one_frame_s_error_does_not_decide(labels: NDArray) -> None:
    wrong = np.repeat(labels, 3, axis=3)
    expected = find_phases(wrong, SPACING)
    lost = wrong[..., 20] == 3
    wrong[..., 20][lost & (np.arange(96)[:, None, None] % 2 > 0)] = 0
    assert find_phases(wrong, SPACING)[1] == expected[1]


@pytest.mark.parametrize("last", [300, 305])
def test_the_ends_of_a_cine_are_not_preferred(last: int) -> None:
    """A cine that stops in systole, whose last frame but one is the smallest; smoothed, the last one would be."""
    voxels = [700, 690, 600, 500, 420, 290, last]
    curve = np.stack([np.where(np.arange(1000).reshape(10, 10, 10) < n, 3, 0) for n in voxels], axis=-1)
    assert find_phases(curve, (1, 1, 1)) == (1, 6)
    assert find_phases(curve[..., ::-1], (1, 1, 1)) == (7, 2)


def test_without_an_lv_there_is_no_phase(labels: NDArray) -> None:
    assert find_phases(np.where(labels == 3, 0, labels), SPACING) is None
    assert find_phases(labels[..., :1], SPACING) == (1, 1)


def test_a_ring_is_a_short_axis_and_an_arch_is_not(labels: NDArray) -> None:
    assert enclosed_share(labels[..., 0]) > 0.95
    assert shows_short_axis(labels[..., 0])
    assert not shows_short_axis(long_axis())
    cut = labels[..., 0].copy()
    cut[48:, :, 0] = 0
    assert shows_short_axis(cut)  # one open ring of four
    assert np.isnan(enclosed_share(np.zeros((4, 4, 1))))
    assert not shows_short_axis(np.zeros((4, 4, 1)))


def look_up(image: NDArray, spacing: tuple[float, ...]) -> NDArray:
    """A segmenter of images that show labels."""
    assert image.ndim == 3
    return image.astype(np.uint8)


@pytest.mark.parametrize("large", [files.LARGE, 100])
def test_contours_are_those_of_the_segmentation(
    labels: NDArray, large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGE", large)
    found = find_contours(labels.astype(float), SPACING, look_up, tmp_path)
    assert np.array_equal(found.labels, labels)
    assert found.labels.dtype == np.uint8
    assert (found.ed, found.es) == find_phases(labels, SPACING)


def test_contracted_frames_are_segmented_beside_end_diastole(labels: NDArray) -> None:
    def segment(image: NDArray, spacing: tuple[float, ...], beside: NDArray | None = None) -> NDArray:
        if beside is None:
            return image.astype(np.uint8)
        assert np.array_equal(beside, labels[..., 0])
        return np.where(image == 2, 0, image).astype(np.uint8)

    segment.sees_beside = True
    found = find_contours(labels.astype(float), SPACING, segment)
    lv = (labels == 3).sum((0, 1, 2))
    assert (found.ed, found.es) == find_phases(labels, SPACING)
    contracted = lv < (lv.max() + lv.min()) / 2
    assert 0 < contracted.sum() < len(lv)
    assert np.array_equal((found.labels == 2).any((0, 1, 2)), ~contracted)
    assert np.array_equal(found.labels[..., ~contracted], labels[..., ~contracted])
    assert np.array_equal(contracted_frames(labels, SPACING, found.ed, found.es), np.flatnonzero(contracted))


@pytest.mark.parametrize("turn", [1, -1])
def test_the_base_is_lower_where_the_rv_has_left_its_slice(turn: int) -> None:
    ed = np.zeros((20, 20, 5), np.uint8)
    for z, size in enumerate((12, 11, 8, 5)):
        ed[:size, :10, z + 1] = 1
        ed[:3, 12:15, z + 1] = 3
    left, gone = ed.copy(), ed.copy()
    left[9:12, :10, 1] = 0
    gone[7:12, :10, 1] = 0
    gone[:2, :2, 0] = 1
    expected = gone.copy()
    expected[..., :2][expected[..., :2] == 1] = 0
    for frame, wanted in ((ed, ed), (left, left), (gone, expected)):
        assert np.array_equal(lower_base(frame[..., ::turn], ed[..., ::turn]), wanted[..., ::turn])


def test_without_an_rv_there_is_no_base(labels: NDArray) -> None:
    without = np.where(labels == 1, 0, labels)
    assert np.array_equal(lower_base(labels[..., 3], without[..., 0]), labels[..., 3])
    assert np.array_equal(lower_base(without[..., 3], labels[..., 0]), without[..., 3])


def test_no_contours_on_a_long_axis_or_where_nothing_is_found() -> None:
    arch = np.stack([long_axis()] * 3, axis=-1)
    assert find_contours(arch, SPACING, look_up) is None
    assert find_contours(0 * arch, SPACING, look_up) is None
