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

"""Grids in space: images pulled through fields, labels turned to their image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from oblique import AFFINE
from scipy.spatial.transform import Rotation
from scripts.data.grids import check_same_grid, pull, turn_to
from scripts.errors import InputError


def test_pull_of_integers_labels_and_what_lies_outside() -> None:
    still, label = np.zeros((2, 6, 5, 2)), np.random.default_rng(2).integers(0, 4, (6, 5, 2))
    half = still.copy()
    half[0] = 0.5
    np.testing.assert_allclose(pull(label, AFFINE, half, AFFINE)[:5], (label[1:] + label[:-1]) / 2, atol=1e-6)
    shifted = pull(label, AFFINE, still + 0.3, AFFINE, is_label=True)
    assert shifted.dtype == label.dtype
    # Each of the four corners' values counts with the weights of all corners that hold it.
    corners = np.stack([np.roll(label, (-i, -j), (0, 1)) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))])
    weights = np.array([0.49, 0.21, 0.21, 0.09]).reshape(4, 1, 1, 1)
    expected = np.argmax([(weights * (corners == value)).sum(axis=0) for value in range(4)], axis=0)
    np.testing.assert_array_equal(shifted[:-1, :-1], expected[:-1, :-1])
    repeated = pull(label, AFFINE, still - 9.0, AFFINE, is_label=True, repeat_border=True)
    np.testing.assert_array_equal(repeated, np.broadcast_to(label[:1, :1], label.shape))
    # Beyond its edge an image is 0.
    for is_label in (False, True):
        pulled = pull(label + 1, AFFINE, still - 1.0, AFFINE, is_label)
        np.testing.assert_allclose(pulled[1:, 1:], (label + 1)[:-1, :-1])
        assert not pulled[0].any()
        assert not pulled[:, 0].any()
    assert pull(label + 1, AFFINE, still - 0.49, AFFINE).all()


def test_a_label_on_its_image_s_grid_stays_there_at_45_degrees() -> None:
    rng = np.random.default_rng(0)
    for angle in (45, -45, 135):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("z", angle, degrees=True).as_matrix() * [1.5, 1.5, 8]
        for _ in range(50):
            affines = [turn + rng.normal(0, 1e-7, (4, 4)) * (turn != 0) for _ in range(2)]
            label, image = (MetaTensor(torch.arange(24.0).reshape(1, 4, 3, 2), affine=affine) for affine in affines)
            assert torch.equal(turn_to(label, image), label)


def test_an_affine_of_nan_is_no_grid() -> None:
    image, label = (
        MetaTensor(torch.zeros(1, 4, 3, 2), affine=affine) for affine in (np.eye(4), np.diag([1, np.nan, 1, 1]))
    )
    with pytest.raises(InputError, match="affines up to nan mm apart"):
        check_same_grid(turn_to(label, image), "a", image, "b")
