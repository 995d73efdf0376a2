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

"""Folders and JSON files to MONAI data lists: one dict a pair, with the paths of its images and labels.

Each item holds `case` (a name for its outputs), `subject`, `moving` and `fixed`, and where they exist `moving_label`
and `fixed_label`. Where a path leads to a cine, `moving_frame` and `fixed_frame` say which frame of it and of its
label, counted from 0; `label_values` are its labels' values of RV, myocardium and LV, where they are not this
project's 1, 2, 3.
"""

from __future__ import annotations

import difflib
import logging
import os
import random
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from scripts.data.acdc import acdc_pairs, acdc_subjects
from scripts.data.mms import mms_pairs, mms_splits, mms_subjects, mms_table
from scripts.data.nifti import stem_of
from scripts.errors import InputError
from scripts.files import clean_name, plain_path, read_json
from scripts.options import check_option

FILE_KEYS = ("moving", "fixed", "moving_label", "fixed_label", "cine", "reference_label", "points")
NAME_KEYS = ("case", "subject", "direction")
# What is read of an item of a JSON list; other keys are the user's own, and left out.
LIST_KEYS = (*FILE_KEYS, *NAME_KEYS, "reference", "series", "plane", "label_values")
SPLITS = ("train", "val", "test")
HELD_OUT = 0.1  # of the subjects, for val and for test


def split_subjects(subjects: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """A seeded split by subject into train, val and test (80/10/10 %, one at least), the same whatever the order of
    `subjects`."""
    ordered = sorted(subjects)
    random.Random(seed).shuffle(ordered)
    held_out = max(round(len(ordered) * HELD_OUT), 1)
    parts = ordered[2 * held_out :], ordered[:held_out], ordered[held_out : 2 * held_out]
    return {name: sorted(part) for name, part in zip(SPLITS, parts)}


def folder_subjects(dataset_dir: str | Path) -> list[str]:
    """Names of the subjects of a folder in ACDC's layout or in that of M&Ms, sorted."""
    return sorted(mms_subjects(dataset_dir)) if mms_table(dataset_dir) else acdc_subjects(dataset_dir)


def _published_splits(dataset_dir: str | Path) -> dict[str, list[str]] | None:
    """Subjects of "train", "val" and "test" as the folder gives them, by a `splits.json` or the folders of M&Ms; else
    None.

    Raises:
        InputError: for a `splits.json` that is not readable, names a subject twice, or one without a folder.
    """
    path = Path(dataset_dir) / "splits.json"
    if not path.exists():
        return mms_splits(dataset_dir) if mms_table(dataset_dir) else None
    try:
        content = read_json(path)
        splits = {name: content[name] for name in SPLITS}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: needs the lists train, val and test ({error!r}); correct it or remove it."
        ) from error
    for split, names in splits.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: its {split} is not a list of subject names; correct it or remove it.")
    listed = [name for names in splits.values() for name in names]
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise InputError(
            f"{path}: names subjects more than once: {', '.join(twice)}; a subject belongs to one of train, val and test."
        )
    missing = sorted(set().union(*splits.values()) - set(folder_subjects(dataset_dir)))
    if missing:
        raise InputError(f"{path}: names subjects that have no folder: {', '.join(missing)}; correct it or add them.")
    return splits


def folder_splits(dataset_dir: str | Path, seed: int = 0) -> dict[str, list[str]]:
    """Subjects of "train", "val" and "test": the published ones where there are some, else by a seeded split."""
    return _published_splits(dataset_dir) or split_subjects(folder_subjects(dataset_dir), seed)


