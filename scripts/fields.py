"""Displacement fields as tensors (B, d, *spatial): voxels of the fixed grid, channel i along array axis i, pull convention
(moved(x) = moving(x + u(x))). Two and three dimensions are one function.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor
from torch.nn import functional as F


def warp(image: Tensor, field: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """The image pulled through a field: out(x) = image(x + u(x)), shape (B, C, *spatial), through MONAI's `Warp`.

    Args:
        image: (B, C, *spatial).
        field: (B, d, *spatial), voxels.
        mode: "bilinear" (linear in 3-D too), "nearest" for labels, or "bicubic" (2-D).
        padding_mode: what lies outside: "border", "zeros" or "reflection".
    """
    return Warp(mode=mode, padding_mode=padding_mode)(image.to(field.dtype), field)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The field whose warp is that of `first`, then that of `second`: u(x) = second(x) + first(x + second(x)).

    warp(warp(image, first), second) and warp(image, compose(first, second)) sample the same points; all (B, d, *spatial), voxels.
    """
    return second + warp(first, second)


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """The displacement of a stationary velocity field after unit time, by scaling and squaring (Arsigny et al., MICCAI 2006).

    Args:
        velocity: (B, d, *spatial), voxels per unit time.
        steps: number of squarings.
    """
    return DVF2DDF(num_steps=steps, padding_mode="border")(velocity)


def jacobian_determinant(field: Tensor) -> Tensor:
    """det(I + grad u) by central differences, one-sided at the border, shape (B, *spatial). Spacing cancels out.

    Raises:
        ValueError: where the number of channels is not the number of axes.
    """
    axes = field.ndim - 2
    if field.shape[1] != axes:
        raise ValueError(f"a field of {axes} axes has {axes} channels, got shape {tuple(field.shape)}.")
    columns = torch.gradient(field, dim=list(range(2, field.ndim)))
    jacobian = torch.stack(columns, dim=-1).movedim(1, -2)
    return torch.linalg.det(jacobian + torch.eye(axes, dtype=field.dtype, device=field.device))


def resize_field(field: Tensor, size: Sequence[int]) -> Tensor:
    """The same displacement on another grid over the same field of view, linearly interpolated, in voxels of the new grid.

    Grids share their outer voxel edges, as a resampling of the image by spacing does.

    Args:
        field: (B, d, *spatial), voxels.
        size: the new spatial shape.
    """
    old = field.shape[2:]
    if tuple(size) == tuple(old):
        return field
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(old)]
    resized = F.interpolate(field, size=tuple(size), mode=mode, align_corners=False)
    scale = resized.new_tensor([new / previous for new, previous in zip(size, old)])
    return resized * scale.view(-1, *[1] * len(old))
