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

"""From a network's output to a displacement."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SliceInferer
from monai.networks.blocks import DVF2DDF
from scripts.errors import InputError
from scripts.registration.fields import Integration, compose, integrate, warp
from scripts.registration.inferers import FieldInferer, MapInferer
from scripts.registration.networks import PyramidNetwork
from torch import nn


class Shear(nn.Module):
    """A velocity that depends on the moving image alone, in half precision on request."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return torch.cat([pair[:, :1], torch.zeros_like(pair[:, :1])], dim=1).to(self.dtype)


def test_velocity_is_integrated_in_full_precision() -> None:
    pair = torch.rand(3, 2, 12, 10)
    for dtype in (torch.float32, torch.bfloat16):
        velocity = Shear(dtype)(pair)
        assert torch.equal(FieldInferer()(pair, Shear(dtype)), velocity.float())
        found = FieldInferer(integration=DVF2DDF(num_steps=5, padding_mode="border"))(pair, Shear(dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, integrate(velocity.float(), steps=5))


def test_a_stack_is_its_slices() -> None:
    stack = torch.rand(1, 2, 12, 10, 7)
    slices = SliceInferer(roi_size=(-1, -1), spatial_dim=2, sw_batch_size=3)
    found = FieldInferer(slices, DVF2DDF(num_steps=5, padding_mode="border"))(stack, Shear())
    each = FieldInferer(integration=DVF2DDF(num_steps=5, padding_mode="border"))(stack[0].movedim(-1, 0), Shear())
    torch.testing.assert_close(found[0].movedim(-1, 0), each)


@pytest.mark.parametrize("fits", [1, 2, 5])
def test_slices_that_exceed_the_memory_together_are_taken_in_parts(fits: int) -> None:
    stack, sizes = torch.rand(1, 2, 12, 10, 7), []

    def network(pair: torch.Tensor) -> torch.Tensor:
        if len(pair) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(pair))
        return Shear()(pair)

    inferer = FieldInferer(SliceInferer(roi_size=(-1, -1), spatial_dim=2, sw_batch_size=7), Integration(5))
    torch.testing.assert_close(inferer(stack, network), inferer(stack, Shear()))
    assert sum(sizes) == 7
    assert max(sizes) <= fits


