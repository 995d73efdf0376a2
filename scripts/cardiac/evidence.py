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

"""What a verdict rests on: figures of fields, images and contours, each with the slice and frame that it is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Frame and slice, from 1; None where something is not of one.
Place = tuple[int | None, int | None]
CINE: Place = (None, None)
EVERYWHERE: list[Place] = [CINE]
BODY_MM = 180.0  # width from which an image shows the body around the heart


@dataclass(frozen=True)
class Evidence:
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

    @cached_property
    def likeness_of_others(self) -> list[tuple[Place, float]]:
        """Of each two neighboring slices but the outermost, named by the first: how alike they are, in percent of the
        median of the others. Towards base and apex, slices of one heart are less alike, too; blank ones are like none.
        """
        alike = np.asarray(self.image.get("likeness_percent", []), dtype=float)
        known = {z: np.delete(alike, z)[~np.isnan(np.delete(alike, z))] for z in range(1, len(alike) - 1)}
        return [
            ((None, z + 1), float(100 * alike[z] / np.median(others)))
            for z, others in known.items()
            if len(others) and not np.isnan(alike[z])
        ]

    @cached_property
    def mirrored(self) -> list[tuple[Place, float]]:
        """Of each two neighboring slices, named by the first: by how much they are more alike when one is mirrored, 0 where
        less. Nothing in crops of a heart, which show too little of the body."""
        pairs = zip(self.image.get("likeness_percent", []), self.image.get("mirrored_percent", []))
        more = [((None, z), max(mirrored - plain, 0.0)) for z, (plain, mirrored) in enumerate(pairs, start=1)]
        return more if self.image.get("width_mm", 0.0) >= BODY_MM else []

    def of_image(self, figure: str) -> list[tuple[Place, float]]:
        return [(CINE, self.image[figure])] if figure in self.image else []

    def of_cycle(self, figure: str, frame: str | None = None) -> list[tuple[Place, float]]:
        """A figure of the motion over the cycle, with the frame that another one names."""
        place = CINE if frame is None else (self.cycle.get(frame), None)
        return [(place, self.cycle[figure])] if figure in self.cycle else []

    @cached_property
    def agreement(self) -> list[tuple[Place, float]]:
        """Dice of both contours in percent, over all slices and frames that both hold."""
        return [(CINE, self.contours["dice_percent"])] if "dice_percent" in self.contours else []

    @property
    def dice(self) -> float:
        return self.agreement[0][1] if self.agreement else float("nan")

    @cached_property
    def far_slices(self) -> list[tuple[Place, float]]:
        """The distance of each slice, the median over frames; nothing of a pair, since a slice in one frame is often off."""
        rows = self.contours.get("slices", []) if len(self.contours.get("frames", [])) > 1 else []
        return [((None, row["slice"]), row["distance_mm"]) for row in rows]

    @cached_property
    def far_frames(self) -> list[tuple[Place, float]]:
        return [((row["frame"], None), row["distance_mm"]) for row in self.contours.get("frames", [])]

    @cached_property
    def ejections(self) -> dict[str, float]:
        """The LV's ejection fraction in percent by each answer."""
        return self.contours.get("ejection_percent", {})

    @cached_property
    def ejections_part(self) -> list[tuple[Place, float]]:
        return [(CINE, float(np.ptp(list(self.ejections.values()))))] if self.ejections else []

    @cached_property
    def ejections_differ(self) -> list[Place]:
        """The cine, where its ejection fractions differ by what is worth a remark and no more."""
        rest = self.ejections_part if not self.beyond("ef_difference_points") else []
        return [place for place, points in rest if points > self.limit["ef_difference_points_remarked"]]

    @cached_property
    def label_fits(self) -> list[tuple[Place, float]]:
        """The frame that the given label fits best, and by how many points of Dice better than its own."""
        fits = self.contours.get("label_fit_percent", [])
        if not fits or np.isnan(fits).any():
            return []
        own = fits[self.contours["reference"] - 1]
        return [((int(np.argmax(fits)) + 1, None), float(max(fits) - own))]

    def curves(self, figure: str) -> list[tuple[Place, float]]:
        """A figure of the LV's volume curves, the smaller one of both answers: volumes leap only where both say so."""
        curves = list(self.contours.get("curves", {}).values())
        if not curves or not all(figure in curve for curve in curves):
            return []
        frame = curves[0].get(figure.replace("percent", "frame"))
        return [((frame, None), min(curve[figure] for curve in curves))]

    @property
    def closure(self) -> float:
        return next((value for _, value in self.curves("closure_percent")), float("nan"))

    @cached_property
    def wall(self) -> tuple[Place, float]:
        """The larger change of the myocardium's volume of both answers, in percent, and where it is."""
        curves = [
            curve for curve in self.contours.get("curves", {}).values() if not np.isnan(curve["wall_change_percent"])
        ]
        largest = max(curves, key=lambda curve: curve["wall_change_percent"], default={})
        return (largest.get("wall_change_frame"), None), largest.get("wall_change_percent", 0.0)

    @cached_property
    def departures(self) -> list[tuple[Place, float]]:
        """Of each frame `agreement.lone_departures` of the LV's carried volume: a sharp end systole is so in both answers."""
        return [((t, None), value) for t, value in enumerate(self.contours.get("departures_percent", []), start=1)]

    @cached_property
    def stands_out(self) -> list[Place]:
        return [place for place, percent in self.departures if percent > self.limit["volume_departure_percent"]]

    @cached_property
    def left_in_systole(self) -> list[Place]:
        return [(place["frame"], place["slice"]) for place in self.contours.get("left_in_systole", [])]

    @cached_property
    def heart(self) -> Mapping:
        """Figures of the slices of the segmented heart in the reference."""
        return self.contours.get("heart", {})

    def of_heart(self, name: str, figure: str) -> list[tuple[Place, float]]:
        return [((None, row["slice"]), row[figure]) for row in self.heart.get(name, [])]

    @cached_property
    def cut(self) -> list[Place]:
        """Slices in which the ventricle reaches the border of the image."""
        return [(None, z) for z in self.heart.get("cut", [])]

    @cached_property
    def odd_size(self) -> list[Place]:
        size = self.heart.get("diameter_mm", 0.0)
        odd = not self.limit["least_diameter_mm"] <= size <= self.limit["most_diameter_mm"]
        return EVERYWHERE if size > 0 and odd else []

    @cached_property
    def not_compared(self) -> list[Place]:
        return [] if self.contours else EVERYWHERE

    def beyond(self, *names: str) -> list[Place]:
        """Where figures of `FIGURES` are beyond their limits."""
        return [
            place
            for name in names
            for place, value in FIGURES[name].read(self)
            if FIGURES[name].is_beyond(value, self.limit[name])
        ]


