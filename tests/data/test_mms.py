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

import pytest
from scripts.data.cases import inference_cases
from scripts.data.datalists import folder_splits, folder_subjects, select_pairs, split_subjects
from scripts.data.loading import LoadCase
from scripts.data.mms import mms_pairs
from scripts.errors import InputError


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


def test_tables_of_spreadsheets_and_other_capitals_give_the_same_pairs(mms: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(mms, tmp_path / "mms"))
    table = next(root.glob("*.csv"))
    before, text = mms_pairs(root, folder_subjects(root)), table.read_text()
    for content in (text.replace(",", ";"), text.replace(",", "\t"), text.replace("phantom", "PHANTOM")):
        table.write_text("\ufeff" + content.replace("\n", "\r\n"), encoding="utf-8")
        assert mms_pairs(root, folder_subjects(root)) == before


def test_subjects_of_the_table_without_a_cine_are_named(
    mms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(mms, tmp_path / "mms"))
    codes = folder_subjects(root)
    next(root.rglob(f"{codes[0]}_sa.nii.gz")).unlink()
    assert folder_subjects(root) == codes[1:]
    assert f"names {codes[0]} without a <code>/<code>_sa.nii.gz, which is left out" in caplog.text


FAULTS = {
    "one frame for ED and ES": (lambda text: text.replace(",B,2,0,2,", ",B,2,0,0,"), "for ED and ES of"),
    "two rows of a subject": (lambda text: text + text.splitlines()[1].replace(",B,2,", ",B,2,3"), "has two rows of"),
    "a field without end": (lambda text: text + '"' + "1" * 200_000, "cannot be read as CSV"),
    "no columns": (lambda text: text.replace(",ED,ES,", ",a,b,"), "has no column ED and no ES"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_table_that_cannot_be_right_is_named(mms: Path, tmp_path: Path, fault: str) -> None:
    root = Path(shutil.copytree(mms, tmp_path / "mms"))
    table, (change, words) = next(root.glob("*.csv")), FAULTS[fault]
    table.write_text(change(table.read_text()))
    with pytest.raises(InputError, match=words) as caught:
        folder_subjects(root)
    assert table.name in str(caught.value)


def test_a_subject_in_two_places_is_refused(mms: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(mms, tmp_path / "mms"))
    code = folder_subjects(root)[0]
    shutil.copytree(next(root.rglob(f"{code}_sa.nii.gz")).parent, root / "Testing" / code)
    with pytest.raises(InputError, match=f"is a second cine of {code}"):
        folder_subjects(root)


def test_inference_takes_cines_with_the_frame_and_label_of_the_table(mms: Path) -> None:
    items = inference_cases(dataset_dir=str(mms))
    assert [item["case"] for item in items] == folder_subjects(mms)
    for item, pair in zip(items, mms_pairs(mms, folder_subjects(mms))):
        loaded = LoadCase()(item)
        assert loaded["reference"] == pair["fixed_frame"] + 1
        assert loaded["reference_basis"] == "end diastole by the table of M&Ms"
        assert set(loaded["reference_label"].unique().tolist()) == {0, 1, 2, 3}
    # Another frame than ED and ES has no label.
    assert not any("reference_label" in item for item in inference_cases(dataset_dir=str(mms), reference_frame=2))
