"""Folders and JSON files to MONAI data lists: one dict a pair, with the paths of its images and labels.

Each item holds `case` (a name for its outputs), `subject`, `moving` and `fixed`, and where they exist `moving_label` and `fixed_label`.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Sequence
from pathlib import Path

from monai.data import load_decathlon_datalist

from scripts.errors import InputError

FILE_KEYS = ("moving", "fixed", "moving_label", "fixed_label", "cine", "reference_label")
SPLITS = ("train", "val", "test")
HELD_OUT = 0.1  # of the subjects, for val and for test
DIRECTIONS = {"ES_to_ED": ("ES", "ED"), "ED_to_ES": ("ED", "ES")}


def read_info(path: str | Path) -> dict[str, str]:
    """The `key: value` lines of an ACDC `Info.cfg`; ED and ES are frame numbers counted from 1."""
    lines = Path(path).read_text().splitlines()
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
            f"{root}: no subject folder with an Info.cfg in it; ACDC's layout is <subject>/Info.cfg beside <subject>_frameNN.nii.gz."
        )
    return subjects


def split_subjects(subjects: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """A seeded split by subject into train, val and test (80/10/10 %, one at least), the same whatever the order of `subjects`."""
    ordered = sorted(subjects)
    random.Random(seed).shuffle(ordered)
    held_out = max(round(len(ordered) * HELD_OUT), 1)
    parts = ordered[2 * held_out :], ordered[:held_out], ordered[held_out : 2 * held_out]
    return {name: sorted(part) for name, part in zip(SPLITS, parts)}


def acdc_splits(dataset_dir: str | Path, seed: int = 0) -> dict[str, list[str]]:
    """Subjects of "train", "val" and "test": from `splits.json` where there is one, else by a seeded split.

    Raises:
        InputError: for a `splits.json` that is not readable or names a subject without a folder.
    """
    subjects, path = acdc_subjects(dataset_dir), Path(dataset_dir) / "splits.json"
    if not path.exists():
        return split_subjects(subjects, seed)
    try:
        splits = {name: list(json.loads(path.read_text())[name]) for name in SPLITS}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: needs the lists train, val and test ({error!r}); mend it or remove it.") from error
    missing = sorted(set().union(*splits.values()) - set(subjects))
    if missing:
        raise InputError(f"{path}: names subjects without a folder: {', '.join(missing)}; mend it or add them.")
    return splits


def acdc_pairs(dataset_dir: str | Path, subjects: Sequence[str], direction: str = "ES_to_ED") -> list[dict]:
    """One item a subject, its end-systolic and end-diastolic frame, in ACDC's layout.

    Args:
        dataset_dir: folder of the subject folders.
        subjects: names of subject folders.
        direction: "ES_to_ED" (ES moving, ED fixed: the published protocol), "ED_to_ES", or "both" (two items a subject).

    Raises:
        InputError: for a frame number that `Info.cfg` lacks, or a frame that is not there.
    """
    if direction != "both" and direction not in DIRECTIONS:
        raise InputError(f"direction is one of {', '.join(DIRECTIONS)} or both, got {direction!r}.")
    items = []
    for subject in subjects:
        folder = Path(dataset_dir) / subject
        info = read_info(folder / "Info.cfg")
        for name, phases in DIRECTIONS.items():
            if direction not in (name, "both"):
                continue
            item = {"case": subject if direction != "both" else f"{subject}_{name}", "subject": subject, "direction": name}
            for role, phase in zip(("moving", "fixed"), phases):
                if not re.fullmatch(r"\d+", info.get(phase, "")):
                    raise InputError(f"{folder / 'Info.cfg'}: has no frame number for {phase}; add a line such as '{phase}: 1'.")
                stem = f"{subject}_frame{int(info[phase]):02d}"
                item[role] = str(find_image(folder, stem))
                label = find_image(folder, f"{stem}_gt", required=False)
                if label is not None:
                    item[f"{role}_label"] = str(label)
            items.append(item)
    return items


def find_image(folder: Path, stem: str, required: bool = True) -> Path | None:
    """`<stem>.nii.gz` or `<stem>.nii` in a folder.

    Raises:
        InputError: where it is required and not there.
    """
    for suffix in (".nii.gz", ".nii"):
        if (folder / f"{stem}{suffix}").exists():
            return folder / f"{stem}{suffix}"
    if required:
        raise InputError(f"{folder / stem}.nii.gz: no such file; Info.cfg names this frame, so add it or mend Info.cfg.")
    return None


def json_pairs(path: str | Path, section: str) -> list[dict]:
    """A section ("training", "validation" or "test") of a MONAI data list in JSON; paths are relative to the file's folder.

    Each item needs "moving" and "fixed", and may have "moving_label", "fixed_label", "subject" and "case"; for inference it may have
    "cine", and with it "reference" (a frame, counted from 1) and "reference_label", instead.

    Raises:
        InputError: for a file or a section that is not there, or an item without an image.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; --data_list takes a MONAI data list in JSON.")
    try:
        if section not in json.loads(path.read_text()):
            return []
        items = load_decathlon_datalist(str(path), is_segmentation=False, data_list_key=section, base_dir=str(path.parent))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is no MONAI data list ({error}).") from error
    for number, item in enumerate(items, start=1):
        for key in FILE_KEYS:
            if key in item:
                item[key] = str(path.parent / item[key])
            elif key in ("moving", "fixed") and "cine" not in item:
                raise InputError(f"{path}: item {number} of '{section}' has no '{key}'; add the path of that image.")
        item.setdefault(
            "case", stem_of(item["cine"]) if "cine" in item else f"{stem_of(item['moving'])}_to_{stem_of(item['fixed'])}"
        )
        item.setdefault("subject", item["case"])
    return items


