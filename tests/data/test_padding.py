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

"""Fill values: found where nothing else can be meant, and left out of range and similarity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_nifti
from phantom_cases import PHANTOM, prepare
from scripts.cardiac.cines import Cine
from scripts.cardiac.quality import assess
from scripts.cardiac.registrations import CineRegistration
from scripts.data.nifti import read_nifti_cine
from scripts.data.padding import find_fill

SHAPE = (32, 28, 2, 4)


def filled(value: float | None, columns: int = 5) -> np.ndarray:
    """Intensities from 0 to 1000, and a fill value in the first columns of every slice and frame."""
    pixels = np.random.default_rng(0).uniform(0, 1000, SHAPE).astype(np.float32)
    if value is not None:
        pixels[:columns] = value
    return pixels


@pytest.mark.parametrize("value", [-32768, -1100, 32767, 65535, 2100])
def test_a_constant_value_far_outside_the_rest_on_a_border_is_a_fill_value(value: float) -> None:
    assert find_fill(filled(value)) == value


@pytest.mark.parametrize("value", [None, 0, -1, -900, 1500])
def test_background_and_what_is_near_the_rest_is_none(value: float | None) -> None:
    assert find_fill(filled(value)) is None


def test_a_bright_spot_within_and_an_image_of_two_values_are_none() -> None:
    pixels = filled(None)
    pixels[10, 10] = 32767
    assert find_fill(pixels) is None
    assert find_fill(np.where(filled(None) > 500, 1.0, 0.0)) is None
    assert find_fill(np.zeros(SHAPE)) is None


def test_a_filled_cine_is_seen_by_the_network_as_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cine = np.stack([PHANTOM.image(t).round() for t in range(1, 6)], axis=-1).astype(np.int16)
    other = cine.copy()
    other[:6] = -32768
    cine[:6] = cine[6:].min()
    one, two = (
        prepare({"cine": str(write_nifti(tmp_path / f"{name}.nii.gz", array)), "reference": 1, "case": "a"})
        for name, array in (("plain", cine), ("filled", other))
    )
    assert "filled.nii.gz: 12 % of its voxels are -32768, far outside the rest" in caplog.text
    np.testing.assert_array_equal(two["valid"][..., 0], np.arange(cine.shape[0])[:, None].repeat(cine.shape[1], 1) >= 6)
    assert two["moving_image"].min() >= 0
    # Clipped at a percentile of what was acquired; the plain image's background counts in its own.
    np.testing.assert_allclose(two["pair"][:2], one["pair"], atol=0.08)
    # The fit to a pair compares voxels whose neighbors were acquired, too.
    acquired = np.arange(cine.shape[0]) >= 7
    np.testing.assert_array_equal(two["pair"][2], np.broadcast_to(acquired[:, None, None], two["pair"][2].shape))
    assert read_nifti_cine(tmp_path / "plain.nii.gz").valid is None


def test_a_filled_pair_says_where_anything_was_acquired(tmp_path: Path) -> None:
    images = [PHANTOM.image(t).round().astype(np.int16) for t in (3, 1)]
    images[0][:4], images[1][:, :3] = -32768, -32768
    paths = [str(write_nifti(tmp_path / f"{name}.nii.gz", array)) for name, array in zip("ab", images)]
    valid = prepare({"moving": paths[0], "fixed": paths[1], "case": "a"})["valid"]
    assert not valid[:4].any()
    assert not valid[:, :3].any()
    assert valid[4:, 3:].all()


def test_what_is_left_out_counts_in_no_similarity_and_is_in_the_quality() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((16, 16, 1, 2))
    image[..., 1] = image[..., 0]
    valid = np.ones((16, 16, 1), bool)
    valid[:4] = False
    spoiled = image.copy()
    spoiled[:4, ..., 1] = rng.random((4, 16, 1))
    still = np.zeros((2, 2, 16, 16, 1))
    found = {
        name: assess(
            CineRegistration(
                cine=Cine("a", spoiled, np.eye(4), valid=mask),
                reference=1,
                reference_basis="",
                fields=still,
                inverses=still,
                moved=spoiled,
            )
        )
        for name, mask in (("all", None), ("valid", valid))
    }
    assert found["valid"]["frames"][1]["mse_before"] == pytest.approx(0, abs=1e-9)
    assert found["all"]["frames"][1]["mse_before"] > 0.1
    assert (found["valid"]["left_out_percent"], found["all"]["left_out_percent"]) == (25, 0)
