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

"""Cines as objects, and the frame that is taken for end diastole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from conftest import ROOT
from scripts.cardiac.cines import Cine, largest_cavity, otsu_threshold
from scripts.cardiac.phantom import Phantom
from scripts.data.acdc import read_info
from scripts.data.loading import read_cine

SHAPE = (7, 6, 3, 5)


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, SHAPE).astype(np.int16)


def test_uneven_times_of_slices_give_their_mean_step() -> None:
    times = np.array([[10.0, 50, 100], [20, 55, 120]])
    assert Cine("a", np.zeros((2, 2, 2, 3)), np.eye(4), times).frame_time == pytest.approx((90 + 100) / 4)
    assert Cine("a", np.zeros((2, 2, 2, 1)), np.eye(4), times[:, :1]).frame_time is None


def plain_otsu(values: list[float], edges: list[float]) -> float:
    """The edge with the least sum of squares of bin centers about their class's mean, by a double loop."""
    centers = [(a + b) / 2 for a, b in pairwise(edges)]
    bins = [next((n for n, high in enumerate(edges[1:-1]) if v < high), len(centers) - 1) for v in values]
    best, threshold = float("inf"), float("nan")
    for split in range(1, len(centers)):
        error = 0.0
        for side in ([b for b in bins if b < split], [b for b in bins if b >= split]):
            mean = sum(centers[b] for b in side) / max(len(side), 1)
            error += sum((centers[b] - mean) ** 2 for b in side)
        if error < best - 1e-9:
            best, threshold = error, edges[split]
    return threshold


@pytest.mark.parametrize("seed", range(3))
def test_otsu_equals_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(100, 20, 60), rng.normal(300, 60, 40 + 30 * seed)])
    edges = np.histogram_bin_edges(values, bins=256)
    assert otsu_threshold(values) == pytest.approx(plain_otsu(values.tolist(), edges.tolist()))


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_cavity_of_phantoms_is_at_end_diastole(seed: int) -> None:
    phantom = Phantom.random(seed, size=(64, 64), slices=3, frames=8)
    cine = np.stack([phantom.image(frame) for frame in range(1, 9)], axis=-1)
    assert largest_cavity(cine) == 1
    # A cine that starts elsewhere, and one in other units.
    assert largest_cavity(np.roll(cine, 3, axis=-1)) == 4
    assert largest_cavity(0.1 * cine + 50) == 1


def test_a_still_or_constant_cine_has_some_reference() -> None:
    assert largest_cavity(np.ones((8, 8, 2, 3))) == 1
    assert largest_cavity(np.repeat(np.random.default_rng(0).random((8, 8, 2, 1)), 3, axis=-1)) in (1, 2, 3)


@pytest.mark.parametrize("subject", ["SC-HF-I-1", "SC-HF-I-2"])
def test_the_largest_cavity_of_real_cines_is_near_end_diastole(subject: str) -> None:
    folder = ROOT.parent / "shared" / "data" / "scd" / subject
    if not folder.is_dir():
        pytest.skip(f"no Sunnybrook cines in {folder.parent}")
    cine = read_cine(folder / f"{subject}_4d.nii.gz")
    gap = abs(largest_cavity(cine.image) - int(read_info(folder / "Info.cfg")["ED"]))
    assert min(gap, cine.frames - gap) <= 2
