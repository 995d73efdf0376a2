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

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scripts.cardiac.segmentation import (
    CLASSES,
    Segmenter,
    keep_heart,
    make_network,
    neighbors,
    normalize,
    prepare,
    segment_stack,
    stride_of,
)
from torch import Tensor, nn

SPACING = (1.5, 1.5, 10.0)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small one with random weights and statistics of a batch norm that saw something."""
    torch.manual_seed(0)
    network = make_network((4, 6, 8))
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(2, 3, 16, 16))
    return network.eval()


@pytest.fixture(scope="module")
def stack() -> Tensor:
    return torch.rand(30, 26, 4, generator=torch.Generator().manual_seed(1))


class Threshold(nn.Module):
    """A network that takes for LV what is bright in the middle channel: what it labels is known beforehand."""

    strides = (1, 2, 2)
    in_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images: Tensor) -> Tensor:
        zero = torch.zeros_like(images[:, 1])
        return torch.stack([zero, zero - 100, zero - 100, self.scale * (images[:, 1] - 0.5)], dim=1)


def disk(shape: tuple[int, int], spacing: tuple[float, float], center: tuple[float, float], radius: float) -> NDArray:
    """Pixels whose centers lie within `radius` mm of a point in mm from the image's corner."""
    x, y = ((np.arange(n) + 0.5) * length - middle for n, length, middle in zip(shape, spacing, center))
    return np.hypot(x[:, None], y[None]) < radius


@pytest.mark.parametrize("spacing", [(1.5, 1.5), (0.7, 0.7), (2.1, 1.3)])
def test_labels_come_back_to_the_pixels_they_are_of(spacing: tuple[float, float]) -> None:
    shape = tuple(round(100 / length) for length in spacing)
    # Off the center: a grid that was turned, mirrored or shifted would show.
    truth = disk(shape, spacing, (40.0, 62.0), 24.0)
    image = np.repeat(300.0 * truth[..., None] + 40.0, 3, axis=2)
    found = Segmenter(Threshold())(image, (*spacing, 8.0))
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    overlap = 2 * (found[..., 1] == 3)[truth].sum() / (found[..., 1].astype(bool).sum() + truth.sum())
    assert overlap > 0.97


def test_probabilities_add_up_to_one_on_the_image_s_grid(network: nn.Module, stack: Tensor) -> None:
    shares = Segmenter(network).probabilities(stack.numpy(), (1.2, 1.9, 10.0))
    assert shares.shape == (CLASSES, *stack.shape)
    assert shares.sum(axis=0) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("change", [lambda x: 731.0 * x, lambda x: 0.01 * x - 5, lambda x: 1000 + x])
def test_units_of_intensity_do_not_matter(network: nn.Module, stack: Tensor, change: Callable) -> None:
    found, expected = (segment_stack(network, image, SPACING) for image in (change(stack), stack))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_padding_does_not_change_intensities(stack: Tensor) -> None:
    padded = torch.nn.functional.pad(stack + 0.1, (0, 0, 9, 9, 40, 40))
    torch.testing.assert_close(normalize(padded)[40:-40, 9:-9], normalize(stack + 0.1), atol=5e-3, rtol=0)


def test_a_few_glaring_voxels_do_not_darken_the_rest(stack: Tensor) -> None:
    glaring = stack.clone()
    glaring[0, :5, 0] = 1e4
    torch.testing.assert_close(normalize(glaring)[1:], normalize(stack)[1:], atol=0.02, rtol=0)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e9])
def test_a_constant_stack_is_background(network: nn.Module, value: float) -> None:
    image = np.full((20, 18, 2), value)
    assert not normalize(torch.from_numpy(image)).any()
    assert not Segmenter(network)(image, SPACING).any()


def test_a_blank_slice_in_a_stack_is_background(network: nn.Module, stack: Tensor) -> None:
    blank = stack.clone()
    blank[..., 2] = 0
    shares = segment_stack(network, blank, SPACING)
    assert (shares[0, ..., 2] == 1).all()
    assert not (shares[0, ..., 1] == 1).all()


def test_a_single_slice_is_its_own_neighbor(network: nn.Module, stack: Tensor) -> None:
    alone = segment_stack(network, stack[..., :1], SPACING)
    among_copies = segment_stack(network, stack[..., :1].repeat(1, 1, 3), SPACING)
    # Percentiles of more voxels lie a little elsewhere between two of them.
    torch.testing.assert_close(among_copies[..., 1], alone[..., 0], atol=3e-3, rtol=0)


def test_neighbors_lie_about_a_centimeter_away() -> None:
    assert neighbors(4, 10.0).tolist() == [[0, 0, 1, 2], [1, 2, 3, 3]]
    assert neighbors(4, 5.0).tolist() == [[0, 0, 0, 1], [2, 3, 3, 3]]
    assert neighbors(3, 17.7).tolist() == [[0, 0, 1], [1, 2, 2]]
    assert neighbors(1, 0.0).tolist() == [[0], [0]]


def test_neighbors_are_seen(network: nn.Module, stack: Tensor) -> None:
    other = stack.clone()
    other[..., 3] = other[..., 3].flip(0)
    changed = (segment_stack(network, other, SPACING) - segment_stack(network, stack, SPACING)).abs().amax((0, 1, 2))
    assert (changed[2:] > 1e-4).all()
    assert (changed[:2] < 1e-6).all()


