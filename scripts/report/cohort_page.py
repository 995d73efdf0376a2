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

"""The page of a cohort: a line a case, the worst verdicts first, that links the reports.

jinja2 and Pillow are imported where they are used, so that training does without them.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.cardiac.answers import WORDS
from scripts.files import write_text
from scripts.report.page import make_environment
from scripts.report.tables import describe, format_value

PAGE = "cohort.html"
# Of every page of a cohort, and of no other file.
MARK = '<meta name="generator" content="GSMorph cohort">'
# Cases of which a reader has to know first. What has no grade was not assessed.
ORDER = ("failed", "do not use", "look here", "", "passed")
THUMBNAIL = 96  # pixels, its longer side
# The picture that a report shows without a script: of the reference, in a slice of the player.
_SHOWN = re.compile(r'<img class="on"[^>]* src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)"')
# Columns of the summary that have a place of their own.
_APART = ("case", "status", "grade", "verdict", "reason")
# What a reader looks for first, by a part of a column's key; what has none of them, as folding, is last.
_FIRST = ("_ef_", "_edv_", "_esv_", "lv_", "peak_")
# Where long words of a heading may be broken.
_BREAKS = {"circumferential": "circum\u00adferential", "longitudinal": "longi\u00adtudinal"}


def write_cohort(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page, whole or not at all; it needs no other file but the reports that it links.

    Args:
        path: HTML file, in the folder of the cases.
        rows: of the summary, `cohort.summarize_case`.
    """
    columns = _choose_columns(rows)
    cases = sorted((_describe(path.parent, row, columns) for row in rows), key=lambda case: ORDER.index(case["grade"]))
    page = (
        make_environment()
        .get_template("cohort.html.jinja")
        .render(
            cases=cases,
            columns=[_head(key) for key in columns],
            counts=[(grade or "not assessed", n) for grade in ORDER if (n := sum(c["grade"] == grade for c in cases))],
            mark=MARK,
        )
    )
    write_text(path, page)
    return path


def _choose_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the figures that are shown, in their order: of those that some case has, less a ventricle's own where a
    column of one answer says the same."""
    filled = [key for key in rows[0] if key not in _APART and any(row[key] not in ("", None) for row in rows)]

    def is_said_by(key: str, other: str) -> bool:
        name, _, unit = key.rpartition("_")
        return other in {f"{name}_{by}_{unit}" for by in WORDS} and all(row[key] == row[other] for row in rows)

    shown = [key for key in filled if not any(is_said_by(key, other) for other in filled)]
    return sorted(shown, key=lambda key: next((i for i, part in enumerate(_FIRST) if part in key), len(_FIRST)))


def _head(key: str) -> str:
    """A column's heading."""
    words = describe(key)
    for word, broken in _BREAKS.items():
        words = words.replace(word, broken)
    return words


def is_cohort(path: Path) -> bool:
    """Whether a file is a page of a cohort."""
    return MARK in path.read_text(encoding="utf-8", errors="replace")


def _describe(folder: Path, row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """A case as the page shows it; a cell is its text and the number or text by which it is sorted."""
    name, failed = str(row["case"]), row["status"] == "failed"
    report = folder / name / "report.html"
    # What an earlier run left is no result of a case that fails now.
    there = report.is_file() and not failed
    grade = "failed" if failed else row["grade"]
    return {
        "name": name,
        "grade": grade,
        "rank": ORDER.index(grade),
        "words": row["reason"] if failed else row["verdict"],
        "link": f"{quote(name)}/report.html" if there else None,
        "thumbnail": read_thumbnail(report) if there else None,
        "cells": [("" if row[key] in ("", None) else format_value(row[key]), row[key]) for key in columns],
    }


def read_thumbnail(report: Path) -> str | None:
    """A small picture of the middle of the heart from a report, as data URI; None where it has none."""
    from PIL import Image

    shown = _SHOWN.findall(report.read_text(encoding="utf-8", errors="replace"))
    if not shown:
        return None
    # As acquired and registered, the same slices of both.
    tile = Image.open(io.BytesIO(base64.b64decode(shown[len(shown) // 4])))
    tile.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    tile.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
