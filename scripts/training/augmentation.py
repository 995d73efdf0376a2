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

"""Random augmentation of a batch of pairs, on its device."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from monai.transforms import Transform
from scripts.registration.fields import to_slices, to_stack
from scripts.registration.pairs import exchange, halves, intensities
from torch import Tensor
from torch.nn import functional as F


class RandomPairAugmentation(Transform):
    """Augments a batch of pairs (B, 2 C, *spatial) at once (`pairs`), on its device; both images of a pair alike, and its
    labels and maps as its images, but for intensities. The slices of a stack (3-D) are turned, magnified,
    deformed and cropped alike.

    Args:
        size: in-plane size of a random crop, for each pair its own; None takes all.
        swap: whether to exchange moving and fixed in half of the pairs, so that the network learns both directions.
        flip: whether to flip half of the pairs along each axis and to rotate the batch by a random multiple of 90
            degrees.
        gamma: standard deviation of the logarithm of a gamma curve, one a pair, applied to intensities in [0, 1]; 0 is
            none.
        rotation: largest angle in degrees of a random rotation, one a pair, in-plane; 0 is none.
        zoom: standard deviation of the logarithm of a random magnification, one a pair, in-plane; 0 is none.
        elastic: standard deviation in pixels of a smooth random deformation, one a pair, in-plane; 0 is none.
        elastic_spacing: pixels between its control points; folds begin where `elastic` comes near a third of it.
        drop_maps: chance that the maps beside a pair's intensities are 0, so that a network does without them, too.
    """

    def __init__(
        self,
        size: Sequence[int] | None = None,
        swap: bool = True,
        flip: bool = True,
        gamma: float = 0.2,
        rotation: float = 0.0,
        zoom: float = 0.0,
        elastic: float = 0.0,
        elastic_spacing: float = 32.0,
        drop_maps: float = 0.0,
    ) -> None:
        self.size = size
        self.swap = swap
        self.flip = flip
        self.gamma = gamma
        self.rotation = rotation
        self.zoom = zoom
        self.elastic = elastic
        self.elastic_spacing = elastic_spacing
        self.drop_maps = drop_maps

    def __call__(self, pair: Tensor, label: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The augmented pair; with labels (B, 2, *spatial) of its images, of an integer type, the pair and its
        labels."""
        batch, axes, device = pair.shape[0], pair.ndim - 2, pair.device
        images = self._deformed([pair] if label is None else [pair, label])

        def each(values):
            return values.view(-1, *[1] * (axes + 1))

        def half():
            return each(torch.rand(batch, device=device) < 0.5)

        if self.size is not None:
            starts = [
                torch.randint(old - new + 1, (batch, 1), device=device) for old, new in zip(pair.shape[2:], self.size)
            ]
            images = [crop_each(image, starts, self.size) for image in images]
        if self.flip:
            if images[0].shape[2] == images[0].shape[3]:
                turns = random.randrange(4)
                images = [torch.rot90(image, turns, (2, 3)) for image in images]
            for axis in range(axes):
                chosen = half()
                images = [torch.where(chosen, image.flip(axis + 2), image) for image in images]
        if self.swap:
            chosen = half()
            images = [torch.where(chosen, exchange(image), image) for image in images]
        if self.gamma:
            curved = intensities(images[0]).clamp(0, 1) ** each(
                torch.exp(torch.randn(batch, device=device) * self.gamma)
            )
            images[0] = _with_intensities(images[0], curved)
        if self.drop_maps and images[0].shape[1] > 2:
            kept = each(torch.rand(batch, device=device) >= self.drop_maps)
            images[0] = _with_intensities(images[0] * kept, intensities(images[0]))
        return images[0] if label is None else (images[0], images[1])

    def _deformed(self, images: list[Tensor]) -> list[Tensor]:
        """A pair, and its labels if they are given, turned, magnified and deformed, all alike."""
        if not (self.rotation or self.zoom or self.elastic):
            return images
        pair = images[0]
        plane = pair if pair.ndim == 4 else pair[..., 0]
        angle = torch.deg2rad(torch.empty(len(pair), device=pair.device).uniform_(-self.rotation, self.rotation))
        grid = sampling_grid(plane, angle, torch.exp(torch.randn(len(pair), device=pair.device) * self.zoom))
        if self.elastic:
            grid = grid + smooth_noise(plane, self.elastic, self.elastic_spacing)
        if pair.ndim == 5:
            grid = grid.repeat_interleave(pair.shape[4], dim=0)
        return [to_stack(sample_slices(to_slices(image), grid), image) for image in images]