@dataclass(frozen=True)
class Figure:
    """A figure whose threshold is set on clean cases."""

    read: Callable[[Evidence], list[tuple[Place, float]]]
    """Places and values."""
    is_least: bool = False
    """Whether small values are bad."""
    slack: float = 1.0
    """How many times as far as others its limit lies from the median of clean cases."""

    def is_beyond(self, value: ArrayLike, limit: float) -> NDArray[np.bool_]:
        """Whether a value, or each of an array, is on the bad side of a limit; NaN is not."""
        return np.less(value, limit) if self.is_least else np.greater(value, limit)

    def worst(self, evidence: Evidence) -> float:
        """The worst value of a case; NaN where it has none."""
        values = [value for _, value in self.read(evidence) if not np.isnan(value)]
        return (min if self.is_least else max)(values, default=float("nan"))


# By the name of its threshold.
FIGURES = {
    "closure_ratio": Figure(lambda e: e.of_cycle("closure_ratio")),
    "jump_ratio": Figure(lambda e: e.of_cycle("jump_ratio", "jump_frame")),
    # Scanners differ more than the clean cases, which are of one hospital.
    "least_detail_percent": Figure(lambda e: e.of_image("detail_percent"), is_least=True, slack=2.0),
    "most_detail_percent": Figure(lambda e: e.of_image("detail_percent"), slack=2.0),
    "most_shading": Figure(lambda e: e.of_image("shading"), slack=2.0),
    "least_likeness_of_others_percent": Figure(lambda e: e.likeness_of_others, is_least=True),
    "mirrored_likeness_points": Figure(lambda e: e.mirrored),
    "contour_dice_percent": Figure(lambda e: e.agreement, is_least=True),
    "distance_mm_of_a_slice": Figure(lambda e: e.far_slices),
    "distance_mm_of_a_frame": Figure(lambda e: e.far_frames),
    "ef_difference_points": Figure(lambda e: e.ejections_part),
    "label_fit_points": Figure(lambda e: e.label_fits),
    "volume_closure_percent": Figure(lambda e: e.curves("closure_percent")),
    "volume_step_percent": Figure(lambda e: e.curves("step_percent")),
    # More frames than the ten of the clean cases have more noise.
    "volume_reversal_percent": Figure(lambda e: e.curves("reversal_percent"), slack=3.0),
    "off_line_mm": Figure(lambda e: e.of_heart("off_line", "mm")),
    "least_overlap_percent": Figure(lambda e: e.of_heart("overlap", "percent"), is_least=True),
    "turned_degrees": Figure(lambda e: e.of_heart("turned", "degrees"), slack=2.0),  # the RV's outline is unsure
}


def measured(evidence: Evidence) -> dict[str, float]:
    """By the names of thresholds, the worst value of a case that is held against each; one that it has no value for, and one
    that says what counts rather than how much is too much, is left out."""
    e, nothing = evidence, float("nan")
    before = e.limit["share_of_the_largest_mse_before"] * max((f["mse_before"] for f in e.frames), default=0.0)

    def largest(figure: str) -> float:
        return max((f[figure] for f in e.frames), default=nothing)

    size = e.heart.get("diameter_mm") or nothing
    slices = [row["mse_after"] for f in e.frames for row in f["slices"]]
    values = {
        "folding_percent": largest("folding_percent"),
        "compressed_percent": largest("compressed_percent"),
        "collapsed_determinant": min((f["jacobian_min"] for f in e.frames), default=nothing),
        "inverse_error_mm_p95": largest("inverse_error_mm_p95"),
        "mse_after": largest("mse_after"),
        "mse_after_to_before": max(
            (f["mse_after"] / f["mse_before"] for f in e.frames if f["mse_before"] > before), default=nothing
        ),
        "mse_of_a_slice_to_median": max(slices) / e.typical if e.typical else nothing,
        "moved_mm": largest("largest_displacement_mm"),
        "least_width_mm": e.image.get("width_mm", nothing),
        "least_diameter_mm": size,
        "most_diameter_mm": size,
        "contour_dice_percent_unusable": e.dice,
        "wall_change_percent": e.wall[1] if e.wall[0][0] else nothing,
        "volume_departure_percent": max((percent for _, percent in e.departures), default=nothing),
        "ef_difference_points_remarked": FIGURES["ef_difference_points"].worst(e),
    }
    values |= {name: figure.worst(e) for name, figure in FIGURES.items()}
    return {name: float(values[name]) for name in e.limit if not np.isnan(values.get(name, nothing))}