def test_a_slice_that_exceeds_the_memory_alone_says_so() -> None:
    def network(pair: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    inferer = FieldInferer(SliceInferer(roi_size=(-1, -1), spatial_dim=2, sw_batch_size=7))
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        inferer(torch.rand(1, 2, 12, 10, 7), network)


def test_a_slice_that_is_blank_in_either_image_gets_the_identity() -> None:
    stack = torch.rand(1, 2, 12, 10, 4)
    stack[:, 0, ..., 1] = 0.5
    stack[:, 1, ..., 2] = 0.0
    slices = SliceInferer(roi_size=(-1, -1), spatial_dim=2, sw_batch_size=3)
    found = FieldInferer(slices, Integration(5))(stack, lambda pair: Shear()(pair) + 1)
    assert not found[..., 1:3].any()
    assert found[..., 0].any()
    assert found[..., 3].any()


def test_a_second_pass_sees_what_the_first_has_moved_and_composes_the_fields() -> None:
    torch.manual_seed(0)
    pair = torch.rand(2, 2, 24, 20)
    network = PyramidNetwork(features=(8, 8), hidden=8, flow_std=0.1).eval()
    with torch.no_grad():
        first = integrate(network(pair))
        moved = torch.cat([warp(pair[:, :1], first), pair[:, 1:]], dim=1)
        second = integrate(network(moved))
        found = FieldInferer(integration=Integration(), passes=2)(pair, network)
    assert first.abs().max() > 0.1
    assert (first - second).abs().max() > 0.01
    torch.testing.assert_close(found, compose(first, second))
    # Slice by slice it is the same.
    slices = SliceInferer(roi_size=(-1, -1), spatial_dim=2)
    with torch.no_grad():
        stack = FieldInferer(slices, Integration(), passes=2)(pair.movedim(0, -1)[None], network)
    torch.testing.assert_close(stack[0].movedim(-1, 0), found, atol=1e-4, rtol=0)


def test_each_pass_brings_a_timid_network_closer() -> None:
    rows = torch.arange(64.0).view(1, 1, -1, 1)
    blob = lambda center: torch.exp(-((rows - center) ** 2) / 50.0).expand(1, 1, 64, 16)

    def half(pair: torch.Tensor) -> torch.Tensor:
        """Half the distance between the centers of mass."""
        moving, fixed = ((image * rows).sum() / image.sum() for image in pair.split(1, dim=1))
        return torch.stack([torch.full((64, 16), float(moving - fixed) / 2), torch.zeros(64, 16)])[None]

    pair = torch.cat([blob(36.0), blob(28.0)], dim=1)
    for passes, expected in ((1, 4.0), (2, 6.0), (3, 7.0)):
        field = FieldInferer(passes=passes)(pair, half)
        assert field[0, 0, 20:44].mean() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("passes", [0, -1, 1.5, True, "two"])
def test_refuses_what_is_no_number_of_passes(passes: object) -> None:
    with pytest.raises(InputError, match=f"passes is 1, 2, …, got {passes!r}"):
        FieldInferer(passes=passes)


def test_bfloat16_is_the_convolutions_alone() -> None:
    torch.manual_seed(0)
    network = PyramidNetwork(features=(8, 8), hidden=8, flow_std=0.2).eval()
    seen: dict[str, torch.dtype] = {}
    network.encoders[0].register_forward_hook(lambda *call: seen.update(features=call[2].dtype))
    network.register_forward_hook(lambda *call: seen.update(velocity=call[2].dtype))
    pair = torch.nn.functional.interpolate(torch.rand(2, 2, 6, 6), size=(32, 32), mode="bilinear")
    integration = Integration()
    with torch.inference_mode():
        exact = FieldInferer(integration=integration)(pair, network)
        found = FieldInferer(integration=integration, bf16=True)(pair, network)
    assert seen == {"features": torch.bfloat16, "velocity": torch.float32}
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()


def test_frames_of_a_volume_are_volumes() -> None:
    torch.manual_seed(0)
    network = PyramidNetwork(3, features=(8, 8), hidden=8, flow_std=0.1).eval()
    nn.init.normal_(network.estimators[0].first_neighbors.weight, std=0.1)
    frames = torch.rand(1, 2, 16, 12, 4, 3)
    frames[:, 0, ..., 1, 2] = 0.3
    inferer = FieldInferer(integration=Integration())
    with torch.no_grad():
        found = inferer(frames, network)
        assert found.shape == (1, 3, 16, 12, 4, 3)
        for t in range(3):
            expected = integrate(network(frames[..., t]))
            assert expected[..., 1].abs().max() > 0.01
            if t == 2:
                expected[..., 1] = 0.0  # blank
            torch.testing.assert_close(found[..., t], expected)


def test_maps_pass_with_their_images() -> None:
    torch.manual_seed(0)
    pair = torch.rand(2, 6, 24, 20)
    pair[1, 3] = 0.5  # the fixed image is blank, its maps are not
    network = PyramidNetwork(features=(8, 8), hidden=8, flow_std=0.1, in_channels=3).eval()
    with torch.no_grad():
        first = integrate(network(pair))
        moved = torch.cat([warp(pair[:, :3], first), pair[:, 3:]], dim=1)
        expected = compose(first, integrate(network(moved)))
        torch.testing.assert_close(FieldInferer(integration=Integration(), passes=2)(pair, network), expected)
        slices = SliceInferer(roi_size=(-1, -1), spatial_dim=2)
        stack = FieldInferer(slices, Integration(), passes=2)(pair.movedim(0, -1)[None], network)[0].movedim(-1, 0)
    torch.testing.assert_close(stack[0], expected[0], atol=1e-4, rtol=0)
    assert stack[1].eq(0).all()
    assert expected.abs().max() > 0.1
    # Where something was measured no network sees.
    with torch.no_grad():
        channels = torch.cat([pair, torch.rand(2, 1, 24, 20)], dim=1)
        assert torch.equal(FieldInferer(integration=Integration(), passes=2)(channels, network), expected)


def test_constant_slices_of_maps_move_as_well() -> None:
    maps = torch.zeros(1, 6, 4, 4, 3)
    maps[..., :2, 1] = 1.0
    field = MapInferer(lambda velocity: 2 * velocity)(
        maps, lambda pair: torch.ones(1, 3, 4, 4, 3, dtype=torch.bfloat16)
    )
    assert field.dtype == torch.float32
    assert (field == 2).all()
