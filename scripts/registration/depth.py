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

"""Registration of stacks in two steps: along the stack, from maps of the anatomy alone, then in-plane, slice by slice."""

from __future__ import annotations

import sys

import torch
from scripts.registration.fields import LinearWarp, integrate, resize_field, to_slices, to_stack
from scripts.registration.pairs import halves
from torch import Tensor, nn
from torch.nn import functional as F

CELL = 8  # pixels along each in-plane axis whose maps are averaged
STEP = 2 * CELL  # pixels along each in-plane axis for one velocity
REACH = 3  # slices; no motion along the stack is larger


def to_cells(maps: Tensor, cell: int = CELL) -> Tensor:
    """Averages of maps (B, C, X, Y, Z) over cells of so many pixels in-plane, (B, C, X / cell, Y / cell, Z)."""
    return F.avg_pool3d(maps, [cell, cell, 1])


class ThroughPlane(nn.Module):
    """Velocity along a stack from maps of both images, such as those of structures.

    Where structures end from slice to slice tells how the base of the heart moves, so that averages over cells of
    pixels do; a few 3x3x3 convolutions see them, with what is background. Exchanging the images turns the velocity's
    sign; without maps, with equal ones, or for a lone slice, it is 0.

    Args:
        maps: of each image.
        hidden: channels between.
        layers: convolutions before the last one, which starts at 0.
    """

    def __init__(self, maps: int = 3, hidden: int = 16, layers: int = 3) -> None:
        super().__init__()
        first = nn.Conv3d(2 * (maps + 1), hidden, 3, stride=(2, 2, 1), padding=1)
        blocks: list[nn.Module] = [first, nn.LeakyReLU(0.1)]
        for _ in range(layers - 1):
            blocks += [nn.Conv3d(hidden, hidden, 3, padding=1), nn.LeakyReLU(0.1)]
        self.body = nn.Sequential(*blocks)
        self.last = nn.Conv3d(hidden, 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.last.weight)
        self.reach = float(REACH)  # an export to TorchScript sees no global

    def forward(self, pair: Tensor) -> Tensor:
        """Cells of both images' maps (B, 2 * maps, x, y, Z) (`to_cells`), x and y even -> (B, 1, x / 2, y / 2, Z), up to REACH
        slices."""
        both = torch.cat(halves(pair))
        # What convolutions see beyond a stack's ends is no background, either.
        moving, fixed = torch.cat([both, 1 - both.sum(dim=1, keepdim=True)], dim=1).chunk(2)
        features = self.body(torch.cat([torch.cat([moving, fixed], dim=1), torch.cat([fixed, moving], dim=1)]))
        there, back = features.chunk(2)
        velocity = self.reach * torch.tanh(self.last(0.5 * (there - back)) / self.reach)
        return velocity if velocity.shape[-1] > 1 else 0.0 * velocity


class AlongStack(nn.Module):
    """The displacement of a velocity along a stack.

    Args:
        steps: squarings, see `fields.integrate`.
    """

    def __init__(self, steps: int = 7) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, velocity: Tensor) -> Tensor:
        """(B, 1, x, y, Z) in slices -> (B, 3, x, y, Z), whose first two components are 0."""
        return integrate(F.pad(velocity, [0] * 6 + [2, 0]), self.steps)


class DepthFirst(nn.Module):
    """Displacement of stacks: the moving image is first brought along the stack, then a network of slices registers what
    comes of it with the fixed one.

    At the base of the heart a slice of the fixed image may show what lies a slice or two farther on in the moving one.
    A field between slices of one number deforms what is not there. Each of the two networks is trained by itself.

    Args:
        in_plane: network of slices, intensities (B, 2, X, Y) -> (B, 2, X, Y) in pixels, a velocity or a displacement.
        through_plane: see `ThroughPlane`.
        integration: of what the network of slices gives, None where that is a displacement.
        slices_at_once: slices that it is given together, None for all.
    """

    def __init__(
        self,
        in_plane: nn.Module,
        through_plane: nn.Module,
        integration: nn.Module | None,
        slices_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.in_plane = in_plane
        self.through_plane = through_plane
        self.integration = integration
        self.along_stack = AlongStack()
        self.warp = LinearWarp()
        self._slices_at_once = slices_at_once or sys.maxsize

    def forward(self, pair: Tensor) -> Tensor:
        """(B, 2 + 2 * maps, X, Y, Z), X and Y divisible by STEP -> (B, 3, X, Y, Z), voxels of the fixed grid."""
        moving, fixed = halves(pair)
        maps = torch.cat([moving[:, 1:], fixed[:, 1:]], dim=1)
        along = self.along_stack(self.through_plane(to_cells(maps)).to(pair.dtype))
        along = resize_field(along, pair.shape[2:])
        slices = to_slices(torch.cat([self.warp(moving[:, :1], along), fixed[:, :1]], dim=1))
        slices = slices.contiguous(memory_format=torch.channels_last)
        parts = [self._register(part) for part in slices.split(min(self._slices_at_once, len(slices)))]
        within = F.pad(to_stack(torch.cat(parts), pair), [0] * 6 + [0, 1])
        return within + self.warp(along, within)  # as `compose`, by the warp above

    def _register(self, slices: Tensor) -> Tensor:
        """Displacement (N, 2, X, Y) of some slices (N, 2, X, Y)."""
        field = self.in_plane(slices).to(slices.dtype)
        return field if self.integration is None else self.integration(field)
