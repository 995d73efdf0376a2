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

"""Times of the frames of a NIfTI cine: by its header, or by the JSON that dcm2niix leaves beside it."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scripts.data.times import LONGEST, SHORTEST

MILLISECONDS = {"sec": 1e3, "msec": 1.0, "usec": 1e-3}
# Part of the cycle within which the first frame of a cine follows the trigger.
SOON = 1 / 3


def frame_times(path: str, header: nib.Nifti1Header, slices: int, frames: int) -> NDArray[np.floating] | None:
    """Milliseconds of each slice and frame of a cine (Z, T), the same for all slices; None where nothing tells them.

    The time from frame to frame is the first of these by which the cycle lasts as long as a heartbeat may (`times`): the
    NominalInterval over the CardiacNumberOfImages of the JSON beside the file, where that is the number of its frames; the
    header's; the RepetitionTime of the JSON. dcm2niix writes the repetition time into the header, which some scanners
    give from pulse to pulse. What of the header is not taken is logged. The first frame is at the JSON's TriggerDelayTime.
    """
    sidecar = _read_sidecar(path)
    length, unit = float(header["pixdim"][4]), header.get_xyzt_units()[1]
    own = length * MILLISECONDS.get(unit, 0.0)
    number = sidecar.get("CardiacNumberOfImages")
    steps = {
        "NominalInterval in": sidecar.get("NominalInterval", 0.0) / frames if number == frames else 0.0,
        "header": own,
        "RepetitionTime in": 1e3 * sidecar.get("RepetitionTime", 0.0),
    }
    name, step = next(((name, step) for name, step in steps.items() if _is_heartbeat(step, frames)), ("", 0.0))
    # A header that was never filled in says one second, or one millisecond.
    if not _is_heartbeat(own, frames) and length not in (0, 1):
        reason = f"would make a cycle of {own * frames:.4g} ms, no heartbeat" if own else "has no unit of time"
        cure = f"taken from {name} the JSON beside it" if step else "left out; correct the header with nibabel's"
        cure += "" if step else " set_zooms and set_xyzt_units('mm', 'msec')"
        given = f"{length:.4g}" + f" {unit}" * (unit != "unknown")
        logging.getLogger("inference").warning(f"{path}: its frame time of {given} {reason}, so that times are {cure}.")
    if not step:
        return None
    delay = sidecar.get("TriggerDelayTime", 0.0)
    start = delay if 0 < delay < SOON * step * frames else 0.0
    return np.tile(start + step * np.arange(frames), (slices, 1))


def _is_heartbeat(step: float, frames: int) -> bool:
    """Whether frames that are so many ms apart cover a heartbeat."""
    return SHORTEST <= step * frames <= LONGEST


def _read_sidecar(path: str) -> dict[str, float]:
    """The numbers of the JSON file of a NIfTI file's name; none where it is not there or, with a line in the log, no JSON of
    that kind."""
    sidecar = Path(re.sub(r"\.(nii|img|hdr)(\.gz)?$", "", path, flags=re.IGNORECASE) + ".json")
    if not sidecar.exists():
        return {}
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8-sig"))
        return {key: float(value) for key, value in content.items() if isinstance(value, (int, float))}
    except (OSError, ValueError, AttributeError, RecursionError, OverflowError):
        logging.getLogger("inference").warning(
            f"{sidecar}: cannot be read as the JSON of dcm2niix, and no times are taken from it; correct or remove it."
        )
        return {}
