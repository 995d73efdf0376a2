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

"""The table of findings: grades, places and words."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.cardiac.evidence import FIGURES
from scripts.cardiac.verdict import DO_NOT_USE, GRADES, LOOK, PASSED, THRESHOLDS, Finding, judge, worst

ROOT = Path(__file__).parents[2]


def frame(number: int = 2, **figures: object) -> dict:
    """Figures of a frame of three slices in which all is well; a figure of (slice, value) is that of a slice and of the
    frame."""
    good = {
        "folding_percent": 0.0,
        "jacobian_min": 0.5,
        "compressed_percent": 0.0,
        "inverse_error_mm_p95": 0.01,
        "largest_displacement_mm": 5.0,
        "mse_before": 0.5,
        "mse_after": 0.05,
        "blank_slices": 0,
    }
    slices = [{"slice": z + 1, **good} for z in range(3)]
    made = {"frame": number, **good, "slices": slices}
    for name, (z, value) in figures.items():
        made[name] = slices[z - 1][name] = value
    return made


# Two contours of all frames that agree.
AGREED = {"dice_percent": 96.0, "slices": [], "frames": [], "curves": {}, "heart": {}}


# As if they had been set so, whatever the weights.
CALIBRATED = {
    "closure_ratio": 3.0,
    "jump_ratio": 3.0,
    "least_detail_percent": 10.0,
    "most_detail_percent": 50.0,
    "most_shading": 18.0,
    "least_likeness_of_others_percent": 60.0,
    "mirrored_likeness_points": 5.0,
    "contour_dice_percent": 90.0,
    "distance_mm_of_a_slice": 12.0,
    "distance_mm_of_a_frame": 12.0,
    "ef_difference_points": 15.0,
    "label_fit_points": 2.0,
    "volume_closure_percent": 75.0,
    "volume_step_percent": 85.0,
    "volume_reversal_percent": 60.0,
    "off_line_mm": 12.0,
    "least_overlap_percent": 40.0,
    "turned_degrees": 75.0,
}


def call(frames: list[dict], cycle: dict | None = None, **others: object) -> list[Finding]:
    """Findings where all else is well."""
    return judge(frames, cycle or {}, THRESHOLDS | CALIBRATED, **{"contours": AGREED, **others})


def test_thresholds_are_those_of_every_figure() -> None:
    assert CALIBRATED.keys() == FIGURES.keys()
    assert FIGURES.keys() <= THRESHOLDS.keys()


def test_the_gravest_finding_is_the_grade() -> None:
    assert GRADES == (PASSED, LOOK, DO_NOT_USE)
    for grades, expected in (((), PASSED), ((LOOK,), LOOK), ((DO_NOT_USE, LOOK), DO_NOT_USE), ((PASSED,), PASSED)):
        assert worst(Finding(grade, "") for grade in grades) == expected


def test_remarks_follow_what_was_found_and_change_no_grade() -> None:
    for frames in ([frame(2)], [frame(2, folding_percent=(3, 2.0))]):
        found, plain = call(frames, remarks=["The RV grows."]), call(frames)
        assert found == [*plain, Finding(PASSED, "The RV grows.")]
        assert worst(found) == worst(plain)


def test_findings_name_their_slices_and_frames_the_gravest_first() -> None:
    frames = [frame(2, inverse_error_mm_p95=(1, 0.5)), frame(3, folding_percent=(3, 2.0)), frame(4)]
    folds, inverse = call(frames)
    assert (folds.grade, folds.slices, folds.frames) == (DO_NOT_USE, (3,), (3,))
    assert (inverse.grade, inverse.slices, inverse.frames) == (LOOK, (1,), (2,))
    assert folds.sentence.endswith("(slice 3; frame 3).")
    (finding,) = call([frame(1, folding_percent=(2, 5.0))], are_numbered=False)
    assert finding.frames == ()
    assert finding.sentence.endswith("(slice 2).")


def test_long_lists_of_places_are_cut_short() -> None:
    frames = [frame(t, blank_slices=(2, 1)) for t in range(2, 31)]
    (finding,) = call(frames)
    assert finding.frames == tuple(range(2, 31))
    assert finding.sentence.endswith("(slice 2; frames 2, 3, 4, 5, 6, 7, 8, 9, …).")


def test_doubts_are_worth_a_look() -> None:
    assert call([frame()]) == []
    assert call([frame()], doubts=["A file is odd."]) == [Finding(LOOK, "A file is odd.")]


CURVE = {
    "change_percent": 55.0,
    "closure_percent": 5.0,
    "step_percent": 30.0,
    "reversal_percent": 15.0,
    "reversal_frame": 4,
}
CURVES = {by: {**CURVE, "wall_change_percent": 5.0} for by in ("carried", "segmented")}
HEART = {"diameter_mm": 65.0, "off_line": [], "overlap": [], "turned": []}
IMAGE = {"detail_percent": 22.0, "shading": 3.0, "width_mm": 300.0}
IMAGE |= {"likeness_percent": [80.0, 75.0, 82.0], "mirrored_percent": [15.0, 15.0, 15.0]}
GOOD = {
    "dice_percent": 96.0,
    "slices": [{"slice": 2, "distance_mm": 3.0}],
    "frames": [{"frame": 3, "distance_mm": 3.0}],
}
GOOD |= {"curves": CURVES, "heart": HEART, "ejection_percent": {"carried": 52.0, "segmented": 55.0}}
GOOD |= {"label_fit_percent": [96.0, 80.0, 95.0], "reference": 1}


def both(**figures: float) -> dict:
    """Contours whose curves both have other figures."""
    return {"curves": {by: {**curve, **figures} for by, curve in CURVES.items()}}


def far(mm: float) -> list[dict]:
    """Frames of which the second one is so far off."""
    return [{"frame": 2, "distance_mm": 3.0}, {"frame": 3, "distance_mm": mm}]


# What is changed of the contours and of the image, what is called out, and where.
BAD = {
    "contours that part": ({"dice_percent": 85.0}, {}, LOOK, "differ: Dice of the left ventricle 85 %", (), ()),
    "contours elsewhere": ({"dice_percent": 55.0}, {}, DO_NOT_USE, "are not those", (), ()),
    "a slice": (
        {"slices": [{"slice": 2, "distance_mm": 14.0}], "frames": far(3.0)},
        {},
        LOOK,
        "more than 12 mm apart",
        (),
        (2,),
    ),
    "a frame": ({"frames": far(14.0)}, {}, LOOK, "more than 12 mm apart", (3,), ()),
    "a lost frame": ({"frames": far(float("inf"))}, {}, LOOK, "apart (frame 3)", (3,), ()),
    "two ejections": (
        {"ejection_percent": {"carried": 31.0, "segmented": 54.0}},
        {},
        LOOK,
        "is 31 % by carried and 54 % by segmented contours",
        (),
        (),
    ),
    "two ejections, nearer": (
        {"ejection_percent": {"carried": 41.0, "segmented": 54.0}},
        {},
        PASSED,
        "is 41 %",
        (),
        (),
    ),
    "a heart cut off": ({"heart": {**HEART, "cut": [4]}}, {}, LOOK, "reaches the border of the image", (), (4,)),
    "an open curve": (both(closure_percent=95.0), {}, LOOK, "changes by 95 % of what it does in all", (), ()),
    "a leap": (both(step_percent=99.0), {}, LOOK, "leaps from a frame to the next", (), ()),
    "a frame out of order": (both(reversal_percent=80.0), {}, LOOK, "in order of time (frame 4)?", (4,), ()),
    "a small heart": ({"heart": {**HEART, "diameter_mm": 25.0}}, {}, LOOK, "measures 25 mm across", (), ()),
    "a huge heart": ({"heart": {**HEART, "diameter_mm": 150.0}}, {}, LOOK, "measures 150 mm across", (), ()),
    "a shifted slice": ({"heart": {**HEART, "off_line": [{"slice": 5, "mm": 15.0}]}}, {}, LOOK, "(slice 5)", (), (5,)),
    "hearts apart": ({"heart": {**HEART, "overlap": [{"slice": 4, "percent": 9.0}]}}, {}, LOOK, "(slice 4)", (), (4,)),
    "a mirrored slice": (
        {"heart": {**HEART, "turned": [{"slice": 3, "degrees": 150.0}]}},
        {},
        LOOK,
        "mirror",
        (),
        (3,),
    ),
    "a wall that swells": (
        both(wall_change_percent=18.0, wall_change_frame=3),
        {},
        PASSED,
        "by up to 18 % (frame 3): muscle",
        (3,),
        (),
    ),
    "a volume that dips alone": (
        {"departures_percent": [0.0, 1.0, 6.0, 4.9, 0.0]},
        {},
        PASSED,
        "jumps for a single frame (frame 3), by more than 5 % of its largest value",
        (3,),
        (),
    ),
    "blur": ({}, {"detail_percent": 4.0}, LOOK, "is blurred", (), ()),
    "noise": ({}, {"detail_percent": 80.0}, LOOK, "is noisy", (), ()),
    "shading": ({}, {"shading": 25.0}, LOOK, "25 times brighter", (), ()),
    "a postage stamp": ({}, {"width_mm": 60.0, "likeness_percent": []}, LOOK, "60 mm wide", (), ()),
    "two bodies": ({}, {"likeness_percent": [60.0, 20.0, 82.0]}, LOOK, "of one heart (slice 2)", (), (2,)),
    "the wrong way round": ({}, {"mirrored_percent": [90.0, 95.0, 40.0]}, LOOK, "(slices 1, 2)", (), (1, 2)),
    "a label of systole": ({"label_fit_percent": [80.0, 84.0, 96.0]}, {}, LOOK, "drawn there (frame 3)?", (3,), ()),
}


def test_nothing_is_said_where_all_is_well() -> None:
    assert call([frame()], contours=GOOD, image=IMAGE) == []


@pytest.mark.parametrize("kind", BAD)
def test_every_finding_has_figures_that_earn_it(kind: str) -> None:
    contours, image, grade, words, frames, slices = BAD[kind]
    (finding,) = call([frame()], contours={**GOOD, **contours}, image={**IMAGE, **image})
    assert finding.grade == grade
    assert words in finding.sentence
    assert (finding.frames, finding.slices) == (frames, slices)


def test_one_answer_alone_that_leaps_says_nothing_of_the_frames() -> None:
    odd = {**CURVES["segmented"], "closure_percent": 99.0, "step_percent": 99.0, "reversal_percent": 99.0}
    assert call([frame()], contours={**GOOD, "curves": {**CURVES, "segmented": odd}}) == []


def test_a_dice_that_is_of_no_use_is_said_once() -> None:
    (finding,) = call([frame()], contours={**GOOD, "dice_percent": 55.0})
    assert finding.grade == DO_NOT_USE


def test_slices_at_the_ends_may_be_less_alike() -> None:
    assert call([frame()], image={**IMAGE, "likeness_percent": [30.0, 80.0, 25.0]}) == []


def test_of_a_pair_no_frame_is_named() -> None:
    # A slice that is far off in one frame says little.
    single = {**GOOD, "frames": far(14.0)[1:], "slices": [{"slice": 2, "distance_mm": 24.0}]}
    (finding,) = call([frame()], contours=single, are_numbered=False)
    assert finding.sentence.endswith("more than 12 mm apart.")


def test_a_point_that_collapses_is_said_and_no_more() -> None:
    (finding,) = call([frame(2, jacobian_min=(3, 0.007))])
    assert (finding.grade, finding.frames, finding.slices) == (PASSED, (2,), (3,))


def test_a_verdict_without_second_contours_says_so() -> None:
    (finding,) = call([frame()], contours=None)
    assert finding.grade == PASSED
    assert "rests on images and fields alone" in finding.sentence


@pytest.mark.parametrize("pattern", ["*.md", "docs/*", "scripts/**/*.py", "scripts/**/*.jinja", "configs/*"])
def test_nothing_calls_a_result_by_more_than_its_grade(pattern: str) -> None:
    texts = [path for path in ROOT.glob(pattern) if path.suffix in (".md", ".py", ".jinja", ".yaml", ".ipynb", ".json")]
    assert texts
    assert not [path.name for path in texts if "trustworthy" in path.read_text(encoding="utf-8").lower()]
