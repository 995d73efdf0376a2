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

"""A patient's study: what its stacks are, by headers and geometry, and which of them is taken."""

from __future__ import annotations

import logging
import random
import re
from pathlib import Path

import numpy as np
import pytest
from scripts.data.dicom import list_series, read_dicom_cine
from scripts.errors import InputError

from tests import dicom_files as dcm
from tests.conftest import ROOT

pydicom = pytest.importorskip("pydicom")

SIEMENS = ROOT.parent / "shared" / "data" / "study_siemens"
FOUR_CHAMBER = np.array([[0.9954, 0.0, 0.0958042], [0.0787602, -0.569348, -0.818315]])
TWO_CHAMBER = np.array([[-0.621421, 0.783462, -0.00474517], [0.0391428, 0.0249969, -0.998921]])


def make_series(number: int, stack: list[dcm.Slice], **tags: object) -> list[dcm.Slice]:
    """The stack as one series of a number, with tags."""
    tags |= {"SeriesNumber": number, "SeriesInstanceUID": f"1.2.{number}", "SeriesDescription": f"words {number}"}
    return dcm.set_tags(stack, lambda z, t: tags)


def make_study() -> dict[str, list[dcm.Slice]]:
    """What a scanner exports of a patient: scouts, a short-axis cine with a series a slice, long-axis cines, and in the
    cine's own orientation and matrix a perfusion, a map, a flow and a late enhancement."""
    slice_series = [make_series(10 + z, [phases])[0] for z, phases in enumerate(dcm.make_stack())]
    perfusion = make_series(30, dcm.make_stack(3, 6, seed=3), ContrastBolusAgent="agent")
    perfusion = dcm.set_tags(
        perfusion, lambda z, t: {"TriggerTime": 300.0 + t, "AcquisitionTime": f"1012{10 + t:02d}.{z}"}
    )
    echoes = dcm.set_tags(
        make_series(40, dcm.make_stack(1, 5, seed=4)), lambda z, t: {"InversionTime": 100.0 * (t + 1)}
    )
    flow = make_series(50, dcm.make_stack(1, 8, seed=5), SequenceName="*fl2d1_v150in")
    late = make_series(60, dcm.make_stack(3, 1, seed=6), InversionTime=280.0)
    return {
        "scouts": make_series(
            1, [[dcm.make_image(dcm.CORNER + step * dcm.NORMAL, PixelSpacing=[2.0, 2.0])] for step in (0, 5, 20)]
        ),
        "four": make_series(20, dcm.make_stack(1, 5, axes=FOUR_CHAMBER, seed=1)),
        "two": make_series(21, dcm.make_stack(1, 5, axes=TWO_CHAMBER, seed=2)),
        "short": slice_series,
        "perfusion": perfusion,
        "map": echoes,
        "flow": flow,
        "late": late,
    }


def rows_of(listing: str) -> dict[str, list[str]]:
    """The cells of a listing, by the numbers of a row's series."""
    cells = [re.split(r"\s{2,}", line[1:].strip()) for line in listing.splitlines()[2:]]
    return {name: others for name, *others in cells}


def test_a_study_is_listed_by_what_its_stacks_are(tmp_path: Path) -> None:
    listing = list_series(dcm.write(tmp_path, *make_study().values()))
    assert listing.splitlines()[0] == f"{tmp_path}: 10 series in 8 stacks; * is taken without --series"
    assert [line[:1] for line in listing.splitlines()[1:]] == [" ", "*", *[" "] * 7]
    pixels = "1.25 x 1.5"
    assert rows_of(listing) == {
        "10, 11, 12": ["SAX", "cine", "3 x 4", pixels, "words 10"],
        "20": ["4CH", "cine", "1 x 5", pixels, "words 20"],
        "21": ["2CH", "cine", "1 x 5", pixels, "words 21"],
        "30": ["SAX", "perfusion", "3 x 6", pixels, "words 30"],
        "40": ["SAX", "mapping", "1 x 5", pixels, "words 40"],
        "50": ["SAX", "flow", "1 x 8", pixels, "words 50"],
        "60": ["SAX", "still", "3 x 1", pixels, "words 60"],
        "1": ["SAX", "still", "3 x 1", "2 x 2", "words 1"],
    }


def test_names_decide_nothing(tmp_path: Path) -> None:
    study = make_study()
    names = random.Random(0).sample(range(100), 100)
    for stack in study.values():
        dcm.set_tags(stack, lambda z, t: {"SeriesDescription": f"SAX cine {names.pop()}", "ProtocolName": "cine"})
    np.testing.assert_array_equal(
        read_dicom_cine(dcm.write(tmp_path, *study.values())).image, dcm.expected_image(study["short"])
    )


