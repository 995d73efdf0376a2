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

"""The two questions that training asks a displacement field: does it align, and is it smooth. Both answer in fp32 or
better."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scripts.errors import InputError
from scripts.registration.fields import LinearWarp, beyond_stack
from scripts.registration.pairs import exchange, intensities
from torch import Tensor, nn


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or as it is where it has that precision or more."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


class WarpedSimilarity(nn.Module):
    """Dissimilarity of the moved and the fixed image, for a field and the pair it registers; with labels, of their
    structures as well.

    What a field brings from beyond the ends of a stack was never seen (`_known`, `_known_structures`).

    Args:
        similarity: a loss of (moved, fixed), both (B, 1, *spatial): `torch.nn.MSELoss`, or MONAI's
            `LocalNormalizedCrossCorrelationLoss` (LNCC).
        warp: a block of (image, field), pull convention, voxels; default is `fields.LinearWarp`. MONAI's `Warp` does,
            too.
        structures: values of the label maps that are structures.
    """

    def __init__(
        self, similarity: nn.Module, warp: nn.Module | None = None, structures: Sequence[int] = (1, 2, 3)
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.warp = warp or LinearWarp()
        self.structures = structures

    def forward(self, field: Tensor, target: Tensor | tuple[Tensor, Tensor], valid: Tensor | None = None) -> Tensor:
        """A scalar.

        Args:
            field: (B, d, *spatial), displacement in voxels of the fixed grid, moved(x) = moving(x + u(x)); or (2 B, …),
                whose second half brings the fixed images onto the moving ones (`RefiningInferer`).
            target: (B, 2 C, *spatial), moving and fixed image (`pairs`), whose intensities count; or these and their
                label maps (B, 2, *spatial).
            valid: (B, 1, *spatial), 1 where both images hold a measurement, else 0: intensities elsewhere, and those
                that the field brings from there, are not compared. None is everywhere.
        """
        pair, label = (target, None) if isinstance(target, Tensor) else target
        if len(field) == 2 * len(pair):
            pair = torch.cat([pair, exchange(pair)])
            label = None if label is None else torch.cat([label, label.flip(1)])
        # LNCC divides by variances that half precision rounds to zero.
        with torch.autocast(field.device.type, enabled=False):
            pair, field = full_precision(intensities(pair)), full_precision(field)
            beyond = beyond_stack(field).unsqueeze(1) if field.shape[1] == 3 else None
            hidden = beyond if valid is None else self._hidden(valid.to(pair), field, beyond)
            if label is None:
                return self.similarity(_known(self.warp(pair[:, :1], field), pair[:, 1:], hidden), pair[:, 1:])
            moving, fixed = (
                torch.cat([label[:, i : i + 1] == value for value in self.structures], dim=1).to(pair) for i in (0, 1)
            )
            moved = self.warp(torch.cat([pair[:, :1], moving], dim=1), field)
            image, structures = (
                _known(moved[:, :1], pair[:, 1:], hidden),
                _known_structures(moved[:, 1:], fixed, beyond),
            )
            return self.similarity(image, pair[:, 1:]) + _structure_error(structures, moving, fixed)

    def _hidden(self, valid: Tensor, field: Tensor, beyond: Tensor | None) -> Tensor:
        """Above 0 where the fixed image, or what a field brings there, is not valid or from beyond the stack."""
        valid = valid.repeat(len(field) // len(valid), *[1] * (valid.ndim - 1))
        with torch.no_grad():
            # What is sampled between voxels of which one is not valid is not valid; sums of weights are 1 but for rounding.
            missing = (valid * self.warp(valid, field) < 0.999).to(field)
        return missing if beyond is None else torch.maximum(missing, beyond)


def _known(moved: Tensor, fixed: Tensor, hidden: Tensor | None) -> Tensor:
    """Moved images, and the fixed ones where `hidden` is above 0: they come from where nothing was seen, such as
    beyond the ends of a stack (`fields.beyond_stack`), and nothing is learned there."""
    return moved if hidden is None else torch.where(hidden > 0, fixed, moved)


def _known_structures(moved: Tensor, fixed: Tensor, beyond: Tensor | None) -> Tensor:
    """Moved masks; beyond the ends of a stack they fade within a slice where the fixed image has no such structure, and
    are taken for the fixed ones where it has.

    So a base that has left the first slice may leave the stack, but nothing else is gained by leaving it.
    """
    if beyond is None:
        return moved
    return torch.where((beyond > 0) & (fixed > 0), fixed, moved * (1 - beyond).clamp(min=0.0))


def _structure_error(moved: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
    """Squared error of moved masks, summed over structures, mean over voxels and batch: images whose values are 0 and
    1.

    A structure that one image of a pair lacks, as slices at the base of the heart often do at end systole, has nowhere
    to go and is left out. In a stack it can come from the next slice, and counts.

    Args:
        moved: (B, structures, *spatial), the moving masks after the warp.
        moving: the same before it, 0 and 1.
        fixed: masks of the fixed image.
    """
    axes = tuple(range(2, moved.ndim))
    there = moving.amax(axes, keepdim=True) * fixed.amax(axes, keepdim=True)
    return ((moved - fixed).square() * there).sum(dim=1).mean()


class SmoothnessLoss(nn.Module):
    """Mean magnitude of the forward differences of a displacement field, averaged over the axes.

    With unit spacing and the l1 norm this is the published constraint (Dou et al., MICCAI 2023). It is 0 for a
    translation.

    Args:
        norm: "l1" (mean absolute difference) or "l2" (mean squared difference).
        spacing: voxel size along each axis, in any one unit; components and differences are then in that unit. None is
            isotropic.
        free_shifts: whether each slice of a stack may shift in-plane as a whole for nothing, as between two breath-holds.
        slack: how large a difference may be for nothing, in voxels per voxel, with a spacing in mm per mm. It lets motion
            begin at no cost. Where a component differs by -1 along its own axis the field folds.

    Raises:
        InputError: for a slack below 0.
        ValueError: for another norm, or a spacing that does not fit the field.
    """

    def __init__(
        self, norm: str = "l1", spacing: Sequence[float] | None = None, free_shifts: bool = False, slack: float = 0.0
    ) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm is 'l1' or 'l2', got {norm!r}.")
        if not isinstance(slack, (int, float)) or not slack >= 0:
            raise InputError(f"slack is a number from 0 on, got {slack!r}.")
        self.norm = norm
        self.spacing = spacing
        self.free_shifts = free_shifts
        self.slack = slack

    def magnitude(self, values: Tensor) -> Tensor:
        sizes = values.abs()
        if self.slack:
            sizes = (sizes - self.slack).clamp(min=0)
        return sizes.mean() if self.norm == "l1" else sizes.square().mean()

    def forward(self, field: Tensor, spacing: Tensor | None = None) -> Tensor:
        """A scalar, for a field (B, d, *spatial) in voxels with channel i along array axis i.

        Args:
            field: voxels.
            spacing: (B, d), of each item; instead of the one that all share.
        """
        axes = field.ndim - 2
        sizes = self.spacing if spacing is None else spacing.T
        if field.shape[1] != axes or (sizes is not None and len(sizes) != axes):
            raise ValueError(f"a field of {axes} axes has {axes} channels and spacings: {tuple(field.shape)}, {sizes}.")
        with torch.autocast(field.device.type, enabled=False):
            field = full_precision(field)
            if spacing is not None:
                sizes = [size.to(field).view(-1, *[1] * axes) for size in sizes]
            if sizes is not None:
                # Not by a tensor of the spacing, whose copy to the device would wait for it.
                field = torch.stack([field[:, axis] * size for axis, size in enumerate(sizes)], dim=1)
            terms = []
            for axis in range(axes):
                difference = field.diff(dim=axis + 2)
                if axis == 2 and self.free_shifts:
                    shift = difference[:, :2].mean(dim=(2, 3), keepdim=True)
                    difference = torch.cat([difference[:, :2] - shift, difference[:, 2:]], dim=1)
                if difference.numel() == 0:
                    difference = torch.zeros_like(field)  # a stack of one slice
                if sizes is not None:
                    size = sizes[axis]
                    difference = difference / (size.unsqueeze(1) if isinstance(size, Tensor) else size)
                terms.append(self.magnitude(difference))
            return torch.stack(terms).mean()


class StretchLoss(nn.Module):
    """How far a stack is stretched or compressed along its axis beyond a factor, mean over pairs of neighboring slices.

    What lies between two slices of the fixed image is s = 1 + du/dz times as thick in the moving one, z and u in slices.
    The loss is what s lacks to 1 / bound, or exceeds bound by. It is 0 for shifts and for every stretch within, so that
    motion can begin at no cost; differences of u, as in `SmoothnessLoss`, cost with any motion but a shift. Beyond the
    bound, also where slices change places (s < 0), its gradient has one size and does not vanish.

    Args:
        bound: the factor, above 1. Muscle keeps its volume: where it grows by 40 % in-plane it is 1.4 times as short.

    Raises:
        InputError: for a bound that is not above 1.
        ValueError: for a field that is not one of stacks.
    """

    def __init__(self, bound: float = 2.0) -> None:
        super().__init__()
        if not isinstance(bound, (int, float)) or not bound > 1:
            raise InputError(f"bound is a number above 1, got {bound!r}.")
        self.bound = bound

    def forward(self, field: Tensor, spacing: Tensor | None = None) -> Tensor:
        """A scalar, 0 for a lone slice.

        Args:
            field: (B, 3, X, Y, Z), voxels, whose last component counts, along the last axis.
            spacing: of no effect, since both images have slices of one thickness.
        """
        if field.ndim != 5 or field.shape[1] != 3:
            raise ValueError(f"a field of stacks is (B, 3, X, Y, Z), got {tuple(field.shape)}.")
        if field.shape[-1] == 1:
            return 0.0 * field.sum()
        with torch.autocast(field.device.type, enabled=False):
            stretch = 1 + full_precision(field[:, 2]).diff(dim=-1)
            return ((stretch - self.bound).clamp(min=0) + (1 / self.bound - stretch).clamp(min=0)).mean()
