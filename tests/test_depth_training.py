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

import torch
from conftest import CACHE, ROOT, run_bundle, succeed
from scripts.cardiac.phantom import write_phantom_dataset


def test_a_training_learns_what_leads_along_the_stack(tmp_path: Path) -> None:
    data = write_phantom_dataset(
        tmp_path / "data", subjects=3, size=(40, 36), slices=4, frames=3, progress=False, shortening=0.15
    )
    options = {
        "dataset_dir": data,
        "max_epochs": 1,
        "device": "cpu",
        "cache_dir": CACHE.name,
        "output_dir": tmp_path / "out",
    }
    result = succeed(run_bundle(config_file=str(["configs/train.yaml", "configs/depth.yaml"]), **options))
    assert "gradient surgery: projection, 1 groups of" in result.stdout + result.stderr
    trained = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert trained.keys() == torch.load(ROOT / "models" / "depth.pt", weights_only=True).keys()
    assert trained["last.weight"].abs().max() > 0

    configs = str(["configs/train.yaml", "configs/evaluate.yaml", "configs/depth.yaml"])
    paths = {"dataset_dir": data, "depth_checkpoint": tmp_path / "out" / "model.pt", "output_dir": tmp_path / "scores"}
    succeed(run_bundle(config_file=configs, device="cpu", **paths))
    assert 50 < json.loads((tmp_path / "scores" / "summary.json").read_text())["registered"]["dice"]["mean"] <= 100
