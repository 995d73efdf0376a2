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

import math
from dataclasses import replace

import pytest
import torch
from scripts.cardiac.phantom import Phantom
from scripts.registration.depth import AlongStack, DepthFirst, ThroughPlane, to_cells
from scripts.registration.fields import Integration, compose, integrate, to_slices, to_stack, warp
from scripts.registration.networks import PyramidNetwork
from scripts.registration.pairs import exchange, halves
from scripts.registration.shifts import ShiftOverlap, measure_shifts
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


def cells_of(pair: Tensor) -> Tensor:
    """What the network along the stack is given of a pair with maps."""
    return to_cells(torch.cat([image[:, 1:] for image in halves(pair)], dim=1))


def test_it_begins_as_the_network_of_slices() -> None:
    torch.manual_seed(0)
    pair, network = stacks(), PyramidNetwork(flow_std=0.1)
    field = DepthFirst(network, ThroughPlane(), Integration()).eval()(pair)
    slices = integrate(network(to_slices(pair[:, [0, 4]])))
    torch.testing.assert_close(field[:, :2], to_stack(slices, pair), atol=1e-3, rtol=0)
    assert field[:, :2].abs().max() > 0.1
    assert not field[:, 2].any()


def test_slices_are_registered_where_the_stack_was_brought_to() -> None:
    recorder, pair = Recorder(), stacks()
    network = DepthFirst(recorder, moving_along(ThroughPlane()), Integration()).eval()
    field = network(pair)
    along = DepthFirst(Still(), network.through_plane, None).eval()(pair)
    assert along[:, 2].abs().max() > 0.2
    assert not along[:, :2].any()
    seen = to_stack(recorder.seen, pair)
    torch.testing.assert_close(seen[:, :1], warp(pair[:, :1], along), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[:, 1:], pair[:, 4:5])
    within = to_stack(integrate(recorder(to_slices(pair[:, [0, 4]]))), pair)
    within = torch.cat([within, torch.zeros_like(within[:, :1])], dim=1)
    torch.testing.assert_close(field, compose(along, within), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_slices_at_once_change_nothing(count: int) -> None:
    torch.manual_seed(0)
    parts = PyramidNetwork(flow_std=0.1), moving_along(ThroughPlane()), Integration()
    with torch.no_grad():
        some, whole = (DepthFirst(*parts, n).eval()(stacks()) for n in (count, None))
    torch.testing.assert_close(some, whole, atol=1e-4, rtol=0)
    assert whole.abs().amax(dim=(0, 2, 3, 4)).min() > 0.1


def test_a_network_of_displacements_is_not_integrated() -> None:
    pair = stacks()
    field = DepthFirst(Recorder(), ThroughPlane(), None)(pair)
    torch.testing.assert_close(field[:, :2], to_stack(Recorder()(to_slices(pair[:, [0, 4]])), pair))


class Still(nn.Module):
    def forward(self, pair: Tensor) -> Tensor:
        return torch.zeros_like(pair)


@pytest.mark.parametrize("slices", [2, 7])
def test_exchanged_images_turn_the_velocity_and_equal_ones_have_none(slices: int) -> None:
    network, pair = moving_along(ThroughPlane()), cells_of(stacks(slices))
    velocity = network(pair)
    assert velocity.shape == (1, 1, 2, 3, slices)
    assert velocity.abs().max() > 0.1
    torch.testing.assert_close(network(exchange(pair)), -velocity)
    moving = halves(pair)[0]
    assert not network(torch.cat([moving, moving], dim=1)).any()
    assert not network(torch.zeros_like(pair)).any()
    assert not network(pair[..., :1]).any()


def test_a_velocity_along_the_stack_leads_nowhere_else() -> None:
    velocity = torch.linspace(-2, 2, 9, dtype=torch.float64).expand(1, 1, 4, 6, 9)
    there, back = AlongStack()(velocity), AlongStack()(-velocity)
    assert not there[:, :2].any()
    # dz/dt = z / 2 about the middle slice: exp(1 / 2) times as far, and back again; the repeated border is left out.
    inner = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
    reached = there[0, 2, 2, 3, [2, 3, 5, 6]] + inner
    torch.testing.assert_close(reached, math.exp(0.5) * inner, atol=0, rtol=0.02)
    left = compose(there, back)[:, 2, ..., 3:6]
    torch.testing.assert_close(left, torch.zeros_like(left), atol=0.02, rtol=0)


def test_it_learns_by_how_much_the_base_descends() -> None:
    torch.manual_seed(0)
    phantom = Phantom.random(3, size=(32, 32), slices=10, shortening=0.2, oblique=False)
    phantom = replace(phantom, contraction=0.0, rv_contraction=0.0, twist=(0.0, 0.0))
    systole, diastole = phantom.end_systole, 1
    labels = [torch.from_numpy(phantom.label(frame)) for frame in (systole, diastole)]
    masks = torch.stack([torch.stack([label == value for value in (1, 2, 3)]) for label in labels])
    images = torch.zeros(2, *masks.shape[2:])
    shifts, cells = measure_shifts(Still(), images, masks), to_cells(masks.float().flatten(0, 1)[None])
    network, along, loss = ThroughPlane(), AlongStack(), ShiftOverlap()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    values = []
    for _ in range(40):
        values.append(loss(along(network(cells)), shifts))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert float(values[-1]) < 0.75 * float(values[0])
    pair = torch.cat([images[:, None], masks.float()], dim=1).flatten(0, 1)[None]
    heart = labels[1] > 0
    with torch.no_grad():
        found = DepthFirst(Still(), network, None)(pair)[0, 2]
    exact = torch.from_numpy(phantom.field(systole, diastole))[2]
    slices = [z for z in range(heart.shape[-1]) if heart[..., z].any()]
    errors = [float((found - exact)[..., z][heart[..., z]].mean()) for z in slices]
    assert exact[heart].max() > 2
    assert sum(map(abs, errors)) / len(errors) < 0.5
