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

"""Similarity and smoothness against hand computations, in fp32 whatever autocast says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from scripts.errors import InputError
from scripts.registration.depth import AlongStack, ThroughPlane
from scripts.registration.losses import SmoothnessLoss, StretchLoss, WarpedSimilarity
from torch import nn


def random_field(axes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn((2, axes, 6, 7, 5)[: axes + 2], dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("spaced", [False, True])
def test_smoothness_by_hand(axes: int, norm: str, spaced: bool) -> None:
    field, spacing = random_field(axes), (1.5, 0.5, 8.0)[:axes]
    mm = field.numpy() * (np.array(spacing).reshape(-1, *[1] * axes) if spaced else 1.0)
    terms = []
    for axis in range(axes):
        difference = np.diff(mm, axis=axis + 2) / (spacing[axis] if spaced else 1.0)
        terms.append(np.abs(difference).mean() if norm == "l1" else (difference**2).mean())
    found = SmoothnessLoss(norm, spacing if spaced else None)(field)
    assert float(found) == pytest.approx(np.mean(terms), rel=1e-12)


@pytest.mark.parametrize("axes", [2, 3])
def test_smoothness_properties(axes: int) -> None:
    field = random_field(axes)
    assert float(SmoothnessLoss()(torch.ones_like(field) * 3)) == 0
    assert float(SmoothnessLoss("l1", [2.5] * axes)(field)) == pytest.approx(float(SmoothnessLoss("l1")(field)))
    assert float(SmoothnessLoss("l1")(2 * field)) == pytest.approx(2 * float(SmoothnessLoss("l1")(field)))
    assert torch.autograd.gradcheck(SmoothnessLoss("l2", [1.0, 2.0, 3.0][:axes]), field.requires_grad_())


def test_smoothness_of_items_of_their_own_spacing() -> None:
    field, spacing = random_field(3), torch.tensor([[1.5, 1.5, 8.0], [1.4, 1.4, 10.0]])
    each = [SmoothnessLoss("l1", sizes.tolist())(item[None]) for item, sizes in zip(field, spacing)]
    assert float(SmoothnessLoss("l1")(field, spacing)) == pytest.approx(float(sum(each) / 2), rel=1e-6)


def test_slices_shift_for_nothing_where_breath_holds_may() -> None:
    shifts = torch.zeros(1, 3, 6, 7, 5, dtype=torch.float64)
    shifts[:, :2] = torch.randn(1, 2, 1, 1, 5, dtype=torch.float64)
    free = SmoothnessLoss(free_shifts=True)
    assert float(free(shifts)) == pytest.approx(0, abs=1e-15)
    assert float(SmoothnessLoss()(shifts)) > 1e-3
    # Nothing else is free: neither within a slice nor through the slices.
    field = random_field(3)
    assert float(free(field)) == pytest.approx(float(free(field + shifts)), rel=1e-12)
    shifts[:, 2] = shifts[:, 0]
    assert float(free(shifts)) > 1e-3
    assert float(free(field[..., :1])) > 0  # a stack of one slice


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_slack_is_free_and_the_rest_counts(norm: str, power: int) -> None:
    ramp = torch.arange(8.0, dtype=torch.float64).view(1, 1, 8, 1).expand(1, 1, 8, 8)
    spacing, loss = [2.0, 0.5], SmoothnessLoss(norm, [2.0, 0.5], slack=0.5)
    for slope, over in ((0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (0.75, 0.25), (-1.5, 1.0)):
        field = torch.cat([slope * ramp, torch.zeros_like(ramp)], dim=1)
        # Of four differences, two components along two axes, one is the slope, per mm as per voxel.
        assert float(loss(field)) == pytest.approx(over**power / 4)
    field = random_field(2)
    whole = [
        np.abs(np.diff(field.numpy()[:, i] * spacing[i], axis=axis + 1) / spacing[axis])
        for i in (0, 1)
        for axis in (0, 1)
    ]
    expected = np.mean([(np.clip(one - 0.5, 0, None) ** power).mean() for one in whole])
    assert float(loss(field)) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(loss, field.requires_grad_())


def test_smoothness_errors() -> None:
    for slack in (-0.1, float("nan"), "0.5"):
        with pytest.raises(InputError, match="slack is a number from 0 on"):
            SmoothnessLoss(slack=slack)
    with pytest.raises(ValueError, match="'l1' or 'l2'"):
        SmoothnessLoss("l3")
    with pytest.raises(ValueError, match="2 channels"):
        SmoothnessLoss()(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="spacings"):
        SmoothnessLoss(spacing=(1.0, 1.0, 1.0))(torch.zeros(1, 2, 4, 4))


def along_stack(thickness: Sequence[float], start: float = 0.0) -> torch.Tensor:
    """A field (1, 3, 4, 6, Z) under which what lies between neighboring slices is so thick in the moving stack."""
    field = random_field(3)[:1, :, :4, :6, :1].repeat(1, 1, 1, 1, len(thickness) + 1)
    slices = torch.arange(len(thickness) + 1, dtype=torch.float64)
    field[:, 2] = start + torch.tensor([0.0, *thickness], dtype=torch.float64).cumsum(0) - slices
    return field


def test_stretch_by_hand() -> None:
    # Beyond a factor of 2: nothing, 0.5, 0.25, 0.5 + 0.3 and nothing, of five.
    field = along_stack([1.9, 2.5, 0.25, -0.3, 0.6])
    assert float(StretchLoss(2.0)(field)) == pytest.approx((0.5 + 0.25 + 0.8) / 5, rel=1e-12)
    # In one of the 24 cells alone.
    one = along_stack([1.0, 1.0])
    one[0, 2, 1, 2] = torch.tensor([0.0, 3.0, 3.0], dtype=torch.float64)
    assert float(StretchLoss(1.5)(one)) == pytest.approx((4 - 1.5) / (2 * 24), rel=1e-12)
    assert torch.autograd.gradcheck(StretchLoss(1.5), one.requires_grad_())


@pytest.mark.parametrize("bound", [1.3, 2.0])
def test_within_the_bound_a_stretch_is_free(bound: float) -> None:
    loss = StretchLoss(bound)
    assert float(loss(along_stack([1.0] * 4, start=2.7))) == pytest.approx(0, abs=1e-15)
    for edge in (bound, 1 / bound):
        outward = 0.01 * (edge - 1) / abs(edge - 1)
        assert float(loss(along_stack([edge - outward] * 4, start=-1.0))) == 0
        assert float(loss(along_stack([edge + outward] * 4, start=-1.0))) == pytest.approx(0.01, rel=1e-9)
        # A motion, and its way back, are both within, or both beyond.
        assert float(loss(along_stack([1 / (edge - outward)] * 4))) == 0
        assert float(loss(along_stack([1 / (edge + outward)] * 4))) > 1e-3


def test_a_mirrored_stack_is_stretched_alike() -> None:
    field = 2 * random_field(3)
    mirrored = field.flip(-1)
    mirrored[:, 2] *= -1
    assert float(StretchLoss()(field)) > 0.1
    torch.testing.assert_close(StretchLoss()(mirrored), StretchLoss()(field))
    # In-plane there is no bound, and all slices are as thick.
    shaken = torch.cat([random_field(3, seed=1)[:, :2], field[:, 2:]], dim=1)
    assert float(StretchLoss()(shaken)) == float(StretchLoss()(field))
    assert float(StretchLoss()(field, torch.tensor([[24.0, 24.0, 10.0]] * 2))) == float(StretchLoss()(field))


def test_steps_against_its_gradient_lessen_a_stretch() -> None:
    torch.manual_seed(0)
    network, cells = ThroughPlane(), torch.rand(1, 6, 8, 8, 6) / 3
    nn.init.normal_(network.last.weight, std=20.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        values.append(StretchLoss(1.1)(AlongStack()(network(cells))))
        optimizer.zero_grad()
        values[-1].backward()
        assert all(parameter.grad.any() for parameter in network.parameters())
        optimizer.step()
    assert float(values[-1]) < 0.9 * float(values[0])


def test_slices_that_change_places_are_drawn_apart() -> None:
    field = along_stack([1.0, -0.5]).requires_grad_()
    StretchLoss()(field).backward()
    assert (field.grad[0, 2, ..., 1] > 0).all()
    assert (field.grad[0, 2, ..., 2] < 0).all()


def test_a_lone_slice_is_not_stretched() -> None:
    field = random_field(3)[..., :1].requires_grad_()
    loss = StretchLoss()(field)
    loss.backward()
    assert float(loss) == 0
    assert not field.grad.any()


def test_stretch_errors() -> None:
    for bound in (1.0, 0.5, float("nan"), "2"):
        with pytest.raises(InputError, match="above 1"):
            StretchLoss(bound)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\)"):
        StretchLoss()(torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("axes", [2, 3])
def test_similarity_of_a_shift_by_hand(axes: int) -> None:
    image = torch.rand(1, 1, *(8, 9, 7)[:axes], dtype=torch.float64)
    field = torch.zeros(1, axes, *image.shape[2:], dtype=torch.float64)
    field[:, 0] = 1.0
    moved = image.clone()
    moved[:, :, :-1] = image[:, :, 1:]
    loss = WarpedSimilarity(nn.MSELoss())
    assert float(loss(field, torch.cat([image, moved], 1))) == pytest.approx(0, abs=1e-20)
    unmoved = ((moved - image) ** 2).mean()
    assert float(loss(torch.zeros_like(field), torch.cat([image, moved], 1))) == pytest.approx(
        float(unmoved), rel=1e-12
    )


@pytest.mark.parametrize(
    "similarity", [nn.MSELoss(), LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=5)]
)
def test_losses_are_in_full_precision_under_autocast(similarity: nn.Module) -> None:
    pair = torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    field = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    loss, smooth = WarpedSimilarity(similarity), SmoothnessLoss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(field, pair.bfloat16()), smooth(field)
    outside = loss(field.float(), pair.bfloat16().float()), smooth(field.float())
    for a, b in zip(inside, outside):
        assert a.dtype == torch.float32
        assert torch.isfinite(a)
        assert torch.equal(a, b)


def test_fields_of_both_ways_score_both_directions() -> None:
    pair = torch.rand(3, 2, 9, 8, dtype=torch.float64)
    there, back = torch.randn(2, 3, 2, 9, 8, dtype=torch.float64)
    loss = WarpedSimilarity(nn.MSELoss())
    expected = (loss(there, pair) + loss(back, pair.flip(1))) / 2
    torch.testing.assert_close(loss(torch.cat([there, back]), pair), expected)


def test_labels_add_their_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 2, 12, 10, dtype=torch.float64, generator=generator)
    label = torch.zeros(2, 2, 12, 10, dtype=torch.int8)
    label[0, 0, 3:7, 2:6], label[0, 1, 4:8, 2:6] = 3, 3
    label[0, 0, 8:, 2:6] = 1  # on one image alone: nowhere to go
    label[1] = -1  # no label at all
    loss, still = WarpedSimilarity(nn.MSELoss()), torch.zeros(2, 2, 12, 10, dtype=torch.float64)
    wrong = 8 / (2 * 120)  # two rows of four of the 120 pixels of two slices
    assert float(loss(still, (pair, label)) - loss(still, pair)) == pytest.approx(wrong, rel=1e-12)
    shift = still.clone()
    shift[:, 0] = -1.0
    assert float(loss(shift, (pair, label)) - loss(shift, pair)) == pytest.approx(0, abs=1e-15)
    both = loss(torch.cat([shift, -shift]), (pair, label)) - loss(torch.cat([shift, -shift]), pair)
    assert float(both) == pytest.approx(0, abs=1e-15)


def test_what_comes_from_beyond_the_stack_is_not_learned() -> None:
    torch.manual_seed(0)
    pair = torch.rand(1, 2, 6, 5, 4, dtype=torch.float64)
    field = torch.zeros(1, 3, 6, 5, 4, dtype=torch.float64)
    field[:, 2] = 1.2
    loss = WarpedSimilarity(nn.MSELoss())
    (gradient,) = torch.autograd.grad(loss(field.requires_grad_(), pair), field)
    assert gradient[..., :2].abs().sum(1).min() > 0
    assert gradient[..., 2:].eq(0).all()
    moved = 0.8 * pair[:, :1, ..., 1:3] + 0.2 * pair[:, :1, ..., 2:4]
    expected = (moved - pair[:, 1:, ..., :2]).square().sum() / pair[:, 1:].numel()
    assert float(loss(field, pair)) == pytest.approx(float(expected), rel=1e-12)


def test_a_structure_leaves_the_stack_only_where_it_has_vanished() -> None:
    image = torch.zeros(1, 2, 6, 5, 3, dtype=torch.float64)
    label = torch.zeros(1, 2, 6, 5, 3, dtype=torch.int8)
    label[0, 0, 2:4, 2:4] = label[0, 1, 2:4, 2:4, 1:] = 3  # gone from the first slice
    field = torch.zeros(1, 3, 6, 5, 3, dtype=torch.float64)
    field[:, 2, ..., 0], field[:, 2, ..., 2] = -0.25, 0.25
    loss = WarpedSimilarity(nn.MSELoss())
    value = loss(field.requires_grad_(), (image, label))
    (gradient,) = torch.autograd.grad(value, field)
    assert gradient[0, 2, 2:4, 2:4, 0].min() > 0  # farther out
    assert gradient[..., 2].eq(0).all()
    assert float(value.detach()) == pytest.approx(4 * 0.75**2 / 90)
    gone = field.detach().clone()
    gone[:, 2, ..., 0] = -1.5
    assert float(loss(gone, (image, label)).detach()) == pytest.approx(0, abs=1e-20)


def test_a_structure_comes_from_the_next_slice() -> None:
    """The basal slice has lost its cavity in the moving image: it leads there from the slice after."""
    label = torch.zeros(1, 2, 6, 5, 3, dtype=torch.int8)
    label[0, 0, 2:4, 2:4, 1:] = label[0, 1, 2:4, 2:4] = 3
    image = (label == 3).double()
    field = torch.zeros(1, 3, 6, 5, 3, dtype=torch.float64)
    loss = WarpedSimilarity(nn.MSELoss())
    (gradient,) = torch.autograd.grad(loss(field.requires_grad_(), (image, label)), field)
    assert gradient[0, 2, 2:4, 2:4, 0].max() < 0
    field = field.detach()
    field[:, 2, ..., 0] = 1.0
    assert float(loss(field, (image, label))) == pytest.approx(0, abs=1e-20)


def test_maps_beside_the_intensities_are_not_scored() -> None:
    pair = torch.rand(2, 8, 9, 8, dtype=torch.float64)
    label = torch.randint(0, 4, (2, 2, 9, 8)).to(torch.int8)
    field = torch.randn(4, 2, 9, 8, dtype=torch.float64)
    loss = WarpedSimilarity(nn.MSELoss())
    assert torch.equal(loss(field, pair), loss(field, pair[:, [0, 4]]))
    assert torch.equal(loss(field[:2], (pair, label)), loss(field[:2], (pair[:, [0, 4]], label)))