def json_pairs(path: str | Path, section: str) -> list[dict]:
    """A section ("training", "validation" or "test") of a MONAI data list in JSON; paths are relative to the file's
    folder.

    Each item needs "moving" and "fixed", and may have "moving_label", "fixed_label", "subject", "case" and "direction";
    for inference it may have "cine", and with it "reference_frame" (or "reference"; counted from 1) and
    "reference_label" and "series" (of a DICOM folder), instead, and "points" and "plane".

    Raises:
        InputError: for a file or a section that is not there, an item without an image or with a misspelled key, or a
            case that names no folder.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; --data_list takes a MONAI data list in JSON.")
    try:
        # MONAI's own reader would take a case for a path where a folder of its name lies beside the list.
        items = [dict(item) for item in read_json(path).get(section, [])]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not a MONAI data list ({error}); docs/files.md shows one.") from error
    listed = [
        _listed_item(item, path.parent, f"{path}: item {number} of '{section}'")
        for number, item in enumerate(items, start=1)
    ]
    # What has no name given is a subject of its own, also where files of several share a name.
    named = [any(item.get(key) is not None for key in ("case", "subject")) for item in items]
    return [item if own else {**item, "subject": item["case"]} for own, item in zip(named, unique_names(listed))]


def _listed_item(item: dict, folder: Path, where: str) -> dict:
    """An item of a data list as the others have it, its paths below a folder; `where` names it in messages.

    Raises:
        InputError: see `json_pairs`.
    """
    item = _known_entries(item, where)
    for key in FILE_KEYS:
        if key in item:
            if not isinstance(item[key], str) or not item[key].strip():
                raise InputError(f"{where} has the {key} {item[key]!r}; give the path of a file.")
            item[key] = str(folder / item[key])
    pair = [key for key in ("moving", "fixed") if key in item]
    if "cine" in item and pair:
        raise InputError(f"{where} has 'cine' and '{pair[0]}'; make two items of it, a cine and a pair.")
    lacking = [key for key in ("moving", "fixed") if key not in item]
    if lacking and "cine" not in item:
        raise InputError(f"{where} has no '{lacking[0]}'; add the path of that image.")
    if "label_values" in item:
        try:
            check_option("label_values", item["label_values"])
        except InputError as error:
            raise InputError(f"{where}: {str(error).removeprefix('--')}") from error
    stem = stem_of(item["cine"]) if "cine" in item else f"{stem_of(item['moving'])}_to_{stem_of(item['fixed'])}"
    item["case"] = name = str(item.get("case", item.get("subject", stem)))
    # It names a folder below output_dir.
    if name in ("", "..") or Path(name).name != name:
        raise InputError(f"{where} has the case {name!r}; give a name without / and '..'.")
    if name in ("summary.csv", "cohort.html") or name.startswith((".part_", ".old_")):
        raise InputError(f"{where} has the case {name!r}, a name that outputs have; give another.")
    return {"subject": item["case"], **item}


def _known_entries(item: dict, where: str) -> dict:
    """The entries of an item that are read, none of them empty; other keys are the user's own.

    Raises:
        InputError: for a misspelled key, or a name that is none.
    """
    item = {"reference" if key == "reference_frame" else key: value for key, value in item.items()}
    for key in set(item) - set(LIST_KEYS):
        if close := difflib.get_close_matches(str(key), (*LIST_KEYS, "reference_frame"), n=1, cutoff=0.8):
            raise InputError(f"{where} has the key {key!r}; did you mean {close[0]!r}?")
    known = {key: value for key, value in item.items() if key in LIST_KEYS and value is not None}
    for key in NAME_KEYS:
        if not isinstance(known.get(key, ""), (str, int)):
            raise InputError(f"{where} has the {key} {known[key]!r}; give a name.")
    return known


def unique_names(items: Sequence[dict]) -> list[dict]:
    """The items with names that differ, lest one overwrite another one's files.

    Files of one name in several folders are named after these, too; else a number parts those that share a name.
    """

    def parent(item):
        return plain_path(item.get("cine") or item.get("moving") or "").parent.name

    # Without capitals, which some file systems do not tell apart.
    folders: dict[str, list[str]] = {}
    for item in items:
        folders.setdefault(item["case"].casefold(), []).append(parent(item).casefold())
    renamed: dict[str, dict] = {}
    for item in items:
        name, among = clean_name(item["case"]), folders[item["case"].casefold()]
        if len(among) > 1 and len(set(among)) == len(among):
            name = clean_name(f"{parent(item)}_{name}")
        names = (name if number == 1 else f"{name}_{number}" for number in count(1))
        name = next(name for name in names if name.casefold() not in renamed)
        subject = {"subject": clean_name(str(item["subject"]))} if "subject" in item else {}
        renamed[name.casefold()] = {**item, **subject, "case": name}
    return list(renamed.values())


def select_pairs(
    dataset_dir: str | None,
    data_list: str | None,
    split: str,
    direction: str = "ES_to_ED",
    seed: int = 0,
    label_values: Sequence[int | None] | None = None,
) -> list[dict]:
    """The items of a split, from a MONAI JSON list where one is given, else from a folder in ACDC's layout or in that
    of M&Ms.

    Args:
        dataset_dir: the folder; unused where `data_list` is given.
        data_list: a JSON file with the sections training, validation and test, or None.
        split: "train", "val" or "test"; "test_or_all" takes every subject where nothing but the seed splits the folder,
            or its test is empty.
        direction: see `acdc_pairs`; a JSON list states its own.
        seed: of the split, where nothing else splits the folder.
        label_values: of the labels of all items but those of a JSON list that state their own
            (`options.RULES`).

    Returns:
        The items; an empty list where neither source is given, so that a workflow can be inspected without data.

    Raises:
        InputError: for an empty split, or a list of cines.
    """
    if not data_list and not dataset_dir:
        return []
    if data_list:
        section = {"train": "training", "val": "validation"}.get(split, "test")
        items = json_pairs(data_list, section)
        source = f"{data_list}: section '{section}'"
        if cines := [item["case"] for item in items if "moving" not in item or "fixed" not in item]:
            other = ", or train on cines with configs/finetune.yaml merged over train.yaml" if split == "train" else ""
            raise InputError(f"{source} has cines ({cines[0]}) where pairs are needed; give moving and fixed{other}.")
    else:
        if split != "test_or_all":
            subjects = folder_splits(dataset_dir, seed)[split]
        else:
            published = _published_splits(dataset_dir)
            if published is None:
                logging.getLogger("evaluation").info(
                    f"{dataset_dir}: no splits.json, so every subject is scored, those for training among them"
                )
            subjects = (published or {"test": []})["test"] or folder_subjects(dataset_dir)
        items = (mms_pairs if mms_table(dataset_dir) else acdc_pairs)(dataset_dir, subjects, direction)
        source = f"{dataset_dir}: split '{split}'"
    if not items:
        raise InputError(f"{source} is empty; add subjects to it.")
    check_files(items)
    return with_label_values(items, label_values, keep=bool(data_list))


def with_label_values(items: Sequence[dict], values: Sequence[int | None] | None, keep: bool) -> list[dict]:
    """The items with the option `--label_values`, where it is given; those that have their own may keep them."""
    if values is None:
        return list(items)
    return [item if keep and "label_values" in item else {**item, "label_values": tuple(values)} for item in items]


def check_files(items: Sequence[dict]) -> None:
    """Stop at the first item whose file is not there, or that has one image, or one label, as moving and as fixed.

    Raises:
        InputError: naming the file.
    """
    for item in items:
        for key in FILE_KEYS:
            if key in item and not Path(item[key]).exists():
                raise InputError(f"{item[key]}: no such file ({key} of case {item['case']}); correct the path.")
        for kind in ("", "_label"):
            files = [item[f"{role}{kind}"] for role in ("moving", "fixed") if f"{role}{kind}" in item]
            if len(files) == 2 and item.get("moving_frame") == item.get("fixed_frame") and os.path.samefile(*files):
                what = kind.strip("_") or "image"
                raise InputError(
                    f"{files[1]}: is the {what} of both moving and fixed in case {item['case']}; give two {what}s."
                )
