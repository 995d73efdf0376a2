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

"""The report: whole, offline, escaped, and without what was not measured."""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scripts.cardiac.cines import ESTIMATED, Cine
from scripts.cardiac.function import measure_function
from scripts.cardiac.phantom import Phantom
from scripts.cardiac.quality import assess
from scripts.cardiac.registrations import CineRegistration, PairRegistration
from scripts.cardiac.strain import measure_strain
from scripts.registration.fields import warp_stack
from scripts.report import page as report
from scripts.report.page import write_report
from scripts.report.tables import format_value
from test_tables import two_answers

PARAMETERS = {"bundle version": "1.2.3", "reference_frame": "auto"}


def register_phantom(
    size: tuple[int, int] = (64, 64),
    slices: int = 3,
    frames: int = 6,
    label: bool = True,
    times: bool = True,
    reference: int = 1,
) -> CineRegistration:
    """A phantom's cine with its exact fields, brought onto a reference frame."""
    phantom, numbers = Phantom.random(3, size, slices, frames), range(1, frames + 1)
    image = np.stack([phantom.image(t) for t in numbers], axis=-1).astype(np.float32)
    fields, inverses = (
        np.stack([phantom.field(*pair) for pair in pairs]).astype(np.float32)
        for pairs in (zip(numbers, [reference] * frames), zip([reference] * frames, numbers))
    )
    moved = [
        warp_stack(torch.from_numpy(image[None, ..., t]), torch.from_numpy(fields[t]))[0].numpy() for t in range(frames)
    ]
    milliseconds = np.tile(1000 * phantom.cycle * np.arange(frames) / frames, (slices, 1)) if times else None
    registration = CineRegistration(
        cine=Cine("phantom003", image, phantom.affine, milliseconds),
        reference=reference,
        reference_basis="given",
        fields=fields,
        inverses=inverses,
        moved=np.stack(moved, axis=-1),
    )
    registration.quality = assess(registration)
    if label:
        registration.label = phantom.label(reference)
        registration.labels = np.stack([phantom.label(t) for t in numbers], axis=-1)
        registration.function = measure_function(
            registration.labels, registration.cine.spacing, milliseconds, reference
        )
        registration.strain = measure_strain(fields, registration.label, phantom.affine, times=milliseconds)
    return registration


def take_pair(whole: CineRegistration, frame: int) -> PairRegistration:
    """One frame (from 1) of a registered cine and its reference as moving and fixed image."""
    t = slice(frame - 1, frame)
    pair = PairRegistration(
        cine=Cine("pair", whole.cine.image[..., t], whole.cine.affine),
        fields=whole.fields[t],
        inverses=whole.inverses[t],
        moved=whole.moved[..., t],
        moving_label=whole.labels[..., frame - 1],
        moved_label=whole.label,
        fixed=whole.fixed,
    )
    pair.quality = assess(pair)
    return pair


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    def pictures(self) -> list[Image.Image]:
        """Every picture, opened; those of a stack and the figures alike."""
        images = []
        for attributes in (attributes for tag, attributes in self.tags if tag == "img"):
            kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", attributes["src"]).groups()
            image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            assert image.format == kind.upper()
            image.load()
            assert attributes["alt"]
            images.append(image)
        return images


@pytest.fixture(scope="module")
def registered() -> CineRegistration:
    return register_phantom()


@pytest.fixture(scope="module")
def page(registered: CineRegistration, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(tmp_path_factory.mktemp("report") / "new" / "report.html", registered, PARAMETERS))


def test_page_needs_nothing_but_itself(page: Page) -> None:
    assert "://" not in re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page.source)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|document\.write", page.source)
    assert "default-src 'none'" in page.source


def test_every_picture_opens_and_has_words(page: Page) -> None:
    pictures = page.pictures()
    # Three slices of six frames, acquired and registered; all slices of two frames; two curves, differences and field;
    # bull's-eyes and their curves.
    assert len(pictures) == 2 * 3 * 6 + 2 * 3 + 6
    assert all(np.asarray(picture.convert("L")).std() > 5 for picture in pictures)
    # Without a script, one picture of a stack shows: not the reference, which is registered to itself.
    shown = [attributes["alt"] for tag, attributes in page.tags if tag == "img" and attributes.get("class") == "on"]
    assert len(shown) == 2 * 3
    assert all(", end systole, " in words for words in shown)


def test_page_says_verdict_and_numbers(page: Page, registered: CineRegistration) -> None:
    assert "phantom003" in page.text
    assert page.text.count("not for clinical use") >= 2
    assert registered.quality["grade"] == "passed"
    assert "✓ Passed" in page.text
    assert f"LV EF {registered.function['lv_ef_percent']:.0f} %" in page.text
    assert registered.quality["verdict"][0] in page.text
    assert registered.function["caveat"] in page.text
    for key in ("lv_edv_ml", "lv_esv_ml", "lv_ef_percent", "rv_edv_ml", "lv_mass_g"):
        assert format_value(registered.function[key]) in page.text
    peak = min(100 * row["circumferential"] for row in registered.strain if row["region"] == "global")
    assert f"−{-peak:.1f}" in page.text
    assert {
        "verdict",
        "function",
        "cine",
        "slices",
        "curves",
        "differences",
        "field",
        "quality",
        "parameters",
    } <= page.ids
    assert "Frame 1, end diastole" in page.text
    assert "end systole" in page.text
    for name, value in PARAMETERS.items():
        assert name in page.text
        assert value in page.text


