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

"""Folders in the published layout of M&Ms (Campello et al., IEEE TMI 2021)."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from scripts.data.acdc import directed_items, find_image
from scripts.data.nifti import stem_of
from scripts.errors import InputError
from scripts.files import files_below

MMS_TABLE = "*M&Ms_Dataset_[Ii]nformation*opendataset.csv"
MMS_SPLITS = {"Training": "train", "Validation": "val", "Testing": "test"}
# Of the entries of a table.
SEPARATORS = ",;\t"
MMS_LABELS = [3, 2, 1]  # its values of RV, myocardium and LV


def mms_table(dataset_dir: str | Path) -> Path | None:
    """The table of a folder in the published layout of M&Ms (Campello et al., IEEE TMI 2021), or None where it has
    none.

    That layout is `211230_M&Ms_Dataset_information_diagnosis_opendataset.csv` beside the folders Training/Labeled,
    Training/Unlabeled, Validation and Testing of `<code>/<code>_sa.nii.gz` (a 4-D cine) and
    `<code>/<code>_sa_gt.nii.gz` (its labels, at ED and ES). A table of another name is known by its column `External
    code`.
    """
    tables = [path for path in sorted(Path(dataset_dir).glob("[!.]*.csv")) if path.is_file()]
    named = [path for path in tables if path.match(MMS_TABLE)]
    return next(iter(named), None) or next((path for path in tables if _has_codes(path)), None)


def _has_codes(path: Path) -> bool:
    """Whether the first line of a table names the column of M&Ms' subjects."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(10_000)
    return "External code" in re.split(rf"\s*[\"{SEPARATORS}]\s*", first.strip())


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a table, whose entries are parted by commas, or as spreadsheets of some countries write
    them, by semicolons or tabs.

    Raises:
        InputError: for what is no such table.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=max(SEPARATORS, key=first.count))
        try:
            rows = [{(key or "").strip(): value for key, value in row.items()} for row in reader]
        except csv.Error as error:
            raise InputError(f"{path}: cannot be read as CSV ({error}); correct it or remove it.") from error
    return [name.strip() for name in reader.fieldnames or []], rows


def mms_subjects(dataset_dir: str | Path) -> dict[str, dict]:
    """The subjects that have a cine and both frame numbers, by name: their "folder", "cine", "ED", "ES" (counted from
    0) and "vendor".

    Raises:
        InputError: for a table without the columns that are needed, or with a subject twice; for a subject with two
            cines, or with one frame for ED and ES; or where no subject is left.
    """
    path = mms_table(dataset_dir)
    columns, rows = _read_table(path)
    lacking = [name for name in ("External code", "ED", "ES") if name not in columns]
    if lacking:
        raise InputError(
            f"{path}: has no column {' and no '.join(lacking)}; take the table that M&Ms is published with."
        )
    by_code = _by_code(path, rows)
    found, left, seen = {}, [], set()
    for cine in files_below(dataset_dir):
        code = cine.parent.name
        if cine.name.lower() not in (f"{code}_sa{end}".lower() for end in (".nii.gz", ".nii")):
            continue
        seen.add(code.casefold())
        row = by_code.get(code.casefold(), {})
        # A table that was saved again may say 4.0.
        phases = {phase: re.fullmatch(r"\s*(\d+)([.,]0*)?\s*", row.get(phase) or "") for phase in ("ED", "ES")}
        if not all(phases.values()):
            left.append(code)
            continue
        frames = {phase: int(number[1]) for phase, number in phases.items()}
        if frames["ED"] == frames["ES"]:
            raise InputError(f"{path}: has one frame, {frames['ED']}, for ED and ES of {code}; correct the wrong one.")
        if code in found:
            raise InputError(f"{cine}: is a second cine of {code}, beside {found[code]['cine']}; move one away.")
        found[code] = {"folder": cine.parent, "cine": cine, "vendor": row.get("Vendor", ""), **frames}
    if left:
        _warn_once(f"{path}: gives no ED and ES, counted from 0, of {_list_names(left)}, which {_is(left)} left out.")
    if not found:
        raise InputError(
            f"{path}: no <code>/<code>_sa.nii.gz below this folder whose ED and ES the table gives; unpack the data there."
        )
    if missing := sorted(row["External code"] for code, row in by_code.items() if code not in seen):
        _warn_once(
            f"{path}: names {_list_names(missing)} without a <code>/<code>_sa.nii.gz, which {_is(missing)} left out."
        )
    return found


def _by_code(path: Path, rows: Sequence[dict]) -> dict[str, dict]:
    """The rows of a table by their subjects, whose capitals do not matter.

    Raises:
        InputError: for a subject in two rows that differ in ED or ES.
    """
    found: dict[str, dict] = {}
    for row in rows:
        code = (row.get("External code") or "").strip()
        other = found.setdefault(code.casefold(), {**row, "External code": code}) if code else row
        if any(row.get(phase) != other.get(phase) for phase in ("ED", "ES")):
            raise InputError(f"{path}: has two rows of {code} with other ED or ES; remove the wrong one.")
    return found


def _list_names(names: Sequence[str]) -> str:
    """Names in a message, the first of many."""
    more = f" and {len(names) - 9} more" if len(names) > 9 else ""
    return ", ".join(names[:9]) + more


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


@lru_cache
def _warn_once(message: str) -> None:
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
        cine, label = subject["cine"], mms_label(subject["cine"])
        for item, phases in directed_items(code, direction):
            item |= {"vendor": subject["vendor"], "label_values": MMS_LABELS}
            for role, phase in zip(("moving", "fixed"), phases):
                item |= {role: str(cine), f"{role}_frame": subject[phase]}
                if label is not None:
                    item[f"{role}_label"] = str(label)
            items.append(item)
    return items


def mms_label(cine: Path) -> Path | None:
    """The labels of a cine, which lie beside it."""
    return find_image(cine.parent, f"{stem_of(cine)}_gt", required=False)
