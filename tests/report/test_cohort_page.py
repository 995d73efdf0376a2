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

"""The page of a cohort: sorted, whole, offline and escaped, with pictures of its reports."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image
from scripts.report.cohort_page import MARK, is_cohort, read_thumbnail, write_cohort
from test_page import Page

EVIL = "<script>alert(1)</script>"


def row(case: str, grade: str = "passed", **figures: object) -> dict:
    base = {"case": case, "status": "done", "grade": grade, "verdict": f"Words on {case}.", "folding_percent": 0.0}
    return base | {"lv_ef_percent": "", "rv_ef_percent": "", "reason": ""} | figures


def picture(shade: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), (shade, shade, shade)).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_report(folder: Path, name: str) -> None:
    """A report whose shown pictures are of three slices, as acquired and registered."""
    (folder / name).mkdir()
    shown = (
        f'<img class="on" decoding="sync" src="data:image/jpeg;base64,{picture(40 * i)}" alt="">' for i in range(6)
    )
    (folder / name / "report.html").write_text(f'<img src="data:image/jpeg;base64,AAAA">{"".join(shown)}')


@pytest.fixture
def page(tmp_path: Path) -> Page:
    for name in ("fine", "a name, with # and %", "gone"):
        write_report(tmp_path, name)
    rows = [
        row("fine", lv_ef_percent=61.23),
        row("no report", "look here"),
        row("a name, with # and %", "do not use", lv_ef_percent=40.0),
        row("gone", "", status="failed", reason=f"gone.nii.gz: {EVIL}"),
        row(EVIL + "x" * 150),
    ]
    return Page(write_cohort(tmp_path / "cohort.html", rows))


def test_the_worst_come_first_and_link_their_reports(page: Page) -> None:
    classes = [attributes["class"] for tag, attributes in page.tags if tag == "tr" and "class" in attributes]
    assert classes == ["failed", "do-not-use", "look-here", "passed", "passed"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["a%20name%2C%20with%20%23%20and%20%25/report.html", "fine/report.html"]
    assert "1 failed, 1 do not use, 1 look here, 2 passed" in page.text
    assert "Words on fine." in page.text
    assert f"gone.nii.gz: {EVIL}" in page.text


def test_figures_have_units_and_sort_as_numbers(page: Page) -> None:
    assert "LV EF, %" in page.text
    # What no case has is no column.
    assert "RV EF" not in page.text
    keys = [attributes["data-sort"] for tag, attributes in page.tags if tag == "td" and "data-sort" in attributes]
    assert "61.23" in keys
    assert "61.2" in page.text


def test_ejection_fractions_come_first_and_nothing_twice(tmp_path: Path) -> None:
    answers = {"lv_ef_percent": 60.0, "lv_mass_g": 90.0, "lv_ef_carried_percent": 58.0, "lv_ef_segmented_percent": 60.0}
    text = Page(write_cohort(tmp_path / "one.html", [row("a", **answers)])).text
    order = ["LV EF carried, %", "LV EF segmented, %", "LV mass, g", "Folding, %"]
    assert sorted(order, key=text.index) == order
    assert "LV EF, %" not in text
    # Of which answer they are differs from case to case.
    rows = [row("a", **answers), row("b", **answers | {"lv_ef_percent": 58.0})]
    assert "LV EF, %" in Page(write_cohort(tmp_path / "two.html", rows)).text


def test_it_needs_nothing_but_itself_and_is_escaped(page: Page) -> None:
    source = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page.source)
    assert "://" not in source
    assert "<script>alert" not in source
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "default-src 'none'" in source
    opened = re.findall(r"<(table|thead|tbody|tr|th|td|span|main|div|h1|p|a|button)\b", source)
    closed = re.findall(r"</(table|thead|tbody|tr|th|td|span|main|div|h1|p|a|button)>", source)
    assert sorted(opened) == sorted(closed)


def test_pictures_are_small_ones_of_the_middle_slice(page: Page, tmp_path: Path) -> None:
    pictures = page.pictures()
    assert len(pictures) == 2
    assert pictures[0].size == (96, 72)
    assert pictures[0].convert("L").getpixel((40, 40)) == pytest.approx(40, abs=3)
    (tmp_path / "old.html").write_text("<p>no pictures</p>")
    assert read_thumbnail(tmp_path / "old.html") is None


def test_other_pages_are_not_of_a_cohort(page: Page, tmp_path: Path) -> None:
    assert is_cohort(tmp_path / "cohort.html")
    assert MARK in page.source
    (tmp_path / "other.html").write_text("<html></html>")
    assert not is_cohort(tmp_path / "other.html")
