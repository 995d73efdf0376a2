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

"""The benchmark of a training: every loop runs on real batches, its arithmetic is right, and nothing is timed that is
wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from scripts.errors import InputError
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training

MODEL = """
import torch
from torch import nn
trained = []
def load_model(config):
    network = nn.Conv2d(2, 2, 1)
    network.forward = lambda moving, fixed: {"Moved": moving, "Fixed": fixed}
    return network
class GradientDescent:
    def __init__(self, *arguments):
        assert arguments[-1] == "LayerWise"
    def update_gradient(self, forward):
        trained.append((forward["Moved"].clone(), forward["Fixed"].clone()))
"""
DATA = """
import cv2, torch
class RegistrationDataSet(torch.utils.data.Dataset):
    def __init__(self, items, root):
        self.items, self.root = items, root
    def __len__(self):
        return len(self.items)
    def __getitem__(self, index):
        read = lambda role: torch.from_numpy(
            cv2.imread(self.root + "/" + self.items[index][role]["IMG"], cv2.IMREAD_GRAYSCALE).copy()
        )
        return {role: {"IMG": read(role)[None] / 255} for role in ("Moving", "Fixed")}
"""


@pytest.fixture(autouse=True)
def keep_threads() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_all_loops_run_and_are_compared_slice_for_slice(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("torchjd")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model_func.py").write_text(MODEL)
    (tmp_path / "source" / "data_func.py").write_text(DATA)
    for name in ("model_func", "data_func"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(training, "REFERENCE_BATCH", 3)
    options = [
        "--dataset_dir",
        str(phantoms),
        "--device",
        "cpu",
        "--batch",
        "2",
        "--slices",
        "4",
        "--crop",
        "16",
        "--rounds",
        "2",
    ]
    path = tmp_path / "training.json"
    training.main([*options, "--batches", "1", "3", "--reference", str(tmp_path), "--json", str(path)])
    result = json.loads(path.read_text())
    loops, seconds = result["loops"], result["seconds"]
    loaders = {"loader alone", "loader and augmentation alone"}
    assert set(loops) == {"training", "step alone", "TorchJD", "the authors' loop"} | loaders
    # Two steps of two slices against one of three.
    low, high = sorted(a / 4 / (b / 3) for a, b in zip(seconds["training"], seconds["the authors' loop"]))
    assert loops["training"]["to_reference"]["median"] == pytest.approx((low + high) / 2)
    median = sum(seconds["training"]) / 2 / 4
    assert loops["training"]["seconds_an_epoch"] == pytest.approx(6 * median)
    assert loops["training"]["slices_a_second"] == pytest.approx(1 / median)
    assert (
        loops["loader alone"]["to_step_alone"]["median"]
        < loops["loader and augmentation alone"]["to_step_alone"]["median"]
        < 1
    )
    assert all(row["peak_mb"] > 0 for row in loops.values())
    assert result["preparation"].keys() == {"from files", "from the cache"}
    assert result["counts"]["step alone"]["gflop"] > 0
    assert result["counts"]["step alone"]["to_larger_floor"] > 0
    assert set(result["batches"]) == {"1", "3"}
    assert result["command"].endswith("--reference PATH")
    assert str(phantoms) not in path.read_text()
    printed = capsys.readouterr().out
    assert all(name in printed for name in loops)
    # The authors' loop saw slices of the data set, both images of a pair.
    trained = sys.modules["model_func"].trained
    assert trained[0][0].shape == (3, 1, 16, 16)
    assert 0 < (trained[0][0] - trained[0][1]).abs().mean() < 0.3
    monkeypatch.delitem(sys.modules, "model_func")
    monkeypatch.delitem(sys.modules, "data_func")


def test_a_part_goes_on_where_the_last_one_ended() -> None:
    part = training.Part([1, 2, 3], 2)
    assert [list(part) for _ in range(3)] == [[1, 2], [3, 1], [2, 3]]
    assert len(part) == 2


def test_another_rule_is_not_timed() -> None:
    cpu = torch.device("cpu")
    training.check_rule(lambda rows: rows[0] - min(float(rows[0] @ rows[1]), 0) / (rows[1] @ rows[1]) * rows[1], cpu)
    with pytest.raises(InputError, match="differs from the projection by"):
        training.check_rule(lambda rows: rows.sum(0), cpu)


def test_a_missing_checkout_and_too_few_slices_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data_func\.py: no such file; --reference takes a checkout"):
        training.make_reference_loop(tmp_path, torch.rand(32, 2, 4, 4), tmp_path, "cpu")
    with pytest.raises(InputError, match="needs 32 slices, got 31"):
        training.make_reference_loop(tmp_path, torch.rand(31, 2, 4, 4), tmp_path, "cpu")


def test_a_batch_larger_than_the_data_set_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--batch 500: the data set has \d+ slices; give at most as many"):
        training.main(["--device", "cpu", "--crop", "16", "--batch", "500", "--without", "torchjd"])


def test_arithmetic_and_traffic_equal_those_by_hand() -> None:
    image, weight = torch.rand(2, 3, 8, 8), torch.rand(5, 3, 3, 3)
    with FlopCounterMode(display=False) as flops, training.ByteCounter() as traffic:
        torch.nn.functional.conv2d(image, weight, padding=1)
    assert flops.get_total_flops() == 2 * (2 * 5 * 8 * 8) * (3 * 3 * 3)
    assert traffic.bytes == 4 * (2 * 3 * 8 * 8 + 5 * 3 * 3 * 3 + 2 * 5 * 8 * 8)
    with training.ByteCounter() as traffic:
        image[0].reshape(3, 64)
        torch._foreach_add_([image], [image])
    assert traffic.bytes == 4 * 2 * image.numel()


def test_idle_share_of_a_timeline() -> None:
    assert training.idle_percent([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.2, 5.4), (9.0, 10.0)]) == pytest.approx(50.0)
    assert training.idle_percent([(3.0, 4.0), (0.0, 3.5)]) == pytest.approx(0.0)
