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

"""The segmentation network is trained by its config, as a user types it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, last_line, run_bundle, succeed
from monai.bundle import ConfigParser
from scripts.cardiac.segmentation import Segmenter, make_network
from scripts.training.checkpoints import load_weights

CONFIG = "configs/segmentation.yaml"
SMALL = {
    "slice_size": [48, 48],
    "crop_size": [32, 32],
    "network_def::features": [4, 6, 8],
    "batch_size": 4,
    "max_epochs": 2,
    "val_interval": 1,
    "device": "cpu",
}


def test_training_improves_validates_resumes_and_its_weights_segment(phantoms: Path, tmp_path: Path) -> None:
    options = {**SMALL, "dataset_dir": phantoms, "output_dir": tmp_path}
    result = succeed(run_bundle(config_file=CONFIG, **options))
    printed = result.stdout + result.stderr
    assert printed.count("val_dice_rv") == 2
    assert {path.name for path in tmp_path.glob("*.pt")} == {"segmentation.pt", "last_checkpoint_epoch=2.pt"}
    network = load_weights(make_network((4, 6, 8)), tmp_path / "segmentation.pt")
    assert Segmenter(network)(np.random.default_rng(0).random((30, 20, 2)), (1.5, 1.5, 10)).shape == (30, 20, 2)
    state = torch.load(tmp_path / "last_checkpoint_epoch=2.pt", weights_only=True)
    start = ConfigParser.load_config_file(str(ROOT / CONFIG))["seed"]
    torch.manual_seed(start)
    fresh = make_network((4, 6, 8)).state_dict()
    assert any(not torch.equal(state["network"][name], value) for name, value in fresh.items())
    assert "earlier training" in last_line(run_bundle(config_file=CONFIG, **options))
    options |= {"max_epochs": 3, "resume": tmp_path / "last_checkpoint_epoch=2.pt"}
    succeed(run_bundle("train", config_file=CONFIG, **options))
    assert (tmp_path / "last_checkpoint_epoch=3.pt").is_file()


def test_a_network_of_two_phases_is_trained_as_documented(phantoms: Path, tmp_path: Path) -> None:
    options = {**SMALL, "max_epochs": 1, "dataset_dir": phantoms, "output_dir": tmp_path, "phases": 2}
    succeed(run_bundle(config_file=CONFIG, **options, **{"train::loss::cross_entropy": 5, "train::loss::area": 1}))
    paired = load_weights(make_network((4, 6, 8), phases=2), tmp_path / "segmentation.pt")
    image, beside = np.random.default_rng(0).random((2, 30, 20, 2))
    segmenter = Segmenter(make_network((4, 6, 8)), paired)
    assert segmenter.probabilities(image, (1.5, 1.5, 10), beside).shape == (4, 30, 20, 2)


def test_mistyped_options_are_refused(phantoms: Path, tmp_path: Path) -> None:
    options = {**SMALL, "dataset_dir": phantoms, "output_dir": tmp_path}
    assert "--learning_rat: no such option" in last_line(run_bundle(config_file=CONFIG, **options, learning_rat=1e-3))
    assert "--crop_size" in last_line(run_bundle(config_file=CONFIG, **{**options, "crop_size": [64, 64]}))
    assert "--data_list; got none" in last_line(run_bundle(config_file=CONFIG, **SMALL, output_dir=tmp_path))
