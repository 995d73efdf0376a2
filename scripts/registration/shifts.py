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

"""How well stacks overlap after each shift by whole slices, once for all: what a motion along the stack learns from.

A linear interpolation between slices 10 mm apart blurs masks, so that each small step along the stack costs overlap,
whichever way it leads, and training stays where it began. Errors of whole slices, each registered for itself, do not
blur, and steps toward the better slice pay from the first on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scripts.registration.depth import REACH, STEP
from scripts.registration.fields import LinearWarp, integrate
from torch import Tensor, nn
from torch.nn import functional as F


class Shifts(NamedTuple):
    """Structures of a pair after the moving image was shifted by whole slices and registered in-plane, as volumes in
    voxels of cells of STEP pixels in-plane.

    Of S structures, and of n = 2 * REACH + 1 shifts from -REACH on: what lies so many slices farther on in the moving stack
    comes to each slice; what comes from beyond its ends has no structure.
    """

    error: Tensor
    """(B, n, S, x, y, Z), where exactly one of both images has a structure."""
    moved: Tensor
    """(B, n, S, x, y, Z), of the moving image."""
    fixed: Tensor
    """(B, S, x, y, Z), of the fixed image."""

    def flip(self, axes: tuple[int, ...]) -> Shifts:
        """The pair mirrored along some of the axes -3, -2 and -1, x, y and Z; along Z shifts turn round."""
        error, moved, fixed = (table.flip(axes) if axes else table for table in self)
        return Shifts(error.flip(1), moved.flip(1), fixed) if -1 in axes else Shifts(error, moved, fixed)

    def transpose(self) -> Shifts:
        """The pair with its in-plane axes exchanged."""
        return Shifts(*(table.transpose(-3, -2) for table in self))


@torch.no_grad()
def measure_shifts(in_plane: nn.Module, pair: Tensor, masks: Tensor) -> Shifts:
    """What each whole shift does to a pair.

    Args:
        in_plane: network of slices, intensities (B, 2, X, Y) -> velocity (B, 2, X, Y) in pixels.
        pair: intensities (2, X, Y, Z) of the moving and the fixed image.
        masks: of their structures (2, S, X, Y, Z), 0 and 1.

    Returns:
        Tables of a batch of one; where X or Y is no multiple of STEP, background follows.
    """
    size = pair.shape[1:3]
    pads = [0, 0, 0, -size[1] % STEP, 0, -size[0] % STEP]
    pair, (moving, fixed) = F.pad(pair, pads), F.pad(masks.to(pair), pads)
    depth, warp = pair.shape[-1], LinearWarp()
    errors, volumes = [], []
    for shift in range(-REACH, REACH + 1):
        number = torch.arange(depth, device=pair.device) + shift
        inside = (number >= 0) & (number < depth)
        number = number.clamp(0, depth - 1)
        moved = moving[..., number] * inside
        # Elsewhere there is nothing to register.
        held = moved.flatten(0, 2).any(dim=0)
        if held.any():
            slices = torch.stack([pair[0][..., number], pair[1]])[..., held].movedim(-1, 0)
            field = integrate(in_plane(slices.contiguous(memory_format=torch.channels_last)).to(pair.dtype))
            moved[..., held] = warp(moved[..., held].movedim(-1, 0), field).movedim(0, -1)
        errors.append(_sum_in_cells((moved - fixed).abs()))
        volumes.append(_sum_in_cells(moved))
    return Shifts(torch.stack(errors)[None], torch.stack(volumes)[None], _sum_in_cells(fixed)[None])


def _sum_in_cells(maps: Tensor) -> Tensor:
    """Sums of maps (S, X, Y, Z) over cells of STEP pixels in-plane, (S, X / STEP, Y / STEP, Z)."""
    return STEP**2 * F.avg_pool3d(maps[None], (STEP, STEP, 1))[0]


class ShiftOverlap(nn.Module):
    """1 - Dice of the structures of stacks for a motion along the stack, from tables of whole shifts (`measure_shifts`).

    A point between two slices has the errors of both, by its distance to them. What is moved farther than REACH counts
    as moved so far.
    """

    def forward(self, field: Tensor, shifts: Shifts) -> Tensor:
        """A scalar, the mean over structures that both images have.

        Args:
            field: (B, 3, x, y, Z), whose component along the stack counts, in slices, one number a cell.
            shifts: tables of the same pairs.
        """
        with torch.autocast(field.device.type, enabled=False):
            along = field[:, 2].to(shifts.fixed.dtype).clamp(-REACH, REACH)
            nearest = along.detach().round()
            rest = along - nearest
            # Not the absolute value of the rest, which has no gradient at 0, where training begins.
            sign = torch.where(rest < 0, -1.0, 1.0)
            error = moved = torch.zeros_like(shifts.fixed)
            for steps, share in ((nearest, 1 - sign * rest), (nearest + sign, sign * rest)):
                number = (steps.long() + REACH).clamp(0, 2 * REACH)
                number = number[:, None, None].expand(-1, 1, shifts.fixed.shape[1], -1, -1, -1)
                share = share.unsqueeze(1)
                error = error + share * shifts.error.gather(1, number)[:, 0]
                moved = moved + share * shifts.moved.gather(1, number)[:, 0]
            axes = (2, 3, 4)
            unmoved = shifts.moved[:, REACH].sum(axes)
            there = ((unmoved > 0) & (shifts.fixed.sum(axes) > 0)).to(along)
            loss = error.sum(axes) / (moved.sum(axes) + shifts.fixed.sum(axes)).clamp(min=1.0)
            return (there * loss).sum() / there.sum().clamp(min=1.0)
