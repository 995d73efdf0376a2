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

"""The shipped weights go on training on unlabeled cines."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from conftest import ROOT, SMALL, run_bundle, succeed
from monai.bundle import ConfigParser


def test_weights_move_away_from_the_shipped_ones(phantoms: Path, tmp_path: Path) -> None:
    files = tmp_path / "cines"
    files.mkdir()
    for number in (1, 2):
        (files / f"c{number}.nii.gz").symlink_to(phantoms / f"phantom{number:03d}" / f"phantom{number:03d}_4d.nii.gz")
    options = {**SMALL, "dataset_dir": files, "output_dir": tmp_path / "out", "max_epochs": 1, "batch_size": 4}
    del options["val_interval"]
    result = succeed(run_bundle(config_file="['configs/train.yaml','configs/finetune.yaml']", **options))
    assert "conflicts=" in result.stderr
    shipped, tuned = (
        torch.load(path, weights_only=True) for path in (ROOT / "models" / "model.pt", tmp_path / "out" / "model.pt")
    )
    assert shipped.keys() == tuned.keys()
    distance = sum((shipped[name] - tuned[name]).square().sum() for name in shipped).sqrt()
    length = sum(value.square().sum() for value in shipped.values()).sqrt()
    # It starts from the shipped weights: four steps do not lead far.
    assert 0 < distance < 0.1 * length
    options |= {"max_epochs": 2, "resume": tmp_path / "out" / "last_checkpoint_epoch=1.pt"}
    succeed(run_bundle(config_file="['configs/train.yaml','configs/finetune.yaml']", **options))
    state = torch.load(tmp_path / "out" / "last_checkpoint_epoch=2.pt", weights_only=True)
    assert state["trainer"]["epoch_length"] * 2 == state["trainer"]["iteration"] == state["lr_scheduler"]["last_epoch"]


def test_a_data_list_gives_the_cines_of_its_training_section(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "list.json").write_text(
        json.dumps({"training": [{"cine": "a.nii.gz"}], "test": [{"cine": "b.nii.gz"}]})
    )
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.yaml") for name in ("train", "finetune")])
    parser.update({"data_list": str(tmp_path / "list.json")})
    assert [item["case"] for item in parser.get_parsed_content("train::dataset::data")] == ["a"]


def test_its_handlers_are_those_of_training_without_validation() -> None:
    of = lambda name: ConfigParser.load_config_file(str(ROOT / "configs" / f"{name}.yaml"))
    training, tuning = of("train")["train"]["handlers"], of("finetune")["train::handlers"]
    without = ("scripts.training.handlers.Validation", "TensorBoardStatsHandler")
    assert tuning[:-1] == [handler for handler in training if handler["_target_"] not in without]
    assert tuning[-1]["_target_"] == "CheckpointSaver"
