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

"""Registration networks behind one signature: (B, 2, *spatial) moving and fixed image (`pairs`) -> (B, d, *spatial)
field in voxels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from scripts.registration.fields import integrate_in_sampler, sample_grid, sampler_grid, to_sampler, to_slices, to_stack
from scripts.registration.pairs import halves
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

NEIGHBORS = "_neighbors."  # in the names of what sees the slices before and after
FIRST = "encoders.0.0.conv.weight"  # ends the name of the kernels that see the images


class ConvBlock(nn.Sequential):
    """Two 3-wide convolutions, the first with a stride, each with norm and LeakyReLU: (B, in, *spatial) -> (B, out,
    *spatial)."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, norm: str | tuple, bias: bool, stride: int = 1
    ) -> None:
        options = {"adn_ordering": "NA", "act": ("leakyrelu", {"inplace": True}), "norm": norm, "bias": bias}
        super().__init__(
            Convolution(spatial_dims, in_channels, out_channels, strides=stride, **options),
            Convolution(spatial_dims, out_channels, out_channels, **options),
        )


def scale_and_shift(
    mean: Tensor, square: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, axes: int
) -> tuple[Tensor, Tensor]:
    """By what a group norm multiplies and moves each channel, (B, C, *1), from the channels' means and mean squares (B,
    C)."""
    per_group = mean.shape[1] // groups
    mean, square = [x.unflatten(1, (groups, per_group)).mean(2) for x in (mean, square)]
    # Rounding can make the difference negative.
    scale = torch.rsqrt((square - mean.square()).clamp(min=0.0) + eps)
    mean, scale = [x.repeat_interleave(per_group, dim=1) for x in (mean, scale)]
    scale = scale * weight
    shift = bias - mean * scale
    for _ in range(axes):
        scale, shift = scale.unsqueeze(-1), shift.unsqueeze(-1)
    return scale, shift


class CentralGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` by the mean and variance of the central `window` voxels along each axis.

    Crops of the heart train a network; in whole slices, however much chest they show, it then finds the statistics that
    it knows.

    Args:
        num_groups: see `nn.GroupNorm`.
        num_channels: see `nn.GroupNorm`.
        window: voxels; an axis that has no more is taken whole.
        eps: see `nn.GroupNorm`.
    """

    def __init__(self, num_groups: int, num_channels: int, window: int, eps: float = 1e-5) -> None:
        super().__init__(num_groups, num_channels, eps)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        if max(x.shape[2:]) <= self.window:
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        central = x if x.dtype == torch.float64 else x.float()
        spatial = list(range(2, x.dim()))
        for axis in spatial:
            kept = min(x.shape[axis], self.window)
            central = central.narrow(axis, (x.shape[axis] - kept) // 2, kept)
        mean, square = central.mean(spatial), central.square().mean(spatial)
        scale, shift = scale_and_shift(mean, square, self.num_groups, self.weight, self.bias, self.eps, len(spatial))
        return torch.addcmul(shift, x, scale)


def _central_norm(norm: nn.GroupNorm, window: int) -> CentralGroupNorm:
    """A group norm with the central window that its statistics come from."""
    central = CentralGroupNorm(norm.num_groups, norm.num_channels, window, norm.eps)
    central.load_state_dict(norm.state_dict())
    return central


def replace_group_norms(module: nn.Module, make: Callable[[nn.GroupNorm], nn.Module]) -> None:
    """Put what `make` makes of each `nn.GroupNorm` in a module in its place; changed in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, make(child))
        else:
            replace_group_norms(child, make)


class RegistrationUNet(nn.Module):
    """The U-Net of GSMorph (Dou et al., MICCAI 2023): max-pooling down, linear upsampling and concatenation up, a flow
    head.

    With `conv_bias=True`, five levels from 16 to 256 features and BatchNorm it is the published network: 1,968,002
    parameters in 75 tensors. A convolution's bias before a norm has no effect and a gradient of rounding noise, hence
    the default without.

    Args:
        spatial_dims: 2 or 3.
        features: channels at each level, the finest first.
        norm: a MONAI norm, such as "batch", "instance" or ("group", {"num_groups": 8}).
        conv_bias: whether convolutions before a norm have a bias.
        flow_std: standard deviation of the flow head's initial weights; small, so that training starts near the
            identity.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        features: Sequence[int] = (16, 32, 64, 128, 256),
        norm: str | tuple = "batch",
        conv_bias: bool = False,
        flow_std: float = 1e-5,
    ) -> None:
        super().__init__()
        self.mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]

        def block(i, o):
            return ConvBlock(spatial_dims, i, o, norm, conv_bias)

        self.down = nn.ModuleList(block(i, o) for i, o in zip((2, *features), features))
        self.up = nn.ModuleList(block(low + high, high) for low, high in zip(features[:0:-1], features[-2::-1]))
        self.pool = Pool[Pool.MAX, spatial_dims](2)
        conv = Conv[Conv.CONV, spatial_dims]
        self.merge = conv(features[0], features[0], 3, padding=1, bias=False)
        self.flow = conv(features[0], spatial_dims, 3, padding=1)
        nn.init.normal_(self.flow.weight, std=flow_std)
        nn.init.zeros_(self.flow.bias)

    def forward(self, pair: Tensor) -> Tensor:
        """(B, 2, *spatial), spatial sizes divisible by 2 ** (levels - 1) -> (B, d, *spatial), voxels."""
        skips: list[Tensor] = []
        x = pair
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for level, block in enumerate(self.up):
            skip = skips[len(skips) - 2 - level]
            x = F.interpolate(x, size=skip.shape[2:], mode=self.mode, align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        return self.flow(self.merge(x))


def repeat_border(x: Tensor, width: int) -> Tensor:
    """(B, C, *spatial) with its border repeated: `F.pad` by "replicate", which torch.compile does not take in
    channels-last on a CPU."""
    for axis in range(2, x.dim()):
        shape = list(x.shape)
        shape[axis] = width
        x = torch.cat(
            [x.narrow(axis, 0, 1).expand(shape), x, x.narrow(axis, x.shape[axis] - 1, 1).expand(shape)], dim=axis
        )
    return x


class GaussianSmoothing(nn.Module):
    """Convolution of each channel of (B, C, X, Y) with a Gaussian, border repeated by `repeat_border` (MONAI's
    `separable_filtering` takes `F.pad`).

    Args:
        channels: C.
        sigma: standard deviation in pixels; 0 leaves the input as it is.
    """

    def __init__(self, channels: int, sigma: float) -> None:
        super().__init__()
        self.channels = channels
        self.radius = math.ceil(3 * sigma)
        profile = torch.exp(-0.5 * (torch.arange(-self.radius, self.radius + 1) / max(sigma, 1e-6)) ** 2)
        kernel = profile[:, None] * profile
        kernel = (kernel / kernel.sum()).expand(channels, 1, *kernel.shape).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.radius == 0:
            return x
        return F.conv2d(repeat_border(x, self.radius), self.kernel, groups=self.channels)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution by 3-wide kernels that keeps the grid."""
    return F.conv2d(x, weight, bias, padding=1)


class NeighborConvolution(nn.Conv2d):
    """What each slice's two neighbors add to a convolution: pointwise kernels for the slice before and the one after.

    With a 3x3 kernel for the slice itself they make a 3x3x3 one that is empty off its axis in the outer planes: in-plane
    a neighbor's pixels are several times nearer to each other than to this slice. They start at 0, and what lies beyond
    a stack's ends adds nothing.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, 2 * out_channels, 1, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, weight: Tensor, depth: int) -> Tensor:
        """Slices (N, in, X, Y) of stacks of `depth` -> (N, out, X, Y), by kernels of these input channels."""
        before, after = F.conv2d(x, weight).unflatten(0, [-1, depth]).chunk(2, dim=2)
        before = F.pad(before[:, :-1], [0, 0, 0, 0, 0, 0, 1, 0])
        after = F.pad(after[:, 1:], [0, 0, 0, 0, 0, 0, 0, 1])
        return (before + after).flatten(0, 1)


class Estimator(nn.Sequential):
    """A level's correction of the velocity from (warped moving features, fixed features, velocity), one above the other
    as channels, all as slices (N, ..., X, Y).

    The first convolution is linear, so the share of the fixed features is computed once for all corrections of the
    level. In 3-D both convolutions of the block see the neighboring slices, too; norms never do.

    Args:
        spatial_dims: 2 or 3, the components of the velocity.
        channels: of the features.
        hidden: channels between.
        norm: a MONAI norm.
        flow_std: standard deviation of the initial weights of the last convolution.
    """

    def __init__(self, spatial_dims: int, channels: int, hidden: int, norm: str | tuple, flow_std: float) -> None:
        flow = nn.Conv2d(hidden, spatial_dims, 3, padding=1)
        nn.init.normal_(flow.weight, std=flow_std)
        nn.init.zeros_(flow.bias)
        inputs = 2 * channels + spatial_dims
        super().__init__(ConvBlock(2, inputs, hidden, norm, bias=False), flow)
        self.channels = channels
        self.first_neighbors = NeighborConvolution(inputs, hidden) if spatial_dims == 3 else None
        self.second_neighbors = NeighborConvolution(hidden, hidden) if spatial_dims == 3 else None

    def share_of_fixed(self, fixed: Tensor, depth: int = 1) -> Tensor:
        """What fixed features (N, C, X, Y) add to the first convolution, (N, hidden, X, Y)."""
        first = self[0][0].conv
        share = _convolve(fixed, first.weight[:, self.channels : 2 * self.channels], first.bias)
        if self.first_neighbors is not None:
            weight = self.first_neighbors.weight[:, self.channels : 2 * self.channels]
            share = share + self.first_neighbors(fixed, weight, depth)
        return share

    def forward(self, warped: Tensor, share: Tensor, velocity: Tensor, antisymmetric: bool, depth: int = 1) -> Tensor:
        """Correction (N, d, X, Y); with `antisymmetric` half the difference of the first and the second half of the
        batch. Slices come in stacks of `depth`."""
        inputs = torch.cat([warped.to(velocity.dtype), velocity], dim=1)
        x = _convolve(inputs, self.of_moving(self[0][0].conv.weight)) + share
        if self.first_neighbors is not None:
            x = x + self.first_neighbors(inputs, self.of_moving(self.first_neighbors.weight), depth)
        x = self[0][0].adn(x)
        if self.second_neighbors is not None:
            x = self[0][1].adn(self[0][1].conv(x) + self.second_neighbors(x, self.second_neighbors.weight, depth))
        else:
            x = self[0][1](x)
        if not antisymmetric:
            return self[1](x)
        # The last convolution is linear as well, and its bias cancels; times 0 it keeps a gradient, which is 0.
        half = x.shape[0] // 2
        bias = self[1].bias
        assert bias is not None  # for TorchScript
        return _convolve(0.5 * (x[:half] - x[half:]), self[1].weight, 0.0 * bias)

    def of_moving(self, weight: Tensor) -> Tensor:
        """Kernels of the moving features and the velocity."""
        return torch.cat([weight[:, : self.channels], weight[:, 2 * self.channels :]], dim=1)


class PyramidNetwork(nn.Module):
    """Coarse-to-fine registration: at each level the moving features are warped by the velocity found so far, then it
    is corrected.

    Both images pass one encoder, which halves the resolution at each level. From the coarsest level up, a small block
    sees the warped moving features, the fixed features and the velocity, and adds to the velocity. This is the
    coarse-to-fine warping of pyramid networks (PWC-Net, Sun et al., CVPR 2018; LapIRN, Mok and Chung, MICCAI 2020) and
    what multi-resolution Demons does by hand.

    A stack keeps its slices on all levels, since they lie farther apart than pixels by far: strides, norms and the
    Gaussian are in-plane. Blocks see the slices before and after, and warps lead through the stack. All that a 3-D
    network has beyond a 2-D one may be 0, and then it is that one (`inflate`).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of each image: 1, its intensities, or more with maps of its anatomy (`pairs`).
        features: channels of the encoder at each level, from half resolution to the coarsest.
        hidden: channels of the blocks that estimate the velocity.
        corrections: how often a level warps and corrects, by the same block.
        norm: a MONAI norm, such as "batch", "instance" or ("group", {"num_groups": 8}).
        norm_window: pixels of the image along each axis, in its center, that a group norm's statistics come from; None
            takes all.
        integration_steps: squarings of the velocity before it warps features inside the network; 0 warps by the
            velocity itself.
        smoothing: standard deviation of a Gaussian in pixels of the finest level (half resolution), over the velocity
            that comes from the coarser levels and over each correction there, hence over the whole.
        flow_std: standard deviation of the initial weights that give the velocity; small, so that training starts near
            the identity.
        antisymmetric: whether each correction is half the difference of what the block says of both directions, so that
            exchanging the images turns the sign of the velocity, and the field of the way back is the inverse; for up
            to twice the time.
        depth_scale: of a 3-D velocity's component through the slices, in slices per unit of what the blocks say.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        features: Sequence[int] = (16, 32, 32, 32),
        hidden: int = 32,
        corrections: int = 2,
        norm: str | tuple = ("group", {"num_groups": 8}),
        norm_window: int | None = None,
        integration_steps: int = 4,
        smoothing: float = 1.5,
        flow_std: float = 1e-3,
        antisymmetric: bool = True,
        depth_scale: float = 1.0,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.axes = spatial_dims
        self.corrections = corrections
        self.antisymmetric = antisymmetric
        self.integration_steps = integration_steps
        self.depth_scale = depth_scale
        self.encoders = nn.ModuleList(
            ConvBlock(2, i, o, norm, bias=False, stride=2) for i, o in zip((in_channels, *features), features)
        )
        self.estimators = nn.ModuleList(
            Estimator(spatial_dims, channels, hidden, norm, flow_std) for channels in reversed(features)
        )
        self.smooth = GaussianSmoothing(spatial_dims, smoothing)
        if norm_window is not None:
            for level, (encoder, estimator) in enumerate(zip(self.encoders, reversed(self.estimators)), start=1):
                for block in (encoder, estimator):
                    replace_group_norms(block, partial(_central_norm, window=norm_window // 2**level))

    def forward(self, pair: Tensor) -> Tensor:
        """(B, 2 * in_channels, X, Y) or (…, X, Y, Z), X and Y divisible by 2 ** levels -> (B, d, *spatial) velocity,
        voxels."""
        stacks = pair
        pair = to_slices(pair)
        batch = pair.shape[0]
        depth = batch // stacks.shape[0]
        pyramid: list[Tensor] = []
        x = torch.cat(halves(pair))
        for encoder in self.encoders:
            x = encoder(x)
            pyramid.append(x)
        coarsest = pyramid[-1].shape[2:]
        velocity = torch.zeros([batch, self.axes] + list(coarsest), dtype=pair.dtype, device=pair.device)
        for level, estimator in enumerate(self.estimators):
            features = pyramid[len(pyramid) - 1 - level]
            if level > 0:
                velocity = self.enlarge(velocity, features)
            moving, fixed = features[:batch], features[batch:]
            if self.antisymmetric:
                moving, fixed = features, torch.cat([fixed, moving])
            share = estimator.share_of_fixed(fixed, depth)
            grid = sampler_grid(velocity)
            # At the finest level before a correction is judged by what is left, not after the last one.
            finest = level == len(self.estimators) - 1
            if finest:
                velocity = self.smooth(velocity).to(pair.dtype)
            for _ in range(self.corrections):
                there = torch.cat([velocity, -velocity]) if self.antisymmetric else velocity
                points = grid + integrate_in_sampler(to_sampler(there), grid, self.integration_steps, depth)
                correction = estimator(sample_grid(moving, points, depth), share, there, self.antisymmetric, depth)
                if self.axes == 3:
                    correction = torch.cat([correction[:, :2], self.depth_scale * correction[:, 2:]], dim=1)
                velocity = velocity + (self.smooth(correction) if finest else correction)
        return to_stack(self.enlarge(velocity, pair), stacks)

    def enlarge(self, velocity: Tensor, like: Tensor) -> Tensor:
        """A velocity of slices (N, d, X, Y) on a grid twice as fine in-plane, that of `like`."""
        fine = F.interpolate(velocity, size=like.shape[2:], mode="bilinear", align_corners=False)
        if self.axes == 2:
            return 2.0 * fine
        return torch.cat([2.0 * fine[:, :2], fine[:, 2:]], dim=1)


def is_smaller(weights: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Whether weights lack what a `PyramidNetwork` has beyond them: convolutions of neighboring slices, or channels of its
    input."""
    state = network.state_dict()
    needed = {name for name in state if NEIGHBORS in name}
    if needed and not needed & set(weights):
        return True
    first = next((name for name in state if name.endswith(FIRST)), None)
    return first in weights and weights[first].ndim == 4 and weights[first].shape[1] < state[first].shape[1]


def inflate(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights of a `PyramidNetwork` for one of more axes or input channels, whose velocity is then the same, exactly:
    what it has beyond is 0.

    In 3-D that is the velocity of each slice; maps beside the intensities are not looked at.

    Args:
        weights: state dict of the smaller network.
        network: the larger one, or a module around it; its names and shapes are taken, its values are not.

    Raises:
        ValueError: for weights of another network.
    """
    inflated = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    if set(weights) | {name for name in inflated if NEIGHBORS in name} != set(inflated):
        raise ValueError("the smaller and the larger network have different layers.")
    for name, value in weights.items():
        # The velocity has one component more, or the image further channels.
        more = [new - old for new, old in zip(inflated[name].shape, value.shape)]
        fits = sum(more) == more[1] if name.endswith(FIRST) else sum(more) in (0, 1)
        if value.ndim != inflated[name].ndim or not fits or min(more, default=0) < 0:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, here {tuple(inflated[name].shape)}.")
        inflated[name][tuple(slice(size) for size in value.shape)] = value
    return inflated


class PaddedNetwork(nn.Module):
    """Any backbone on any image size: the pair is padded to a multiple of the backbone's stride and the field cropped
    back.

    The padding is split between both ends of an axis and repeats the border, so that no edge appears there.

    Args:
        backbone: (B, 2, *spatial) -> (B, d, *spatial), for spatial sizes divisible by `stride`; such sizes reach it as
            they are.
        stride: total downsampling of the backbone, for instance 16 for five levels; 32 for `SwinUNETR`; one number, or
            one an axis, such as (16, 16, 1) for a `PyramidNetwork` of stacks.
    """

    def __init__(self, backbone: nn.Module, stride: int | Sequence[int] = 16) -> None:
        super().__init__()
        self.backbone = backbone
        self.strides = [stride] * 3 if isinstance(stride, int) else list(stride)
        self.stride = self.strides[0]

    def forward(self, pair: Tensor) -> Tensor:
        """(B, 2, *spatial) -> (B, d, *spatial), voxels of the image."""
        sizes = pair.shape[2:]
        missing = [(stride - size % stride) % stride for size, stride in zip(sizes, self.strides)]
        if sum(missing) == 0:
            return self.backbone(pair)
        padding: list[int] = []
        for total in missing[::-1]:
            padding += [total // 2, total - total // 2]
        field = self.backbone(F.pad(pair, padding, mode="replicate"))
        for axis, total in enumerate(missing):
            field = field.narrow(axis + 2, total // 2, sizes[axis])
        return field


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose MONAI `Convolution` blocks have their BatchNorm folded into the convolution right
    before it.

    Norms of the input's own statistics stay, and so do BatchNorms elsewhere.
    """
    network = copy.deepcopy(network).eval()
    # In 3-D neighboring slices add to what their convolutions give.
    blocks = [
        block for block in network.modules() if isinstance(block, Estimator) and block.first_neighbors is not None
    ]
    shared = {module for block in blocks for module in block.modules()}
    for module in network.modules():
        if module in shared or not isinstance(module, Convolution) or not hasattr(module, "adn"):
            continue
        name, norm = next(module.adn.named_children(), ("", None))
        if name == "N" and isinstance(norm, nn.modules.batchnorm._BatchNorm):
            module.conv = fuse_conv_bn_eval(module.conv, norm, transpose=module.is_transposed)
            module.adn.N = nn.Identity()
    return network
