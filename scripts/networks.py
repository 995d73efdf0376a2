"""Registration networks behind one signature: (B, 2, *spatial) moving and fixed image -> (B, d, *spatial) field in voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.nn import functional as F


class ConvBlock(nn.Sequential):
    """Two 3-wide convolutions, each with norm and LeakyReLU: (B, in, *spatial) -> (B, out, *spatial)."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, norm: str | tuple, bias: bool) -> None:
        super().__init__(
            *(
                Convolution(spatial_dims, channels, out_channels, adn_ordering="NA", act="leakyrelu", norm=norm, bias=bias)
                for channels in (in_channels, out_channels)
            )
        )


class RegistrationUNet(nn.Module):
    """The U-Net of GSMorph (Dou et al., MICCAI 2023): max-pooling down, linear upsampling and concatenation up, a flow head.

    With `conv_bias=True`, five levels from 16 to 256 features and BatchNorm it is the published network: 1,968,002 parameters in
    75 tensors. A convolution's bias before a norm has no effect and a gradient of rounding noise, hence the default without.

    Args:
        spatial_dims: 2 or 3.
        features: channels at each level, the finest first.
        norm: a MONAI norm, such as "batch", "instance" or ("group", {"num_groups": 8}).
        conv_bias: whether convolutions before a norm have a bias.
        flow_level: level of `features` at which the decoder stops and the flow head sits; the flow is then interpolated linearly to
            the image's grid. 0 is the published network; 1 (half resolution) costs half as much and gives smoother fields.
        flow_std: standard deviation of the flow head's initial weights; small, so that training starts near the identity.

    Raises:
        ValueError: for a flow level below 0 or beyond the coarsest but one.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        features: Sequence[int] = (16, 32, 64, 128, 256),
        norm: str | tuple = "batch",
        conv_bias: bool = False,
        flow_level: int = 0,
        flow_std: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= flow_level < len(features) - 1:
            raise ValueError(f"flow_level lies in 0 .. {len(features) - 2} for {len(features)} levels, got {flow_level}.")
        self.flow_scale = 2**flow_level
        self.mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]
        block = lambda i, o: ConvBlock(spatial_dims, i, o, norm, conv_bias)
        self.down = nn.ModuleList(block(i, o) for i, o in zip((2, *features), features))
        decoded = features[flow_level:]
        self.up = nn.ModuleList(block(low + high, high) for low, high in zip(decoded[:0:-1], decoded[-2::-1]))
        self.pool = Pool[Pool.MAX, spatial_dims](2)
        conv = Conv[Conv.CONV, spatial_dims]
        self.merge = conv(decoded[0], decoded[0], 3, padding=1, bias=False)
        self.flow = conv(decoded[0], spatial_dims, 3, padding=1)
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
        flow = self.flow(self.merge(x))
        if self.flow_scale > 1:
            flow = F.interpolate(flow, size=pair.shape[2:], mode=self.mode, align_corners=False) * self.flow_scale
        return flow


class PaddedNetwork(nn.Module):
    """Any backbone on any image size: the pair is padded to a multiple of the backbone's stride and the field cropped back.

    The padding is split between both ends of an axis and repeats the border, so that no edge appears there.

    Args:
        backbone: (B, 2, *spatial) -> (B, d, *spatial), for spatial sizes divisible by `stride`; such sizes reach it as they are.
        stride: total downsampling of the backbone, for instance 16 for five levels; 32 for `SwinUNETR`.
    """

    def __init__(self, backbone: nn.Module, stride: int = 16) -> None:
        super().__init__()
        self.backbone = backbone
        self.stride = stride

    def forward(self, pair: Tensor) -> Tensor:
        """(B, 2, *spatial) -> (B, d, *spatial), voxels of the image."""
        sizes = pair.shape[2:]
        missing = [(self.stride - size % self.stride) % self.stride for size in sizes]
        if sum(missing) == 0:
            return self.backbone(pair)
        padding: list[int] = []
        for total in missing[::-1]:
            padding += [total // 2, total - total // 2]
        field = self.backbone(F.pad(pair, padding, mode="replicate"))
        for axis, total in enumerate(missing):
            field = field.narrow(axis + 2, total // 2, sizes[axis])
        return field
