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

"""The reference contour without a person: all frames segmented, end diastole and end systole found by the LV's volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, correlate1d
from scripts.cardiac.cines import LABELS
from scripts.cardiac.function import volumes
from scripts.data.labels import CROSS
from scripts.files import let_go, scratch_array
from scripts.progress import stage

# Least share of its area at end diastole that the RV keeps in the uppermost slice that shows it there, where it is still
# counted in that slice; chosen on `train` and `val` of ACDC, whose readers mostly end the RV one slice lower at end systole.
LEAST_LEFT = 0.65
LEAST_ENCLOSED = 0.93  # the least `enclosed_share`; on a long axis the rim is open at the base


@dataclass(frozen=True)
class Contours:
    """The segmentation of all frames of a cine, and the frames that matter, counted from 1."""

    # (X, Y, Z, T); 1 RV, 2 myocardium, 3 LV cavity.
    labels: NDArray[np.uint8]
    ed: int
    es: int


def find_phases(labels: NDArray, spacing: Sequence[float]) -> tuple[int, int] | None:
    """End diastole and end systole, counted from 1: the frames of the largest and smallest LV volume, each of them within
    a frame of where the volume smoothed over three frames has its own, so that one frame's error does not decide, and the
    ends of the cine, which have one neighbor, are not preferred.

    Args:
        labels: (X, Y, Z, T).
        spacing: voxel size in mm along X, Y and Z.

    Returns:
        The two frames, one and the same in a cine of one frame; None where no frame holds an LV.
    """
    lv = volumes(labels, spacing).get("lv")
    if lv is None:
        return None
    return _peak(lv.astype(float)) + 1, _peak(-lv.astype(float)) + 1


def _peak(curve: NDArray) -> int:
    """The frame, counted from 0, of the largest value next to the largest of the smoothed curve."""
    around = int(correlate1d(curve, [0.25, 0.5, 0.25], mode="nearest").argmax())
    first = max(around - 1, 0)
    return first + int(curve[first : around + 2].argmax())


def enclosed_share(label: NDArray) -> float:
    """The share of the LV's rim (in-plane neighbors of its voxels) that is myocardium, the median over those slices of a
    label map (X, Y, Z) that hold an LV: a base or a cut slice whose ring is open does not count for all; NaN without an LV.
    """
    lv = label == LABELS["lv"]
    rim = binary_dilation(lv, CROSS) & ~lv
    held = [z for z in range(label.shape[2]) if rim[..., z].any()]
    shares = [(label[..., z][rim[..., z]] == LABELS["myo"]).mean() for z in held]
    return float(np.median(shares)) if shares else float("nan")


def shows_short_axis(label: NDArray) -> bool:
    """Whether a label map (X, Y, Z) has the rings of a short axis: on a long axis the LV is open at its base."""
    return enclosed_share(label) >= LEAST_ENCLOSED


def lower_base(label: NDArray, ed_label: NDArray) -> NDArray:
    """A frame's label map (X, Y, Z) whose RV ends below the slice in which it ends at end diastole, where less than
    `LEAST_LEFT` of its area is left there: the base has descended past that slice, which shows the atrium now.

    Args:
        label: of the frame.
        ed_label: of end diastole, in the same shape. The RV's base is at the end where it is larger.
    """
    area, at_ed = ((one == LABELS["rv"]).sum((0, 1)) for one in (label, ed_label))
    shown = np.flatnonzero(at_ed)
    half = len(shown) // 2
    if not half:
        return label
    is_first = at_ed[shown[:half]].sum() > at_ed[shown[-half:]].sum()
    top = shown[0] if is_first else shown[-1]
    if area[top] >= LEAST_LEFT * at_ed[top]:
        return label
    z = np.arange(label.shape[2])
    return np.where((label == LABELS["rv"]) & ((z <= top) if is_first else (z >= top)), 0, label)


def contracted_frames(labels: NDArray, spacing: Sequence[float], ed: int, es: int) -> NDArray:
    """The frames, counted from 0, of a cine (X, Y, Z, T) whose LV volume is nearer to that of frame `es` than to that of
    frame `ed`, both counted from 1."""
    lv = volumes(labels, spacing)["lv"]
    return np.flatnonzero(2 * lv < lv[ed - 1] + lv[es - 1])


def find_contours(
    image: NDArray,
    spacing: Sequence[float],
    segment: Callable[[NDArray, Sequence[float]], NDArray[np.uint8]],
    scratch_dir: str | Path | None = None,
) -> Contours | None:
    """Segment all frames of a cine; None where that finds no LV in a ring of myocardium, as on a long axis.

    Each frame is segmented alone, which tells end diastole and end systole. What can see end diastole beside a frame
    ("sees_beside") then segments those that are contracted by more than half once more, and their RV may end lower than
    at end diastole (`lower_base`).

    Args:
        image: intensities (X, Y, Z, T).
        spacing: voxel size in mm along X, Y and Z.
        segment: of a frame (X, Y, Z), as `segmentation.Segmenter` or `workflow.segmenters.BundleSegmenter`.
        scratch_dir: folder for labels that do not fit into memory, see `files.scratch_array`.
    """
    frames = np.moveaxis(image, -1, 0)
    labels = scratch_array(frames.shape, np.uint8, scratch_dir)
    cine = np.moveaxis(labels, 0, -1)
    with stage("segmenting", len(frames), "frame") as bar:
        for t, frame in enumerate(frames):
            labels[t] = segment(frame, spacing)
            let_go(labels)
            bar.update()
    phases = find_phases(cine, spacing)
    if phases is None or not shows_short_axis(cine[..., phases[0] - 1]):
        return None
    if phases[0] == phases[1] or not getattr(segment, "sees_beside", False):
        return Contours(cine, *phases)
    ed, chosen = phases[0] - 1, contracted_frames(cine, spacing, *phases)
    with stage("segmenting beside end diastole", len(chosen), "frame") as bar:
        for t in chosen:
            labels[t] = lower_base(segment(frames[t], spacing, frames[ed]), labels[ed])
            let_go(labels)
            bar.update()
    return Contours(cine, *(find_phases(cine, spacing) or phases))
