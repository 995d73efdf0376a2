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

"""Folders in M&Ms' layout to pairs."""

from __future__ import annotations

import shutil
from pathlib import Path

from scripts.data.datalists import folder_splits, folder_subjects, select_pairs, split_subjects
from scripts.data.mms import mms_pairs


def test_mms_without_its_folders_is_split_by_seed_and_needs_cine_and_frames(mms: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(mms, tmp_path / "mms"))
    for place in ("Training/Labeled", "Validation", "Testing"):
        for folder in (root / place).iterdir():
            folder.rename(root / folder.name)
        shutil.rmtree(root / place.split("/")[0])
    codes = folder_subjects(root)
    assert folder_splits(root, seed=2) == split_subjects(codes, seed=2)
    assert len(select_pairs(str(root), None, "test_or_all")) == 5
    table = next(root.glob("*.csv"))
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:-1], lines[-1].replace(",B,2,0,", ",B,2,,")]))
    (root / codes[0] / f"{codes[0]}_sa.nii.gz").unlink()
    assert folder_subjects(root) == codes[1:-1]
    (root / codes[1] / f"{codes[1]}_sa_gt.nii.gz").unlink()
    (item,) = mms_pairs(root, codes[1:2])
    assert "moving_label" not in item
