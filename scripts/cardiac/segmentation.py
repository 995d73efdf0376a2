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

"""Right ventricle, myocardium and left ventricle of short-axis slices, by a 2-D network that sees each slice between
its neighbors; a second one sees them at end diastole, too.

The network knows pixels of one size and intensities of one range; what it finds comes back to the image's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.nets import DynUNet
from monai.transforms import KeepLargestConnectedComponent
from numpy.typing import NDArray
from scipy import ndimage
from scripts.cardiac.cines import LABELS
from torch import Tensor
from torch.nn import functional as F

CLASSES = 4  # background, RV, myocardium and LV cavity, the values of a label map
WORKING_SPACING = 1.5  # mm
AROUND = 3  # channels of a phase: a slice between its neighbors
NEIGHBOR_MM = 10.0  # how far from a slice its neighbors lie, as nearly as its stack allows
BRIGHTEST = 1.5  # intensities are clipped there; 1 is the 99th percentile
ISLAND = 0.1  # share of the largest piece of a ventricle under which another one is none; chosen on `val` of ACDC


def make_network(features: Sequence[int] = (16, 32, 64, 128, 192), phases: int = 1) -> DynUNet:
    """MONAI's `DynUNet` for slices: (B, AROUND * phases, X, Y) -> logits (B, CLASSES, X, Y).

    Its first channels are a slice between its neighbors; with two phases the others are the same slices in another phase
    of the beat. X and Y are multiples of `stride_of` it. Its batch norms make a crop and a whole image the same to it.

    Args:
        features: channels of each level, the finest first.
        phases: 1, a frame by itself, or 2.
    """
    below = len(features) - 1
    return DynUNet(
        spatial_dims=2,
        in_channels=AROUND * phases,
        out_channels=CLASSES,
        kernel_size=[3] * len(features),
        strides=[1] + [2] * below,
        upsample_kernel_size=[2] * below,
        filters=list(features),
        norm_name=("batch", {"affine": True, "momentum": 0.05}),
    )


def stride_of(network: DynUNet) -> int:
    """Pixels of which the network's input needs multiples along both axes."""
    return int(np.prod(network.strides))


def normalize(stack: Tensor) -> Tensor:
    """A stack (X, Y, Z) with its 1st percentile at 0 and its 99th at 1, clipped to [0, BRIGHTEST]; 0 where it is
    constant.

    Its lowest value does not count, so that an image is scaled alike with padding and without.
    """
    values = stack.numpy()
    counted = values[values > values.min()]
    if not counted.size:
        return torch.zeros_like(stack)
    low, high = np.percentile(counted, (1, 99))
    if not high > low:
        low, high = values.min(), counted.max()
    return ((stack - float(low)) / float(high - low)).clamp(0, BRIGHTEST)


