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

"""Slices as readers expect them, by where their voxels lie in the body."""

from __future__ import annotations

from dataclasses import fields
from itertools import product

import numpy as np
import pytest
from scripts.cardiac.cines import Cine
from scripts.cardiac.registrations import CineRegistration, PairRegistration
from scripts.report.orientation import IMAGES, as_displayed, edge_letters

RNG = np.random.default_rng(5)
SHAPE, FRAMES = (5, 4, 3), 2
# A short axis: to the left and back, to the feet and back, to the apex.
ACROSS = np.array([-0.75, -0.6, 0.28])
DOWN = -np.cross([-0.65, 0.6, -0.45], ACROSS)
NORMAL = np.cross(ACROSS / np.linalg.norm(ACROSS), DOWN / np.linalg.norm(DOWN))
AXES = np.column_stack([ACROSS / np.linalg.norm(ACROSS), DOWN / np.linalg.norm(DOWN), NORMAL])


def make(affine: np.ndarray) -> CineRegistration:
    """A registration whose first frame's intensities are where voxels lie along the body, and whose fields point to
    its left."""
    indices = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    places = indices @ affine[:3, :3].T + affine[:3, 3]
    image = np.stack([places[..., 0], places[..., 2]], axis=-1)
    left = np.linalg.lstsq(affine[:3, :2], np.array([-1.0, 0.0, 0.0]), rcond=None)[0]
    fields = np.broadcast_to(left.reshape(1, 2, 1, 1, 1), (FRAMES, 2, *SHAPE)) * (1 + RNG.random((FRAMES, 1, *SHAPE)))
    label = RNG.integers(0, 4, SHAPE)
    return CineRegistration(
        cine=Cine("heart", image, affine),
        reference=1,
        reference_basis="given",
        fields=fields,
        inverses=-fields,
        moved=image + 1,
        label=label,
        labels=np.stack([label] * FRAMES, -1),
        segmented=np.stack([label, label + 4], -1),
    )


@pytest.mark.parametrize(("swap", "flips"), list(product((False, True), product((1, -1), repeat=3))))
def test_slices_are_shown_alike_however_they_are_stored(swap: bool, flips: tuple[int, int, int]) -> None:
    axes = AXES[:, [1, 0, 2]] if swap else AXES
    affine = np.eye(4)
    affine[:3, :3] = axes * flips * np.array([1.5, 1.2, 8.0])
    affine[:3, 3] = 10.0, -20.0, 30.0
    stored = make(affine)
    shown = as_displayed(stored)
    np.testing.assert_allclose(shown.cine.affine[:3, :2] / shown.cine.spacing[:2], AXES[:, :2], atol=1e-12)
    # Voxels are where they were.
    indices = np.stack(np.meshgrid(*map(np.arange, shown.cine.image.shape[:3]), indexing="ij"), axis=-1)
    places = indices @ shown.cine.affine[:3, :3].T + shown.cine.affine[:3, 3]
    np.testing.assert_allclose(shown.cine.image, places[..., [0, 2]], atol=1e-12)
    np.testing.assert_allclose(shown.fixed, places[..., 0], atol=1e-12)
    np.testing.assert_array_equal(shown.moved, shown.cine.image + 1)
    np.testing.assert_array_equal(shown.labels[..., 1], shown.label)
    np.testing.assert_array_equal(shown.segmented[..., 1], shown.label + 4)
    # Fields point where they did, at the same voxels.
    for before, after in ((stored.fields, np.stack(shown.fields)), (stored.inverses, np.stack(shown.inverses))):
        motion = [np.moveaxis(u, 1, -1) @ r.cine.affine[:3, :2].T for u, r in ((before, stored), (after, shown))]
        np.testing.assert_allclose(np.sort(motion[1][0], axis=None), np.sort(motion[0][0], axis=None))
        assert after[0, 0, 1, 2, 1] == pytest.approx(
            (np.linalg.pinv(shown.cine.affine[:3, :2]) @ at_place(stored, before[0], places[1, 2, 1]))[0]
        )


def at_place(registration: CineRegistration, field: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The displacement in mm of the voxel at a place."""
    index = np.linalg.inv(registration.cine.affine) @ [*place, 1.0]
    return registration.cine.affine[:3, :2] @ field[(slice(None), *np.round(index[:3]).astype(int))]


def test_edges_have_the_letters_of_what_lies_beyond() -> None:
    affine = np.eye(4)
    affine[:3, :3] = AXES * np.array([1.5, 1.2, 8.0])
    assert edge_letters(affine) == ("RA", "LP", "SA", "IP")
    # Half way between two directions, nearly along one.
    turned = np.array([[0.0, 0.0, 1.0], [0.6, 0.8, 0.0], [-0.8, 0.6, 0.0]])
    affine[:3, :3] = turned
    assert edge_letters(affine) == ("SP", "IA", "PI", "AS")


@pytest.mark.parametrize("axes", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.eye(3)[[1, 2, 0]]])
def test_files_that_lost_their_orientation_are_shown_as_they_are(axes: np.ndarray) -> None:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array([1.5, 1.2, 8.0])
    registration = make(affine)
    assert as_displayed(registration) is registration
    assert edge_letters(affine) == ("", "", "", "")


def test_every_label_is_turned_with_its_image() -> None:
    """A field that is new to either type has to be sorted into what has a grid and what has none."""
    grids = {"fields", "inverses", *IMAGES}
    others = {
        "cine",
        "quality",
        "points",
        "label_basis",
        "is_measured",
        "reference",
        "reference_basis",
        "function",
        "strain",
    }
    for kind in (CineRegistration, PairRegistration):
        assert {one.name for one in fields(kind) if one.init} <= grids | others
