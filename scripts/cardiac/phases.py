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

LEAST_ENCLOSED = 0.93  # the least share of the LV's rim that is myocardium; on a long axis the rim is open at the base


@dataclass(frozen=True)
class Contours:
    """The segmentation of all frames of a cine, and the frames that matter, counted from 1."""

    # (X, Y, Z, T); 1 RV, 2 myocardium, 3 LV cavity.
    labels: NDArray[np.uint8]
    ed: int
    es: int


def find_phases(labels: NDArray, spacing: Sequence[float]) -> tuple[int, int] | None:
    """End diastole and end systole, counted from 1: the frames of the largest and smallest LV volume, smoothed over
    three frames so that one frame's error does not decide.

    Args:
        labels: (X, Y, Z, T).
        spacing: voxel size in mm along X, Y and Z.

    Returns:
        The two frames, one and the same in a cine of one frame; None where no frame holds an LV.
    """
    lv = volumes(labels, spacing).get("lv")
    if lv is None:
        return None
    smooth = correlate1d(lv.astype(float), [0.25, 0.5, 0.25], mode="nearest")
    return int(smooth.argmax()) + 1, int(smooth.argmin()) + 1


def enclosed_share(label: NDArray) -> float:
    """The share of the LV's rim (in-plane neighbors of its voxels) in a label map (X, Y, Z) that is myocardium; NaN
    without an LV."""
    lv = label == LABELS["lv"]
    rim = label[binary_dilation(lv, CROSS) & ~lv]
    return float((rim == LABELS["myo"]).mean()) if rim.size else float("nan")


def shows_short_axis(label: NDArray) -> bool:
    """Whether a label map (X, Y, Z) has the rings of a short axis: on a long axis the LV is open at its base."""
    return enclosed_share(label) >= LEAST_ENCLOSED


def find_contours(
    image: NDArray,
    spacing: Sequence[float],
    segment: Callable[[NDArray, Sequence[float]], NDArray[np.uint8]],
    scratch_dir: str | Path | None = None,
) -> Contours | None:
    """Segment all frames of a cine; None where that finds no LV in a ring of myocardium, as on a long axis.

    Args:
        image: intensities (X, Y, Z, T).
        spacing: voxel size in mm along X, Y and Z.
        segment: of a frame (X, Y, Z), as `segmentation.Segmenter`.
        scratch_dir: folder for labels that do not fit into memory, see `files.scratch_array`.
    """
    frames = np.moveaxis(image, -1, 0)
    labels = scratch_array(frames.shape, np.uint8, scratch_dir)
    with stage("segmenting", len(frames), "frame") as bar:
        for t, frame in enumerate(frames):
            labels[t] = segment(frame, spacing)
            let_go(labels)
            bar.update()
    labels = np.moveaxis(labels, 0, -1)
    phases = find_phases(labels, spacing)
    if phases is None or not shows_short_axis(labels[..., phases[0] - 1]):
        return None
    return Contours(labels, *phases)
