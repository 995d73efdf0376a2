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

"""Random augmentation of labeled slices: what scanners, coils, sites and patients change of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scripts.cardiac.segmentation import AROUND, BRIGHTEST
from torch import Tensor
from torch.nn import functional as F


class RandomSliceAugmentation:
    """Augments a batch of slices at once, on its device: what scanners, coils, sites and patients change.

    A crop is drawn about the heart or anywhere in the image, turned, mirrored, magnified and deformed by one sampling;
    then its contrast, coil profile, sharpness and noise are changed.

    Args:
        size: pixels of a crop.
        off_center: share of the crops that lie anywhere in the image.
        jitter: pixels; standard deviation of the distance of the other ones from the heart's center, along each axis.
        mirror: chance of mirroring each axis, and of exchanging them.
        rotation: largest angle in degrees.
        zoom: standard deviation of the logarithm of the magnification.
        elastic: pixels; standard deviation of a smooth deformation at control points 32 pixels apart.
        alone: share of the slices that see copies of themselves for neighbors, as a single slice does.
        unpaired: share of the slices that see themselves beside, as a frame by itself does.
        gamma: standard deviation of the logarithm of a gamma curve.
        gain: standard deviation of the logarithm of a factor of all intensities.
        offset: standard deviation of a constant added to all.
        bias: standard deviation of the logarithm of a smooth factor at control points 72 pixels apart.
        blur: largest share of a slice that is replaced by it blurred; up to half of that is added for sharpening.
        noise: largest standard deviation of noise, in half of the slices.
    """

    def __init__(
        self,
        size: Sequence[int] = (144, 144),
        off_center: float = 0.25,
        jitter: float = 16.0,
        mirror: float = 0.3,
        rotation: float = 30.0,
        zoom: float = 0.2,
        elastic: float = 2.0,
        alone: float = 0.15,
        unpaired: float = 0.3,
        gamma: float = 0.3,
        gain: float = 0.2,
        offset: float = 0.05,
        bias: float = 0.25,
        blur: float = 1.0,
        noise: float = 0.08,
    ) -> None:
        self.size = tuple(size)
        self.off_center, self.jitter, self.mirror = off_center, jitter, mirror
        self.rotation, self.zoom, self.elastic = rotation, zoom, elastic
        self.alone, self.unpaired = alone, unpaired
        self.gamma, self.gain, self.offset, self.bias = gamma, gain, offset, bias
        self.blur, self.noise = blur, noise

    def __call__(self, image: Tensor, label: Tensor, center: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (B, AROUND * phases, *size) and their labels (B, 1, *size), as `LabeledSlices` gives what they are made of."""
        grid = self.draw_grid(image, center, extent)
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        label = F.grid_sample(label.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
        return self.change_intensities(self.exchange_neighbors(image)), label.to(torch.uint8)

    def draw_grid(self, image: Tensor, center: Tensor, extent: Tensor) -> Tensor:
        """Where to sample (B, C, X, Y) for the crops, (B, *size, 2) in `grid_sample`'s coordinates."""
        batch, device = len(image), image.device
        whole = torch.tensor(image.shape[2:], device=device, dtype=torch.float32)
        near = center + torch.randn(batch, 2, device=device) * self.jitter
        anywhere = whole / 2 + (torch.rand(batch, 2, device=device) - 0.5) * extent
        center = torch.where(torch.rand(batch, 1, device=device) < self.off_center, anywhere, near)
        angle = torch.empty(batch, device=device).uniform_(-self.rotation, self.rotation).deg2rad()
        scale = torch.exp(-self.zoom * torch.randn(batch, device=device))
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(batch, 2, 2)
        signs = 1 - 2 * (torch.rand(batch, 1, 2, device=device) < self.mirror).float()
        exchanged = torch.rand(batch, 1, 1, device=device) < self.mirror
        matrix = turn * signs * scale.view(batch, 1, 1)
        matrix = torch.where(exchanged, matrix.flip(2), matrix)
        points = torch.stack(
            torch.meshgrid(*(torch.arange(n, device=device) - (n - 1) / 2 for n in self.size), indexing="ij"), dim=-1
        )
        places = torch.einsum("bij,xyj->bxyi", matrix, points) + center.view(batch, 1, 1, 2)
        places = places + self.elastic * _smooth_noise(batch, 2, self.size, 32.0, device).movedim(1, -1)
        return (2 * (places + 0.5) / whole - 1).flip(-1)

    def exchange_neighbors(self, image: Tensor) -> Tensor:
        """Stacks run from base to apex or from apex to base, and some slices or frames are alone."""
        batch = len(image)
        turned = torch.rand(batch, 1, 1, 1, device=image.device) < 0.5
        alone = torch.rand(batch, 1, 1, 1, device=image.device) < self.alone
        unpaired = torch.rand(batch, 1, 1, 1, 1, device=image.device) < self.unpaired
        phases = image.unflatten(1, (-1, AROUND))
        phases = torch.where(turned[..., None], phases.flip(2), phases)
        phases = torch.where(alone[..., None], phases[:, :, 1:2], phases)
        return torch.where(unpaired, phases[:, :1], phases).flatten(1, 2)

    def change_intensities(self, image: Tensor) -> Tensor:
        """Contrast, coil profile, sharpness and noise of slices (B, C, X, Y), each with its neighbors and its other phase alike."""
        batch, device = len(image), image.device

        def each(draw: Callable[..., Tensor] = torch.randn) -> Tensor:
            return draw(batch, 1, 1, 1, device=device)

        image = image.clamp(min=0) ** torch.exp(self.gamma * each())
        image = image * torch.exp(self.gain * each() + self.bias * _smooth_noise(batch, 1, self.size, 72.0, device))
        image = image + self.blur * (1.5 * each(torch.rand) - 0.5) * (_blur(image) - image)
        noise = self.noise * (2 * each(torch.rand) - 1).clamp(min=0)
        image = image + self.offset * each() + noise * torch.randn_like(image)
        return image.clamp(0, BRIGHTEST)


def _smooth_noise(batch: int, channels: int, size: Sequence[int], spacing: float, device: torch.device) -> Tensor:
    """Noise (B, C, *size), standard normal at control points `spacing` pixels apart and cubic between them."""
    points = [max(round(n / spacing), 1) + 1 for n in size]
    noise = torch.randn(batch, channels, *points, device=device)
    return F.interpolate(noise, size=tuple(size), mode="bicubic", align_corners=True)


def _blur(image: Tensor) -> Tensor:
    """Images (B, C, X, Y) averaged twice over 3 x 3 pixels, which is nearly a Gaussian of 1.15 pixels, and fast."""
    for _ in range(2):
        image = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    return image
