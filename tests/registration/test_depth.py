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

from dataclasses import replace

import pytest
import torch
from scripts.cardiac.phantom import Phantom
from scripts.registration.depth import DepthFirst, ThroughPlane
from scripts.registration.fields import compose, integrate, to_slices, to_stack, warp
from scripts.registration.losses import SliceOverlap
from scripts.registration.networks import PyramidNetwork
from scripts.registration.pairs import exchange
from torch import Tensor, nn


def stacks(slices: int = 5) -> Tensor:
    """A pair of stacks with three maps of each image."""
    blocks = torch.rand(1, 8, 4, 6, slices, generator=torch.Generator().manual_seed(0)) / 3
    return torch.nn.functional.interpolate(blocks, size=(32, 48, slices), mode="trilinear")


def moving_along(network: ThroughPlane) -> ThroughPlane:
    """As after some training: what leads along the stack is no longer 0."""
    torch.manual_seed(1)
    nn.init.normal_(network.last.weight, std=20.0)
    return network


class Recorder(nn.Module):
    """A network of slices that keeps what it is given, and says the same of each slice."""

    def forward(self, pair: Tensor) -> Tensor:
        self.seen = pair
        x, y = (torch.linspace(-1, 1, n) for n in pair.shape[2:])
        bump = (1 - x.square())[:, None] * (1 - y.square())
        return torch.stack([2 * bump, -bump]).expand(len(pair), -1, -1, -1)


def test_it_begins_as_the_network_of_slices() -> None:
    torch.manual_seed(0)
    pair, network = stacks(), PyramidNetwork(flow_std=0.1)
    field = DepthFirst(network).eval()(pair)
    slices = integrate(network(to_slices(pair[:, [0, 4]])))
    torch.testing.assert_close(field[:, :2], to_stack(slices, pair), atol=1e-3, rtol=0)
    assert field[:, :2].abs().max() > 0.1
    assert not field[:, 2].any()


def test_only_what_leads_along_the_stack_learns() -> None:
    network = DepthFirst(PyramidNetwork())
    moving_along(network.through_plane)
    network(stacks())[:, 2].square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == name.startswith("through_plane."), name


def test_slices_are_registered_where_the_stack_was_brought_to() -> None:
    recorder, pair = Recorder(), stacks()
    network = DepthFirst(recorder).eval()
    moving_along(network.through_plane)
    field = network(pair)
    alone = DepthFirst(Still()).eval()
    alone.through_plane = network.through_plane
    along = alone(pair)
    assert along[:, 2].abs().max() > 0.2
    assert not along[:, :2].any()
    seen = to_stack(recorder.seen, pair)
    torch.testing.assert_close(seen[:, :1], warp(pair[:, :1], along), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[:, 1:], pair[:, 4:5])
    within = to_stack(integrate(recorder(to_slices(pair[:, [0, 4]]))), pair)
    within = torch.cat([within, torch.zeros_like(within[:, :1])], dim=1)
    torch.testing.assert_close(field, compose(along, within), atol=1e-4, rtol=0)


class Still(nn.Module):
    def forward(self, pair: Tensor) -> Tensor:
        return torch.zeros_like(pair)


@pytest.mark.parametrize("slices", [2, 7])
def test_exchanged_images_turn_the_velocity_and_equal_ones_have_none(slices: int) -> None:
    network, pair = moving_along(ThroughPlane()), stacks(slices)
    moving, fixed = pair[:, 1:4], pair[:, 5:]
    velocity = network(moving, fixed)
    assert velocity.shape == (1, 1, 2, 3, slices)
    assert velocity.abs().max() > 0.1
    back = exchange(pair)
    torch.testing.assert_close(network(back[:, 1:4], back[:, 5:]), -velocity)
    assert not network(moving, moving).any()
    assert not network(torch.zeros_like(moving), torch.zeros_like(moving)).any()
    assert not network(moving[..., :1], fixed[..., :1]).any()


def test_it_learns_by_how_much_the_base_descends() -> None:
    torch.manual_seed(0)
    phantom = Phantom.random(3, size=(32, 32), slices=10, shortening=0.2, oblique=False)
    phantom = replace(phantom, contraction=0.0, rv_contraction=0.0, twist=(0.0, 0.0))
    systole, diastole = phantom.end_systole, 1
    label = torch.stack([torch.from_numpy(phantom.label(frame)) for frame in (systole, diastole)])[None]
    maps = torch.stack([label == value for value in (1, 2, 3)], dim=2).float()
    pair = torch.cat([torch.zeros(1, 2, 1, *label.shape[2:]), maps], dim=2).flatten(1, 2)
    network, loss = DepthFirst(Still()), SliceOverlap()
    optimizer = torch.optim.Adam(network.through_plane.parameters(), lr=2e-2)
    values = []
    for _ in range(40):
        values.append(loss(network(pair), (pair, label)))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert float(values[-1]) < float(values[0]) / 3
    heart = label[0, 1] > 0
    exact, found = torch.from_numpy(phantom.field(systole, diastole))[2], network(pair).detach()[0, 2]
    slices = [z for z in range(heart.shape[-1]) if heart[..., z].any()]
    errors = [float((found - exact)[..., z][heart[..., z]].mean()) for z in slices]
    assert exact[heart].max() > 2
    assert sum(map(abs, errors)) / len(errors) < 0.5
