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

"""Folders in ACDC's layout: `<subject>/Info.cfg` beside its frames and labels (Bernard et al., IEEE TMI 2018)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from scripts.errors import InputError

DIRECTIONS = {"ES_to_ED": ("ES", "ED"), "ED_to_ES": ("ED", "ES")}


def read_info(path: str | Path) -> dict[str, str]:
    """The `key: value` lines of an ACDC `Info.cfg`, in UTF-8 or in UTF-16 with its mark; ED and ES are frame numbers
    counted from 1.

    Raises:
        InputError: for two lines of one key that differ.
    """
    content = Path(path).read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    lines = content.decode(encoding, errors="replace").splitlines()
    info: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        if value and info.setdefault(key.strip(), value.strip()) != value.strip():
            raise InputError(f"{path}: has several lines {key.strip()[:20]} that differ; remove the wrong ones.")
    return info


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
            f"{root}: no subject folder with an Info.cfg in it; give --dataset_dir the folder of such subjects (ACDC's layout "
            "is <subject>/Info.cfg beside <subject>_frameNN.nii.gz), or pairs of another layout by --data_list (docs/files.md)."
        )
    return subjects


def acdc_pairs(dataset_dir: str | Path, subjects: Sequence[str], direction: str = "ES_to_ED") -> list[dict]:
    """One item a subject, its end-systolic and end-diastolic frame, in ACDC's layout.

    Args:
        dataset_dir: folder of the subject folders.
        subjects: names of subject folders.
        direction: "ES_to_ED" (ES moving, ED fixed: the published protocol), "ED_to_ES", or "both" (two items a
            subject).

    Raises:
        InputError: for a frame number that `Info.cfg` lacks, a frame that is not there, or one for both phases.
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
            if item["moving"] == item["fixed"]:
                raise InputError(
                    f"{folder / 'Info.cfg'}: has one frame, {info['ED']}, for ED and ES; correct the wrong one."
                )
            items.append(item)
    return items


def directed_items(subject: str, direction: str) -> list[tuple[dict, tuple[str, str]]]:
    """The names of a subject's items, one a direction, each with the phases of its moving and its fixed image."""
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
