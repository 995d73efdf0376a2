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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

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
}
# Of the motion over the cycle; a pair has no use for them.
OF_A_CYCLE = {"closure_ratio": 3.0, "jump_ratio": 3.0, "share_of_the_largest_mse_before": 0.25}
# Set by hand from what `python -m benchmarks.verdict` measures on `train`; its JSON has the figures. Of images: `appearance`.
OF_IMAGES = {
    "least_detail_percent": 10.0,
    "most_detail_percent": 50.0,
    "least_likeness_percent": 45.0,
    "most_shading": 18.0,
    "least_width_mm": 100.0,
    "body_width_mm": 180.0,
}
# Of contours in each frame and over the cycle: `agreement` and `coherence`. Volumes leap only where both answers say so.
OF_CONTOURS = {
    "contour_dice_percent": 90.0,
    "contour_dice_percent_unusable": 70.0,
    "distance_mm_of_a_slice": 12.0,
    "distance_mm_of_a_frame": 12.0,
    "ef_difference_points": 30.0,
    "volume_closure_percent": 75.0,
    "volume_step_percent": 85.0,
    "volume_jump_percent": 60.0,
    "wall_change_percent": 15.0,
    "least_diameter_mm": 40.0,
    "most_diameter_mm": 130.0,
    "off_line_mm": 12.0,
    "least_overlap_percent": 40.0,
    "turned_degrees": 75.0,
}
THRESHOLDS = OF_FIELDS | OF_A_CYCLE | OF_IMAGES | OF_CONTOURS
NOTHING_FOUND = "No figure crosses its threshold: the fields fit the images, do not fold, and can be inverted."
LISTED = 8  # numbers of slices or frames that a sentence names

# Frame and slice, from 1; None where a finding is not of one.
Place = tuple[int | None, int | None]
EVERYWHERE: list[Place] = [(None, None)]


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


