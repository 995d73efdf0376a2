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

import pytest
import torch
from scripts.cardiac.segmentation import BRIGHTEST
from scripts.training.slice_augmentation import RandomSliceAugmentation
from torch import Tensor

STILL = dict.fromkeys(
    (
        *("off_center", "jitter", "mirror", "rotation", "zoom", "elastic", "alone", "unpaired"),
        *("gamma", "gain", "offset", "bias", "blur", "noise"),
    ),
    0.0,
)
SIZE = (32, 24)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A hundred slices (64 x 56) whose label is where the image is bright, a corner of a square missing, wider than it is high."""
    torch.manual_seed(0)
    label = torch.zeros(100, 1, 64, 56, dtype=torch.uint8)
    label[:, :, 24:40, 20:36] = 3
    label[:, :, 24:28, 20:30] = 0
    image = 0.2 + 0.2 * label.float().repeat(1, 3, 1, 1)
    return image, label, torch.full((100, 2), 0.0) + torch.tensor([31.5, 27.5]), torch.tensor([[64.0, 56.0]] * 100)


def test_with_nothing_to_change_it_crops_about_the_heart(batch: tuple) -> None:
    torch.manual_seed(0)
    image, label = RandomSliceAugmentation(SIZE, **STILL)(*batch)
    # Neighbors are exchanged, which shows nothing where they are alike.
    torch.testing.assert_close(image, batch[0][:, :, 16:48, 16:40], atol=1e-5, rtol=0)
    assert torch.equal(label, batch[1][:, :, 16:48, 16:40])


@pytest.mark.parametrize("change", ["off_center", "jitter", "mirror", "rotation", "zoom", "elastic"])
def test_label_and_image_move_together(batch: tuple, change: str) -> None:
    torch.manual_seed(0)
    amount = {"off_center": 1.0, "jitter": 6.0, "mirror": 0.5, "rotation": 90.0, "zoom": 0.3, "elastic": 2.0}[change]
    image, label = RandomSliceAugmentation(SIZE, **{**STILL, change: amount})(*batch)
    still = RandomSliceAugmentation(SIZE, **STILL)(*batch)[1]
    assert not torch.equal(label, still)
    bright = image[:, 1:2] > 0.5
    # Linear and nearest sampling part at edges alone.
    assert (bright != (label == 3)).float().mean() < 0.02


def test_mirroring_reaches_all_eight_orientations(batch: tuple) -> None:
    torch.manual_seed(0)
    labels = RandomSliceAugmentation((32, 32), **{**STILL, "mirror": 0.5})(*batch)[1]
    assert len(torch.unique(labels, dim=0)) == 8


def test_magnification_is_as_wide_as_asked_for(batch: tuple) -> None:
    torch.manual_seed(0)
    label = RandomSliceAugmentation((64, 56), **{**STILL, "zoom": 0.2})(*batch)[1]
    still = (batch[1] > 0).sum((1, 2, 3))
    spread = 0.5 * ((label > 0).sum((1, 2, 3)) / still).log()
    assert spread.std().item() == pytest.approx(0.2, rel=0.3)
    assert abs(spread.mean().item()) < 0.06


@pytest.mark.parametrize("change", ["gamma", "gain", "offset", "bias", "blur", "noise"])
def test_intensities_change_and_labels_do_not(batch: tuple, change: str) -> None:
    torch.manual_seed(0)
    image, label = RandomSliceAugmentation(SIZE, **{**STILL, change: 0.2})(*batch)
    assert torch.equal(label, batch[1][:, :, 16:48, 16:40])
    moved = (image - batch[0][:, :, 16:48, 16:40]).abs().amax((1, 2, 3))
    assert (moved > 0.005).float().mean() > 0.4
    assert 0 <= image.min() <= image.max() <= BRIGHTEST


def test_neighbors_are_exchanged_or_copies(batch: tuple) -> None:
    torch.manual_seed(0)
    image = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(100, 3, 64, 56).contiguous()
    found = RandomSliceAugmentation(SIZE, **{**STILL, "alone": 0.3})(image, *batch[1:])[0].amax((2, 3))
    orders = {tuple(round(value, 2) for value in row) for row in found.tolist()}
    assert orders == {(0.1, 0.5, 0.9), (0.9, 0.5, 0.1), (0.5, 0.5, 0.5)}


def test_two_phases_are_moved_alike_and_some_slices_see_one_alone(batch: tuple) -> None:
    torch.manual_seed(0)
    image = torch.cat([batch[0], 0.5 * batch[0]], dim=1)
    moved = {**STILL, "mirror": 0.5, "rotation": 30.0, "zoom": 0.2, "elastic": 2.0}
    first, second = RandomSliceAugmentation(SIZE, **{**moved, "unpaired": 0.3})(image, *batch[1:])[0].split(3, dim=1)
    alone = (first == second).all(dim=3).all(dim=2).all(dim=1)
    assert 0.1 < alone.float().mean() < 0.5
    torch.testing.assert_close(second[~alone], 0.5 * first[~alone])


def test_crops_off_center_reach_all_of_the_image(batch: tuple) -> None:
    torch.manual_seed(0)
    image = torch.zeros(100, 3, 64, 56)
    image[:, :, :4, :4] = 1.0
    found = RandomSliceAugmentation(SIZE, **{**STILL, "off_center": 1.0})(image, *batch[1:])[0]
    assert 0 < (found.amax((1, 2, 3)) > 0.5).float().mean() < 0.6