def test_distrust_and_folds_are_said_in_words(registered: CineRegistration, tmp_path: Path) -> None:
    bad = register_phantom()
    bad.fields[3, :, 30:34, 30:34] += 6 * np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    bad.quality = assess(bad)
    assert bad.quality["grade"] == "do not use"
    page = Page(write_report(tmp_path / "report.html", bad, {}))
    assert "✕ Do not use" in page.text
    assert all(sentence in page.text for sentence in bad.quality["verdict"])
    assert any(attributes.get("class") == "suspect" for tag, attributes in page.tags if tag == "td")
    # A verdict may be missing.
    bad.quality = {"verdict": ["One sentence."], "grade": "look here"}
    assert "One sentence." in Page(write_report(tmp_path / "report.html", bad, {})).text
    bad.quality = {}
    page = Page(write_report(tmp_path / "report.html", bad, {}))
    assert "Quality not assessed" in page.text
    assert not {"quality", "parameters"} & page.ids


def test_the_legend_names_what_the_label_holds(registered: CineRegistration, tmp_path: Path, page: Page) -> None:
    swatches = lambda page: {
        name for name in ("LV cavity", "myocardium (outer border)", "RV") if f"</i>{name}" in page.source
    }
    assert swatches(page) == {"LV cavity", "myocardium (outer border)", "RV"}
    whole = register_phantom()
    whole.label, whole.labels = (np.where(x == 1, 0, x) for x in (whole.label, whole.labels))
    assert swatches(Page(write_report(tmp_path / "report.html", whole, {}))) == {
        "LV cavity",
        "myocardium (outer border)",
    }


def test_without_label_nothing_of_it_is_left(tmp_path: Path) -> None:
    page = Page(
        write_report(tmp_path / "report.html", register_phantom(label=False, times=False, reference=4), PARAMETERS)
    )
    assert not {"function", "curves", "strain", "volumes"} & page.ids
    assert not re.search(r"\b(strain|ejection fraction|outlines|LV|basal|None|nan)\b", page.text, re.IGNORECASE)
    assert {"cine", "differences", "field", "quality"} <= page.ids
    assert len(page.pictures()) == 2 * 3 * 6 + 2 * 3 + 2


