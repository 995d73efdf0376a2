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

"""Registration of stacks in two steps, as a user has it: trained beside the shipped network of slices, and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import CACHE, ROOT, run_bundle, succeed
from scripts.cardiac.phantom import write_phantom_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One subject to train on, one to choose by, one to test."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    return write_phantom_dataset(folder, subjects=3, size=(40, 36), slices=4, frames=3, progress=False, shortening=0.15)


def options(data: Path, output: Path) -> dict[str, object]:
    return {"dataset_dir": data, "max_epochs": 1, "device": "cpu", "cache_dir": CACHE.name, "output_dir": output}


def test_a_training_learns_what_leads_along_the_stack(data: Path, tmp_path: Path) -> None:
    configs = str(["configs/train.yaml", "configs/depth.yaml"])
    result = succeed(run_bundle(config_file=configs, **options(data, tmp_path / "out")))
    assert "gradient surgery: projection, 1 groups of" in result.stdout + result.stderr
    trained = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert trained.keys() == torch.load(ROOT / "models" / "depth.pt", weights_only=True).keys()
    assert trained["last.weight"].abs().max() > 0

    configs = str(["configs/train.yaml", "configs/evaluate.yaml", "configs/depth.yaml"])
    paths = {"dataset_dir": data, "depth_checkpoint": tmp_path / "out" / "model.pt", "output_dir": tmp_path / "scores"}
    succeed(run_bundle(config_file=configs, device="cpu", **paths))
    assert 50 < json.loads((tmp_path / "scores" / "summary.json").read_text())["registered"]["dice"]["mean"] <= 100


def test_two_processes_each_take_a_stack_of_their_own(data: Path, tmp_path: Path) -> None:
    configs = str(["configs/train.yaml", "configs/depth.yaml", "configs/multi_gpu_train.yaml"])
    succeed(run_bundle(config_file=configs, processes=2, **options(data, tmp_path)))
    # A pair there and back are two stacks.
    state = torch.load(tmp_path / "last_checkpoint_epoch=1.pt", weights_only=True)
    assert state["trainer"]["iteration"] == 1
    assert state["network"]["last.weight"].abs().max() > 0
