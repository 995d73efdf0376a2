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

"""ITK's methods give fields in the house's units, axes and direction, and say what is missing."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from scripts.errors import InputError

from benchmarks.classical import METHODS, limit_itk_to_one_thread, register_each

itk = pytest.importorskip("itk")


@pytest.mark.parametrize("name", METHODS)
def test_fields_of_itk_follow_the_house(name: str) -> None:
    grid = np.stack(np.meshgrid(np.arange(40.0), np.arange(56.0), indexing="ij"))
    blob = lambda *center: np.exp(-((grid - np.array(center)[:, None, None]) ** 2).sum(axis=0) / 50).astype(np.float32)
    moving, fixed = blob(22.0, 27.0), blob(20.0, 28.0)
    field = METHODS[name](moving, fixed, iterations=20)
    assert field.shape == (2, 40, 56)
    # moved(x) = moving(x + u(x)), and what is about (20, 28) in the fixed image lies about (22, 27) in the moving one.
    mean = (field * fixed).sum(axis=(1, 2)) / fixed.sum()
    np.testing.assert_allclose(mean, [2.0, -1.0], atol=0.3)


def test_a_stack_moves_through_its_slices_in_voxels() -> None:
    grid = np.stack(np.meshgrid(np.arange(24.0), np.arange(28.0), np.arange(8.0), indexing="ij"))
    # Along the stack the blob is as wide in pixels, four to a slice.
    scale = np.array([50.0, 50.0, 50.0 / 16])[:, None, None, None]
    blob = lambda *center: np.exp(-((grid - np.reshape(center, (3, 1, 1, 1))) ** 2 / scale).sum(axis=0))
    moving, fixed = (blob(*center).astype(np.float32) for center in ((12.0, 13.0, 4.0), (11.0, 14.0, 3.0)))
    field = METHODS["syn_volume"](moving, fixed, iterations=20, update_variance=0.5, gap=4.0)
    assert field.shape == (3, 24, 28, 8)
    np.testing.assert_allclose(field[:, 11, 14, 3], [1.0, -1.0, 1.0], atol=0.15)


def test_a_stack_of_two_slices_is_registered() -> None:
    pair = np.random.default_rng(0).random((2, 24, 20, 2), dtype=np.float32)
    assert METHODS["syn_volume"](*pair, iterations=1).shape == (3, 24, 20, 2)


def test_processes_share_the_slices_and_keep_their_order() -> None:
    pairs = np.random.default_rng(0).random((3, 2, 24, 20), dtype=np.float32)
    expected, seconds = register_each("diffeomorphic_demons", {"iterations": 3}, pairs)
    assert expected.shape == (3, 2, 24, 20)
    assert seconds > 0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=limit_itk_to_one_thread) as executor:
        found, _ = register_each("diffeomorphic_demons", {"iterations": 3}, pairs, executor)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_more_coarse_iterations_of_syn_are_taken_level_by_level() -> None:
    pair = np.random.default_rng(0).random((2, 32, 32), dtype=np.float32)
    same = [METHODS["syn"](*pair, iterations=iterations) for iterations in (2, (2, 2, 2), (6, 2, 2))]
    np.testing.assert_allclose(same[0], same[1])
    assert np.abs(same[2] - same[0]).max() > 1e-3


def test_a_missing_itk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(InputError, match="itk: is not installed; pip install itk"):
        limit_itk_to_one_thread()


def test_seconds_are_without_the_first_call_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, now = [], [0.0]

    def slow_at_first(moving: np.ndarray, fixed: np.ndarray, **parameters: object) -> np.ndarray:
        now[0] += 0.5 if calls else 30.0
        calls.append(parameters)
        return np.zeros((2, *moving.shape), np.float32)

    monkeypatch.setitem(METHODS, "a new one", slow_at_first)
    monkeypatch.setattr("benchmarks.classical.time.process_time", lambda: now[0])
    _, seconds = register_each("a new one", {"iterations": 9}, np.zeros((3, 2, 8, 8), np.float32))
    assert seconds == 1.5
    assert [call["iterations"] for call in calls] == [1, 9, 9, 9]