def test_the_short_axis_cine_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = make_study()
    with caplog.at_level(logging.INFO, logger="inference"):
        cine = read_dicom_cine(dcm.write(tmp_path, *study.values()))
    np.testing.assert_array_equal(cine.image, dcm.expected_image(study["short"]))
    assert (cine.plane, cine.plane_basis) == ("SAX", "read")
    assert (
        f"{tmp_path}: takes series 10, 11, 12 (SAX, cine, 3 x 4); --series takes another: series 20 (4CH, "
        in caplog.text
    )
    assert "left out 3 images" in caplog.text  # the late enhancement, on the cine's slices
    assert "words" not in caplog.text


@pytest.mark.parametrize(
    ("series", "name"), [(20, "four"), ("21", "two"), (11, "short"), (30, "perfusion"), (50, "flow")]
)
def test_any_other_series_can_be_asked_for(tmp_path: Path, series: int | str, name: str) -> None:
    study = make_study()
    found = read_dicom_cine(dcm.write(tmp_path, *study.values()), series)
    np.testing.assert_array_equal(found.image, dcm.expected_image(study[name]))


@pytest.mark.parametrize(("series", "words"), [(60, "one image a slice, which is no cine"), (99, "no such series")])
def test_a_series_that_is_no_cine_is_refused_with_those_that_are(tmp_path: Path, series: int, words: str) -> None:
    folder = dcm.write(tmp_path, *make_study().values())
    with pytest.raises(InputError, match=f"has {words} under --series {series}; give one of 10, 11, 12; 20; 21; 30"):
        read_dicom_cine(folder, series)


def test_enhanced_files_are_rows_too(tmp_path: Path) -> None:
    study = make_study()
    flat = [[dcm.make_enhanced([image for phases in study[name] for image in phases])] for name in ("short", "four")]
    for (file,), number in zip(flat, (5, 6)):
        file.SeriesNumber, file.SeriesInstanceUID = number, f"1.2.{number}"
    folder = dcm.write(tmp_path / "study", *([stack] for stack in flat), study["two"])
    assert {name: cells[:3] for name, cells in rows_of(list_series(folder)).items()} == {
        "5": ["SAX", "cine", "3 x 4"],
        "6": ["4CH", "cine", "1 x 5"],
        "21": ["2CH", "cine", "1 x 5"],
    }
    dcm.write(tmp_path / "classic", study["short"])
    np.testing.assert_array_equal(read_dicom_cine(folder).image, dcm.expected_image(study["short"]))


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "M_PCA", "M", "PCA"]},
        {"PhaseContrast": "YES"},
        {"AcquisitionContrast": "FLOW_ENCODED"},
        {"VelocityEncodingMaximumValue": 150.0},
        {"SequenceName": "*fl2d1_v150in"},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_flows_are_told_by_what_vendors_write(tmp_path: Path, tags: dict[str, object]) -> None:
    """Though they have more slices than the cine."""
    flow = make_series(2, dcm.make_stack(5, seed=1), **tags)
    stack = make_series(1, dcm.make_stack())
    folder = dcm.write(tmp_path, flow, stack)
    assert {name: cells[1] for name, cells in rows_of(list_series(folder)).items()} == {"1": "cine", "2": "flow"}
    np.testing.assert_array_equal(read_dicom_cine(folder).image, dcm.expected_image(stack))


def test_a_velocity_tag_of_ge_counts_where_it_is_not_zero(tmp_path: Path) -> None:
    kinds = {}
    for venc in (0, 1500):
        stack = make_series(1, dcm.make_stack())
        for image in (image for phases in stack for image in phases):
            image.add_new(0x00190010, "LO", "GEMS_ACQU_01")
            image.add_new(0x001910CC, "SS", venc)
        kinds[venc] = rows_of(list_series(dcm.write(tmp_path / str(venc), stack)))["1"][1]
    assert kinds == {0: "cine", 1500: "flow"}


@pytest.mark.parametrize("many", [False, True], ids=["anonymized times of day", "times that run on"])
def test_perfusion_is_told_by_its_trigger_times_alone(tmp_path: Path, many: bool) -> None:
    stack = dcm.set_tags(
        make_series(1, dcm.make_stack(3, 8)),
        lambda z, t: {"TriggerTime": 850.0 * t if many else 10.0 * t, "NominalInterval": 850},
    )
    assert rows_of(list_series(dcm.write(tmp_path, stack)))["1"][1] == "perfusion"


