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

"""The shipped segmentation weights on a heart that they have not seen, from another hospital."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import ROOT
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scripts.cardiac.cines import LABELS
from scripts.cardiac.phases import shows_short_axis
from scripts.cardiac.segmentation import Segmenter
from scripts.data.nifti import open_nifti
from scripts.registration.metrics import dice_percent
from scripts.workflow.segmenters import load_segmenter

WEIGHTS = ROOT / "models" / "segmentation.pt"
SAMPLE = ROOT / "sample" / "SC-HF-I-2"
CINE = open_nifti(SAMPLE / "SC-HF-I-2_4d.nii.gz")
SPACING = voxel_sizes(CINE.affine)
ED, ES = 20, 7


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return load_segmenter(WEIGHTS)


@pytest.fixture(scope="module")
def found(segment: Segmenter) -> NDArray:
    """The labels at end diastole."""
    return segment(CINE.voxels(ED - 1), SPACING)


def overlaps(one: NDArray, other: NDArray) -> dict[str, float]:
    return {name: dice_percent(one == value, other == value) for name, value in LABELS.items()}


def test_the_file_is_small() -> None:
    assert WEIGHTS.stat().st_size < 20e6


@pytest.mark.parametrize("frame", [ED, ES])
def test_the_lv_is_that_drawn_by_hand(segment: Segmenter, frame: int) -> None:
    drawn = open_nifti(SAMPLE / f"SC-HF-I-2_frame{frame:02d}_gt.nii.gz").voxels()
    assert overlaps(segment(CINE.voxels(frame - 1), SPACING), drawn)["lv"] > 90


@pytest.mark.parametrize("axes", [0, 1, 2, (0, 1)])
def test_axes_may_run_the_other_way(segment: Segmenter, found: NDArray, axes: int | tuple[int, ...]) -> None:
    turned = np.flip(segment(np.flip(CINE.voxels(ED - 1), axes), SPACING), axes)
    assert min(overlaps(turned, found).values()) > 88


def test_axes_may_be_exchanged(segment: Segmenter, found: NDArray) -> None:
    turned = segment(CINE.voxels(ED - 1).swapaxes(0, 1), SPACING[[1, 0, 2]]).swapaxes(0, 1)
    assert min(overlaps(turned, found).values()) > 88


@pytest.mark.parametrize("change", [lambda x: 17 * x + 300, lambda x: x / 4096])
def test_units_do_not_matter(segment: Segmenter, found: NDArray, change: Callable) -> None:
    assert (segment(change(CINE.voxels(ED - 1)), SPACING) != found).mean() < 1e-4


def test_a_single_slice_is_enough(segment: Segmenter, found: NDArray) -> None:
    z = found.shape[2] // 2
    alone = segment(CINE.voxels(ED - 1)[..., z : z + 1], SPACING)
    assert min(overlaps(alone, found[..., z : z + 1]).values()) > 85


def test_it_shows_a_short_axis_and_the_heart_of_noise_is_none(segment: Segmenter, found: NDArray) -> None:
    assert shows_short_axis(found)
    noise = segment(np.random.default_rng(0).random((90, 80, 3)), SPACING)
    assert not shows_short_axis(noise)
