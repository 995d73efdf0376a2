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

from scripts.data.acdc import directed_items
from scripts.errors import InputError
from scripts.files import files_below

MMS_TABLE = "*M&Ms_Dataset_[Ii]nformation*opendataset.csv"
MMS_SPLITS = {"Training": "train", "Validation": "val", "Testing": "test"}
MMS_LABELS = [3, 2, 1]  # its values of RV, myocardium and LV


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
