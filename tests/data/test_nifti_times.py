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

"""Times of a NIfTI's frames: by header or dcm2niix's JSON, and none that no heart can have."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.nifti import read_nifti_cine

FRAMES = 20


def write_cine(path: Path, step: float | None = None, unit: str | None = None, **sidecar: object) -> Path:
    array = np.random.default_rng(0).integers(0, 3000, (4, 4, 3, FRAMES)).astype(np.int16)
    image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0]))
    if step is not None:
        image.header.set_xyzt_units("mm", unit)
        image.header.set_zooms((1.5, 1.5, 8.0, step))
    nib.save(image, path)
    if sidecar:
        path.with_name("a.json").write_text(json.dumps(sidecar))
    return path


@pytest.mark.parametrize(
    ("step", "unit", "milliseconds"),
    [(37.5, "msec", 37.5), (0.0375, "sec", 37.5), (37500, "usec", 37.5), (12.6, "msec", 12.6), (149, "msec", 149)]
    + [(1.0, "sec", None), (1.0, "msec", None), (0.0, "msec", None), (None, None, None)],
)
def test_frame_times_are_the_headers_and_a_header_that_was_never_filled_in_says_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: float | None, unit: str | None, milliseconds: float | None
) -> None:
    cine = read_nifti_cine(write_cine(tmp_path / "a_4d.nii.gz", step, unit))
    assert not caplog.records
    if milliseconds is None:
        assert cine.times is None
        assert cine.frame_time is None
    else:
        np.testing.assert_allclose(cine.times, np.tile(milliseconds * np.arange(FRAMES), (3, 1)), rtol=1e-6)
        assert cine.frame_time == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("step", "unit", "words"),
    [
        # dcm2niix writes the time from pulse to pulse into the header of some cines.
        (0.003373, "sec", "0.003373 sec would make a cycle of 67.46 ms, no heartbeat"),
        (3.373, "msec", "3.373 msec would make a cycle of 67.46 ms"),
        (3373, "usec", "3373 usec would make a cycle of 67.46 ms"),
        (12.4, "msec", "cycle of 248 ms"),
        (151, "msec", "cycle of 3020 ms"),
        (37.5, "sec", "37.5 sec would make a cycle of 7.5e+05 ms"),
        (37.5, None, "37.5 has no unit of time"),
        (30.0, "hz", "30 hz has no unit of time"),
    ],
)
def test_a_cycle_that_is_no_heartbeat_is_dropped_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: float, unit: str | None, words: str
) -> None:
    assert read_nifti_cine(write_cine(tmp_path / "a.nii.gz", step, unit)).times is None
    assert words in caplog.text
    assert "a.nii.gz: its frame time of " in caplog.text
    assert "so that times are left out; correct the header with nibabel's set_zooms" in caplog.text


def test_the_json_of_dcm2niix_says_what_the_header_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sidecar = {
        "CardiacNumberOfImages": FRAMES,
        "NominalInterval": 698,
        "TriggerDelayTime": 12.5,
        "RepetitionTime": 0.003373,
    }
    times = read_nifti_cine(write_cine(tmp_path / "a.nii.gz", 0.003373, "sec", **sidecar)).times
    np.testing.assert_allclose(times, np.tile(12.5 + 34.9 * np.arange(FRAMES), (3, 1)))
    assert (
        "cycle of 67.46 ms, no heartbeat, so that times are taken from NominalInterval in the JSON beside it"
        in caplog.text
    )
    # That of other frames says nothing, and a delay of most of the cycle is the last frame's.
    times = read_nifti_cine(
        write_cine(tmp_path / "a.nii.gz", 0, "sec", **sidecar | {"CardiacNumberOfImages": 25, "RepetitionTime": 0.04})
    ).times
    np.testing.assert_allclose(times[0], 12.5 + 40 * np.arange(FRAMES))
    times = read_nifti_cine(write_cine(tmp_path / "a.nii.gz", 40, "msec", TriggerDelayTime=760)).times
    np.testing.assert_allclose(times[0], 40 * np.arange(FRAMES))


@pytest.mark.parametrize(
    "content", ["no JSON", "[1, 2]", '{"NominalInterval": "x"}', "[" * 5000, '{"NominalInterval": 1e999}']
)
def test_a_json_that_says_nothing_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert read_nifti_cine(write_cine(tmp_path / "a.nii.gz", 40, "msec")).frame_time == pytest.approx(40)


@pytest.mark.parametrize("content", ["{broken", "[1, 2]", "[" * 100_000, b"\xff\xfe\x00"])
def test_a_json_that_cannot_be_read_is_named(
    content: str | bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_cine(tmp_path / "a.nii.gz", 40, "msec")
    path.with_name("a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_nifti_cine(path).times is not None
    assert "a.json: cannot be read as the JSON of dcm2niix" in caplog.text