def stem_of(path: str | Path) -> str:
    """File name without _4d, .nii and .nii.gz."""
    return re.sub(r"(_4d)?(\.nii(\.gz)?)?$", "", Path(path).name)


def select_pairs(
    dataset_dir: str | None, data_list: str | None, split: str, direction: str = "ES_to_ED", seed: int = 0
) -> list[dict]:
    """The items of a split, from a MONAI JSON list where one is given, else from a folder in ACDC's layout.

    Args:
        dataset_dir: folder in ACDC's layout; unused where `data_list` is given.
        data_list: a JSON file with the sections training, validation and test, or None.
        split: "train", "val" or "test"; "test_or_all" takes every subject where the folder has no `splits.json` or its test is empty.
        direction: see `acdc_pairs`; a JSON list states its own.
        seed: of the split, where there is no `splits.json`.

    Returns:
        The items; an empty list where neither source is given, so that a workflow can be inspected without data.

    Raises:
        InputError: for an empty split.
    """
    if not data_list and not dataset_dir:
        return []
    if data_list:
        section = {"train": "training", "val": "validation"}.get(split, "test")
        items = json_pairs(data_list, section)
        source = f"{data_list}: section '{section}'"
    elif split == "test_or_all" and not (Path(dataset_dir) / "splits.json").exists():
        items, source = acdc_pairs(dataset_dir, acdc_subjects(dataset_dir), direction), str(dataset_dir)
        logging.getLogger("evaluation").info(f"{dataset_dir}: no splits.json, so every subject is scored, those of a training too")
    else:
        subjects = acdc_splits(dataset_dir, seed)["test" if split == "test_or_all" else split]
        if split == "test_or_all" and not subjects:
            subjects = acdc_subjects(dataset_dir)
        items, source = acdc_pairs(dataset_dir, subjects, direction), f"{dataset_dir}: split '{split}'"
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
                raise InputError(f"{item[key]}: no such file ({key} of case {item['case']}); mend the path.")
