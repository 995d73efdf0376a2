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

"""The demo's configs, on fewer phantoms and epochs: it learns, it does not fold, and it leaves its table and
picture."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import run_bundle, succeed
from scripts.cardiac.phantom import write_phantom_dataset


def test_demo_learns(tmp_path: Path) -> None:
    phantoms = write_phantom_dataset(tmp_path / "phantoms", subjects=20, progress=False)
    options = {"dataset_dir": phantoms, "output_dir": tmp_path / "out", "max_epochs": 10, "device": "cpu"}
    options["cache_dir"] = tmp_path / "cache"
    succeed(run_bundle(config_file="['configs/train.yaml','configs/demo.yaml']", **options))
    assert (tmp_path / "cache").is_dir()
    del options["max_epochs"]
    succeed(run_bundle(config_file="['configs/train.yaml','configs/evaluate.yaml','configs/demo.yaml']", **options))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["subjects"] == 4
    assert 60 < summary["initial"]["dice"]["mean"] < 80
    assert summary["registered"]["dice"]["mean"] > 85
    assert summary["registered"]["folding_percent"]["mean"] <= 0.1
    assert (tmp_path / "out" / "registration.png").stat().st_size > 100_000
