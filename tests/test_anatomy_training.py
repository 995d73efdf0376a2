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

"""Registration that knows anatomy, as a user has it: trained with networks of folds, scored, and written."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from conftest import ROOT, SMALL, run_bundle, succeed
from scripts.cardiac.phantom import write_phantom_dataset

TRAIN = ["configs/train.yaml", "configs/labeled.yaml", "configs/anatomy.yaml"]
SEGMENTATION = str(ROOT / "models" / "segmentation.pt")
FIELDS = {"reference_frame": 1, "device": "cpu", "write": "fields"}


def test_a_registration_learns_from_maps_and_takes_them(tmp_path: Path) -> None:
    data = write_phantom_dataset(tmp_path / "data", subjects=4, size=(40, 36), slices=2, frames=3, progress=False)
    options = {**SMALL, "dataset_dir": data, "max_epochs": 1, "output_dir": tmp_path / "out"}
    succeed(run_bundle(config_file=str(TRAIN), segmentations=str([SEGMENTATION] * 2), **options))
    before, after = (
        torch.load(path, weights_only=True) for path in (ROOT / "models" / "model.pt", tmp_path / "out" / "model.pt")
    )
    first = "backbone.encoders.0.0.conv.weight"
    assert set(before) == set(after)
    assert after[first].shape[1] == 4
    assert after[first][:, 1:].abs().max() > 0
    case = data / "phantom001" / "phantom001"
    configs = str(["configs/inference.yaml", "configs/slices.yaml", "configs/anatomy.yaml"])
    for name, weights in (("plain", ROOT / "models" / "model.pt"), ("trained", tmp_path / "out" / "model.pt")):
        paths = {"cine": f"{case}_4d.nii.gz", "checkpoint": weights, "output_dir": tmp_path / name}
        succeed(run_bundle(config_file=configs, **FIELDS, **paths))
    paths = {"cine": f"{case}_4d.nii.gz", "output_dir": tmp_path / "without"}
    succeed(run_bundle(config_file="configs/inference.yaml", segmentation="none", **FIELDS, **paths))
    fields = {
        name: nib.load(tmp_path / name / "phantom001" / "fields" / "frame_02.nii.gz").get_fdata()
        for name in ("plain", "trained", "without")
    }
    # The weights of images alone look at no map.
    np.testing.assert_allclose(fields["plain"], fields["without"], atol=5e-3)
    assert np.abs(fields["trained"] - fields["without"]).max() > 1e-2


def test_one_fold_is_none(tmp_path: Path) -> None:
    data = write_phantom_dataset(tmp_path / "data", subjects=4, size=(40, 36), slices=2, frames=3, progress=False)
    result = run_bundle(
        config_file=str(TRAIN), segmentations=str([SEGMENTATION]), dataset_dir=data, output_dir=tmp_path / "out"
    )
    assert result.returncode != 0
    assert "must be the weights of two folds or more" in result.stderr
    assert not (tmp_path / "out" / "model.pt").exists()
