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

"""Ventricular function by two answers that know nothing of each other: labels carried by the motion from the reference
frame, and labels of each frame by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from numpy.typing import NDArray
from scripts.cardiac.function import measure_function, note_frames, remark_on
from scripts.cardiac.phases import find_phases

CARRIED, SEGMENTED = "carried", "segmented"
WORDS = {CARRIED: "carried by the motion", SEGMENTED: "segmented in each frame"}
GIVEN, BY_SEGMENTATION = "given", "automatic"  # how the label of the reference frame came to be


class Measured(NamedTuple):
    """The answer whose ejection fraction was nearer to that of manual contours on `val` of ACDC, and how near it was on
    `test`: mean of the differences in points, and 1.96 of their standard deviations."""

    by: str
    bias: float
    limits: float


# By the basis of the label, of each ventricle, with the shipped weights: what `python -m benchmarks.function` measured.
BETTER = {
    GIVEN: {"lv": Measured(SEGMENTED, -1.4, 8.5), "rv": Measured(SEGMENTED, -3.2, 16.6)},
    BY_SEGMENTATION: {"lv": Measured(SEGMENTED, -1.4, 8.5), "rv": Measured(SEGMENTED, -3.2, 16.6)},
}
# SHA-256 of the segmentation's weights that this was measured with, the shipped ones.
MEASURED_SHA256 = "1040f4a5fb229dd580fe0ed748ffd3bd72616714c4eaa3229445119a828a83e7"
NOT_MEASURED = (
    "The segmentation is not the shipped one: how near its ejection fractions come to those by manual contours was not "
    "measured, so that there are no limits of agreement. Which answer comes first was chosen with the shipped weights."
)
SEGMENTED_CAVEAT = (
    "Segmented volumes know nothing of the motion: which basal slice still belongs to a ventricle is decided in each "
    "frame anew, and one slice more or less changes a volume by as much."
)
ALONG_THE_STACK = (
    "Motion along the stack is seen only as finely as slices lie apart: where the base is taken for higher or lower than "
    "it is, end-systolic volumes are too large or too small."
)
DEFINITIONS = {
    "label_basis": "where the label of the reference frame comes from: given, or automatic, by the segmentation",
    "carried": "the same figures by the label of the reference frame, moved to the others by the registration",
    "segmented": "the same figures by the segmentation of each frame by itself",
    "{}_measured_by": "which of the two answers the figures of this ventricle above are, the one whose ejection fraction "
    "was nearer to that of manual contours",
    "{}_ef_bias_points": "mean difference of this ejection fraction to that by manual contours, with the shipped weights, "
    "in 14 subjects, in points",
    "{}_ef_limits_points": "1.96 standard deviations of that difference, in points",
}


def measure_answers(
    labels: Mapping[str, NDArray],
    label_basis: str,
    spacing: Sequence[float],
    times: NDArray | None = None,
    reference: int | None = None,
    is_stack: bool = True,
    in_plane: bool = True,
    is_measured: bool = True,
) -> dict[str, object]:
    """Function by each answer, and of each ventricle by the better one.

    End diastole and end systole are those of the segmentation where there is one, for both.

    Args:
        labels: of all frames (X, Y, Z, T), by `CARRIED` and, where the frames were segmented, `SEGMENTED`.
        label_basis: a key of `BETTER`.
        spacing, times, reference, is_stack: as `function.measure_function` takes them.
        in_plane: whether labels were carried within slices alone, and not along the stack, too.
        is_measured: whether the segmentation is that of `MEASURED_SHA256`.

    Returns:
        What `function.measure_function` returns, of each ventricle by the answer that "lv_measured_by" and
        "rv_measured_by" name, with the bias and the limits of its ejection fraction, or with `NOT_MEASURED` under
        "unmeasured"; all figures by each answer under its name; "label_basis"; of a stack "notes", see
        `function.note_frames`, and "remarks", see `function.remark_on`; and what `DEFINITIONS` has. Empty where
        neither ventricle's cavity is labeled.
    """
    phases = find_phases(labels[SEGMENTED], spacing) if SEGMENTED in labels else None
    answers = {
        by: measure_function(frames, spacing, times, reference, is_stack, phases) for by, frames in labels.items()
    }
    answers = {by: figures for by, figures in answers.items() if figures}
    if not answers:
        return {}
    parts = ("definitions", "caveat")
    every = next(iter(answers.values()))
    result = {name: value for name, value in every.items() if name not in parts and name[:3] not in ("lv_", "rv_")}
    result["label_basis"] = label_basis
    definitions = {name: text for figures in answers.values() for name, text in figures["definitions"].items()}
    for ventricle, better in BETTER[label_basis].items():
        result |= _of_the_better_one(answers, ventricle, better, is_measured)
    if is_stack:
        result |= {"unmeasured": NOT_MEASURED} if SEGMENTED in answers and not is_measured else {}
        result |= {"notes": note_frames(result), "remarks": remark_on(result)}
        result |= {by: {k: v for k, v in figures.items() if k not in parts} for by, figures in answers.items()}
    own = {name.format(ventricle): text for name, text in DEFINITIONS.items() for ventricle in ("lv", "rv")}
    definitions |= {name: text for name, text in own.items() if name in result}
    beware = {SEGMENTED: SEGMENTED_CAVEAT} | ({} if in_plane else {CARRIED: ALONG_THE_STACK})
    caveats = [beware.get(by, figures["caveat"]) if is_stack else figures["caveat"] for by, figures in answers.items()]
    return {**result, "definitions": definitions, "caveat": " ".join(dict.fromkeys(caveats))}


def _of_the_better_one(
    answers: Mapping[str, Mapping], ventricle: str, better: Measured, is_measured: bool
) -> dict[str, object]:
    """The figures of a ventricle by the better one of the answers that have it, and how good that one is, where that was
    measured; none without."""
    having = [by for by, figures in answers.items() if f"{ventricle}_edv_ml" in figures]
    if not having:
        return {}
    by = better.by if better.by in having else having[0]
    found = {name: value for name, value in answers[by].items() if name.startswith(f"{ventricle}_")}
    found[f"{ventricle}_measured_by"] = by
    if is_measured and by == better.by and f"{ventricle}_ef_percent" in found:
        found |= {f"{ventricle}_ef_bias_points": better.bias, f"{ventricle}_ef_limits_points": better.limits}
    return found
