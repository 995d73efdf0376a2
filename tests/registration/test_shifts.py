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

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scripts.registration.depth import REACH, STEP
from scripts.registration.shifts import ShiftOverlap, Shifts, measure_shifts
from torch import nn

SIZE = (32, 48)  # two and three cells


class Still(nn.Module):
    """A network of slices that finds no motion."""

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(pair)


class Shift(nn.Module):
    """A network of slices that finds a shift by one pixel."""

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand_as(pair)


def cylinder(first: int, last: int, slices: int = 6, radius: float = 9.5) -> torch.Tensor:
    """Masks (1, X, Y, slices) of a structure in the slices from first to last."""
    x, y = np.meshgrid(np.arange(SIZE[0]) - 15.5, np.arange(SIZE[1]) - 20.5, indexing="ij")
    mask = np.zeros((1, *SIZE, slices), bool)
    mask[..., first : last + 1] = (np.hypot(x, y) < radius)[..., None]
    return torch.from_numpy(mask)


def measured(moving: torch.Tensor, fixed: torch.Tensor, network: nn.Module | None = None) -> Shifts:
    masks = torch.stack([moving, fixed])
    return measure_shifts(network or Still(), torch.zeros(2, *masks.shape[2:]), masks)


def along(value: float, slices: int = 6) -> torch.Tensor:
    field = torch.zeros(1, 3, 2, 3, slices)
    field[:, 2] = value
    return field


@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 2, 3])
def test_overlap_of_whole_shifts_is_dice_by_hand(shift: int) -> None:
    moving, fixed = cylinder(2, 4), cylinder(1, 3, radius=7.2)
    moved = np.zeros((*SIZE, 6))
    for z in range(6):
        if 0 <= z + shift < 6:
            moved[..., z] = moving[0, ..., z + shift]
    dice = 2 * (moved * fixed[0].numpy()).sum() / (moved.sum() + int(fixed.sum()))
    assert float(ShiftOverlap()(along(shift), measured(moving, fixed))) == pytest.approx(1 - dice, abs=1e-6)


def test_small_steps_to_the_better_slice_pay() -> None:
    shifts = measured(cylinder(2, 4), cylinder(1, 3))
    values = [float(ShiftOverlap()(along(step), shifts)) for step in np.linspace(0, 1, 6)]
    assert all(after < before - 0.02 for before, after in pairwise(values))
    assert values[-1] == pytest.approx(0, abs=1e-6)
    for start, sign in ((0.0, -1), (1.6, 1)):
        field = along(start).requires_grad_()
        ShiftOverlap()(field, shifts).backward()
        assert (sign * field.grad[0, 2] >= 0).all()
        assert (sign * field.grad[0, 2]).max() > 0


def test_each_cell_has_its_own_shift() -> None:
    left, right = cylinder(1, 3), cylinder(2, 4)
    half = torch.arange(SIZE[1]) < STEP
    shifts = measured(right, torch.where(half[:, None], left, right))
    field = along(0.0)
    field[:, 2, :, 0] = 1.0
    assert float(ShiftOverlap()(along(0.0), shifts)) > 0.05
    assert float(ShiftOverlap()(field, shifts)) == pytest.approx(0, abs=1e-6)


def test_beyond_its_reach_a_motion_counts_as_that_far() -> None:
    shifts = measured(cylinder(2, 4), cylinder(1, 3))
    for sign in (1, -1):
        far, farther = (float(ShiftOverlap()(along(sign * value), shifts)) for value in (REACH, REACH + 2.5))
        assert far == farther


def test_overlap_counts_what_both_images_have() -> None:
    both, none = torch.stack([cylinder(2, 4), cylinder(1, 3)]), torch.zeros(1, *SIZE, 6, dtype=torch.bool)
    one = measured(*both)
    two = measured(torch.cat([both[0], cylinder(0, 1)]), torch.cat([both[1], none]))
    assert float(ShiftOverlap()(along(0.5), one)) == pytest.approx(float(ShiftOverlap()(along(0.5), two)))
    field = along(0.5).requires_grad_()
    ShiftOverlap()(field, measured(none, none)).backward()
    assert not field.grad.any()


def test_overlap_is_that_after_the_step_in_plane() -> None:
    moving = cylinder(1, 3)
    fixed = moving.roll(-1, dims=1)
    assert float(ShiftOverlap()(along(0.0), measured(moving, fixed))) > 0.05
    assert float(ShiftOverlap()(along(0.0), measured(moving, fixed, Shift()))) == pytest.approx(0, abs=1e-5)


def test_sizes_that_are_no_whole_cells_gain_background() -> None:
    masks = torch.stack([cylinder(2, 4), cylinder(1, 3)])
    cut = masks[:, :, :-5, :-7]
    whole, padded = (measure_shifts(Still(), torch.zeros(2, *m.shape[2:]), m) for m in (masks, cut))
    for one, other in zip(whole, padded):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("axes", [(), (-3,), (-2, -1), (-1,)])
def test_mirrored_tables_are_those_of_mirrored_pairs(axes: tuple[int, ...]) -> None:
    masks = torch.stack([cylinder(2, 5), cylinder(1, 3, radius=7.2)])
    masks[0, :, :6] = False
    flipped = masks.flip(axes) if axes else masks
    for one, other in zip(measured(*masks).flip(axes), measured(*flipped)):
        torch.testing.assert_close(one, other)


def test_exchanged_axes_are_those_of_exchanged_pairs() -> None:
    masks = torch.stack([cylinder(2, 5), cylinder(1, 3, radius=7.2)])
    for one, other in zip(measured(*masks).transpose(), measured(*masks.transpose(-3, -2))):
        torch.testing.assert_close(one, other)
