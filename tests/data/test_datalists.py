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

"""Folders and JSON files to items, and what each says when something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.datalists import folder_splits, json_pairs, select_pairs, split_subjects
from scripts.data.folds import in_fold
from scripts.data.loading import LoadPaird
from scripts.data.mms import mms_table
from scripts.errors import InputError


def test_split_keeps_subjects_apart_whatever_their_order() -> None:
    names = [f"patient{n:03d}" for n in range(1, 101)]
    splits = split_subjects(names, seed=3)
    assert splits == split_subjects(names[::-1], seed=3)
    assert splits != split_subjects(names, seed=4)
    assert sorted(name for part in splits.values() for name in part) == names
    assert {name: len(part) for name, part in splits.items()} == {"train": 80, "val": 10, "test": 10}


@pytest.mark.parametrize("count", [3, 4, 5, 13, 14, 24, 93])
def test_no_subject_is_lost(count: int) -> None:
    names = [f"p{n}" for n in range(count)]
    splits = split_subjects(names)
    assert sorted(name for part in splits.values() for name in part) == sorted(names)
    assert all(splits.values())


def test_json_list_has_paths_relative_to_its_file(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii"):
        (tmp_path / name).touch()
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"moving": "a.nii.gz", "fixed": "b.nii"}]}))
    items = json_pairs(tmp_path / "list.json", "test")
    assert items == [
        {"moving": str(tmp_path / "a.nii.gz"), "fixed": str(tmp_path / "b.nii"), "case": "a_to_b", "subject": "a_to_b"}
    ]
    assert json_pairs(tmp_path / "list.json", "training") == []
    # A folder of a case's name changes nothing.
    (tmp_path / "c").mkdir()
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"moving": "a.nii.gz", "fixed": "b.nii", "case": "c"}]}))
    assert json_pairs(tmp_path / "list.json", "test")[0]["case"] == "c"


def test_items_without_a_name_are_subjects_named_after_their_folders(tmp_path: Path) -> None:
    pair = {"moving": "es.nii.gz", "fixed": "ed.nii.gz"}
    pairs = [{key: f"{folder}/{name}" for key, name in pair.items()} for folder in "abc"]
    given = [{"subject": "x"} | pairs[0], {"subject": "x"} | pairs[1]]
    (tmp_path / "list.json").write_text(json.dumps({"training": pairs, "test": given}))
    subjects = [item["subject"] for item in json_pairs(tmp_path / "list.json", "training")]
    assert subjects == ["a_es_to_ed", "b_es_to_ed", "c_es_to_ed"]
    # So that folds part them.
    assert len(set(in_fold(subjects, [0, 2])) & set(in_fold(subjects, [1, 2]))) == 0
    assert all(in_fold(subjects, [number, 2]) for number in (0, 1))
    assert [item["subject"] for item in json_pairs(tmp_path / "list.json", "test")] == ["x", "x"]


def test_what_a_json_list_says_besides_reaches_nothing(tmp_path: Path) -> None:
    item = {
        "cine": "a.nii.gz",
        "error": "none",
        "times": [1],
        "reference_frame": None,
        "case": None,
        "subject": 7,
        "points": None,
    }
    (tmp_path / "list.json").write_text(json.dumps({"test": [item]}))
    assert json_pairs(tmp_path / "list.json", "test") == [
        {"cine": str(tmp_path / "a.nii.gz"), "case": "7", "subject": "7"}
    ]


def test_no_source_gives_no_items_so_that_a_config_can_be_inspected() -> None:
    assert select_pairs(None, None, "train") == []


def test_mms_one_folder_below_its_table_and_behind_links_keeps_its_split(mms: Path, tmp_path: Path) -> None:
    before = folder_splits(mms)
    deeper = Path(shutil.copytree(mms, tmp_path / "mms" / "OpenDataset")).parent
    table = next((deeper / "OpenDataset").glob("*.csv"))
    table = table.rename(deeper / table.name)
    # macOS lays such a file beside each on other disks.
    table.with_name(f"._{table.name}").write_bytes(b"\0\5\26\7")
    assert folder_splits(deeper) == before
    linked = tmp_path / "linked"
    linked.mkdir()
    shutil.copy(table, linked)
    for place in ("Training", "Validation", "Testing"):
        (linked / place).symlink_to(mms / place)
    assert folder_splits(linked) == before


def test_an_mms_table_that_was_saved_again_keeps_its_subjects(
    mms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(mms, tmp_path / "mms"))
    table = next(root.glob("*.csv"))
    before, rows = select_pairs(str(root), None, "train"), table.read_text().splitlines()
    values = [row.split(",") for row in rows[1:]]
    for row in values:
        row[5], row[6], row[8] = f"{row[5]}.0", f" {row[6]}.", "Früh"
    table.write_bytes("\n".join([rows[0], *map(",".join, values)]).encode("latin-1"))
    assert select_pairs(str(root), None, "train") == before
    assert not caplog.text
    values[0][5] = ""
    table.write_text("\n".join([rows[0], *map(",".join, values)]))
    assert len(select_pairs(str(root), None, "train")) == len(before) - 1
    assert f"gives no ED and ES, counted from 0, of {values[0][1]}, which is left out" in caplog.text


def test_a_frame_without_labels_is_called_out(mms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    item = select_pairs(str(mms), None, "train")[0]
    LoadPaird()(item)
    assert "holds no structure" not in caplog.text
    with pytest.raises(
        InputError, match=rf"_sa_gt\.nii\.gz: holds no structure in frame {item['moving_frame'] + 1}"
    ) as caught:
        LoadPaird()(item | {"moving_frame": item["moving_frame"] + 1})
    assert f"but in {item['moving_frame']}; correct its ED and ES" in str(caught.value)
    label = nib.load(item["moving_label"])
    array = np.array(label.dataobj)
    array[..., item["moving_frame"]] = 0
    nib.save(nib.Nifti1Image(array, label.affine), tmp_path / "a_gt.nii.gz")
    LoadPaird()(item | {"moving_label": str(tmp_path / "a_gt.nii.gz")})
    assert f"a_gt.nii.gz: holds no structure in frame {item['moving_frame']}, counted from 0, and gives" in caplog.text


def test_an_mms_table_of_another_name_is_known_by_its_column(mms: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(mms, tmp_path / "mms"))
    (root / "another.csv").write_text("code,ED\n")
    table = next(root.glob("*opendataset.csv"))
    (root / "information.csv").write_text(table.read_text().replace("External code", '"External code"'))
    table.unlink()
    (root / "notes.csv").write_text("External codes\n")
    assert mms_table(root) == root / "information.csv"
    strip = lambda items: [{k: v for k, v in item.items() if k in ("subject", "moving_frame")} for item in items]
    assert strip(select_pairs(str(root), None, "train")) == strip(select_pairs(str(mms), None, "train"))


def drop_column(root: Path) -> None:
    table = next(root.glob("*.csv"))
    table.write_text(table.read_text().replace("External code", "Code"))


def drop_cines(root: Path) -> None:
    for path in root.rglob("*_sa.nii.gz"):
        path.unlink()


def move_frame(root: Path) -> None:
    table = next(root.glob("*.csv"))
    table.write_text(table.read_text().replace(",B,2,0,", ",B,2,99,"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop_column, ("opendataset.csv", "no column External code", "published with")),
        (drop_cines, ("opendataset.csv", "no <code>/<code>_sa.nii.gz", "unpack")),
        (move_frame, ("_sa.nii.gz", "no frame 99", "(40, 36, 2, 4)", "correct its ED and ES")),
    ],
)
def test_a_spoiled_mms_folder_is_named_with_its_cure(
    mms: Path, tmp_path: Path, spoil: callable, words: tuple[str, ...]
) -> None:
    root = Path(shutil.copytree(mms, tmp_path / "mms"))
    spoil(root)
    with pytest.raises(InputError) as caught:
        LoadPaird()(select_pairs(str(root), None, "train")[0])
    for word in words:
        assert word in str(caught.value)


def spoil_nothing(root: Path) -> None:
    shutil.rmtree(root)


def spoil_info(root: Path) -> None:
    (root / "phantom001" / "Info.cfg").write_text("ED: 1\nES: soon\n")


def spoil_frame(root: Path) -> None:
    next((root / "phantom001").glob("*_frame01.nii.gz")).unlink()


def spoil_splits(root: Path) -> None:
    (root / "splits.json").write_text('{"train": ["phantom001"]}')


def spoil_bytes(root: Path) -> None:
    (root / "splits.json").write_bytes(b"\xff\xfe\x00")


def list_numbers(root: Path) -> None:
    (root / "splits.json").write_text('{"train": [1], "val": [2], "test": [3]}')


def name_one(root: Path) -> None:
    (root / "splits.json").write_text('{"train": "phantom001", "val": [], "test": []}')


def repeat_name(root: Path) -> None:
    splits = {"train": ["phantom001", "phantom002"], "val": ["phantom001"], "test": ["phantom003"]}
    (root / "splits.json").write_text(json.dumps(splits))


def spoil_names(root: Path) -> None:
    (root / "splits.json").write_text('{"train": ["nobody"], "val": [], "test": []}')


def empty_split(root: Path) -> None:
    (root / "splits.json").write_text('{"train": [], "val": ["phantom001"], "test": []}')


def spoil_layout(root: Path) -> None:
    for path in root.glob("*/Info.cfg"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_nothing, ("data", "no such folder", "--dataset_dir")),
        (spoil_info, ("Info.cfg", "no frame number for ES", "ES: 1")),
        (spoil_frame, ("phantom001_frame01.nii.gz", "no such file", "correct Info.cfg")),
        (spoil_splits, ("splits.json", "needs the lists train, val and test", "correct it")),
        (spoil_bytes, ("splits.json", "is not text in UTF-8", "save it as UTF-8")),
        (list_numbers, ("splits.json", "its train is not a list of subject names", "correct it")),
        (name_one, ("splits.json", "its train is not a list of subject names", "correct it")),
        (repeat_name, ("splits.json", "names subjects more than once: phantom001", "belongs to one of")),
        (spoil_names, ("splits.json", "nobody", "add them")),
        (empty_split, ("split 'train' is empty", "add subjects")),
        (spoil_layout, ("no subject folder with an Info.cfg", "ACDC's layout", "of another layout by --data_list")),
    ],
)
def test_a_spoiled_folder_is_named_with_its_cure(copy: Path, spoil: callable, words: tuple[str, ...]) -> None:
    spoil(copy)
    with pytest.raises(InputError) as caught:
        select_pairs(str(copy), None, "train")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("is not a MONAI data list",)),
        ('{"test": [{"moving": "a.nii.gz"}]}', ("item 1 of 'test' has no 'fixed'", "add the path")),
        (
            '{"test": [{"moving": "a.nii.gz", "fixed": "b.nii.gz"}]}',
            ("a.nii.gz: no such file", "moving of case a_to_b"),
        ),
        ('{"training": []}', ("section 'test' is empty",)),
        ('{"test": [{"cine": "a_4d.nii.gz"}]}', ("section 'test' has cines (a)", "give moving and fixed.")),
        (
            '{"test": [{"moving": "a", "fixed": "b", "moving_lable": "c"}]}',
            ("has the key 'moving_lable'", "mean 'moving_label'?"),
        ),
        (
            '{"test": [{"cine": "a_4d.nii.gz", "refrence_frame": 3}]}',
            ("has the key 'refrence_frame'", "mean 'reference_frame'?"),
        ),
        (
            '{"test": [{"cine": "a_4d.nii.gz", "subject": ["a"]}]}',
            ("item 1 of 'test' has the subject ['a']", "give a name"),
        ),
        ('{"test": [{"cine": 5}]}', ("item 1 of 'test' has the cine 5", "give the path")),
        *(
            (
                f'{{"test": [{{"cine": "a.nii.gz", "case": "{name}"}}]}}',
                (f"the case '{name}', a name that outputs have",),
            )
            for name in ("summary.csv", ".part_a", ".old_a")
        ),
        *(
            (
                f'{{"test": [{{"cine": "a.nii.gz", "case": "{name}"}}]}}',
                (f"item 1 of 'test' has the case '{name}'", "without /"),
            )
            for name in ("../a", "/tmp/a", "..", ".", "a/b", "")
        ),
    ],
)
def test_a_spoiled_list_is_named_with_its_cure(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        select_pairs(None, str(path), "test")
    for word in (str(tmp_path), *words):
        assert word in str(caught.value)


def test_training_on_a_list_of_cines_is_told_of_the_config_that_does(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"cine": "a_4d.nii.gz"}]}))
    with pytest.raises(InputError, match=r"section 'training' has cines \(a\).*configs/finetune\.yaml"):
        select_pairs(None, str(tmp_path / "list.json"), "train")
