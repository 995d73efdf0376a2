"""Right ventricle, myocardium and left ventricle of short-axis slices, by a 2-D network that sees a slice between its
neighbors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import KeepLargestConnectedComponent
from torch import Tensor, nn
from torch.nn import functional as F

STRUCTURES = (1, 2, 3)
NEIGHBOR_MM = 10.0
"""How far the neighbors lie that a network sees beside a slice, as near as the stack's slices allow."""
BRIGHTEST = 1.5
"""Intensities are clipped there; 1 is the 99th percentile."""


def normalize(stack: Tensor) -> Tensor:
    """A stack (X, Y, Z) with its 1st percentile at 0 and its 99th at 1, clipped to [0, BRIGHTEST]; 0 where it is
    constant.

    The darkest voxels do not count, so that a padded image is scaled as it was before.
    """
    values = stack.numpy()
    inside = values[values > values.min()]
    if inside.size == 0:
        return torch.zeros_like(stack)
    low, high = np.percentile(inside, (1, 99))
    if not high > low:
        low, high = values.min(), inside.max()
    return ((stack - float(low)) / float(high - low)).clamp(0, BRIGHTEST)


def working_size(shape: Sequence[int], spacing: Sequence[float], working: float) -> tuple[int, int]:
    """In-plane size in pixels of `working` mm of an image of this shape and spacing (mm)."""
    x, y = (max(round(n * length / working), 1) for n, length in zip(shape[:2], spacing))
    return x, y


def resize(slices: Tensor, size: Sequence[int]) -> Tensor:
    """Slices (N, C, X, Y) on a grid of another size, their outer pixel edges where they were; linear."""
    if tuple(slices.shape[2:]) == tuple(size):
        return slices
    return F.interpolate(slices, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def neighbors(count: int, distance: float) -> tuple[Tensor, Tensor]:
    """Indices (Z,) of the slices below and above each slice of a stack, about NEIGHBOR_MM away; at its ends the last
    ones.

    Args:
        count: of slices.
        distance: from slice to slice in mm.
    """
    step = max(round(NEIGHBOR_MM / distance), 1) if distance > 0 else 1
    index = torch.arange(count)
    return (index - step).clamp(min=0), (index + step).clamp(max=count - 1)


def prepare(stack: Tensor, spacing: Sequence[float], working: float) -> Tensor:
    """A stack (X, Y, Z) of any intensities as slices (Z, 1, X', Y') of pixels of `working` mm, normalized."""
    slices = normalize(stack.float()).movedim(-1, 0)[:, None].contiguous()
    return resize(slices, working_size(stack.shape, spacing, working))


def pad_to_multiple(slices: Tensor, stride: int) -> tuple[Tensor, tuple[slice, slice]]:
    """Slices (N, C, X, Y) padded with zeros on all sides to multiples of a stride, and where they lie in it."""
    gaps = [-n % stride for n in slices.shape[2:]]
    (left, right), (top, bottom) = ((gap // 2, gap - gap // 2) for gap in gaps)
    inside = slice(left, left + slices.shape[2]), slice(top, top + slices.shape[3])
    return F.pad(slices, (top, bottom, left, right)), inside


@torch.inference_mode()
def probabilities(
    network: nn.Module,
    stack: Tensor,
    spacing: Sequence[float],
    working: float = 1.5,
    stride: int = 16,
    batch_size: int = 4,
) -> Tensor:
    """Probabilities (4, X, Y, Z) of background, RV, myocardium and LV in each voxel of a stack.

    Args:
        network: (B, 3, X', Y') a slice between its lower and its upper neighbor -> (B, 4, X', Y') logits.
        stack: (X, Y, Z) intensities.
        spacing: voxel size in mm along X, Y and Z.
        working: mm; pixels of the network.
        stride: of which the network's input has a multiple.
        batch_size: slices at once.
    """
    device = next(network.parameters()).device
    slices, inside = pad_to_multiple(prepare(stack, spacing, working), stride)
    slices = slices[:, 0].to(device)
    below, above = neighbors(len(slices), float(spacing[2]))
    parts = []
    for chosen in torch.arange(len(slices)).split(batch_size):
        images = torch.stack([slices[below[chosen]], slices[chosen], slices[above[chosen]]], dim=1)
        logits = network(images.contiguous(memory_format=torch.channels_last)).float()
        shares = logits[:, :, inside[0], inside[1]].softmax(dim=1)
        parts.append(resize(shares.contiguous(), stack.shape[:2]).cpu())
    return torch.cat(parts).permute(1, 2, 3, 0)


def keep_largest(labels: Tensor) -> Tensor:
    """Labels (X, Y, Z) with the largest connected component of each structure alone."""
    keep = KeepLargestConnectedComponent(applied_labels=STRUCTURES, independent=True, connectivity=1)
    return keep(labels[None])[0]