def test_two_whole_stacks_of_one_place_are_two_rows_and_the_later_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make_series(4, dcm.make_stack()), make_series(9, dcm.make_stack(seed=1))
    folder = dcm.write(tmp_path, first, second)
    with caplog.at_level(logging.INFO, logger="inference"):
        np.testing.assert_array_equal(read_dicom_cine(folder).image, dcm.expected_image(second))
    assert "takes series 9 (SAX, cine, 3 x 4); --series takes another: series 4" in caplog.text
    np.testing.assert_array_equal(read_dicom_cine(folder, 4).image, dcm.expected_image(first))


def test_the_same_slices_after_contrast_are_rows_of_their_own(tmp_path: Path) -> None:
    before = [make_series(10 + z, [phases])[0] for z, phases in enumerate(dcm.make_stack())]
    after = [
        make_series(30 + z, [phases], ContrastBolusAgent="agent")[0] for z, phases in enumerate(dcm.make_stack(seed=1))
    ]
    folder = dcm.write(tmp_path, before, after)
    assert list(rows_of(list_series(folder))) == ["10, 11, 12", "30, 31, 32"]
    np.testing.assert_array_equal(read_dicom_cine(folder, 10).image, dcm.expected_image(before))


def test_of_a_slice_that_was_taken_again_the_later_series_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack = [make_series(10 + z, [phases])[0] for z, phases in enumerate(dcm.make_stack())]
    again = make_series(14, dcm.make_stack(seed=1)[1:2])
    found = read_dicom_cine(dcm.write(tmp_path, stack, again))
    np.testing.assert_array_equal(found.image, dcm.expected_image([stack[0], again[0], stack[2]]))
    assert re.search(
        r"left out 4 images, such as IM\d+ \(series 11\): slices that a later series took again", caplog.text
    )


def test_series_without_numbers_are_counted(tmp_path: Path) -> None:
    long_axis = dcm.set_tags(dcm.make_stack(1, 5, axes=FOUR_CHAMBER), lambda z, t: {"SeriesInstanceUID": "1.2.7"})
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"SeriesInstanceUID": "1.2.8"})
    folder = dcm.write(dcm.write(tmp_path / "b", stack).parent / "a", long_axis).parent
    assert list(rows_of(list_series(folder))) == ["2", "1"]
    np.testing.assert_array_equal(read_dicom_cine(folder, 1).image, dcm.expected_image(long_axis))


def test_stacks_of_one_series_have_letters(tmp_path: Path) -> None:
    views = [dcm.make_stack(1, 5, axes=axes, seed=n) for n, axes in enumerate((FOUR_CHAMBER, TWO_CHAMBER))]
    folder = dcm.write(tmp_path, *(make_series(7, view) for view in views))
    rows = rows_of(list_series(folder))
    assert {name: cells[0] for name, cells in rows.items()} == {"7a": "2CH", "7b": "4CH"} or {
        name: cells[0] for name, cells in rows.items()
    } == {"7a": "4CH", "7b": "2CH"}
    four = next(name for name, cells in rows.items() if cells[0] == "4CH")
    np.testing.assert_array_equal(read_dicom_cine(folder, four).image, dcm.expected_image(views[0]))


def test_several_cines_without_a_short_axis_stack_need_a_choice(tmp_path: Path) -> None:
    views = [make_series(n, dcm.make_stack(1, 5, axes=axes)) for n, axes in ((5, FOUR_CHAMBER), (6, TWO_CHAMBER))]
    folder = dcm.write(tmp_path, *views)
    with pytest.raises(
        InputError, match=r"holds 2 cines and no short-axis stack \(series 5 \(4CH, cine, 1 x 5\); series 6"
    ):
        read_dicom_cine(folder)
    assert "*" not in "".join(line[:1] for line in list_series(folder).splitlines())
    assert read_dicom_cine(dcm.write(tmp_path / "one", views[0])).plane == "4CH"


def test_a_heart_that_lies_otherwise_is_known_by_its_long_axis_views(tmp_path: Path) -> None:
    """All mirrored from left to right; a transverse stack has more slices than the short-axis one."""
    mirror = np.array([-1.0, 1.0, 1.0])
    transverse = make_series(4, dcm.make_stack(6, 4, axes=np.array([[1.0, 0, 0], [0, 1.0, 0]])))
    stack = make_series(1, dcm.make_stack(4, axes=dcm.AXES * mirror))
    views = [
        make_series(n, dcm.make_stack(1, 5, axes=axes * mirror)) for n, axes in ((2, FOUR_CHAMBER), (3, TWO_CHAMBER))
    ]
    folder = dcm.write(tmp_path, stack, *views, transverse)
    found = {name: cells[0] for name, cells in rows_of(list_series(folder)).items()}
    assert found == {"1": "SAX", "2": "LAX", "3": "LAX", "4": "unknown"}
    np.testing.assert_array_equal(read_dicom_cine(folder).image, dcm.expected_image(stack))


