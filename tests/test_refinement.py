"""Fitting the network to one pair: it fits better, and the next pair knows nothing of it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer
from monai.networks.blocks import DVF2DDF
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.fields import jacobian_determinant
from scripts.inferers import FieldInferer
from scripts.losses import WarpedSimilarity
from scripts.networks import PyramidNetwork
from scripts.phantom import Phantom
from scripts.refinement import RefiningInferer

INTEGRATION = DVF2DDF(num_steps=5, padding_mode="border")


def make_stack(seed: int) -> Tensor:
    """(1, 2, 64, 64, 3), end systole and end diastole of a phantom in [0, 1]."""
    phantom = Phantom.random((0, seed), slices=3, frames=4)
    images = np.stack([phantom.image(frame) for frame in (phantom.end_systole, 1)])
    return torch.from_numpy(images / images.max())[None].float()


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return PyramidNetwork(flow_std=1e-2).eval()


@pytest.mark.parametrize("iterations", [1.5, -3, "ten", True])
def test_refuses_what_is_no_number_of_steps(iterations: object) -> None:
    with pytest.raises(InputError, match=f"--refine_iterations {iterations}: is no number of steps"):
        RefiningInferer(iterations=iterations)


def refining(iterations: int) -> RefiningInferer:
    slices = SliceInferer(roi_size=(-1, -1), spatial_dim=2, sw_batch_size=2)
    return RefiningInferer(slices, INTEGRATION, iterations, learning_rate=2e-4)


def test_the_pair_fits_better_without_folds(network: nn.Module) -> None:
    stack = make_stack(1)
    with torch.no_grad():
        errors = []
        for iterations in (0, 30):
            field = refining(iterations)(stack, network)[0].movedim(-1, 0)
            errors.append(WarpedSimilarity(nn.MSELoss())(field, stack[0].movedim(-1, 0)).item())
            assert (jacobian_determinant(field) > 0).all()
    assert errors[1] < 0.9 * errors[0]


def test_a_network_of_displacements_is_fitted_one_way(network: nn.Module) -> None:
    stack = make_stack(1)
    refining = RefiningInferer(SliceInferer(roi_size=(-1, -1), spatial_dim=2, sw_batch_size=2), None, 20, learning_rate=2e-4)
    with torch.no_grad():
        fields = [infer(stack, network)[0].movedim(-1, 0) for infer in (FieldInferer(refining.inferer), refining)]
    before, after = (WarpedSimilarity(nn.MSELoss())(field, stack[0].movedim(-1, 0)).item() for field in fields)
    assert after < 0.9 * before


def test_no_pair_leaves_a_trace(network: nn.Module) -> None:
    weights = copy.deepcopy(network.state_dict())
    first, other = make_stack(1), make_stack(2)
    with torch.no_grad():
        before = refining(3)(first, network)
        refining(3)(other, network)
        after = refining(3)(first, network)
    assert torch.equal(before, after)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_no_steps_are_plain_inference(network: nn.Module) -> None:
    stack = make_stack(1)
    with torch.no_grad():
        plain = FieldInferer(refining(0).inferer, INTEGRATION)(stack, network)
        assert torch.equal(refining(0)(stack, network), plain)