@dataclass(frozen=True)
class _Evidence:
    """What a verdict rests on: figures of the frames but the reference, and of the cycle, and the limits."""

    frames: Sequence[Mapping]
    cycle: Mapping
    limit: Mapping[str, float]
    # Of the fixed image, as `appearance.measure_image` has them; empty where it was not measured.
    image: Mapping
    # As `quality.compare_contours` has them; empty where nothing was compared.
    contours: Mapping

    def places(self, bad: Callable[[Mapping], bool], frames: Sequence[Mapping] | None = None) -> list[Place]:
        """Bad slices of frames, by default of all."""
        chosen = self.frames if frames is None else frames
        return [(f["frame"], row["slice"]) for f in chosen for row in f["slices"] if bad(row)]

    def above(self, figure: str) -> list[Place]:
        """Slices with a figure above its limit, in the frames where it is so as a whole."""

        def is_over(row: Mapping) -> bool:
            return row[figure] > self.limit[figure]

        return self.places(is_over, [f for f in self.frames if is_over(f)])

    def cycle_above(self, figure: str) -> list[Place]:
        """The cine, where a figure of the cycle is above its limit."""
        return EVERYWHERE if self.cycle.get(figure, 0) > self.limit[figure] else []

    @cached_property
    def folds_at_points(self) -> list[Place]:
        few = [f for f in self.frames if 0 < f["folding_percent"] <= self.limit["folding_percent"]]
        return self.places(lambda row: row["folding_percent"] > 0, few)

    @cached_property
    def not_inverted(self) -> list[Place]:
        """Where the inverse is off; NaN, where a whole slice leaves the view or folds, is no good error either."""
        limit = self.limit["inverse_error_mm_p95"]
        unknown = self.places(lambda row: np.isnan(row["inverse_error_mm_p95"]))
        off = [f for f in self.frames if not f["inverse_error_mm_p95"] <= limit]
        return unknown + self.places(lambda row: row["inverse_error_mm_p95"] > limit, off)

    @cached_property
    def motionless(self) -> list[Place]:
        """The cine, where nothing moves in any frame."""
        moves = any(f["largest_displacement_mm"] >= self.limit["moved_mm"] for f in self.frames)
        return EVERYWHERE if self.frames and not moves else []

    @cached_property
    def _not_improved(self) -> list[Mapping]:
        """Frames whose images fit hardly better than before; those that resembled the reference then had nothing to
        gain."""
        apart = self.limit["share_of_the_largest_mse_before"] * max((f["mse_before"] for f in self.frames), default=0.0)
        gain = self.limit["mse_after_to_before"]
        seen = [f for f in self.frames if f["blank_slices"] < len(f["slices"])]
        return [f for f in seen if f["mse_before"] > apart and f["mse_after"] > gain * f["mse_before"]]

    @cached_property
    def no_better(self) -> list[Place]:
        return [] if self.motionless else [(f["frame"], None) for f in self._not_improved]

    @cached_property
    def typical(self) -> float:
        """Median error of a slice."""
        errors = [row["mse_after"] for f in self.frames for row in f["slices"]]
        return float(np.median(errors)) if errors else 0.0

    @cached_property
    def misfits(self) -> list[Place]:
        """Frames that do not fit where most slices do not, so that none stands out."""
        limit = self.limit["mse_after"]
        bad = [f for f in self.frames if f["mse_after"] > limit and f not in self._not_improved]
        return [(f["frame"], None) for f in bad] if self.typical > limit else []

    @property
    def contrast_percent(self) -> float:
        return 100 * self.limit["mse_after"]

    def is_odd(self, row: Mapping) -> bool:
        """Whether a slice fits far worse than most, where most do."""
        high = max(self.limit["mse_after"], self.limit["mse_of_a_slice_to_median"] * self.typical)
        return self.typical <= self.limit["mse_after"] and row["mse_after"] > high and not row["blank_slices"]

    @cached_property
    def collapsed(self) -> list[Place]:
        """Where the field leaves next to nothing of the area at a point, without a fold."""
        return self.places(lambda row: 0 < row["jacobian_min"] < self.limit["collapsed_determinant"])

    def image_below(self, figure: str, limit: str) -> list[Place]:
        return EVERYWHERE if self.image.get(figure, np.inf) < self.limit[limit] else []

    def image_above(self, figure: str, limit: str) -> list[Place]:
        return EVERYWHERE if self.image.get(figure, 0) > self.limit[limit] else []

    @cached_property
    def unlike(self) -> list[Place]:
        """The first of two neighboring slices that do not show one body; crops of a heart show too little to tell."""
        alike = enumerate(self.image.get("likeness_percent", []), start=1)
        unlike = [(None, z) for z, percent in alike if percent < self.limit["least_likeness_percent"]]
        return unlike if self.image.get("width_mm", 0.0) >= self.limit["body_width_mm"] else []

    def contours_part(self, unusable: bool) -> list[Place]:
        """The cine, where both contours overlap too little over all slices and frames that both hold."""
        dice, least = self.contours.get("dice_percent", 100.0), self.limit["contour_dice_percent"]
        worst = self.limit["contour_dice_percent_unusable"]
        return EVERYWHERE if (dice < worst if unusable else worst <= dice < least) else []

    @cached_property
    def far_slices(self) -> list[Place]:
        far = self.limit["distance_mm_of_a_slice"]
        return [(None, row["slice"]) for row in self.contours.get("slices", []) if row["distance_mm"] > far]

    @cached_property
    def far_frames(self) -> list[Place]:
        far = self.limit["distance_mm_of_a_frame"]
        return [(row["frame"], None) for row in self.contours.get("frames", []) if row["distance_mm"] > far]

    def curves(self, figure: str) -> float:
        """A figure of the LV's volume curves: the smaller one of both answers, 0 where either has none."""
        curves = self.contours.get("curves", {}).values()
        return min((curve.get(figure, 0.0) for curve in curves), default=0.0)

    def curves_above(self, figure: str) -> list[Place]:
        return EVERYWHERE if self.curves(figure) > self.limit[f"volume_{figure}"] else []

    @property
    def closure(self) -> float:
        return self.curves("closure_percent")

    @cached_property
    def jumps(self) -> list[Place]:
        """The frame that leaves the way of its neighbors in both curves."""
        curves = self.contours.get("curves", {}).values()
        return [(curve["jump_frame"], None) for curve in curves][:1] if self.curves_above("jump_percent") else []

    @cached_property
    def ejections_part(self) -> list[Place]:
        changes = [curve.get("change_percent", 0.0) for curve in self.contours.get("curves", {}).values()]
        return EVERYWHERE if changes and np.ptp(changes) > self.limit["ef_difference_points"] else []

    @cached_property
    def wall_change(self) -> float:
        """The larger change of the myocardium's volume of both answers, in percent."""
        changes = [curve["wall_change_percent"] for curve in self.contours.get("curves", {}).values()]
        return max([change for change in changes if not np.isnan(change)], default=0.0)

    @cached_property
    def heart(self) -> Mapping:
        """Figures of the slices of the segmented heart in the reference."""
        return self.contours.get("heart", {})

    @cached_property
    def odd_size(self) -> list[Place]:
        size = self.heart.get("diameter_mm", 0.0)
        odd = not self.limit["least_diameter_mm"] <= size <= self.limit["most_diameter_mm"]
        return EVERYWHERE if size > 0 and odd else []

    @cached_property
    def out_of_place(self) -> list[Place]:
        """Slices whose heart is not where those of their neighbors lead to expect it."""
        shifted = [row["slice"] for row in self.heart.get("off_line", []) if row["mm"] > self.limit["off_line_mm"]]
        least = self.limit["least_overlap_percent"]
        apart = [row["slice"] for row in self.heart.get("overlap", []) if row["percent"] < least]
        return [(None, z) for z in shifted + apart]

    @cached_property
    def turned(self) -> list[Place]:
        most = self.limit["turned_degrees"]
        return [(None, row["slice"]) for row in self.heart.get("turned", []) if row["degrees"] > most]

    @cached_property
    def not_compared(self) -> list[Place]:
        return [] if self.contours else EVERYWHERE


