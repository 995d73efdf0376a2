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

"""The report as a browser shows it. Runs with BROWSER_TESTS=1, where playwright and Chromium are installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import pytest
from scripts.report.cohort_page import write_cohort
from scripts.report.page import write_report
from scripts.workflow.cohort import COLUMNS
from test_page import PARAMETERS, register_phantom

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(
    os.environ.get("BROWSER_TESTS") != "1", reason="BROWSER_TESTS=1 runs the tests in a browser"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium: playwright's own, otherwise the system's."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).exists() else shutil.which("chromium") or shutil.which("google-chrome")
        if not found:
            pytest.skip("Chromium is not installed: run 'playwright install chromium', or install the system's")
        # A container's root has no sandbox.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report") / "report.html", register_phantom(), PARAMETERS)


@pytest.mark.parametrize("width", [1180, 420])
def test_page_plays_without_errors(browser: Browser, report: Path, width: int, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url[:60]))
    page.goto(report.as_uri(), wait_until="load")
    assert page.evaluate(
        "[...document.images].length > 0 && [...document.images].every(image => image.naturalWidth > 0)"
    )
    # Nothing is wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    shown = "[...document.querySelectorAll('.stack')].map(stack => [...stack.children].findIndex(image => image.offsetWidth > 0))"
    seen = set()
    for _ in range(100):
        now = page.evaluate(shown)
        assert len(set(now)) == 1
        seen.add(now[0])
        page.wait_for_timeout(30)
    assert seen == set(range(6))

    page.click("#play")
    assert page.inner_text("#play") == "Play"
    still = page.evaluate(shown)
    page.wait_for_timeout(400)
    assert page.evaluate(shown) == still
    page.focus("#slider")
    page.keyboard.press("Home")
    assert page.evaluate(shown) == [0] * len(still)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(shown) == [1] * len(still)
    assert page.inner_text("#where").startswith("frame 2 of 6")
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert (tmp_path / "report.png").stat().st_size > 50_000
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    page.close()


def test_page_is_whole_without_scripts(browser: Browser, report: Path, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri(), wait_until="load")
    visible = page.locator(".stack img:visible")
    assert visible.count() == 6
    assert not page.locator("#play").is_visible()
    assert page.get_by_text("Without JavaScript").is_visible()
    page.screenshot(path=tmp_path / "still.png", full_page=True)
    context.close()


# Width and height in inches, and the margins of the page's own style sheet.
SHEETS = {"A4": (8.27, 11.69), "Letter": (8.5, 11.0)}
MARGINS = 2 * 12 / 25.4


@pytest.mark.parametrize("sheet", SHEETS)
def test_a_print_loses_no_column_and_no_picture(browser: Browser, report: Path, sheet: str, tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    width = int(96 * (SHEETS[sheet][0] - MARGINS))
    page = browser.new_page(viewport={"width": width, "height": 1000})
    page.goto(report.as_uri(), wait_until="load")
    page.emulate_media(media="print")
    # Nothing is wider than the sheet, and nothing scrolls within it.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(box => box.scrollWidth <= box.clientWidth)")
    pictures = page.evaluate("[...document.images].filter(image => image.offsetWidth > 0).length")
    columns = page.evaluate("[...document.querySelectorAll('th')].map(heading => heading.textContent)")
    written = page.pdf(path=tmp_path / "report.pdf", format=sheet, prefer_css_page_size=False)
    page.close()
    pdf = pypdf.PdfReader(tmp_path / "report.pdf")
    assert len(written) == (tmp_path / "report.pdf").stat().st_size
    assert [float(length) / 72 for length in pdf.pages[0].mediabox[2:]] == pytest.approx(SHEETS[sheet], abs=0.02)
    # Words may be broken between lines, and fonts draw some pairs of letters as one.
    squeeze = lambda text: "".join(normalize("NFKC", text).replace("\u00ad", "").replace("-", "").split())
    text = squeeze(" ".join(each.extract_text() for each in pdf.pages))
    assert not [column for column in columns if squeeze(column) not in text]
    assert "Howeachfigureisdefined" in text
    assert "strokevolumeEDVESV" in text  # what a click opens on a screen
    assert sum(len(each.images) for each in pdf.pages) >= pictures
    # Of a phantom's three slices; sheets that stayed half empty would be more.
    assert len(pdf.pages) <= 7


def test_a_printed_cohort_breaks_no_number(browser: Browser, tmp_path: Path) -> None:
    texts = {"case": "subject_0001", "status": "done", "grade": "passed", "verdict": "All is well. " * 8}
    rows = [dict.fromkeys(COLUMNS, 123.4) | texts | {"label_basis": "automatic", "reason": ""}]
    width = int(96 * (11.69 - 20 / 25.4))
    page = browser.new_page(viewport={"width": width, "height": 700})
    page.goto(write_cohort(tmp_path / "cohort.html", rows).as_uri(), wait_until="load")
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    lines = """[...document.querySelectorAll('td:nth-child(n+4)')].map(cell => {
        const range = document.createRange(); range.selectNodeContents(cell);
        return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size; })"""
    assert set(page.evaluate(lines)) == {1}
    # And no heading within a word, but at a soft hyphen.
    assert page.evaluate(
        "[...document.querySelectorAll('thead th')].every(one => one.scrollWidth <= one.clientWidth + 1)"
    )
    page.close()


def test_a_heading_of_a_cohort_sorts_and_links_lead_to_reports(browser: Browser, report: Path, tmp_path: Path) -> None:
    grades = {"a b": "passed", "c": "do not use", "d": "look here"}
    rows = []
    for (name, grade), percent in zip(grades.items(), (9.5, 61.0, 40.0)):
        (tmp_path / name).mkdir()
        shutil.copy(report, tmp_path / name / "report.html")
        case = {"case": name, "status": "done", "grade": grade, "verdict": "Words.", "lv_ef_percent": percent}
        rows.append(dict.fromkeys(COLUMNS, "") | case)
    write_cohort(tmp_path / "cohort.html", rows)
    # Wherever the folder lies.
    moved = shutil.move(tmp_path, tmp_path.with_name(f"{tmp_path.name} moved"))
    page = browser.new_page()
    page.goto((Path(moved) / "cohort.html").as_uri(), wait_until="load")
    cases = "[...document.querySelectorAll('td:nth-child(3)')].map(cell => cell.textContent)"
    assert page.evaluate(cases) == ["c", "d", "a b"]
    assert page.locator("td img").count() == 3
    for expected in (["a b", "d", "c"], ["c", "d", "a b"]):
        page.get_by_role("button", name="LV EF").click()
        assert page.evaluate(cases) == expected
    page.get_by_role("link", name="a b").click()
    page.wait_for_selector("#verdict")
    page.close()