def _with_intensities(pair: Tensor, images: Tensor) -> Tensor:
    """A pair (B, 2 C, *spatial) with other intensities, (B, 2, *spatial), and its own maps."""
    if pair.shape == images.shape:
        return images
    (_, *moving), (_, *fixed) = (half.unbind(1) for half in halves(pair))
    return torch.stack([images[:, 0], *moving, images[:, 1], *fixed], dim=1)


def sampling_grid(pair: Tensor, angle: Tensor, zoom: Tensor) -> Tensor:
    """Where to sample (B, C, X, Y) to rotate each pair about the center by its angle (B,) in radians and to magnify it
    by its zoom (B,).

    Returns:
        (B, X, Y, 2) in `grid_sample`'s coordinates without aligned corners: y before x, -1 and 1 at the outer pixel
        edges.
    """
    height, width = pair.shape[2:]
    cos, sin, zero = torch.cos(angle) / zoom, torch.sin(angle) / zoom, torch.zeros_like(angle)
    # affine_grid's coordinates reach from -1 to 1 on each axis: hence the aspect ratio.
    rows = [
        torch.stack([cos, -sin * height / width, zero], dim=1),
        torch.stack([sin * width / height, cos, zero], dim=1),
    ]
    return F.affine_grid(torch.stack(rows, dim=1), list(pair.shape), align_corners=False)


def smooth_noise(pair: Tensor, deviation: float, spacing: float) -> Tensor:
    """A random displacement for each pair of (B, C, X, Y): normal at control points `spacing` pixels apart, cubic
    between them.

    Args:
        pair: gives shape, type and device.
        deviation: standard deviation at the control points, in pixels.
        spacing: pixels.

    Returns:
        (B, X, Y, 2) in the coordinates of `sampling_grid`.
    """
    height, width = pair.shape[2:]
    points = [max(round(n / spacing), 1) + 1 for n in (height, width)]
    noise = torch.randn(len(pair), 2, *points, device=pair.device, dtype=pair.dtype)
    noise = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)
    # Channel 0 of the grid is y; an axis of n pixels is 2 long.
    return torch.stack([noise[:, 1] * (2 * deviation / width), noise[:, 0] * (2 * deviation / height)], dim=-1)


def sample_slices(image: Tensor, grid: Tensor) -> Tensor:
    """(B, C, X, Y) at the points of a grid (`sampling_grid`), its border repeated; linear, nearest for labels of an
    integer type."""
    if image.is_floating_point():
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    sampled = F.grid_sample(image.to(grid.dtype), grid, mode="nearest", padding_mode="border", align_corners=False)
    return sampled.to(image.dtype)


def crop_each(image: Tensor, starts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """(B, C, *spatial) -> (B, C, *size): of each image the piece that starts at its own voxel, (B, 1) along each
    axis."""
    for axis, (start, new) in enumerate(zip(starts, size), start=2):
        index = start + torch.arange(new, device=start.device)
        shape = [len(image)] + [new if a == axis else 1 for a in range(1, image.ndim)]
        expanded = [*image.shape[:axis], new, *image.shape[axis + 1 :]]
        image = image.gather(axis, index.view(shape).expand(expanded))
    return image
