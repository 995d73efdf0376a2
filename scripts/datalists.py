"""Folders and JSON files to MONAI data lists: one dict a pair, with the paths of its images and labels.

Each item holds `case` (a name for its outputs), `subject`, `moving` and `fixed`, and where they exist `moving_label`
and `fixed_label`. Where a path leads to a cine, `moving_frame` and `fixed_frame` say which frame of it and of its
label, counted from 0; `label_values` are this project's labels (1 RV, 2 myocardium, 3 LV) in the order of the file's
own, 0, 1, 2, ….
"""

from __future__ import annotations

import csv
import difflib
import json
import logging
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from scripts.errors import InputError
from scripts.files import files_below

FILE_KEYS = ("moving", "fixed", "moving_label", "fixed_label", "cine", "reference_label", "points")
NAME_KEYS = ("case", "subject", "direction")
LIST_KEYS = (*FILE_KEYS, *NAME_KEYS, "reference")
"""What is read of an item of a JSON list; other keys are the user's own, and left out."""
SPLITS = ("train", "val", "test")
HELD_OUT = 0.1  # of the subjects, for val and for test
DIRECTIONS = {"ES_to_ED": ("ES", "ED"), "ED_to_ES": ("ED", "ES")}
MMS_TABLE = "*M&Ms_Dataset_[Ii]nformation*opendataset.csv"
MMS_SPLITS = {"Training": "train", "Validation": "val", "Testing": "test"}
MMS_LABELS = [0, 3, 2, 1]  # its own are 1 LV, 2 myocardium, 3 RV


def read_info(path: str | Path) -> dict[str, str]:
    """The `key: value` lines of an ACDC `Info.cfg`; ED and ES are frame numbers counted from 1."""
    lines = Path(path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}


def acdc_subjects(dataset_dir: str | Path) -> list[str]:
    """Names of the subject folders (those that hold an `Info.cfg`), sorted.

    Raises:
        InputError: where there is none.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give --dataset_dir a folder in ACDC's layout.")
    subjects = sorted(path.parent.name for path in root.glob("*/Info.cfg"))
    if not subjects:
        raise InputError(
            f"{root}: no subject folder with an Info.cfg in it; ACDC's layout is <subject>/Info.cfg beside "
            "<subject>_frameNN.nii.gz."
        )
    return subjects


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


def published_splits(dataset_dir: str | Path) -> dict[str, list[str]] | None:
    """Subjects of "train", "val" and "test" as the folder gives them, by a `splits.json` or the folders of M&Ms; else
    None.

    Raises:
        InputError: for a `splits.json` that is not readable, names a subject twice, or one without a folder.
    """
    path = Path(dataset_dir) / "splits.json"
    if not path.exists():
        return mms_splits(dataset_dir) if mms_table(dataset_dir) else None
    try:
        content = json.loads(path.read_text())
        splits = {name: content[name] for name in SPLITS}
    except (KeyError, TypeError, ValueError) as error:
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
    return published_splits(dataset_dir) or split_subjects(folder_subjects(dataset_dir), seed)


def acdc_pairs(dataset_dir: str | Path, subjects: Sequence[str], direction: str = "ES_to_ED") -> list[dict]:
    """One item a subject, its end-systolic and end-diastolic frame, in ACDC's layout.

    Args:
        dataset_dir: folder of the subject folders.
        subjects: names of subject folders.
        direction: "ES_to_ED" (ES moving, ED fixed: the published protocol), "ED_to_ES", or "both" (two items a
            subject).

    Raises:
        InputError: for a frame number that `Info.cfg` lacks, or a frame that is not there.
    """
    items = []
    for subject in subjects:
        folder = Path(dataset_dir) / subject
        info = read_info(folder / "Info.cfg")
        for item, phases in directed_items(subject, direction):
            for role, phase in zip(("moving", "fixed"), phases):
                if not re.fullmatch(r"[1-9]\d*", info.get(phase, "")):
                    raise InputError(
                        f"{folder / 'Info.cfg'}: has no frame number for {phase}; add a line such as '{phase}: 1'."
                    )
                stem = f"{subject}_frame{int(info[phase]):02d}"
                item[role] = str(find_image(folder, stem))
                label = find_image(folder, f"{stem}_gt", required=False)
                if label is not None:
                    item[f"{role}_label"] = str(label)
            items.append(item)
    return items


def directed_items(subject: str, direction: str) -> list[tuple[dict, tuple[str, str]]]:
    """The names of a subject's items, one a direction, each with the phases of its moving and its fixed image.

    Raises:
        InputError: for an unknown direction.
    """
    if direction != "both" and direction not in DIRECTIONS:
        raise InputError(f"direction is one of {', '.join(DIRECTIONS)} or both, got {direction!r}.")
    return [
        (
            {"case": subject if direction != "both" else f"{subject}_{name}", "subject": subject, "direction": name},
            phases,
        )
        for name, phases in DIRECTIONS.items()
        if direction in (name, "both")
    ]


def find_image(folder: Path, stem: str, required: bool = True) -> Path | None:
    """`<stem>.nii.gz` or `<stem>.nii` in a folder.

    Raises:
        InputError: where it is required and not there.
    """
    for suffix in (".nii.gz", ".nii"):
        if (folder / f"{stem}{suffix}").exists():
            return folder / f"{stem}{suffix}"
    if required:
        raise InputError(
            f"{folder / stem}.nii.gz: no such file; Info.cfg names this frame, so add it or correct Info.cfg."
        )
    return None


def mms_table(dataset_dir: str | Path) -> Path | None:
    """The table of a folder in the published layout of M&Ms (Campello et al., IEEE TMI 2021), or None where it has
    none.

    That layout is `211230_M&Ms_Dataset_information_diagnosis_opendataset.csv` beside the folders Training/Labeled,
    Training/Unlabeled, Validation and Testing of `<code>/<code>_sa.nii.gz` (a 4-D cine) and
    `<code>/<code>_sa_gt.nii.gz` (its labels, at ED and ES). A table of another name is known by its column `External
    code`.
    """
    tables = [path for path in sorted(Path(dataset_dir).glob("*.csv")) if not path.name.startswith(".")]
    named = [path for path in tables if path.match(MMS_TABLE)]
    return next(iter(named), None) or next((path for path in tables if has_codes(path)), None)


def has_codes(path: Path) -> bool:
    """Whether the first line of a table names the column of M&Ms' subjects."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return "External code" in next(csv.reader(file), [])


