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

"""Networks: the published parameter count, any image size, TorchScript, and a start near the identity."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import BasicUNet, RegUNet, SwinUNETR, VoxelMorphUNet
from scripts.cardiac.phantom import Phantom
from scripts.data.preprocessing import scale_slices
from scripts.registration.fields import LinearWarp
from scripts.registration.networks import (
    CentralGroupNorm,
    Estimator,
    GaussianSmoothing,
    PaddedNetwork,
    PyramidNetwork,
    RegistrationUNet,
    fold_batch_norm,
    inflate,
    is_smaller,
    repeat_border,
)
from scripts.registration.pairs import exchange, intensities
from torch import nn

ROOT = Path(__file__).parents[2]
GROUP = ("group", {"num_groups": 4})


def test_published_network() -> None:
    parameters = list(RegistrationUNet(conv_bias=True).parameters())
    assert sum(p.numel() for p in parameters) == 1_968_002
    assert len(parameters) == 75


def test_no_bias_before_a_norm_by_default() -> None:
    named = dict(RegistrationUNet().named_parameters())
    assert [name for name in named if "conv.bias" in name] == []
    assert "flow.bias" in named


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("kind", ["unet", "pyramid"])
def test_shapes_start_and_torchscript(axes: int, kind: str) -> None:
    torch.manual_seed(0)
    network = {
        "unet": lambda: RegistrationUNet(axes, (4, 8, 8), norm="instance"),
        "pyramid": lambda: PyramidNetwork(axes, (4, 8), hidden=8, norm=GROUP),
    }[kind]()
    pair = torch.rand(2, 2, *(16, 24, 8)[:axes])
    field = network(pair)
    assert field.shape == (2, axes, *pair.shape[2:])
    assert field.abs().max() < 0.2
    torch.testing.assert_close(torch.jit.script(network)(pair), field)


BACKBONES = {
    "VoxelMorphUNet": (lambda d: VoxelMorphUNet(d, 2, d, channels=(8, 8, 8, 8), final_conv_channels=(8,)), 8),
    "RegUNet": (lambda d: RegUNet(d, 2, 4, 3, out_channels=d), 8),
    "BasicUNet": (lambda d: BasicUNet(d, 2, d, features=(4, 4, 4, 4, 4, 4)), 16),
    "SwinUNETR": (
        lambda d: SwinUNETR(2, d, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), spatial_dims=d),
        32,
    ),
    "PyramidNetwork": (lambda d: PyramidNetwork(d, (4, 8), hidden=8, norm=GROUP), 4),
}


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_takes_any_size(name: str, axes: int) -> None:
    if name == "SwinUNETR" and axes == 3:
        pytest.skip("64 voxels along three axes take too long here")
    make, stride = BACKBONES[name]
    torch.manual_seed(0)
    network = PaddedNetwork(make(axes), stride).eval()
    with torch.no_grad():
        odd = torch.rand(1, 2, *(45, 37, 19)[:axes])
        assert network(odd).shape == (1, axes, *odd.shape[2:])
        even = torch.rand(1, 2, *[2 * stride] * axes)
        assert torch.equal(network(even), network.backbone(even))


def test_padding_is_split_and_cropped_back() -> None:
    class Shift(nn.Module):
        def forward(self, pair: torch.Tensor) -> torch.Tensor:
            assert pair.shape[2] % 8 == pair.shape[3] % 8 == 0
            return pair

    pair = torch.rand(1, 2, 13, 21)
    assert torch.equal(PaddedNetwork(Shift(), 8)(pair), pair)


def whole_convolution(convolution: nn.Conv2d, neighbors: nn.Conv2d) -> nn.Conv3d:
    """One 3x3x3 convolution: a 3x3 kernel in its middle plane, pointwise ones before and after."""
    out, into = convolution.weight.shape[:2]
    whole = nn.Conv3d(into, out, 3, padding=1, bias=False).double()
    with torch.no_grad():
        whole.weight.zero_()
        whole.weight[..., 1] = convolution.weight
        whole.weight[..., 1, 1, 0], whole.weight[..., 1, 1, 2] = neighbors.weight[..., 0, 0].split(out)
    return whole


@pytest.mark.parametrize("axes", [2, 3])
def test_an_estimator_sees_all_its_inputs_above_one_another(axes: int) -> None:
    torch.manual_seed(0)
    depth = {2: 1, 3: 5}[axes]
    estimator = Estimator(axes, 8, 8, GROUP, flow_std=0.1).double()
    for parameter in estimator.parameters():
        nn.init.normal_(parameter, std=0.3)
    warped, fixed = torch.rand(2, 4 * depth, 8, 9, 7, dtype=torch.float64)
    velocity = torch.randn(4 * depth, axes, 9, 7, dtype=torch.float64)
    x = torch.cat([warped, fixed, velocity], dim=1)
    if axes == 2:
        expected = estimator[1](estimator[0](x))
    else:
        for block, neighbors in zip(estimator[0], (estimator.first_neighbors, estimator.second_neighbors)):
            volume = x.unflatten(0, (4, depth)).movedim(1, -1)
            x = block.adn(whole_convolution(block.conv, neighbors)(volume).movedim(-1, 1).flatten(0, 1))
        expected = estimator[1](x)
    share = estimator.share_of_fixed(fixed, depth)
    torch.testing.assert_close(estimator(warped, share, velocity, False, depth), expected)
    found = estimator(warped, share, velocity, True, depth)
    torch.testing.assert_close(found, 0.5 * (expected[: 2 * depth] - expected[2 * depth :]))
    # Every parameter has a gradient, as several devices need; the bias that cancels has none to speak of.
    named = dict(estimator.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(found.square().sum(), list(named.values()))))
    assert gradients.pop("1.bias").eq(0).all()
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("antisymmetric", [False, True])
def test_an_inflated_network_is_the_one_of_each_slice(antisymmetric: bool) -> None:
    flat, deep = (
        PaddedNetwork(PyramidNetwork(d, norm_window=64, antisymmetric=antisymmetric), s).eval()
        for d, s in ((2, 16), (3, (16, 16, 1)))
    )
    shipped = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    flat.load_state_dict(shipped)
    deep.load_state_dict(inflate(shipped, deep))
    heart = Phantom.random(3, size=(88, 72), slices=3, frames=4)
    pair = scale_slices(torch.from_numpy(np.stack([heart.image(frame) for frame in (heart.end_systole, 1)]))).float()
    with torch.no_grad():
        slices = flat(pair.movedim(-1, 0)).movedim(0, -1)
        field = deep(pair[None])[0]
    assert slices.abs().max() > 2
    torch.testing.assert_close(field[:2], slices, atol=1e-5, rtol=0)
    assert field[2].eq(0).all()
    for other, message in (
        (PyramidNetwork(3), "layers"),
        (PaddedNetwork(PyramidNetwork(3, (16, 32, 32, 40))), "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            inflate(shipped, other)


def test_a_deep_network_learns_motion_through_the_slices() -> None:
    torch.manual_seed(0)
    network = PyramidNetwork(3, (8,), hidden=8, norm=GROUP, flow_std=1e-2, depth_scale=4.0, smoothing=1.0)
    texture = nn.functional.interpolate(torch.rand(1, 1, 4, 4, 9), size=(16, 16, 9), mode="trilinear")
    pair = torch.cat([texture.roll(1, -1), texture], dim=1)[..., 2:-2]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        velocity = network(pair)
        losses.append((LinearWarp()(pair[:, :1], velocity) - pair[:, 1:])[..., :-1].square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    # Each slice is the next one of the moving image: moved(x) = moving(x + u(x)).
    assert 0.5 < float(velocity[:, 2, ..., :-1].median()) < 1.3


@pytest.mark.parametrize("shape", [(3, 12, 9, 4), (2, 12, 5, 6, 8), (2, 12, 7)])
def test_a_central_norm_knows_the_center_alone(shape: tuple[int, ...]) -> None:
    norm = CentralGroupNorm(4, 12, window=5, eps=1e-3).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 2 * torch.randn(shape, dtype=torch.float64) + 1
    inside = [slice((size - 5) // 2, (size - 5) // 2 + 5) if size > 5 else slice(None) for size in shape[2:]]
    groups = x[(slice(None), slice(None), *inside)].reshape(shape[0], 4, -1)
    mean, variance = groups.mean(-1), groups.var(-1, unbiased=False)
    per_channel = lambda values: values.repeat_interleave(3, dim=1).reshape(*shape[:2], *[1] * len(shape[2:]))
    expected = (x - per_channel(mean)) / per_channel(variance + 1e-3).sqrt()
    affine = lambda values: values.reshape(1, 12, *[1] * len(shape[2:]))
    torch.testing.assert_close(norm(x), expected * affine(norm.weight) + affine(norm.bias))


def test_a_central_norm_of_a_small_image_is_a_group_norm() -> None:
    norm, central = nn.GroupNorm(4, 12), CentralGroupNorm(4, 12, window=9)
    x = torch.randn(2, 12, 9, 7)
    assert torch.equal(central(x), norm(x))


def test_what_lies_around_the_norm_window_does_not_matter() -> None:
    torch.manual_seed(0)
    network = PyramidNetwork(
        2, (4, 8), hidden=8, norm=GROUP, norm_window=32, flow_std=0.1, smoothing=0.0, corrections=1
    ).eval()
    pair = torch.rand(1, 2, 192, 160)
    around = pair.clone()
    around[:, :, :32] = around[:, :, -32:] = 5.0
    at_center = lambda field: field[:, :, 92:100, 76:84]
    with torch.no_grad():
        torch.testing.assert_close(at_center(network(pair)), at_center(network(around)), atol=1e-5, rtol=1e-5)
        everywhere = PyramidNetwork(2, (4, 8), hidden=8, norm=GROUP, flow_std=0.1, smoothing=0.0, corrections=1).eval()
        everywhere.load_state_dict(network.state_dict())
        assert (at_center(everywhere(pair)) - at_center(everywhere(around))).abs().max() > 0.01
        assert torch.equal(everywhere(pair[:, :, :32, :32]), network(pair[:, :, :32, :32]))


def test_smoothing_is_a_normalized_gaussian() -> None:
    from scipy.ndimage import gaussian_filter

    field = torch.randn(1, 2, 40, 32, dtype=torch.float64)
    smooth = GaussianSmoothing(2, 1.5).double()
    expected = gaussian_filter(
        field[0].numpy(), (0, 1.5, 1.5), mode="nearest", radius=(0, smooth.radius, smooth.radius)
    )
    torch.testing.assert_close(smooth(field)[0], torch.from_numpy(expected), atol=1e-6, rtol=0)
    assert torch.equal(GaussianSmoothing(2, 0.0)(field), field)


@pytest.mark.parametrize("axes", [2, 3])
def test_exchanged_images_turn_the_sign_of_the_velocity(axes: int) -> None:
    torch.manual_seed(0)
    pair = torch.rand(2, 2, *(32, 16, 16)[:axes])
    for antisymmetric in (True, False):
        network = PyramidNetwork(axes, (4, 8), hidden=8, norm=GROUP, flow_std=0.1, antisymmetric=antisymmetric)
        there, back = network(pair), network(pair.flip(1))
        assert there.abs().max() > 0.1
        assert torch.allclose(there, -back, atol=1e-5) == antisymmetric


def test_batch_norm_is_folded_and_other_norms_stay() -> None:
    torch.manual_seed(0)
    unet = RegistrationUNet(features=(4, 8, 8), conv_bias=True, flow_std=0.1)
    pyramid = PyramidNetwork(features=(4, 8), hidden=8, norm="batch", flow_std=0.1)
    transposed = nn.Sequential(
        Convolution(2, 2, 4, strides=2), Convolution(2, 4, 2, strides=2, is_transposed=True, norm="batch")
    )
    for network in (unet, pyramid, transposed):
        for _ in range(3):
            network(torch.rand(4, 2, 16, 24))
        network.eval()
        folded = fold_batch_norm(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        pair = torch.rand(2, 2, 16, 24)
        torch.testing.assert_close(folded(pair), network(pair), atol=1e-5, rtol=1e-4)
    # A norm after the activation cannot be folded, and stays.
    late = Convolution(2, 2, 4, adn_ordering="AN", norm="batch", act="relu").eval()
    assert str(fold_batch_norm(late)) == str(late)
    grouped = PyramidNetwork(features=(4, 8), hidden=8, norm=("group", {"num_groups": 4}))
    assert str(fold_batch_norm(grouped)) == str(grouped.eval())


@pytest.mark.parametrize("size", [(9, 3), (5, 4, 6)])
def test_a_border_is_repeated_as_padding_does(size: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *size)
    torch.testing.assert_close(repeat_border(x, 2), nn.functional.pad(x, [2] * (2 * len(size)), mode="replicate"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_gaussian_compiles_in_channels_last() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), GaussianSmoothing(2, 1.0)).to(
        memory_format=torch.channels_last
    )
    x = torch.rand(2, 2, 12, 16).contiguous(memory_format=torch.channels_last)
    results = []
    for function in (block, torch.compile(block)):
        block.zero_grad()
        out = function(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in block.parameters())])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("antisymmetric", [False, True])
def test_a_network_that_sees_maps_begins_as_the_one_that_does_not(antisymmetric: bool) -> None:
    plain, wide = (
        PaddedNetwork(PyramidNetwork(norm_window=64, antisymmetric=antisymmetric, in_channels=n)).eval() for n in (1, 4)
    )
    shipped = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    plain.load_state_dict(shipped)
    assert is_smaller(shipped, wide)
    assert not is_smaller(shipped, plain)
    assert not is_smaller(wide.state_dict(), wide)
    wide.load_state_dict(inflate(shipped, wide))
    pair = torch.rand(2, 8, 88, 72)
    with torch.no_grad():
        expected = plain(intensities(pair))
        assert torch.equal(wide(pair), expected)
        nn.init.normal_(wide.backbone.encoders[0][0].conv.weight, std=0.3)
        assert (wide(pair) - expected).abs().max() > 0.1
    deep = PaddedNetwork(PyramidNetwork(3, norm_window=64, antisymmetric=antisymmetric, in_channels=4), (16, 16, 1))
    deep.load_state_dict(inflate(shipped, deep.eval()))
    with torch.no_grad():
        torch.testing.assert_close(deep(pair[..., None])[:, :2, ..., 0], expected, atol=1e-5, rtol=0)


def test_exchanging_images_with_their_maps_turns_the_velocity() -> None:
    network = PaddedNetwork(PyramidNetwork(flow_std=0.1, in_channels=4)).eval()
    pair = torch.rand(2, 8, 44, 36)
    with torch.no_grad():
        velocity = network(pair)
        assert torch.equal(network(exchange(pair)), -velocity)
        assert velocity.abs().max() > 0.1
        assert (network(torch.cat([pair[:, :4], pair[:, :4]], dim=1))).eq(0).all()


def test_weights_with_maps_do_not_fit_a_network_without() -> None:
    wide, plain = (PyramidNetwork(in_channels=n) for n in (4, 1))
    with pytest.raises(ValueError, match="shape"):
        inflate(wide.state_dict(), plain)