@pytest.fixture(scope="module")
def paired() -> nn.Module:
    torch.manual_seed(1)
    network = make_network((4, 6, 8), phases=2)
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(2, 6, 16, 16))
    return network.eval()


def test_end_diastole_is_seen_where_it_is(paired: nn.Module, stack: Tensor) -> None:
    other = 7 * stack.flip(0) + 3
    alone, beside = (segment_stack(paired, stack, SPACING, beside=one) for one in (None, other))
    assert torch.equal(alone, segment_stack(paired, stack, SPACING, beside=stack))
    assert (beside - alone).abs().max() > 1e-3
    # What lies in one corner of the other phase matters there.
    changed = other.clone()
    changed[:3, :3, 0] = 0
    difference = (segment_stack(paired, stack, SPACING, beside=changed) - beside).abs().amax(dim=0)
    assert difference[:8, :8, 0].max() > 10 * difference[:, :, 2:].max()


def test_a_frame_beside_another_is_for_the_network_of_two_phases(
    network: nn.Module, paired: nn.Module, stack: Tensor
) -> None:
    image, beside = stack.numpy(), stack.flip(0).numpy()
    both, first = Segmenter(network, paired), Segmenter(network)
    assert (both.sees_beside, first.sees_beside) == (True, False)
    assert np.array_equal(both.probabilities(image, SPACING), first.probabilities(image, SPACING))
    assert np.array_equal(first.probabilities(image, SPACING, beside), first.probabilities(image, SPACING))
    expected = segment_stack(paired, stack, SPACING, beside=stack.flip(0))
    assert np.array_equal(both.probabilities(image, SPACING, beside), expected.numpy())
    assert np.array_equal(both(image, SPACING, beside), keep_heart(expected.argmax(dim=0)).numpy())


def test_batches_do_not_matter(network: nn.Module, stack: Tensor) -> None:
    one, all_at_once = (segment_stack(network, stack, SPACING, batch_size=size) for size in (1, 4))
    torch.testing.assert_close(one, all_at_once, atol=1e-5, rtol=0)


def test_a_frame_is_labeled_alike_alone_and_in_a_cine(network: nn.Module, stack: Tensor) -> None:
    frames = np.stack([stack.numpy(), 5 * stack.flip(1).numpy()], axis=-1)
    segmenter = Segmenter(network)
    labels = segmenter(frames, SPACING)
    assert labels.shape == frames.shape
    for t in range(2):
        assert (labels[..., t] == segmenter(frames[..., t], SPACING)).all()


def test_other_axes_are_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"\(X, Y, Z\)"):
        Segmenter(network)(np.zeros((8, 8)), SPACING)


def test_slices_have_the_working_spacing() -> None:
    assert prepare(torch.rand(100, 60, 5), (0.75, 3.0, 8.0), 1.5).shape == (5, 1, 50, 120)


def test_of_all_that_is_labeled_one_heart_is_left() -> None:
    labels = torch.zeros(14, 14, 3, dtype=torch.uint8)
    labels[1:4, 1:4] = 1
    labels[4:9, 1:6] = 2
    labels[5:8, 2:5] = 3
    expected = labels.clone()
    # Larger than the RV of the heart, and elsewhere; a speck, and one in a slice alone.
    labels[10:14, 7:14] = 1
    labels[1, 10] = 3
    labels[12, 1, 2] = 2
    assert torch.equal(keep_heart(labels), expected)
    assert torch.equal(keep_heart(0 * labels), 0 * labels)


@pytest.mark.parametrize(("voxels", "kept"), [(9, False), (10, True)])
def test_small_pieces_of_the_rv_are_none(voxels: int, kept: bool) -> None:
    labels = torch.zeros(30, 24, 2, dtype=torch.uint8)
    labels[8:12, :20] = 2
    labels[3:8, :10, :] = 1  # 100 voxels
    labels[12, :voxels, 0] = 1  # beside the same wall, on its other side
    expected = labels.clone()
    if not kept:
        expected[12] = 0
    assert torch.equal(keep_heart(labels), expected)


@pytest.mark.parametrize(("voxels", "kept"), [(9, False), (10, True)])
def test_specks_of_myocardium_in_a_slice_are_none(voxels: int, kept: bool) -> None:
    """Where it touches the wall in the next slice, it is no piece by itself."""
    labels = torch.zeros(30, 24, 2, dtype=torch.uint8)
    labels[2:12, 2:12, 0] = 2  # 100 voxels, a cavity among them
    labels[5:8, 5:8, 0] = 3
    labels[2:26, 2:12, 1] = 2
    labels[20, 2 : 2 + voxels, 0] = 2
    labels[24, 2:4, 0] = 3  # a cavity, however small, with its wall
    labels[24, 4:6, 0] = 2
    expected = labels.clone()
    if not kept:
        expected[20, :, 0] = 0
    assert torch.equal(keep_heart(labels), expected)


def test_shipped_network_fits_its_limits() -> None:
    network = make_network()
    assert sum(p.numel() for p in network.parameters()) * 4 < 20e6
    assert stride_of(network) == 16
    assert network.eval()(torch.zeros(1, 3, 32, 48)).shape == (1, CLASSES, 32, 48)
