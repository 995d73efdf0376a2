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

"""Stacks that are registered along their axis, by the shipped weights: few slices and many, far apart, shifted by
breath-holds; against ITK, by what is written, and against the phantom's exact field."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti
from itk_files import itk_moved
from numpy.typing import NDArray
from scripts.api import register
from scripts.cardiac.phantom import Phantom


def descending(slices: int, spacing: float, size: int = 48) -> Phantom:
    """A heart whose base descends by a fifth of its axis, in a field of view of 120 mm."""
    pixels = (120 / size, 120 / size, spacing)
    return Phantom.random(1, size=(size, size), slices=slices, frames=3, spacing=pixels, shortening=0.2)


@pytest.mark.parametrize(("slices", "spacing"), [(1, 8.0), (20, 8.0), (8, 17.0)], ids=["one", "many", "far apart"])
def test_itk_moves_a_stack_as_the_registration_does(slices: int, spacing: float, tmp_path: Path) -> None:
    heart = descending(slices, spacing)
    moving, fixed = (
        write_nifti(tmp_path / f"{name}.nii.gz", heart.image(frame).astype(np.float32), heart.affine)
        for name, frame in (("moving", heart.end_systole), ("fixed", 1))
    )
    found = register(moving, fixed, device="cpu", output_dir=tmp_path / "out", write="fields,moved")
    (path,) = (tmp_path / "out").rglob("field.nii.gz")
    ours = nib.load(path.with_name("moved.nii.gz")).get_fdata()
    # Motion along every axis, or another axis or unit would not show.
    field = found.voxels.fields[0]
    assert field.shape == (2 if slices == 1 else 3, 48, 48, slices)
    assert np.abs(field).max(axis=(1, 2, 3)).min() > 1
    led = np.stack(np.meshgrid(*map(np.arange, field.shape[1:]), indexing="ij"))[: len(field)] + field
    last = np.array(field.shape[1:])[: len(field)].reshape(-1, 1, 1, 1) - 1
    inside = ((led >= -0.49) & (led <= last + 0.49)).all(axis=0)
    assert inside.mean() > 0.5
    for theirs in itk_moved(path, moving, fixed):
        assert np.abs(ours - theirs)[inside].max() < 2e-3 * np.ptp(ours)


def shift_slices(stack: NDArray, shifts: NDArray[np.integer]) -> NDArray:
    """A stack (..., X, Y, Z) whose slices lie where breath-holds, each a shift (Z, 2) in pixels, have left them."""
    return np.stack([np.roll(stack[..., z], shift, axis=(-2, -1)) for z, shift in enumerate(shifts)], axis=-1)


def test_slices_that_breath_holds_shift_are_followed_as_those_that_lie_in_line() -> None:
    """Neighbors are up to 8 mm apart in-plane. The error is that of where the field leads, in stacks without shifts."""
    heart, slices = descending(8, 8.0, size=56), np.arange(8)
    exact, wall = heart.field(heart.end_systole, 1), heart.label(1) > 0
    spacing = np.array(heart.spacing)[:, None]
    errors = []
    for largest in (0, 2):
        shifts = np.random.default_rng(0).integers(-largest, largest + 1, (8, 2))
        images = (shift_slices(heart.image(frame), shifts).astype(np.float32) for frame in (heart.end_systole, 1))
        field = register(*((image, heart.affine) for image in images), device="cpu").voxels.fields[0]
        # A slice's own shift, and that of where the field leads, are known, linear between slices.
        there = np.stack([np.interp(slices + field[2], slices, shifts[:, axis]) for axis in (0, 1)])
        field[:2] += shifts.T[:, None, None] - there
        error = (shift_slices(field, -shifts) - exact)[:, wall] * spacing
        errors.append((np.linalg.norm(error[:2], axis=0).mean(), np.abs(error[2]).mean()))
    moved = np.abs(exact[:, wall] * spacing)
    assert np.linalg.norm(moved[:2], axis=0).mean() > 2.5
    assert moved[2].mean() > 8
    in_plane, along = zip(*errors)
    assert in_plane[0] < 1.5
    assert in_plane[1] < 2.2
    assert max(along) < 0.6 * moved[2].mean()
