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

"""Fitting the field to one pair: it fits better, whatever lies beside it, and the network and the next pair know
nothing of it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer
from scripts.cardiac.phantom import Phantom
from scripts.registration.fields import Integration, jacobian_determinant
from scripts.registration.inferers import FieldInferer
from scripts.registration.losses import SmoothnessLoss, WarpedSimilarity
from scripts.registration.networks import PaddedNetwork, PyramidNetwork
from scripts.registration.refinement import RefiningInferer
from torch import Tensor, nn

INTEGRATION = Integration(5)


def make_stack(seed: int) -> Tensor:
    """(1, 2, 64, 64, 3), end systole and end diastole of a phantom in [0, 1]."""
    phantom = Phantom.random((0, seed), slices=3, frames=4)
    images = np.stack([phantom.image(frame) for frame in (phantom.end_systole, 1)])
    return torch.from_numpy(images / images.max())[None].float()


def refining(iterations: int, integration: nn.Module | None = INTEGRATION, **options: object) -> RefiningInferer:
    slices = SliceInferer(roi_size=(-1, -1), spatial_dim=2, sw_batch_size=2)
    return RefiningInferer(slices, integration, iterations, **options)


def error(field: Tensor, stack: Tensor) -> float:
    """Mean squared error of a stack (1, 2, X, Y, Z) registered by a field (1, 2, X, Y, Z)."""
    return WarpedSimilarity(nn.MSELoss())(field[0].movedim(-1, 0), stack[0].movedim(-1, 0)).item()


def still(pair: Tensor) -> Tensor:
    """A network, though no module, that sees no motion."""
    return torch.zeros_like(pair)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return PaddedNetwork(PyramidNetwork(features=(8, 8, 8), hidden=8, flow_std=0.03)).eval()


@pytest.mark.parametrize("integration", [INTEGRATION, None], ids=["velocity", "displacement"])
@pytest.mark.parametrize("size", [(64, 64), (63, 57)])
def test_the_pair_fits_better_without_folds(
    network: nn.Module, integration: nn.Module | None, size: tuple[int, int]
) -> None:
    stack = make_stack(1)[:, :, : size[0], : size[1]]
    with torch.no_grad():
        before, after = (refining(iterations, integration)(stack, network) for iterations in (0, 10))
    assert after.shape == before.shape == stack.shape
    assert error(after, stack) < 0.6 * error(before, stack)
    for field in (before, after):
        assert (jacobian_determinant(field[0].movedim(-1, 0)) > 0).all()


def test_a_velocity_is_fitted_both_ways_and_the_way_back_is_its_negative() -> None:
    stack = make_stack(1)
    there, back = (refining(10)(images, still) for images in (stack, stack.flip(1)))
    velocity = RefiningInferer(integration=INTEGRATION, iterations=10).refine(
        torch.zeros_like(stack[..., 0]), stack[..., 0]
    )
    torch.testing.assert_close(there[..., 0], INTEGRATION(velocity), rtol=0, atol=1e-3)
    torch.testing.assert_close(back[..., 0], INTEGRATION(-velocity), rtol=0, atol=1e-3)
    assert error(back, stack.flip(1)) < 0.6 * error(torch.zeros_like(back), stack.flip(1))


def test_a_slice_is_fitted_alike_alone_and_in_a_batch(network: nn.Module) -> None:
    stack = make_stack(1)
    # A neighbor ten times as bright has gradients a hundred times as large.
    stack[..., 0] *= 10
    with torch.no_grad():
        together = RefiningInferer(refining(0).inferer, INTEGRATION, 10)(stack, network)
        alone = refining(10)(stack[..., 1:2], network)
        plain = refining(0)(stack[..., 1:2], network)
    torch.testing.assert_close(together[..., 1:2], alone, rtol=0, atol=1e-3)
    assert (alone - plain).abs().max() > 0.5


def test_no_pair_leaves_a_trace(network: nn.Module) -> None:
    weights = copy.deepcopy(network.state_dict())
    first, other = make_stack(1), make_stack(2)
    inferer = refining(3)
    with torch.no_grad():
        before = inferer(first, network)
        between = inferer(other, network)
        after = inferer(first, network)
    assert not torch.equal(before, between)
    assert torch.equal(before, after)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_no_steps_are_plain_inference(network: nn.Module) -> None:
    stack = make_stack(1)
    with torch.no_grad():
        plain = FieldInferer(refining(0).inferer, INTEGRATION)(stack, network)
        assert torch.equal(refining(0)(stack, network), plain)


def test_a_still_pair_keeps_its_field() -> None:
    stack = make_stack(1)[:, 1:].repeat(1, 2, 1, 1, 1)
    assert not refining(3)(stack, still).any()


def test_noise_where_nothing_is_to_be_seen_moves_nothing() -> None:
    torch.manual_seed(0)
    field = refining(15)(0.5 + 1e-3 * torch.rand(1, 2, 48, 48, 2), still)
    assert field.abs().max() < 0.05


def test_surgery_keeps_the_field_smoother_than_descent_of_the_similarity_alone() -> None:
    pair = make_stack(1)[..., 1]
    settled, plain = (RefiningInferer(integration=INTEGRATION, iterations=5) for _ in range(2))
    plain.constraint = lambda field: 0 * field.sum()
    roughness = [SmoothnessLoss()(inferer(pair, still)).item() for inferer in (settled, plain)]
    assert 0 < roughness[0] < 0.8 * roughness[1]


def test_volumes_are_fitted_as_slices_are() -> None:
    volume = make_stack(1)[:, :, 8:-8, 8:-8].repeat_interleave(2, dim=-1)
    inferer = RefiningInferer(integration=INTEGRATION, iterations=6, smoothing=1.0)
    field = inferer(volume, lambda pair: pair.new_zeros(1, 3, *pair.shape[2:]))
    assert field.shape == (1, 3, *volume.shape[2:])
    similarity = WarpedSimilarity(nn.MSELoss())
    assert similarity(field, volume) < 0.7 * similarity(torch.zeros_like(field), volume)
    assert (jacobian_determinant(field) > 0).all()


def test_steps_run_in_full_precision_after_a_network_in_half() -> None:
    stack = make_stack(1)
    scale = torch.ones(1)

    def half(pair: Tensor) -> Tensor:
        return torch.zeros_like(pair).bfloat16() * scale.bfloat16()

    torch.testing.assert_close(refining(3, bf16=True)(stack, half), refining(3)(stack, still), rtol=0, atol=0)


def test_the_last_of_several_passes_is_refined(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, refined = make_stack(0), []
    refine = RefiningInferer.refine

    def spy(self: RefiningInferer, field: Tensor, pair: Tensor, valid: Tensor | None) -> Tensor:
        refined.append(pair)
        return refine(self, field, pair, valid)

    monkeypatch.setattr(RefiningInferer, "refine", spy)
    with torch.no_grad():
        plain, closer = (refining(iterations, passes=2)(stack, network) for iterations in (0, 8))
    assert error(closer, stack) < 0.9 * error(plain, stack)
    # Of the two passes each of two chunks makes, one is; its moving slices are those of the first pass.
    assert [len(pair) for pair in refined] == [2, 1]
    assert not torch.equal(refined[0][:, 0], stack[0, 0].movedim(-1, 0)[:2])


@pytest.mark.parametrize("axes", [2, 3], ids=["slices", "volumes"])
def test_what_is_not_valid_has_no_part_in_the_fit(axes: int) -> None:
    stack, fill = make_stack(1), torch.zeros(64, 64, 3, dtype=torch.bool)
    fill[:, 36:] = True  # through the heart, as the edge of a field of view may go
    # Of a valid voxel all neighbors hold a measurement.
    valid = torch.ones(1, 1, 64, 64, 3)
    valid[..., 35:, :] = 0
    torch.manual_seed(0)
    noisy = torch.where(fill, 10 * torch.rand_like(stack), stack)
    filled = torch.where(fill, 0.0, stack)
    inferer = refining(5) if axes == 2 else RefiningInferer(integration=INTEGRATION, iterations=5)

    def fit(*channels: Tensor) -> Tensor:
        network = still if axes == 2 else lambda pair: pair.new_zeros(1, 3, *pair.shape[2:])
        return inferer(torch.cat(channels, dim=1), network)

    fields = [fit(images, valid) for images in (noisy, filled)]
    torch.testing.assert_close(*fields, rtol=0, atol=1e-5)
    assert (fit(noisy) - fit(filled)).abs().max() > 0.5
    # Where all is valid, it is as without a mask, and beside the fill the heart is still followed.
    torch.testing.assert_close(fit(stack, torch.ones_like(valid)), fit(stack), rtol=0, atol=1e-5)
    left = (..., slice(0, 28), slice(None))
    field = fields[0][left]
    assert error(field[:, :2], stack[left]) < 0.8 * error(0 * field[:, :2], stack[left])


def test_what_leads_along_a_stack_stays_as_it_is() -> None:
    stack = make_stack(2)
    along = torch.zeros(1, 3, *stack.shape[2:])
    along[:, 2, ..., 0], along[:, 2, ..., 1] = 0.4, 0.2
    pair = torch.cat(
        [stack[:, :1], torch.rand(1, 3, *stack.shape[2:]), stack[:, 1:], torch.rand(1, 3, *stack.shape[2:])], 1
    )
    found = RefiningInferer(iterations=15)(pair, lambda _: along)
    # In each slice it is that of the point that the fit in the slice leads to; here the same all over the slice.
    torch.testing.assert_close(found[:, 2], along[:, 2], atol=1e-5, rtol=0)
    similarity = WarpedSimilarity(nn.MSELoss())
    assert similarity(found, stack) < 0.7 * similarity(along, stack)
    assert jacobian_determinant(found).min() > 0
    assert torch.equal(RefiningInferer(iterations=15)(stack, lambda _: along), found)