def resize(slices: Tensor, size: Sequence[int]) -> Tensor:
    """Slices (N, C, X, Y) on a grid of another size, linear, their outer pixel edges where they were."""
    if tuple(slices.shape[2:]) == tuple(size):
        return slices
    return F.interpolate(slices, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def prepare(stack: Tensor, spacing: Sequence[float], working_spacing: float = WORKING_SPACING) -> Tensor:
    """A stack (X, Y, Z) in any unit as normalized slices (Z, 1, X', Y').

    Args:
        stack: intensities.
        spacing: voxel size in mm along X, Y and Z.
        working_spacing: pixel size of the slices in mm, to half a pixel over the whole image.
    """
    slices = normalize(stack.float()).movedim(-1, 0)[:, None].contiguous()
    return resize(slices, [max(round(n * d / working_spacing), 1) for n, d in zip(stack.shape[:2], spacing)])


def neighbors(count: int, distance: float) -> Tensor:
    """Indices (2, Z) of the slices below and above each slice of a stack, about NEIGHBOR_MM away, or its ends.

    Args:
        count: of slices.
        distance: from slice to slice in mm.
    """
    step = max(round(NEIGHBOR_MM / distance), 1) if distance > 0 else 1
    index = torch.arange(count)
    return torch.stack([index - step, index + step]).clamp(0, max(count - 1, 0))


@torch.no_grad()
def segment_stack(
    network: DynUNet,
    stack: Tensor,
    spacing: Sequence[float],
    working_spacing: float = WORKING_SPACING,
    batch_size: int = 1,
    beside: Tensor | None = None,
) -> Tensor:
    """Probabilities (CLASSES, X, Y, Z) in each voxel of a stack, on the CPU; a blank slice is background.

    Args:
        network: as `make_network` makes it, in evaluation mode.
        stack: intensities (X, Y, Z) in any unit.
        spacing: voxel size in mm along X, Y and Z.
        working_spacing: pixel size of the network in mm.
        batch_size: slices at once; on a CPU one a time is fastest.
        beside: the same stack at end diastole, for a network that sees two phases; without one, it sees the stack twice.
    """
    phases = [stack, stack if beside is None else beside][: network.in_channels // AROUND]
    slices = torch.cat([prepare(one, spacing, working_spacing) for one in phases], dim=1)
    inside, pads = _pad_to(slices.shape[2:], stride_of(network))
    slices = F.pad(slices, pads).to(next(network.parameters()).device)
    below, above = neighbors(len(slices), float(spacing[2]))
    parts = []
    for chosen in torch.arange(len(slices)).split(batch_size):
        # (B, phase, AROUND, X, Y), in one axis.
        images = torch.stack([slices[below[chosen]], slices[chosen], slices[above[chosen]]], dim=2).flatten(1, 2)
        logits = network(images.contiguous(memory_format=torch.channels_last))[(..., *inside)]
        parts.append(resize(logits.float().softmax(dim=1).contiguous(), stack.shape[:2]).cpu())
    shares = torch.cat(parts).permute(1, 2, 3, 0)
    blank = stack.amax(dim=(0, 1)) == stack.amin(dim=(0, 1))
    background = torch.eye(CLASSES)[0].view(-1, 1, 1, 1)
    return torch.where(blank, background, shares)


def _pad_to(shape: Sequence[int], stride: int) -> tuple[tuple[slice, ...], list[int]]:
    """Where an image (X, Y) lies in one padded about it to multiples of a stride, and `F.pad`'s numbers."""
    first = [(-n % stride) // 2 for n in shape]
    inside = tuple(slice(start, start + n) for start, n in zip(first, shape))
    pads = [[start, -n % stride - start] for start, n in zip(first, shape)]
    return inside, [*pads[1], *pads[0]]


def keep_heart(labels: Tensor) -> Tensor:
    """A label map (X, Y, Z) with the largest connected component of all structures together, less pieces that are smaller
    than `ISLAND` of the largest one: of the RV, as fat beside the heart is taken for, and of myocardium by itself in a
    slice, less than that share of its left ventricle; faces connect voxels.

    By itself, what is taken for an RV elsewhere may be larger than the RV. Larger pieces are its own in slices between
    which it is missed. A speck beside the left ventricle may touch it in the next slice, where that is wider.
    """
    keep = KeepLargestConnectedComponent(applied_labels=range(1, CLASSES), independent=False, connectivity=1)
    heart = torch.as_tensor(keep(labels[None])[0])
    values = heart.numpy()
    small = _islands(values == LABELS["rv"])
    small |= np.stack([_specks(values[..., z]) for z in range(values.shape[2])], axis=-1)
    return heart.masked_fill(torch.from_numpy(small), 0)


def _islands(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pieces of a mask that are smaller than `ISLAND` of its largest one."""
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.flat)
    is_small = sizes < ISLAND * sizes[1:].max(initial=0)
    is_small[0] = False  # the background
    return is_small[pieces]


def _specks(slice_: NDArray) -> NDArray[np.bool_]:
    """Islands of the left ventricle in a slice (X, Y) that hold no cavity."""
    cavity = slice_ == LABELS["lv"]
    islands = _islands(cavity | (slice_ == LABELS["myo"]))
    return islands & ~ndimage.binary_propagation(cavity & islands, mask=islands)


@dataclass(frozen=True)
class Segmenter:
    """Labels of a frame, or of all frames of a cine, each by itself, on their own grid: 1 RV, 2 myocardium, 3 LV.

    A contracted frame is labeled better beside end diastole, see `phases.find_contours`.
    """

    # With its weights, see `make_network`; it sees a frame by itself.
    network: DynUNet
    # One that sees two phases, for a frame beside another one.
    paired: DynUNet | None = None
    # Pixel size in mm that it was trained with.
    working_spacing: float = WORKING_SPACING

    @property
    def sees_beside(self) -> bool:
        """Whether end diastole beside a frame makes a difference."""
        return self.paired is not None

    def probabilities(
        self, image: NDArray, spacing: Sequence[float], beside: NDArray | None = None
    ) -> NDArray[np.float32]:
        """Of background, RV, myocardium and LV, (CLASSES, X, Y, Z), in a frame (X, Y, Z) with voxels in mm, by itself or
        beside the frame of end diastole."""
        network, stacks = self.network, [image]
        if beside is not None and self.paired is not None:
            network, stacks = self.paired, [image, beside]
        stack, *others = (torch.from_numpy(np.ascontiguousarray(one, np.float32)) for one in stacks)
        return segment_stack(network.eval(), stack, spacing, self.working_spacing, 1, *others).numpy()

    def __call__(self, image: NDArray, spacing: Sequence[float], beside: NDArray | None = None) -> NDArray[np.uint8]:
        """The label map of a frame (X, Y, Z) or of a cine (X, Y, Z, T), in its shape.

        Args:
            image: intensities in any unit; a frame is labeled alike alone and in a cine.
            spacing: voxel size in mm along X, Y and Z, gaps between slices included.
            beside: of a frame, as `probabilities` takes it.

        Raises:
            ValueError: for an image of other axes.
        """
        if image.ndim == 4:
            return np.stack([self(image[..., t], spacing) for t in range(image.shape[3])], axis=-1)
        if image.ndim != 3:
            raise ValueError(f"a frame is (X, Y, Z) and a cine (X, Y, Z, T), got {image.shape}.")
        labels = torch.from_numpy(self.probabilities(image, spacing, beside)).argmax(dim=0)
        return keep_heart(labels).numpy().astype(np.uint8)