# What a verdict calls out: where in the evidence e it is so, how grave it is, and the sentence.
_FINDINGS: tuple[tuple[Callable[[_Evidence], list[Place]], str, str], ...] = (
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
        lambda e: [(e.cycle["jump_frame"], None)] if e.cycle_above("jump_ratio") else [],
        LOOK,
        "A frame does not lie between its neighbors in motion: are the frames in order of time{where}?",
    ),
    (
        lambda e: e.cycle_above("closure_ratio"),
        LOOK,
        "The last frame does not lead back to the first (a step of {e.cycle[closure_mm]:.1f} mm against "
        "{e.cycle[step_mm_max]:.1f} mm at most elsewhere): the cine covers a part of the cycle, or the registration drifts.",
    ),
    (
        lambda e: e.image_below("detail_percent", "least_detail_percent"),
        LOOK,
        "The image is blurred: its borders cannot be seen well enough to place a contour.",
    ),
    (lambda e: e.image_above("detail_percent", "most_detail_percent"), LOOK, "The image is noisy."),
    (
        lambda e: e.image_above("shading", "most_shading"),
        LOOK,
        "The image is {e.image[shading]:.0f} times brighter at one side than at the other.",
    ),
    (
        lambda e: e.image_below("width_mm", "least_width_mm"),
        LOOK,
        "The image is {e.image[width_mm]:.0f} mm wide: is the pixel size right, and the heart inside?",
    ),
    (
        lambda e: e.unlike,
        LOOK,
        "A slice does not look like the next one: are they of one heart, and one way round{where}?",
    ),
    (
        lambda e: e.contours_part(unusable=True),
        DO_NOT_USE,
        "The contours that were carried are not those that the network sees in the frames: Dice of the left ventricle "
        "{e.contours[dice_percent]:.0f} %.",
    ),
    (
        lambda e: e.contours_part(unusable=False),
        LOOK,
        "The contours that were carried and those that the network sees in the frames differ: Dice of the left ventricle "
        "{e.contours[dice_percent]:.0f} %.",
    ),
    (
        lambda e: e.far_slices,
        LOOK,
        "Carried and segmented contours are more than {e.limit[distance_mm_of_a_slice]:g} mm apart{where}.",
    ),
    (
        lambda e: e.far_frames,
        LOOK,
        "Carried and segmented contours are more than {e.limit[distance_mm_of_a_frame]:g} mm apart{where}.",
    ),
    (
        lambda e: e.ejections_part,
        LOOK,
        "By carried and by segmented contours, the LV empties by shares that differ by more than "
        "{e.limit[ef_difference_points]:g} points.",
    ),
    (
        lambda e: e.curves_above("closure_percent"),
        LOOK,
        "The LV's volume does not close: from the last frame to the first it changes by {e.closure:.0f} % of what it does "
        "in all. Does the cine cover the whole cycle?",
    ),
    (
        lambda e: e.curves_above("step_percent"),
        LOOK,
        "The LV's volume leaps from a frame to the next: are frames missing, or out of order?",
    ),
    (lambda e: e.jumps, LOOK, "The LV's volume leaves its way: are the frames in order of time{where}?"),
    (
        lambda e: e.odd_size,
        LOOK,
        "The left ventricle measures {e.heart[diameter_mm]:.0f} mm across, wall included: is the pixel size right?",
    ),
    (
        lambda e: e.out_of_place,
        LOOK,
        "The heart of a slice is not where its neighbors lead to expect it: was it shifted between breath-holds{where}?",
    ),
    (
        lambda e: e.turned,
        LOOK,
        "The right ventricle lies on another side than in most slices: is a slice mirrored{where}?",
    ),
    (
        lambda e: [(None, z) for z in e.contours.get("left_in_systole", [])],
        PASSED,
        "The ventricle leaves a slice in systole, and carried contours stay in it, wrongly{where}.",
    ),
    (
        lambda e: e.collapsed,
        PASSED,
        "At a point the field leaves less than a hundredth of the area, as in a cavity that empties{where}.",
    ),
    (
        lambda e: EVERYWHERE if e.wall_change > e.limit["wall_change_percent"] else [],
        PASSED,
        "The myocardium in the slices changes its volume by up to {e.wall_change:.0f} % over the cycle: muscle moves into "
        "them along the axis, which in-plane contours cannot follow.",
    ),
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
    """
    evidence, found = _Evidence(frames, cycle, limit, image or {}, contours or {}), [
        Finding(LOOK, doubt) for doubt in doubts
    ]
    for find, grade, sentence in _FINDINGS:
        if places := find(evidence):
            numbers, slices = (tuple(sorted({place[i] for place in places} - {None})) for i in (0, 1))
            numbers = numbers if are_numbered else ()
            words = sentence.format(e=evidence, where=_name_places(slices, numbers))
            found.append(Finding(grade, words, numbers, slices))
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
