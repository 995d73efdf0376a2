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

"""From figures to a verdict: a table of what to call out, how grave it is, and the sentence that says so.

The verdict is the gravest grade of all findings. A finding names its slices and frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scripts.cardiac.evidence import EVERYWHERE, Evidence, Place

PASSED, LOOK, DO_NOT_USE = GRADES = ("passed", "look here", "do not use")  # the gravest last
# Beyond which a figure is called out. Below `moved_mm`, the largest displacement, nothing has been registered; below
# `compressed_determinant` area counts as compressed, which a cavity that empties may be, and it takes more of it where
# no label tells the cavities; `mse_after` is that of a frame or slice; frames whose error is below a share of the
# largest resemble the reference from the start.
OF_FIELDS = {
    "folding_percent": 0.1,
    "compressed_percent": 5.0,
    "compressed_percent_unlabeled": 15.0,
    "collapsed_determinant": 0.01,
    "inverse_error_mm_p95": 0.1,
    "mse_after_to_before": 0.9,
    "mse_after": 0.3,
    "mse_of_a_slice_to_median": 5.0,
    "moved_mm": 0.5,
    "compressed_determinant": 0.02,
    "unconverged_voxels_error": 0.011,  # a tenth above fields.INVERTED
    "share_of_the_largest_mse_before": 0.25,
}
OF_A_CYCLE = {"closure_ratio", "jump_ratio", "share_of_the_largest_mse_before"}  # a pair has no use for them
# What an image and a heart may be, whoever's, and from where contours are of no use at all.
OF_HEARTS = {
    "least_width_mm": 100.0,
    "least_diameter_mm": 40.0,
    "most_diameter_mm": 130.0,
    "contour_dice_percent_unusable": 70.0,
    "wall_change_percent": 15.0,
    "ef_difference_points_remarked": 10.0,
    "volume_departure_percent": 5.0,
}
# Of `evidence.FIGURES`, set by `python -m benchmarks.verdict` on clean cases of `train`.
CALIBRATED: dict[str, float] = json.loads((Path(__file__).parent / "thresholds.json").read_text())
THRESHOLDS = OF_FIELDS | OF_HEARTS | CALIBRATED
NOTHING_FOUND = "No check failed: the fields fit the images, do not fold, and can be inverted."
LISTED = 8  # numbers of slices or frames that a sentence names


@dataclass(frozen=True)
class Finding:
    """What a verdict calls out."""

    # One of GRADES.
    grade: str
    # In plain words, places included.
    sentence: str
    # Counted from 1; empty where it is not of single ones.
    frames: tuple[int, ...] = ()
    # The same.
    slices: tuple[int, ...] = ()


def worst(findings: Iterable[Finding]) -> str:
    """The gravest grade of findings; passed without any."""
    return max((finding.grade for finding in findings), key=GRADES.index, default=PASSED)


_EJECTIONS = (
    "The two answers on the LV differ: its ejection fraction is {e.ejections[carried]:.0f} % by carried and "
    "{e.ejections[segmented]:.0f} % by segmented contours."
)
# What a verdict calls out: where in the evidence e it is so, how grave it is, and the sentence.
_FINDINGS: tuple[tuple[Callable[[Evidence], list[Place]], str, str], ...] = (
    (lambda e: e.above("folding_percent"), DO_NOT_USE, "The field folds: tissue would pass through itself{where}."),
    (
        lambda e: e.folds_at_points,
        LOOK,
        "The field folds at single points, in {e.limit[folding_percent]} % of the area or less{where}.",
    ),
    (
        lambda e: e.above("compressed_percent"),
        LOOK,
        "Tissue is compressed to less than a fiftieth in more than {e.limit[compressed_percent]:g} % of what moves{where}.",
    ),
    (
        lambda e: e.places(lambda row: row["blank_slices"] > 0),
        LOOK,
        "A slice is blank: nothing is registered there, and nothing moves{where}.",
    ),
    (lambda e: e.not_inverted, LOOK, "The field cannot be inverted accurately{where}."),
    (
        lambda e: e.motionless,
        LOOK,
        "Nothing moves by more than {e.limit[moved_mm]} mm: were the images registered already?",
    ),
    (lambda e: e.no_better, LOOK, "The images hardly fit better than before{where}."),
    (
        lambda e: e.misfits,
        DO_NOT_USE,
        "The images do not fit: more than {e.contrast_percent:g} % of their contrast differs{where}.",
    ),
    (lambda e: e.places(e.is_odd), LOOK, "The images hardly fit in a slice, far worse than in most others{where}."),
    (
        lambda e: e.beyond("jump_ratio"),
        LOOK,
        "A frame does not lie between its neighbors in motion: are the frames in order of time{where}?",
    ),
    (
        lambda e: e.beyond("closure_ratio"),
        LOOK,
        "The last frame does not lead back to the first (a step of {e.cycle[closure_mm]:.1f} mm against "
        "{e.cycle[step_mm_max]:.1f} mm at most elsewhere): the cine covers a part of the cycle, or the registration drifts.",
    ),
    (
        lambda e: e.beyond("least_detail_percent"),
        LOOK,
        "The image is blurred: its borders cannot be seen well enough to place a contour.",
    ),
    (lambda e: e.beyond("most_detail_percent"), LOOK, "The image is noisy."),
    (
        lambda e: e.beyond("most_shading"),
        LOOK,
        "The image is {e.image[shading]:.0f} times brighter at one side than at the other.",
    ),
    (
        lambda e: EVERYWHERE if e.image.get("width_mm", np.inf) < e.limit["least_width_mm"] else [],
        LOOK,
        "The image is {e.image[width_mm]:.0f} mm wide: is the pixel size right, and the heart inside?",
    ),
    (
        lambda e: e.beyond("least_likeness_of_others_percent"),
        LOOK,
        "A slice does not look like the next one as others do: are they of one heart{where}?",
    ),
    (
        lambda e: e.beyond("mirrored_likeness_points"),
        LOOK,
        "A slice looks more like the next one when it is mirrored: is one of them the wrong way round{where}?",
    ),
    (
        lambda e: EVERYWHERE if e.dice < e.limit["contour_dice_percent_unusable"] else [],
        DO_NOT_USE,
        "The contours that were carried are not those that the network sees in the frames: Dice of the left ventricle "
        "{e.dice:.0f} %.",
    ),
    (
        lambda e: e.beyond("contour_dice_percent") if e.dice >= e.limit["contour_dice_percent_unusable"] else [],
        LOOK,
        "The contours that were carried and those that the network sees in the frames differ: Dice of the left ventricle "
        "{e.dice:.0f} %.",
    ),
    (
        lambda e: e.beyond("distance_mm_of_a_slice"),
        LOOK,
        "Carried and segmented contours are more than {e.limit[distance_mm_of_a_slice]:.0f} mm apart{where}.",
    ),
    (
        lambda e: e.beyond("distance_mm_of_a_frame"),
        LOOK,
        "Carried and segmented contours are more than {e.limit[distance_mm_of_a_frame]:.0f} mm apart{where}.",
    ),
    (lambda e: e.beyond("ef_difference_points"), LOOK, _EJECTIONS),
    (
        lambda e: e.beyond("label_fit_points"),
        LOOK,
        "The given label fits the left ventricle of another image better than that of its own: was it drawn there{where}?",
    ),
    (
        lambda e: e.beyond("volume_closure_percent"),
        LOOK,
        "The LV's volume does not close: from the last frame to the first it changes by {e.closure:.0f} % of what it does "
        "in all. Does the cine cover the whole cycle?",
    ),
    (
        lambda e: e.beyond("volume_step_percent"),
        LOOK,
        "The LV's volume leaps from a frame to the next{where}: are frames missing, or out of order?",
    ),
    (
        lambda e: e.beyond("volume_reversal_percent"),
        LOOK,
        "The LV's volume rises on its way down, or falls on its way up: are the frames in order of time{where}?",
    ),
    (
        lambda e: e.odd_size,
        LOOK,
        "The left ventricle measures {e.heart[diameter_mm]:.0f} mm across, wall included: is the pixel size right?",
    ),
    (lambda e: e.cut, LOOK, "The left ventricle reaches the border of the image: is a part of it cut off{where}?"),
    (
        lambda e: e.beyond("off_line_mm", "least_overlap_percent"),
        LOOK,
        "The heart of a slice is not where its neighbors lead to expect it: was it shifted between breath-holds{where}?",
    ),
    (
        lambda e: e.beyond("turned_degrees"),
        LOOK,
        "The right ventricle lies on another side than in most slices: is a slice mirrored{where}?",
    ),
    (
        lambda e: e.left_in_systole,
        PASSED,
        "The ventricle leaves a slice in systole, and carried contours may stay in it, wrongly{where}.",
    ),
    (
        lambda e: e.collapsed,
        PASSED,
        "At a point the field leaves less than a hundredth of the area, as in a cavity that empties{where}.",
    ),
    (
        lambda e: [e.wall[0]] if e.wall[1] > e.limit["wall_change_percent"] else [],
        PASSED,
        "The myocardium in the slices changes its volume by up to {e.wall[1]:.0f} %{where}: muscle moves into them along the "
        "axis.",
    ),
    (
        lambda e: e.stands_out,
        PASSED,
        "By carried contours the LV's volume jumps for a single frame{where}, by more than {e.limit[volume_departure_percent]:g} % "
        "of its largest value, and by segmented ones not, or less: check the carried contours there before you use their "
        "ejection fraction.",
    ),
    (lambda e: e.ejections_differ, PASSED, _EJECTIONS),
    (
        lambda e: e.not_compared,
        PASSED,
        "No second contours were there to compare with: the verdict rests on images and fields alone.",
    ),
)


def judge(
    frames: Sequence[Mapping],
    cycle: Mapping,
    limit: Mapping[str, float],
    image: Mapping | None = None,
    contours: Mapping | None = None,
    are_numbered: bool = True,
    doubts: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> list[Finding]:
    """A finding for each doubt and for each threshold that is crossed, the gravest first; none where all is well.

    Args:
        frames: figures of each frame, as `quality.assess` has them, without the reference.
        cycle: figures of the cycle; empty without.
        limit: as THRESHOLDS.
        image: figures of the fixed image, see `appearance.measure_image`.
        contours: figures of carried and segmented contours, see `quality.compare_contours`; None where there are no two.
        are_numbered: whether frames have numbers that mean anything to a reader.
        doubts: sentences on the input, each worth a look.
        remarks: sentences on the ventricles' figures, which change no grade.
    """
    evidence, found = (
        Evidence(frames, cycle, limit, image or {}, contours or {}),
        [Finding(LOOK, doubt) for doubt in doubts],
    )
    for find, grade, sentence in _FINDINGS:
        if places := find(evidence):
            numbers, slices = (tuple(sorted({place[i] for place in places} - {None})) for i in (0, 1))
            numbers = numbers if are_numbered else ()
            words = sentence.format(e=evidence, where=_name_places(slices, numbers))
            found.append(Finding(grade, words, numbers, slices))
    found += [Finding(PASSED, remark) for remark in remarks]
    return sorted(found, key=lambda finding: -GRADES.index(finding.grade))


def _name_places(slices: Sequence[int], frames: Sequence[int]) -> str:
    """Slices and frames in words, in brackets behind a space; nothing where there are none."""
    named = [
        f"{name}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:LISTED]))}"
        + (", …" if len(numbers) > LISTED else "")
        for name, numbers in (("slice", slices), ("frame", frames))
        if numbers
    ]
    return f" ({'; '.join(named)})" if named else ""
