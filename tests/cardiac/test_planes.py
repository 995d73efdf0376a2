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

"""The plane of real oblique files, and what the rule must hold for whatever the patient's position."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scripts.cardiac.planes import TO_APEX, VIEWS, is_long_axis, plane_of

from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
# Affines' directions of files as scanners wrote them, by column and row in RAS.
SCANNED = {
    "SAX": ([-0.77038, -0.618446, 0.155046], [0.15161, -0.41389, -0.897613]),
    "SAX, another scanner": ([-0.792067, 0.0, 0.610434], [-0.377686, -0.785613, -0.490067]),
    "4CH": ([-0.9954, 0.0, 0.0958042], [-0.0787602, 0.569348, -0.818315]),
    "2CH": ([0.621421, -0.783462, -0.00474517], [-0.0391428, -0.0249969, -0.998921]),
}


def affine_of(*axes: list[float]) -> np.ndarray:
    """An affine whose first two axes are these, 1.5 mm a pixel."""
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = (1.5 * np.array(axis) for axis in axes)
    affine[:3, 2] = 8 * np.cross(*axes)
    return affine


@pytest.mark.parametrize("name", SCANNED)
def test_planes_that_scanners_wrote(name: str) -> None:
    column, row = SCANNED[name]
    expected = name.partition(",")[0]
    # Which way a file counts columns, rows and slices is no matter of the plane.
    for axes in ((column, row), (row, column), ([-c for c in column], row)):
        assert plane_of(affine_of(*axes)) == expected


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_sixty_degrees_apart_about_the_long_axis(view: str) -> None:
    first = np.array(SCANNED["4CH"])
    normal = np.cross(*first)
    normal -= (normal @ TO_APEX) * TO_APEX
    # Seen from the apex the two-chamber view is a turn of 60 degrees ahead of the four-chamber view.
    turned = Rotation.from_rotvec(np.deg2rad({"4CH": 0, "2CH": 60, "3CH": 120}[view]) * TO_APEX).apply(normal)
    for tilt in (-20, 20):
        tilted = Rotation.from_rotvec(np.deg2rad(tilt) * np.cross(TO_APEX, turned)).apply(turned)
        second = np.cross(tilted, TO_APEX)
        assert plane_of(affine_of(np.cross(second, tilted), second)) == view


@pytest.mark.parametrize("axes", [([1, 0, 0], [0, 1, 0]), ([1, 0, 0], [0, 0, 1]), ([0, 1, 0], [0, 0, 1])])
def test_the_patients_own_planes_tell_nothing(axes: tuple[list[float], list[float]]) -> None:
    """As files whose orientation was never published have them."""
    assert plane_of(affine_of(*axes)) is None


def test_headers_without_a_direction_tell_nothing() -> None:
    assert plane_of(np.zeros((4, 4))) is None
    assert plane_of(np.full((4, 4), np.nan)) is None


def test_a_known_long_axis_decides_for_a_heart_that_lies_otherwise() -> None:
    to_apex = TO_APEX * [-1, 1, 1]  # as in dextrocardia
    column = np.cross(to_apex, [0, 0, 1.0])
    column /= np.linalg.norm(column)
    row = np.cross(to_apex, column)
    assert plane_of(affine_of(column, row), to_apex) == "SAX"
    assert plane_of(affine_of(column, row)) != "SAX"
    assert plane_of(affine_of(to_apex, row), to_apex) == "LAX"


def test_long_axis_views_are_told_from_short_axis_and_unknown() -> None:
    assert [is_long_axis(plane) for plane in ("SAX", None, "LAX", *VIEWS)] == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("file", "plane"),
    [
        ("scd/SC-HF-I-1/SC-HF-I-1_4d.nii.gz", "SAX"),
        ("scd/SC-HF-I-2/SC-HF-I-2_4d.nii.gz", "SAX"),
        ("long_axis/la_2ch_4d.nii.gz", "2CH"),
        ("long_axis/la_4ch_4d.nii.gz", "4CH"),
        ("acdc/patient001/patient001_frame01.nii.gz", None),
    ],
)
def test_planes_of_published_files(file: str, plane: str | None) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"no {file} in {DATA}")
    assert plane_of(nib.load(DATA / file).affine) == plane
