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

"""Landmarks against analytic displacements in mm."""

from __future__ import annotations

import re
from pathlib import Path

import itk
import numpy as np
import pytest
from oblique import AFFINE, GRIDS, LPS, SHAPE, grid_affine, indices, positions, waves
from scripts.data.grids import pull
from scripts.data.itk_fields import voxels_to_lps
from scripts.data.points import check_in_image, move_points, read_points, to_lps
from scripts.errors import InputError
from scripts.workflow.assemble import invert_array


def test_by_hand_on_an_oblique_grid() -> None:
    # Axis 0 is 1.5 mm toward (0.8 R, 0.6 A), axis 1 is 2 mm toward (0.6 L, 0.8 A), axis 2 is 8 mm downward.
    affine = np.array([[1.2, -1.2, 0, 5], [0.9, 1.6, 0, 6], [0, 0, -8, 7], [0, 0, 0, 1.0]])
    field = np.array([2.0, 1.0, 0.5]).reshape(3, 1, 1, 1)
    # RAS: 2 * (1.2, 0.9, 0) + (-1.2, 1.6, 0) + 0.5 * (0, 0, -8) = (1.2, 3.4, -4).
    np.testing.assert_allclose(voxels_to_lps(field, affine)[0, 0, 0], [-1.2, -3.4, -4.0])
    np.testing.assert_allclose(voxels_to_lps(field[:2], affine)[0, 0, 0], [-1.2, -3.4, 0.0])
    np.testing.assert_allclose(to_lps(np.array([[1.0, -2.0, 3.0]])), [[-1.0, 2.0, 3.0]])


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("name", GRIDS)
def test_points_move_by_the_displacement_in_mm(name: str, channels: int) -> None:
    affine, shape = GRIDS[name]
    linear = np.array([[0.1, -0.2, 0.3], [0.05, 0.15, -0.4], [-0.02, 0.03, 0.2]])[:channels]
    field = np.einsum("ij,j...->i...", linear, indices(shape)) + 0.7
    index = np.random.default_rng(5).uniform(0, 1, (50, 3)) * (np.array(shape) - 1)
    points, shift = positions(index.T, affine).T, index @ linear.T + 0.7
    moved = move_points(points, field, affine)
    # Linear interpolation of a linear field is exact.
    np.testing.assert_allclose(moved, points + shift @ affine[:3, :channels].T, atol=1e-9)
    # By ITK's own transform, in LPS.
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    slices = np.repeat(voxels_to_lps(field, affine), 2, axis=2) if shape[2] == 1 else voxels_to_lps(field, affine)
    vectors = np.ascontiguousarray(slices.transpose(2, 1, 0, 3))
    view = itk.image_view_from_array(vectors, ttype=itk.Image[itk.Vector[itk.D, 3], 3])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    view.SetSpacing(spacing.tolist())
    view.SetOrigin((affine[:3, 3] * LPS).tolist())
    view.SetDirection(itk.matrix_from_array(affine[:3, :3] / spacing * LPS[:, None]))
    transform.SetDisplacementField(view)
    theirs = [transform.TransformPoint(point) for point in to_lps(points)]
    np.testing.assert_allclose(to_lps(moved), theirs, atol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_points_beyond_the_image_are_refused(name: str) -> None:
    affine, shape = GRIDS[name]
    last = np.array(shape) - 1.0
    corners = np.array([[0, 0, 0], last, last / 2, [-0.4, 0, 0], [0, 0, last[2] + 0.4]])
    check_in_image("p.csv", list("abcde"), positions(corners.T, affine).T, shape, affine)
    for beyond in ([-0.6, 3, 0], [3, last[1] + 0.6, 0], [3, 3, last[2] + 0.6], [3, 3, -900]):
        points = positions(np.array([[3, 3, 0], beyond, beyond]).T, affine).T
        with pytest.raises(InputError, match=r"^p\.csv: the point second lies outside the image; correct it"):
            check_in_image("p.csv", ["first", "second", "third"], points, shape, affine)


def test_points_between_voxels_of_a_smooth_field() -> None:
    index = np.random.default_rng(6).uniform(1, 2, (40, 3)) * [10, 9, 1]
    points = positions(index.T, AFFINE).T
    expected = points + waves(index.T).T @ AFFINE[:3, :2].T
    assert np.linalg.norm(move_points(points, waves(indices(SHAPE)), AFFINE) - expected, axis=1).max() < 0.1


def test_a_label_and_its_center_go_to_one_place() -> None:
    affine, shape, center = grid_affine((20, -30, 40), (1.3, -1.9, 3.1)), (46, 34, 20), np.array([24.0, 15.0, 9.0])
    x, y, z = indices(shape)
    field = np.stack([5 + np.sin(0.06 * y), 4 * np.cos(0.05 * x) - 6, 2 + np.sin(0.1 * z + 0.05 * x)])
    inverse, error = invert_array(field)
    assert error.max() < 0.01
    where = positions(indices(shape), affine)
    middle = positions(center[:, None], affine)
    ball = (np.linalg.norm(where - middle.reshape(3, 1, 1, 1), axis=0) < 9).astype(np.uint8)
    carried = pull(ball, affine, inverse, affine, is_label=True)
    moved = move_points(middle.T, field, affine)[0]
    gap = np.linalg.inv(affine[:3, :3]) @ (where[:, carried == 1].mean(axis=1) - moved)
    assert np.linalg.norm(moved - middle[:, 0]) > 5
    assert np.abs(gap).max() < 0.5
    # Through the field itself it would go the other way.
    astray = pull(ball, affine, field, affine, is_label=True)
    assert np.linalg.norm(where[:, astray == 1].mean(axis=1) - moved) > 10


@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_reads_points(begin: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(f"{begin}x, y, z, name\n1, 2, 3, apex\n-4.5, 5e1, 6,\n", encoding="utf-8")
    names, points = read_points(path)
    assert names == ["apex", "2"]
    np.testing.assert_array_equal(points, [[-1, -2, 3], [4.5, -50, 6]])
    np.testing.assert_array_equal(to_lps(points), [[1, 2, 3], [-4.5, 50, 6]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; --points takes a CSV with the columns x, y, z in mm along LPS"),
        (b"", "needs the columns x, y, z"),
        (b"x,y,z\n", "a row for each point"),
        (b"x,y,name\n1,2,3\n", "needs the columns x, y, z"),
        (b"x,y,z\n1,2,three\n", "not a number .*three.*; correct it"),
        (b"x,y,z\n1,2,3\n1,2\n", "not a number"),
        (b"x,y,z\n1,nan,3\n", "not a number"),
        (b"x,y,z\n1,2,inf\n", "not a number"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "cannot be read as CSV"),
    ],
)
def test_refuses_other_points(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_points(path)
