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

"""The folder of a case that inference leaves: what is in it, and whether one may go to a place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.errors import InputError, is_full_disk

DONE = "quality.json"
WEIGHTS = ("weights", "depth weights", "segmentation")  # files among the parameters of a run
# All that `writers.WriteRegistration`, and a Mac that shows it, may leave in the folder of a case.
RESULTS = {
    DONE,
    "report.html",
    "moved.nii.gz",
    "fields",
    "times.csv",
    "labels.nii.gz",
    "function.json",
    "volumes.csv",
    "strain.csv",
    "points.csv",
}
RESULTS |= {"field.nii.gz", "field_inverse.nii.gz", "moved_label.nii.gz", "fixed_label.nii.gz", "carried_label.nii.gz"}
RESULTS |= {"segmented.nii.gz", ".DS_Store"}
# What they may leave in its `fields`.
FIELD_FILE = r"frame_\d+(_inverse)?\.nii\.gz|\.DS_Store"


def check_writable(folder: Path) -> None:
    """Make a folder where it is missing.

    Raises:
        InputError: for one that cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another --output_dir.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to; give another --output_dir.")


@contextmanager
def explain_write_errors(path: Path, cure: str = "free space, or give another --output_dir.") -> Iterator[None]:
    """Turn errors of writing to a path, as on a full disk, into an `InputError` that names it, and none of the files that
    are to become it."""
    try:
        yield
    except (OSError, InputError) as error:
        if isinstance(error, InputError) and not is_full_disk(error):
            raise
        reason = "its disk is full" if isinstance(error, InputError) else error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}); {cure}") from error


def check_place(folder: Path) -> None:
    """Make sure that the results of a case can go to a folder, which is not there, is empty, or holds results and
    nothing else.

    Raises:
        InputError: for a folder that is something else, such as the case itself, or cannot be written to.
    """
    check_writable(folder.parent)
    if folder.is_file() or (folder.is_dir() and any(folder.glob("*")) and not is_result(folder)):
        raise InputError(
            f"{folder}: is there and holds no results of an earlier run; give --output_dir another folder."
        )
    others = {path.name for path in folder.glob("*")} - RESULTS
    others |= {f"fields/{path.name}" for path in folder.glob("fields/*") if not re.fullmatch(FIELD_FILE, path.name)}
    if others:
        raise InputError(
            f"{folder}: holds {min(others)} beside the results of an earlier run; move it, or give another --output_dir."
        )


def is_result(folder: Path) -> bool:
    """Whether a folder is one that inference wrote, be it without some of its files."""
    names = {path.name for path in folder.glob("*")}
    return (folder / DONE).is_file() or (names <= RESULTS and bool(names & {"moved.nii.gz", "report.html"}))
