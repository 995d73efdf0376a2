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

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scripts.api import register_cine
from scripts.cardiac.segmentation import Segmenter, make_network
from scripts.errors import InputError
from scripts.workflow.segmenters import load_segmenter

# As the zoo's ventricular_short_axis_3label has them.
CHANNELS = {"0": "background", "1": "lv_pool", "2": "myocardium", "3": "rv_pool"}
SPACING = (1.4, 1.4, 9.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle in the zoo's layout whose network finds channel k where the intensity is k thirds of the largest."""
    for folder in ("configs", "models"):
        (tmp_path / folder).mkdir()
    config = {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0')",
        "network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 1},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "ScaleIntensityd", "keys": "image"},
            ],
        },
        "datalist": "$glob.glob('nowhere')",
        "inferer": {"_target_": "SliceInferer", "roi_size": [64, 64], "spatial_dim": 2},
    }
    write_configs(tmp_path, config, CHANNELS)
    centers = torch.arange(4) / 3
    torch.save({"weight": 2 * centers.view(4, 1, 1, 1), "bias": -(centers**2)}, tmp_path / "models" / "model.pt")
    return tmp_path


def write_configs(bundle: Path, config: dict, channels: dict) -> None:
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture
def channel() -> NDArray:
    """Which of the bundle's channels is right in each voxel of a stack."""
    found = np.zeros((30, 24, 3), np.uint8)
    found[4:10, 5:9] = 3
    found[12:22, 8:18] = 2
    found[15:19, 11:15] = 1
    return found


def test_labels_of_another_bundle_are_renamed(bundle: Path, channel: NDArray) -> None:
    segment = load_segmenter(bundle)
    expected = np.array([0, 3, 2, 1], np.uint8)[channel]
    assert np.array_equal(segment(70.0 * channel, SPACING), expected)
    cine = np.stack([70.0 * channel, 5.0 * channel[::-1]], axis=-1)
    assert np.array_equal(segment(cine, SPACING), np.stack([expected, expected[::-1]], axis=-1))


def test_a_cine_is_registered_with_the_contours_of_another_bundle(bundle: Path, channel: NDArray) -> None:
    cine = np.stack([70.0 * channel, 70.0 * channel], axis=-1)
    found = register_cine((cine, np.diag([*SPACING, 1.0])), segmentation=bundle, device="cpu")
    expected = np.array([0, 3, 2, 1], np.uint8)[channel]
    assert np.array_equal(found.label, expected)
    assert np.array_equal(found.segmented, np.stack([expected, expected], axis=-1))
    assert found.label_basis == "automatic"


def test_a_bundle_that_resamples_gives_labels_on_the_image_s_grid(bundle: Path, channel: NDArray) -> None:
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    config["preprocessing"]["transforms"][2:] = [
        {"_target_": "Spacingd", "keys": "image", "pixdim": [0.7, 0.7, -1]},
        {"_target_": "ScaleIntensityd", "keys": "image"},
    ]
    write_configs(bundle, config, CHANNELS)
    found = load_segmenter(bundle)(70.0 * channel, SPACING)
    assert (found == np.array([0, 3, 2, 1])[channel]).mean() > 0.93


@pytest.mark.parametrize(
    "channels",
    [
        {"0": "background", "1": "LV", "2": "LV myocardium", "3": "RV"},
        {"0": "background", "1": "left ventricle", "2": "myocardium of the left ventricle", "3": "right ventricle"},
    ],
)
def test_names_may_be_written_in_other_ways(bundle: Path, channel: NDArray, channels: dict) -> None:
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    write_configs(bundle, config, channels)
    assert np.array_equal(load_segmenter(bundle)(9.0 * channel, SPACING), np.array([0, 3, 2, 1])[channel])


def test_channels_that_cannot_be_told_are_refused(bundle: Path) -> None:
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    write_configs(bundle, config, {"0": "background", "1": "heart", "2": "myocardium", "3": "rv"})
    with pytest.raises(InputError, match=r"metadata\.json.*does not name the LV once"):
        load_segmenter(bundle)


@pytest.mark.parametrize("missing", ["configs/inference.json", "configs/metadata.json", "models/model.pt"])
def test_a_bundle_that_lacks_a_file_is_refused(bundle: Path, missing: str) -> None:
    (bundle / missing).unlink()
    with pytest.raises(InputError, match=Path(missing).name.replace(".", r"\.")):
        load_segmenter(bundle)


def test_weights_of_another_network_are_refused(bundle: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, bundle / "models" / "model.pt")
    with pytest.raises(InputError, match="does not belong"):
        load_segmenter(bundle)
    with pytest.raises(InputError, match="another network"):
        load_segmenter(bundle / "models" / "model.pt")


def test_a_file_may_hold_both_own_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = {"network": make_network(), "paired": make_network(phases=2)}
    torch.save(torch.nn.ModuleDict(networks).state_dict(), tmp_path / "weights.pt")
    image, beside = np.random.default_rng(0).random((2, 32, 20, 2))
    found, expected = load_segmenter(tmp_path / "weights.pt"), Segmenter(**networks)
    assert found.sees_beside
    assert np.array_equal(found(image, SPACING), Segmenter(networks["network"])(image, SPACING))
    assert np.array_equal(found.probabilities(image, SPACING, beside), expected.probabilities(image, SPACING, beside))


def test_a_file_holds_weights_of_the_own_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = make_network()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    image = np.random.default_rng(0).random((32, 20, 2))
    found = load_segmenter(tmp_path / "weights.pt")
    assert not found.sees_beside
    assert np.array_equal(found(image, SPACING), Segmenter(network)(image, SPACING))