def mms_subjects(dataset_dir: str | Path) -> dict[str, dict]:
    """The subjects that have a cine and both frame numbers, by name: their "folder", "ED", "ES" (counted from 0) and
    "vendor".

    Raises:
        InputError: for a table without the columns that are needed, or where no subject is left.
    """
    path = mms_table(dataset_dir)
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = list(csv.DictReader(file))
    lacking = [name for name in ("External code", "ED", "ES") if not rows or name not in rows[0]]
    if lacking:
        raise InputError(
            f"{path}: has no column {' and no '.join(lacking)}; take the table that M&Ms is published with."
        )
    by_code, found, left = {row["External code"]: row for row in rows}, {}, []
    for cine in files_below(dataset_dir):
        code = cine.parent.name
        if cine.name != f"{code}_sa.nii.gz":
            continue
        row = by_code.get(code, {})
        # A table that was saved again may say 4.0.
        phases = {phase: re.fullmatch(r"\s*(\d+)(\.0*)?\s*", row.get(phase) or "") for phase in ("ED", "ES")}
        if all(phases.values()):
            frames = {phase: int(number[1]) for phase, number in phases.items()}
            found[code] = {"folder": cine.parent, "vendor": row.get("Vendor", ""), **frames}
        else:
            left.append(code)
    if left:
        warn_once(
            f"{path}: gives no ED and ES, counted from 0, of {', '.join(left)}, which {'is' if len(left) == 1 else 'are'} left out."
        )
    if not found:
        raise InputError(
            f"{path}: no <code>/<code>_sa.nii.gz below this folder whose ED and ES the table gives; unpack the data there."
        )
    return found


@lru_cache
def warn_once(message: str) -> None:
    """A line in the log, however often a folder is listed."""
    logging.getLogger("data").warning(message)


def mms_splits(dataset_dir: str | Path) -> dict[str, list[str]] | None:
    """The published split of M&Ms, by its folders Training, Validation and Testing; None where the subjects lie
    elsewhere."""
    folders = {
        code: subject["folder"].relative_to(dataset_dir).parts for code, subject in mms_subjects(dataset_dir).items()
    }
    # The data may have been unpacked into a folder beside the table.
    places = {code: next((part for part in parts if part in MMS_SPLITS), "") for code, parts in folders.items()}
    if not any(places.values()):
        return None
    return {split: sorted(code for code in places if places[code] == place) for place, split in MMS_SPLITS.items()}


def mms_pairs(dataset_dir: str | Path, subjects: Sequence[str], direction: str = "ES_to_ED") -> list[dict]:
    """One item a subject, as `acdc_pairs`, of frames of its cine; "vendor" is the scanner's, A to D."""
    known, items = mms_subjects(dataset_dir), []
    for code in subjects:
        subject = known[code]
        files = [subject["folder"] / f"{code}_sa{end}.nii.gz" for end in ("", "_gt")]
        for item, phases in directed_items(code, direction):
            item |= {"vendor": subject["vendor"], "label_values": MMS_LABELS}
            for role, phase in zip(("moving", "fixed"), phases):
                item |= {role: str(files[0]), f"{role}_frame": subject[phase]}
                if files[1].exists():
                    item[f"{role}_label"] = str(files[1])
            items.append(item)
    return items


