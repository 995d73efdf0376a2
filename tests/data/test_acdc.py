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

"""Folders in ACDC's layout to pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scripts.data.acdc import acdc_pairs, acdc_subjects, read_info
from scripts.data.datalists import folder_splits, folder_subjects, select_pairs, split_subjects
from scripts.data.loading import LoadPaird
from scripts.errors import InputError


def test_items_name_the_frames_of_info_cfg(phantoms: Path) -> None:
    subject = acdc_subjects(phantoms)[0]
    info = read_info(phantoms / subject / "Info.cfg")
    (item,) = acdc_pairs(phantoms, [subject])
    for role, phase in (("moving", "ES"), ("fixed", "ED")):
        stem = phantoms / subject / f"{subject}_frame{int(info[phase]):02d}"
        assert item[role] == f"{stem}.nii.gz"
        assert item[f"{role}_label"] == f"{stem}_gt.nii.gz"
    assert item["case"] == item["subject"] == subject


def test_both_directions_swap_the_roles(phantoms: Path) -> None:
    there, back = acdc_pairs(phantoms, acdc_subjects(phantoms)[:1], "both")
    assert (there["moving"], there["fixed_label"]) == (back["fixed"], back["moving_label"])
    assert there["case"] != back["case"]
    assert there["subject"] == back["subject"]


def test_splits_json_wins_over_the_seed(copy: Path) -> None:
    assert folder_splits(copy, seed=5) == json.loads((copy / "splits.json").read_text())
    (copy / "splits.json").unlink()
    assert folder_splits(copy, seed=5) == split_subjects(acdc_subjects(copy), seed=5)
    assert len(select_pairs(str(copy), None, "test_or_all")) == 5


def test_a_label_that_is_not_there_is_left_out(copy: Path) -> None:
    subject = acdc_subjects(copy)[0]
    (copy / subject / f"{subject}_frame01_gt.nii.gz").unlink()
    (item,) = acdc_pairs(copy, [subject])
    assert "moving_label" in item
    assert "fixed_label" not in item


def test_mms_gives_the_pairs_of_the_same_subjects_in_acdc_layout(mms: Path, phantoms: Path) -> None:
    assert folder_subjects(mms) == folder_subjects(phantoms)
    assert {name: len(part) for name, part in folder_splits(mms).items()} == {"train": 3, "val": 1, "test": 1}
    subject = folder_splits(mms)["test"][0]
    expected = acdc_pairs(phantoms, [subject], "both")
    found = select_pairs(str(mms), None, "test_or_all", "both")
    assert [item["case"] for item in found] == [item["case"] for item in expected]
    for one, other in zip(found, expected):
        assert one["vendor"] == "B"
        loaded = [LoadPaird()(item) for item in (one, other)]
        for key in ("moving", "fixed", "moving_label", "fixed_label"):
            assert torch.equal(*(item[key].as_tensor() for item in loaded)), key
            torch.testing.assert_close(*(item[key].affine for item in loaded))
        # Not symmetric in time: the frames are the right ones.
        assert not torch.equal(loaded[0]["moving"].as_tensor(), loaded[0]["fixed"].as_tensor())


def test_lines_that_differ_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Info.cfg").write_text("ED: 1\nED: 1\nES: 4\n")
    assert read_info(tmp_path / "Info.cfg") == {"ED": "1", "ES": "4"}
    (tmp_path / "Info.cfg").write_text("ED: 1\nES: 4\nES: 5\n")
    with pytest.raises(InputError, match=r"Info\.cfg: has several lines ES that differ; remove the wrong ones"):
        read_info(tmp_path / "Info.cfg")