def test_text_is_escaped(registered: CineRegistration, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    cine = Cine(evil, registered.cine.image, registered.cine.affine)
    hostile = CineRegistration(
        cine=cine,
        reference=1,
        reference_basis=evil,
        fields=registered.fields,
        inverses=registered.inverses,
        moved=registered.moved,
    )
    hostile.quality = {"verdict": [evil], "thresholds": {evil: 1.0}, "frames": [{"frame": 1, evil: evil}]}
    page = Page(write_report(tmp_path / "report.html", hostile, {evil: evil}))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "<script>alert" not in page.source
    assert page.text.count(evil) >= 5


@pytest.mark.parametrize("label", [True, False])
def test_single_frame_and_slice(label: bool, tmp_path: Path) -> None:
    whole = register_phantom((40, 36), slices=1, frames=2, label=label)
    single = CineRegistration(
        cine=Cine("single", whole.cine.image[..., :1], whole.cine.affine, whole.cine.times[:, :1]),
        reference=1,
        reference_basis="the only one",
        fields=whole.fields[:1],
        inverses=whole.inverses[:1],
        moved=whole.moved[..., :1],
        label=whole.label,
        labels=whole.labels[..., :1] if label else None,
    )
    if label:
        single.function = measure_function(single.labels, single.cine.spacing, reference=1)
    page = Page(write_report(tmp_path / "report.html", single, PARAMETERS))
    assert len(page.pictures()) == 2
    assert not any(tag == "script" for tag, _ in page.tags)
    assert "slice 1 of 1" in page.text
    assert ("function" in page.ids) == label
    # One slice of two frames is a cine.
    assert len(Page(write_report(tmp_path / "report.html", whole, {})).pictures()) == 2 * 2 + 2 + (3 if label else 2)


def test_pair_alternates_between_fixed_and_moved(registered: CineRegistration, tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", take_pair(registered, 3), PARAMETERS))
    assert "fixed and moved image in turn" in page.text
    assert len(page.pictures()) == 2 * 3 * 2 + 2 * 3 + 2
    assert not {"function", "curves"} & page.ids
    assert "Frame" not in page.text
    before, after = (np.asarray(page.pictures()[i].convert("L"), float) for i in (1, 7))
    fixed = np.asarray(page.pictures()[6].convert("L"), float)
    assert np.abs(after - fixed).mean() < np.abs(before - fixed).mean()


def test_both_answers_are_drawn_and_automatic_contours_are_called_so(registered: CineRegistration) -> None:
    words = "Contours are automatic"
    assert words not in report.render_page(registered, PARAMETERS)
    half = {key: value[:1] * 6 for key, value in two_answers(0, 0)["carried"].items() if key.endswith("volume_ml")}
    function = {**two_answers(0, 0), "carried": half, "segmented": half}
    page = report.render_page(replace(registered, function=function, label_basis="automatic"), PARAMETERS)
    assert words in page
    assert "Where both curves part" in page
    # The cine shows outlines that are carried: where figures rest on others, it says so.
    beside = "The figures of the LV above rest on other outlines"
    assert beside not in " ".join(page.split())
    function = {**function, "lv_measured_by": "segmented"}
    both = replace(registered, function=function, segmented=registered.labels)
    assert beside in " ".join(report.render_page(both, PARAMETERS).split())


def test_the_heart_rate_is_that_of_the_times(registered: CineRegistration) -> None:
    cine = replace(registered.cine, times=np.tile(150.0 * np.arange(6), (3, 1)))
    assert cine.heart_rate == pytest.approx(60 / 0.9)
    assert "a heart rate of 67 beats per minute" in report.render_page(replace(registered, cine=cine), PARAMETERS)
    assert "heart rate" not in report.render_page(register_phantom(times=False), PARAMETERS)


def test_failure_leaves_what_was_there(
    registered: CineRegistration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        write_report(path, registered, {})
    monkeypatch.undo()
    monkeypatch.setattr(report, "draw_field", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(path, registered, {})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("frames", [30, 60])
def test_a_large_cine_fits(frames: int, tmp_path: Path) -> None:
    """256 x 256 x 12 of noise, which compresses worst, over the whole picture."""
    image = np.broadcast_to(np.random.default_rng(0).random((256, 256, 12, 1), np.float32), (256, 256, 12, frames))
    fields = np.broadcast_to(np.zeros((1, 2, 256, 256, 12), np.float32), (frames, 2, 256, 256, 12))
    cine = Cine("large", image, np.diag([1.4, 1.4, 8.0, 1.0]))
    registration = CineRegistration(
        cine=cine, reference=1, reference_basis="given", fields=fields, inverses=fields, moved=image
    )
    path = write_report(tmp_path / "report.html", registration, {})
    assert path.stat().st_size < 15e6
    assert len(Page(path).pictures()) == 2 * 3 * frames + 12 + 2


def turn(registration: CineRegistration, orientation: list[list[int]], axes: np.ndarray) -> CineRegistration:
    """The same slices on a grid whose axes point elsewhere in the body, and which are stored another way."""
    affine = registration.cine.affine.copy()
    affine[:3, :3] = axes * registration.cine.spacing
    stored = lambda image: None if image is None else nib.apply_orientation(image, orientation)
    field = lambda u: stored(u.transpose(2, 3, 4, 0, 1)[..., np.argsort([row[0] for row in orientation[:2]])])
    back = lambda u: (field(u) * [row[1] for row in sorted(orientation[:2])]).transpose(3, 4, 0, 1, 2)
    cine = replace(
        registration.cine,
        image=stored(registration.cine.image),
        affine=affine @ nib.orientations.inv_ornt_aff(orientation, registration.cine.image.shape[:3]),
    )
    images = {name: stored(getattr(registration, name)) for name in ("moved", "label", "labels")}
    fields = {name: back(getattr(registration, name)) for name in ("fields", "inverses")}
    return replace(registration, cine=cine, **images, **fields)


def test_slices_stored_another_way_are_shown_alike(registered: CineRegistration) -> None:
    """Letters stand at the edges, and each picture is the same to the bit."""
    axes = np.linalg.qr([[-0.75, 0.1, 0.6], [-0.6, -0.5, -0.6], [0.28, -0.85, 0.4]])[0]
    axes *= np.sign(np.diag(axes.T @ [[-0.75, 0.1, 0.6], [-0.6, -0.5, -0.6], [0.28, -0.85, 0.4]]))
    plain = turn(registered, [[0, 1], [1, 1], [2, 1]], axes)
    pages = [report.render_page(r, PARAMETERS) for r in (plain, turn(registered, [[1, -1], [0, 1], [2, 1]], axes))]
    assert "the patient's left to the right" in pages[0]
    assert re.findall(r"data:image/jpeg[^\"]+", pages[0]) == re.findall(r"data:image/jpeg[^\"]+", pages[1])
    assert re.findall(r"data:image/jpeg[^\"]+", pages[0]) != re.findall(
        r"data:image/jpeg[^\"]+", report.render_page(registered, PARAMETERS)
    )


def test_an_estimated_reference_is_called_an_estimate(registered: CineRegistration) -> None:
    words = "The reference, frame 1, is an estimate"
    assert words not in report.render_page(registered, PARAMETERS)
    assert words in report.render_page(replace(registered, reference_basis=ESTIMATED), PARAMETERS)