def json_pairs(path: str | Path, section: str) -> list[dict]:
    """A section ("training", "validation" or "test") of a MONAI data list in JSON; paths are relative to the file's
    folder.

    Each item needs "moving" and "fixed", and may have "moving_label", "fixed_label", "subject", "case" and "direction";
    for inference it may have "cine", and with it "reference_frame" (or "reference"; counted from 1) and
    "reference_label", instead, and "points".

    Raises:
        InputError: for a file or a section that is not there, an item without an image or with a misspelled key, or a
            case that names no folder.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; --data_list takes a MONAI data list in JSON.")
    try:
        # MONAI's own reader would take a case for a path where a folder of its name lies beside the list.
        items = [dict(item) for item in json.loads(path.read_text()).get(section, [])]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not a MONAI data list ({error}); see the README for one.") from error
    for number, item in enumerate(items, start=1):
        if "reference_frame" in item:
            item["reference"] = item.pop("reference_frame")
        for key in set(item) - set(LIST_KEYS):
            if close := difflib.get_close_matches(str(key), (*LIST_KEYS, "reference_frame"), n=1, cutoff=0.8):
                raise InputError(
                    f"{path}: item {number} of '{section}' has the key {key!r}; did you mean {close[0]!r}?"
                )
            del item[key]
        for key in [key for key, value in item.items() if value is None]:
            del item[key]
        for key in NAME_KEYS:
            if not isinstance(item.get(key, ""), (str, int)):
                raise InputError(f"{path}: item {number} of '{section}' has the {key} {item[key]!r}; give a name.")
        for key in FILE_KEYS:
            if key in item:
                if not isinstance(item[key], str):
                    raise InputError(
                        f"{path}: item {number} of '{section}' has the {key} {item[key]!r}; give the path of a file."
                    )
                item[key] = str(path.parent / item[key])
            elif key in ("moving", "fixed") and "cine" not in item:
                raise InputError(f"{path}: item {number} of '{section}' has no '{key}'; add the path of that image.")
        stem = stem_of(item["cine"]) if "cine" in item else f"{stem_of(item['moving'])}_to_{stem_of(item['fixed'])}"
        item["case"] = name = str(item.get("case", item.get("subject", stem)))
        # It names a folder below output_dir.
        if name in ("", "..") or Path(name).name != name:
            raise InputError(
                f"{path}: item {number} of '{section}' has the case {name!r}; give a name without / and '..'."
            )
        if name == "summary.csv" or name.startswith((".part_", ".old_")):
            raise InputError(
                f"{path}: item {number} of '{section}' has the case {name!r}, a name that outputs have; give another."
            )
        item.setdefault("subject", item["case"])
    return items


def stem_of(path: str | Path) -> str:
    """File name without _4d and the endings of NIfTI files."""
    return re.sub(r"(_4d)?(\.(nii|img|hdr)(\.gz)?)?$", "", Path(path).name, flags=re.IGNORECASE)


def select_pairs(
    dataset_dir: str | None, data_list: str | None, split: str, direction: str = "ES_to_ED", seed: int = 0
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
            raise InputError(
                f"{source} has cines ({cines[0]}) where pairs are needed; give moving and fixed, or train on cines with "
                "configs/finetune.yaml merged over train.yaml."
            )
    else:
        if split != "test_or_all":
            subjects = folder_splits(dataset_dir, seed)[split]
        else:
            published = published_splits(dataset_dir)
            if published is None:
                logging.getLogger("evaluation").info(
                    f"{dataset_dir}: no splits.json, so every subject is scored, those of a training too"
                )
            subjects = (published or {"test": []})["test"] or folder_subjects(dataset_dir)
        items = (mms_pairs if mms_table(dataset_dir) else acdc_pairs)(dataset_dir, subjects, direction)
        source = f"{dataset_dir}: split '{split}'"
    if not items:
        raise InputError(f"{source} is empty; add subjects to it.")
    check_files(items)
    return items


def require_one(**sources: object) -> None:
    """Stop unless exactly one source of data is given.

    Raises:
        InputError: naming the options.
    """
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        options = ", ".join(f"--{name}" + (" with --fixed" if name == "moving" else "") for name in sources)
        raise InputError(f"give exactly one of {options}; got {' and '.join(f'--{name}' for name in given) or 'none'}.")


def check_files(items: Sequence[dict]) -> None:
    """Stop at the first item whose file is not there.

    Raises:
        InputError: naming the file.
    """
    for item in items:
        for key in FILE_KEYS:
            if key in item and not Path(item[key]).exists():
                raise InputError(f"{item[key]}: no such file ({key} of case {item['case']}); correct the path.")