def test_stops_at_an_image_of_another_matrix_in_a_series(tmp_path: Path) -> None:
    stack = make_series(3, dcm.make_stack())
    pixels = np.zeros((dcm.ROWS - 1, dcm.COLUMNS), np.int16).tobytes()
    dcm.set_tags(stack, lambda z, t: {"Rows": dcm.ROWS - 1, "PixelData": pixels} if (z, t) == (1, 2) else {})
    with pytest.raises(
        InputError, match=r"IM\d+ \(series 3\) has 8 x 5 pixels, and others of its series have 8 x 6 \(1 such"
    ):
        read_dicom_cine(dcm.write(tmp_path / "rows", stack))
    stack = dcm.set_tags(
        make_series(3, dcm.make_stack()), lambda z, t: {"PixelSpacing": [1.5, 1.5]} if (z, t) == (1, 2) else {}
    )
    with pytest.raises(
        InputError, match=r"\(series 3\) has 1.5 x 1.5 mm a pixel, and others of its series have 1.25 x 1.5"
    ):
        read_dicom_cine(dcm.write(tmp_path / "spacing", stack))


def test_another_matrix_in_another_series_is_another_stack(tmp_path: Path) -> None:
    stack = make_series(3, dcm.make_stack())
    other = make_series(
        4, dcm.make_stack(1, seed=1), Rows=dcm.ROWS - 1, PixelData=bytes(2 * dcm.COLUMNS * (dcm.ROWS - 1))
    )
    np.testing.assert_array_equal(read_dicom_cine(dcm.write(tmp_path, stack, other)).image, dcm.expected_image(stack))


@pytest.mark.parametrize(("step", "plausible"), [(3.4, False), (90.0, True), (800.0, False)])
def test_times_of_no_heartbeat_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: float, plausible: bool
) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"TriggerTime": 10.0 + step * t})
    cine = read_dicom_cine(dcm.write(tmp_path, stack))
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))  # they order the phases all the same
    assert (cine.times is not None) == plausible
    words = (
        f"its cycle would last {dcm.PHASES * step:.4g} ms by its TriggerTime, which is no heartbeat; times are left out"
    )
    assert (words in caplog.text) != plausible


def test_a_scanners_study_is_read_as_it_lies(caplog: pytest.LogCaptureFixture) -> None:
    if not SIEMENS.is_dir():
        pytest.skip(f"no {SIEMENS}")
    rows = {name: cells[:4] for name, cells in rows_of(list_series(SIEMENS)).items()}
    pixels = "1.41 x 1.41"
    assert rows == {
        "7001, 8001, 9001, 10001, 11001, 12001": ["SAX", "cine", "6 x 25", pixels],
        "14001": ["4CH", "cine", "1 x 25", pixels],
        "17001": ["2CH", "cine", "1 x 25", pixels],
    }
    cine = read_dicom_cine(SIEMENS)
    assert cine.image.shape == (256, 208, 6, 25)
    np.testing.assert_allclose(cine.spacing, (1.40625, 1.40625, 17.7), rtol=1e-4)
    # The heartbeats of its slices, by NominalInterval, from base to apex as the normal goes.
    assert sorted(np.round(25 / 24 * np.ptp(cine.times, axis=1)).astype(int)) == [776, 814, 829, 831, 860, 863]
    assert read_dicom_cine(SIEMENS, 14001).plane == "4CH"


def test_gaps_between_joined_series_are_checked(tmp_path: Path) -> None:
    stack = dcm.make_stack(5)
    series = [make_series(10 + z, [phases])[0] for z, phases in enumerate(stack) if z != 1]
    with pytest.raises(InputError, match=f"unequally far apart \\({2 * dcm.GAP:.1f}, 9.0, 9.0 mm\\)"):
        read_dicom_cine(dcm.write(tmp_path, series))


def test_a_file_that_cannot_be_read_spares_a_stack_that_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack = dcm.make_stack()
    whole = dcm.write(tmp_path / "whole", stack)
    (whole / "scout.dcm").write_bytes(b"cut off")
    np.testing.assert_array_equal(read_dicom_cine(whole).image, dcm.expected_image(stack))
    assert "scout.dcm is not DICOM by its first bytes" in caplog.text
    assert "It is left out (1 such files)." in caplog.text
    # A slice that lacks a phase, and a lone slice, which may lack one.
    lone = dcm.write(tmp_path / "lone", dcm.make_stack(1))
    (lone / "scout.dcm").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"scout\.dcm is not DICOM by its first bytes"):
        read_dicom_cine(lone)
    next((whole / "part0").glob("IM*")).unlink()
    with pytest.raises(InputError, match=r"scout\.dcm is not DICOM by its first bytes"):
        read_dicom_cine(whole)
