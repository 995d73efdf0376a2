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

"""Random augmentation against SciPy, on both images and their labels alike."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scripts.data.preprocessing import PreparePair
from scripts.training.augmentation import RandomPairAugmentation, crop_each, sample_slices, sampling_grid, smooth_noise
from torch.nn import functional as F


def test_augmentation_treats_both_images_alike() -> None:
    moving = torch.rand(16, 1, 20, 20)
    pair = torch.cat([moving, moving], dim=1)
    torch.manual_seed(0)
    for options in ({}, {"rotation": 30.0, "zoom": 0.2}):
        augmented = RandomPairAugmentation([16, 16], **options)(pair)
        assert augmented.shape == (16, 2, 16, 16)
        torch.testing.assert_close(augmented[:, 0], augmented[:, 1])
        assert not torch.equal(augmented, pair[..., 2:18, 2:18])


def test_swap_exchanges_the_images_of_some_pairs() -> None:
    pair = torch.stack([torch.zeros(64, 8, 8), torch.ones(64, 8, 8)], dim=1)
    torch.manual_seed(0)
    swapped = RandomPairAugmentation(None, swap=True, flip=False, gamma=0)(pair)[:, 0, 0, 0]
    assert 16 < swapped.sum() < 48
    assert torch.equal(RandomPairAugmentation(None, swap=False, flip=False, gamma=0)(pair), pair)


def test_augmentation_takes_three_dimensions() -> None:
    assert RandomPairAugmentation([8, 8, 4])(torch.rand(2, 2, 10, 10, 6)).shape == (2, 2, 8, 8, 4)


def test_slices_of_a_stack_are_augmented_alike() -> None:
    pair = torch.rand(2, 2, 20, 20, 1).expand(-1, -1, -1, -1, 5)
    label = (pair > 0.5).to(torch.int8)
    options = {"rotation": 30.0, "zoom": 0.2, "elastic": 1.0, "gamma": 0.0, "elastic_spacing": 8.0}
    torch.manual_seed(0)
    augmented, labels = RandomPairAugmentation([16, 16], **options)(pair, label)
    assert augmented.shape == labels.shape == (2, 2, 16, 16, 5)
    for images in (augmented, labels):
        assert torch.equal(images, images[..., :1].expand_as(images))
        assert not torch.equal(images[0], images[1])
    # A slice is what it would be without the others.
    torch.manual_seed(0)
    random.seed(0)
    whole = RandomPairAugmentation(None, flip=False, swap=False, **options)(pair)
    torch.manual_seed(0)
    random.seed(0)
    single = RandomPairAugmentation(None, flip=False, swap=False, **options)(pair[..., 0])
    torch.testing.assert_close(whole[..., 0], single)


def test_crops_are_pieces_of_their_own_pair() -> None:
    pair = torch.arange(3 * 2 * 9 * 7).view(3, 2, 9, 7).float()
    starts = [torch.randint(6, (3, 1)), torch.randint(3, (3, 1))]
    crops = crop_each(pair, starts, (4, 5))
    for whole, crop in zip(pair, crops):
        x, y = divmod(int(crop[0, 0, 0] - whole[0, 0, 0]), 7)
        assert torch.equal(crop, whole[:, x : x + 4, y : y + 5])


def test_rotation_and_zoom_equal_scipy() -> None:
    image = np.random.default_rng(0).random((15, 21))
    angle, zoom = 0.4, 1.3
    pair = torch.from_numpy(image).expand(1, 2, 15, 21)
    grid = sampling_grid(pair, torch.tensor([angle], dtype=torch.float64), torch.tensor([zoom], dtype=torch.float64))
    found = sample_slices(pair, grid)[0, 0].numpy()
    center = (np.array(image.shape) - 1) / 2
    x, y = np.meshgrid(*map(np.arange, image.shape), indexing="ij")
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    where = [
        s * (y - center[1]) + c * (x - center[0]) + center[0],
        c * (y - center[1]) - s * (x - center[0]) + center[1],
    ]
    np.testing.assert_allclose(found, map_coordinates(image, where, order=1, mode="nearest"), atol=1e-9)


def test_elastic_deformation_equals_scipy_and_is_smooth() -> None:
    torch.manual_seed(0)
    pair = torch.rand(64, 2, 48, 64, dtype=torch.float64)
    noise = smooth_noise(pair, deviation=1.5, spacing=16)
    # In pixels, along the array axes: grid_sample has y first and an axis of length 2.
    shift = torch.stack([noise[..., 1] * 48 / 2, noise[..., 0] * 64 / 2], dim=1)
    assert shift[:, :, ::47, ::63].std() == pytest.approx(1.5, rel=0.15)
    assert shift.diff(dim=2).abs().max() < 1
    assert shift.diff(dim=3).diff(dim=3).abs().max() < 0.2
    still = sampling_grid(pair, torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64))
    found = sample_slices(pair, still + noise)[5, 1]
    where = np.stack(np.meshgrid(np.arange(48), np.arange(64), indexing="ij")) + shift[5].numpy()
    np.testing.assert_allclose(found, map_coordinates(pair[5, 1].numpy(), where, order=1, mode="nearest"), atol=1e-9)


def test_labels_follow_their_images() -> None:
    """Images that are their labels: what is done to one is done to the other, intensities apart."""
    torch.manual_seed(0)
    label = F.interpolate(torch.randint(4, (16, 2, 4, 4)).float(), size=(48, 48), mode="nearest").to(torch.int8)
    label[3] = -1
    everything = {"rotation": 40.0, "zoom": 0.2, "elastic": 3.0, "elastic_spacing": 20.0}
    for options, exact in (({}, True), (everything, False)):
        pair, augmented = RandomPairAugmentation([40, 40], gamma=0.0, **options)(label.float(), label)
        assert augmented.dtype == torch.int8
        assert augmented.shape == pair.shape == (16, 2, 40, 40)
        assert augmented.unique().tolist() == [-1, 0, 1, 2, 3]
        # Away from borders between labels, where linear interpolation mixes them; a few slivers are left.
        widest, narrowest = (F.max_pool2d(sign * augmented.float(), 5, 1, 2) * sign for sign in (1, -1))
        inside = torch.ones_like(pair, dtype=torch.bool) if exact else widest == narrowest
        assert inside.float().mean() > 0.5
        assert ((pair - augmented)[inside].abs() > 1e-4).float().mean() <= (0 if exact else 0.004)
        assert (augmented[3] == -1).all()
    pairs = []
    for labels in ([], [label]):
        torch.manual_seed(1)
        random.seed(1)
        pairs.append(RandomPairAugmentation([32, 32])(label.clamp(min=0) / 3, *labels))
    assert torch.equal(pairs[0], pairs[1][0])


def test_prepare_batch_hands_labels_on_with_the_pair() -> None:
    batch = {"pair": torch.rand(2, 2, 8, 8), "label": torch.ones(2, 2, 8, 8, dtype=torch.int8)}
    for augment in (None, RandomPairAugmentation([4, 4])):
        image, (pair, label) = PreparePair(augment)(batch, torch.device("cpu"))
        assert image is pair
        assert label.dtype == torch.int8
        assert label.shape == pair.shape


def test_maps_follow_their_images_and_keep_their_values() -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 2, 40, 40)
    pair = torch.stack([images[:, 0], images[:, 0], images[:, 1], images[:, 1]], dim=1)
    options = {"size": (24, 24), "rotation": 30.0, "zoom": 0.2, "elastic": 2.0}
    torch.manual_seed(1)
    random.seed(1)
    moved = RandomPairAugmentation(**options, gamma=0.0)(pair)
    assert torch.equal(moved[:, [0, 2]], moved[:, [1, 3]])
    torch.manual_seed(1)
    random.seed(1)
    curved = RandomPairAugmentation(**options, gamma=0.5)(pair)
    assert torch.equal(curved[:, [1, 3]], moved[:, [1, 3]])
    exponent = curved[:, [0, 2]].log() / moved[:, [0, 2]].log()
    torch.testing.assert_close(exponent, exponent[:, :1, :1, :1].expand_as(exponent), rtol=1e-2, atol=1e-2)
    assert exponent.std() > 0.1


def test_swap_exchanges_images_with_their_maps() -> None:
    torch.manual_seed(0)
    pair = torch.arange(6.0).view(1, 6, 1, 1).repeat(64, 1, 4, 4)
    swapped = RandomPairAugmentation(flip=False, gamma=0.0)(pair)[:, :, 0, 0].tolist()
    assert {tuple(row) for row in swapped} == {(0, 1, 2, 3, 4, 5), (3, 4, 5, 0, 1, 2)}


def test_some_pairs_lose_their_maps() -> None:
    torch.manual_seed(0)
    pair = torch.rand(200, 8, 4, 4) + 0.1
    kept = RandomPairAugmentation(swap=False, flip=False, gamma=0.0, drop_maps=0.25)(pair)
    assert torch.equal(kept[:, [0, 4]], pair[:, [0, 4]])
    without = kept[:, [1, 2, 3, 5, 6, 7]].eq(0).flatten(1).all(1)
    assert 0.15 < without.float().mean() < 0.35
    assert torch.equal(kept[~without], pair[~without])
    plain = torch.rand(3, 2, 4, 4)
    assert torch.equal(RandomPairAugmentation(swap=False, flip=False, gamma=0.0, drop_maps=1.0)(plain), plain)
