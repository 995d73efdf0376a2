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

"""Ventricular function of a cine from the labels of its frames: volumes, ejection fraction and left ventricular
mass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scripts.cardiac.cines import LABELS
from scripts.files import one_by_one

MUSCLE_DENSITY = 1.05  # g/mL
# Share of the larger stroke volume by which they may part without a remark; manual contours of ACDC do so by more in 38 of
# 100 patients, so that it is no fault by itself.
STROKES_APART = 0.3
DEFINITIONS = {
    "reference_frame": "frame whose label is carried; the carried labels of the others are that one, moved by the "
    "registration",
    "ed_frame": "end diastole: the frame of the largest LV volume by the segmentation of each frame, smoothed over three "
    "frames; without one, by the carried labels (of the RV where no LV is labeled); counted from 1",
    "es_frame": "end systole: the frame of the smallest volume found in the same way, counted from 1",
    "ed_time_ms": "time of end diastole after the trigger, mean over slices, in ms",
    "es_time_ms": "time of end systole after the trigger, mean over slices, in ms",
    "lv_volume_ml": "LV cavity (label 3) of each frame: number of voxels times voxel volume, in mL",
    "rv_volume_ml": "RV cavity (label 1) of each frame: number of voxels times voxel volume, in mL",
    "lv_edv_ml": "LV volume at end diastole, in mL",
    "lv_esv_ml": "LV volume at end systole, in mL",
    "lv_sv_ml": "LV stroke volume EDV - ESV, in mL",
    "lv_ef_percent": "LV ejection fraction (EDV - ESV) / EDV, in percent",
    "rv_edv_ml": "RV volume in the ED frame, in mL",
    "rv_esv_ml": "RV volume in the ES frame, in mL",
    "rv_sv_ml": "RV stroke volume EDV - ESV, in mL",
    "rv_ef_percent": "RV ejection fraction (EDV - ESV) / EDV, in percent",
    "lv_mass_g": "LV myocardium (label 2) at end diastole: volume times 1.05 g/mL, in g",
}
CAVEAT = (
    "Motion is measured in-plane alone: the descent of the base is not seen. Slices that the base leaves in systole "
    "keep their label, so that end-systolic volumes tend to be too large, stroke volumes and ejection fractions too "
    "small: little in the left ventricle, grossly in the right one, whose base leaves the basal slices."
)
NO_VOLUME = "One slice, or a long-axis view, is no whole ventricle: no volume, ejection fraction or mass is given."
AREA_DEFINITIONS = DEFINITIONS | {
    "ed_frame": "end diastole: the frame of the largest LV area (of the largest RV area where no LV is labeled), counted "
    "from 1",
    "es_frame": "end systole: the frame of the smallest area of the same ventricle, counted from 1",
}


def volumes(labels: NDArray, spacing: Sequence[float]) -> dict[str, NDArray]:
    """Volume of each structure in each frame, (T,) in mL; one that no frame holds is left out.

    Args:
        labels: (X, Y, Z, T); 1 RV, 2 myocardium, 3 LV cavity.
        spacing: voxel size in mm along X, Y and Z, where Z is the distance from slice to slice (gaps included).

    Raises:
        ValueError: where the labels have not four axes.
    """
    if labels.ndim != 4:
        raise ValueError(f"labels of a cine have the axes (X, Y, Z, T), got shape {labels.shape}.")
    voxel = float(np.prod(spacing)) / 1000
    frames = one_by_one(np.moveaxis(labels, -1, 0))
    counts = np.array([[np.count_nonzero(frame == value) for value in LABELS.values()] for frame in frames])
    return {name: count * voxel for name, count in zip(LABELS, counts.reshape(-1, len(LABELS)).T) if count.any()}


def volume_rows(labels: Mapping[str, NDArray], spacing: Sequence[float], times: NDArray | None = None) -> list[dict]:
    """The volume curves as a table, one dict a frame.

    Args:
        labels: of all frames (X, Y, Z, T), by the word that says how they came to be.
        spacing: as `volumes` takes it.
        times: milliseconds of each slice and frame (Z, T), or of each frame (T,).

    Returns:
        Rows of `frame` (from 1), `time_ms` (mean over slices; where times are known), and for each word, as "carried",
        `lv_carried_ml`, `rv_carried_ml` and `myo_carried_ml`, each where any frame holds the structure.
    """
    columns: dict[str, NDArray] = {}
    if times is not None:
        columns["time_ms"] = _mean_times(times)
    for word, frames in labels.items():
        curves = volumes(frames, spacing)
        columns |= {f"{name}_{word}_ml": curves[name] for name in ("lv", "rv", "myo") if name in curves}
    count = max((frames.shape[-1] for frames in labels.values()), default=0)
    return [{"frame": t + 1, **{name: float(column[t]) for name, column in columns.items()}} for t in range(count)]


def measure_function(
    labels: NDArray,
    spacing: Sequence[float],
    times: NDArray | None = None,
    reference: int | None = None,
    is_stack: bool = True,
    phases: tuple[int, int] | None = None,
) -> dict[str, object]:
    """What `DEFINITIONS` has, as far as the labels tell.

    Args:
        labels: (X, Y, Z, T); 1 RV, 2 myocardium, 3 LV cavity.
        spacing, times: as `volume_rows` takes them.
        reference: frame whose label the others were moved from, counted from 1; passed on to the result.
        is_stack: whether the slices add up to a ventricle, see `cines.Cine.is_stack`; without, end diastole and end
            systole are those of the largest and the smallest area, and no volume, ejection fraction or mass is given.
        phases: end diastole and end systole, counted from 1, where they are known; else those of `DEFINITIONS`.

    Returns:
        Numbers by the names in `DEFINITIONS`, lists of T for the volumes, the definitions of what is there under
        "definitions", and `CAVEAT` under "caveat". A structure that no frame holds has no keys. A cine of one frame has
        no end systole: end-systolic figures and all that follow from them are absent. Empty where neither ventricle's
        cavity is labeled.
    """
    curves = volumes(labels, spacing)
    leading = curves.get("lv", curves.get("rv"))
    if leading is None:
        return {}
    ed, es = (leading.argmax(), leading.argmin()) if phases is None else np.subtract(phases, 1)
    means = _mean_times(times)
    beats = len(leading) > 1
    result: dict[str, object] = {} if reference is None else {"reference_frame": int(reference)}
    for name, frame in {"ed": ed, "es": es}.items() if beats else [("ed", ed)]:
        result[f"{name}_frame"] = int(frame) + 1
        if means is not None:
            result[f"{name}_time_ms"] = float(means[frame])
    if not is_stack:
        return {**result, "definitions": {name: AREA_DEFINITIONS[name] for name in result}, "caveat": NO_VOLUME}
    for name in ("lv", "rv"):
        if name not in curves:
            continue
        result[f"{name}_volume_ml"] = [float(volume) for volume in curves[name]]
        edv, esv = (float(curves[name][frame]) for frame in (ed, es))
        result[f"{name}_edv_ml"] = edv
        if beats:
            result |= {f"{name}_esv_ml": esv, f"{name}_sv_ml": edv - esv}
        if beats and edv > 0:
            result[f"{name}_ef_percent"] = 100 * (edv - esv) / edv
    if "myo" in curves:
        result["lv_mass_g"] = MUSCLE_DENSITY * float(curves["myo"][ed])
    return {**result, "definitions": {name: DEFINITIONS[name] for name in result}, "caveat": CAVEAT}


def note_frames(figures: Mapping[str, object]) -> list[str]:
    """In which frames figures of `DEFINITIONS` were read, a sentence each: end diastole that is not the reference, a right
    ventricle in the other one's frames."""
    f, found = figures, []
    if f.get("reference_frame", f.get("ed_frame")) != f.get("ed_frame"):
        found.append(
            f"End diastole is frame {f['ed_frame']}, where the LV is largest; contours were carried, and strain counts, from "
            f"the reference, frame {f['reference_frame']}."
        )
    if {"lv_sv_ml", "rv_sv_ml"} <= f.keys():
        found.append(
            "The RV is read in the frames of the LV's end diastole and end systole; its own may be a frame or two off."
        )
    return found


