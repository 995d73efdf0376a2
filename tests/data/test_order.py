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

from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from phantom_cases import prepare
from scripts.cardiac.phantom import Phantom, write_phantom
from scripts.data.order import CLEARLY_SHORTER, FEWEST, exchanged_frames

from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
REAL = [ROOT / "sample", *(DATA / name for name in ("acdc_cines", "scd", "acdc", "long_axis"))]


def cine_of(seed: int, slices: int, frames: int) -> NDArray:
    phantom = Phantom.random((0, seed), size=(64, 64), slices=slices, frames=frames)
    return np.stack([phantom.image(t) for t in range(1, frames + 1)], axis=-1)


def exchange(cine: NDArray, one: int, two: int) -> NDArray:
    """The cine with two frames, counted from 1, in each other's place."""
    order = np.arange(cine.shape[-1])
    order[[one - 1, two - 1]] = order[[two - 1, one - 1]]
    return cine[..., order]


def noisy(cine: NDArray, share: float) -> NDArray:
    return cine + np.random.default_rng(0).normal(0, share * np.percentile(cine, 99), cine.shape)


def systole_and_half_a_cycle_later(cine: NDArray) -> tuple[int, int]:
    frames = cine.shape[-1]
    one = int(np.abs(cine - cine[..., :1]).mean(axis=(0, 1, 2)).argmax())
    two = (one + frames // 2) % frames or 1
    return min(one, two) + 1, max(one, two) + 1


def best_exchange(cine: NDArray) -> tuple[float, tuple[int, int]]:
    """By trying all: the lengths of the steps that an exchange does away with, and of those that take their place."""
    frames = cine.shape[-1]
    steps = np.array([[np.square(cine[..., a] - cine[..., b]).mean() for a in range(frames)] for b in range(frames)])

    def gain(pair: tuple[int, ...], last: int) -> float:
        order = list(range(frames))
        order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
        ways = [{frozenset((way[t - 1], way[t])) for t in range(last, frames)} for way in (range(frames), order)]
        touched = {step for step in ways[0] if step & set(pair)}
        before, after = (sum(steps[tuple(step)] for step in way) for way in ways)
        return (before - after) / sum(steps[tuple(step)] for step in touched)

    return max(
        (min(gain(pair, 0), gain(pair, 1)), (pair[0] + 1, pair[1] + 1)) for pair in combinations(range(frames), 2)
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("slices", "frames"), [(1, 8), (3, 9), (3, 25)])
def test_the_frames_that_are_exchanged_are_named(seed: int, slices: int, frames: int) -> None:
    cine = cine_of(seed, slices, frames)
    pair = systole_and_half_a_cycle_later(cine)
    wrong = exchange(cine, *pair)
    assert exchanged_frames(cine) is None
    assert exchanged_frames(wrong) == pair
    assert exchanged_frames(exchange(wrong, *pair)) is None
    # Neither the unit, nor the direction of time, nor the order of slices, nor a little noise tells otherwise.
    assert exchanged_frames(1000 - 3 * wrong) == pair
    assert exchanged_frames(wrong[..., ::-1]) == (frames + 1 - pair[1], frames + 1 - pair[0])
    assert exchanged_frames(wrong[:, :, ::-1]) == pair
    assert exchanged_frames(noisy(wrong, 0.01)) == pair


@pytest.mark.parametrize("pair", [(1, 5), (2, 3), (3, 5), (4, 9), (1, 9)])
def test_all_exchanges_tried_one_by_one_say_the_same(pair: tuple[int, int]) -> None:
    told = []
    for cine in (cine_of(0, 2, 9), exchange(cine_of(0, 2, 9), *pair)):
        gain, best = best_exchange(cine)
        assert exchanged_frames(cine) == (best if gain > CLEARLY_SHORTER else None)
        told.append(gain > CLEARLY_SHORTER)
    assert not told[0]
    assert told[1] or pair in [(2, 3), (1, 9)]  # neighbors may be too much alike


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("frames", [5, 8, 25])
def test_noise_is_no_exchange(frames: int, share: float) -> None:
    assert exchanged_frames(noisy(cine_of(1, 1, frames), share)) is None
    assert exchanged_frames(noisy(np.zeros((64, 64, 1, frames)) + 1, share)) is None


def test_few_equal_and_missing_frames_tell_nothing() -> None:
    cine = cine_of(2, 2, 24)
    few = cine[..., :: 24 // (FEWEST - 1)][..., : FEWEST - 1]
    assert exchanged_frames(exchange(few, 3, 6)) is None
    assert exchanged_frames(np.zeros((8, 8, 2, 12))) is None
    assert exchanged_frames(np.repeat(cine[..., :1], 12, axis=-1) * np.pi) is None
    assert exchanged_frames(np.repeat(cine, 3, axis=-1) * np.pi) is None
    for kept in (slice(0, 16), slice(6, 24), slice(3, 14), np.r_[0:6, 12:24]):
        assert exchanged_frames(cine[..., kept]) is None


@pytest.mark.parametrize("folder", REAL, ids=lambda folder: folder.name)
def test_real_cines(folder: Path) -> None:
    paths = sorted(folder.rglob("*_4d.nii.gz"))
    # In this one the segmented volumes of ten frames hardly turn back.
    paths = paths[::8] + [path for path in paths if "054" in path.name]
    if not paths:
        pytest.skip("the data is not here")
    for path in paths:
        cine = np.asarray(nib.load(path).dataobj, dtype=np.float32)
        for some in (cine, cine[..., :: -(-cine.shape[3] // 10)]):
            assert exchanged_frames(some) is None, path
            if some.shape[3] >= FEWEST:
                pair = systole_and_half_a_cycle_later(some)
                assert exchanged_frames(exchange(some, *pair)) == pair, path


def test_a_cine_with_frames_exchanged_is_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    phantom = Phantom.random((0, 1), size=(64, 64), slices=3, frames=12)
    right = np.stack([phantom.image(t) for t in range(1, 13)], axis=-1)
    doubts = []
    for name, cine in (("right", right), ("exchanged", exchange(right, 5, 11))):
        path = tmp_path / f"{name}.nii.gz"
        write_phantom(path, cine.round().astype(np.int16), phantom)
        doubts.append(prepare({"cine": str(path), "reference": 1, "case": "a"}).get("doubts"))
    sentence = "Frames 5 and 11 fit better in each other's place: are they exchanged?"
    assert doubts == [None, sentence]
    assert f"{path}: {sentence}" in [record.message for record in caplog.records]
