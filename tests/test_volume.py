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

"""Stacks as volumes, as a user has them registered: trained on from the weights of slices, scored, and written."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from conftest import ROOT, SMALL, run_bundle, succeed
from scripts.cardiac.phantom import write_phantom_dataset

TRAIN = ["configs/train.yaml", "configs/labeled.yaml", "configs/volume.yaml"]


def test_volumes_are_trained_scored_and_registered(tmp_path: Path) -> None:
    data = write_phantom_dataset(
        tmp_path / "data", subjects=3, size=(40, 36), slices=4, frames=3, progress=False, shortening=0.15
    )
    options = {**SMALL, "dataset_dir": data, "max_epochs": 1, "batch_size": 1}
    succeed(run_bundle(config_file=str(TRAIN), output_dir=tmp_path / "out", **options))
    before, after = (
        torch.load(path, weights_only=True) for path in (ROOT / "models" / "model.pt", tmp_path / "out" / "model.pt")
    )
    new = {name for name in after if "_neighbors." in name}
    assert set(after) - new == set(before)
    assert all(after[name].abs().max() > 0 for name in new)

    case = data / "phantom001" / "phantom001"
    configs = str(["configs/inference.yaml", "configs/volume.yaml"])
    weights = {"checkpoint": tmp_path / "out" / "model.pt", "output_dir": tmp_path / "results", "segmentation": "none"}
    cine, label = f"{case}_4d.nii.gz", f"{case}_frame01_gt.nii.gz"
    succeed(run_bundle(config_file=configs, cine=cine, reference_label=label, reference_frame=1, **weights))
    (folder,) = (tmp_path / "results").iterdir()
    field, affine = nib.load(folder / "fields" / "frame_02.nii.gz"), nib.load(cine).affine
    voxels = np.einsum(
        "ij,xyzj->ixyz", np.linalg.inv(np.diag([-1, -1, 1]) @ affine[:3, :3]), field.get_fdata()[..., 0, :]
    )
    assert 0 < np.abs(voxels[2]).max() < 2
    assert np.abs(voxels[:2]).max() > 0.5
    with (folder / "strain.csv").open() as file:
        assert {"radial", "circumferential", "longitudinal"} <= set(next(csv.DictReader(file)))
    assert (folder / "report.html").is_file()


def test_weights_of_slices_register_volumes_slice_by_slice(tmp_path: Path, cine_path: Path) -> None:
    fields = []
    for configs in (["configs/inference.yaml"], ["configs/inference.yaml", "configs/volume.yaml"]):
        output = tmp_path / str(len(configs))
        options = {"cine": cine_path, "reference_frame": 1, "output_dir": output, "device": "cpu"}
        options |= {"write": "fields", "segmentation": "none"}
        succeed(run_bundle(config_file=str(configs), **options))
        fields.append(nib.load(output / "heart" / "fields" / "frame_03.nii.gz").get_fdata())
    assert np.abs(fields[0]).max() > 1
    np.testing.assert_allclose(fields[1], fields[0], atol=1e-2)