def remark_on(figures: Mapping[str, object]) -> list[str]:
    """What is odd in figures of `DEFINITIONS`, a sentence each: ejection fractions below zero, stroke volumes that part."""
    found = [
        f"The {name.upper()}'s ejection fraction is negative, which cannot be: check its contours at end diastole and end systole, "
        f"and whether the image shows the whole {name.upper()}."
        for name in ("lv", "rv")
        if figures.get(f"{name}_ef_percent", 0) < 0
    ]
    strokes = [figures[key] for key in ("lv_sv_ml", "rv_sv_ml") if key in figures]
    if len(strokes) == 2 and abs(strokes[0] - strokes[1]) > STROKES_APART * max(strokes):
        found.append(
            f"The stroke volumes differ, LV {strokes[0]:.0f} mL and RV {strokes[1]:.0f} mL: without valve regurgitation or a shunt "
            "they should be about the same. Often the contours of one ventricle have a basal slice too many or too few: check the "
            "base at end diastole and end systole."
        )
    return found


def _mean_times(times: NDArray | None) -> NDArray | None:
    """Milliseconds of each frame (T,), the mean over slices, from times (Z, T) or (T,); None from None."""
    return None if times is None else np.atleast_2d(np.asarray(times, dtype=float)).mean(axis=0)
