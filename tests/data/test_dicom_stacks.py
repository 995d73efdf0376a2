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

"""Images of a folder by geometry and time: slices, phases, and stacks that are not whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scripts.data.dicom import read_dicom_cine
from scripts.data.nifti import check_right_angles

from tests import dicom_files as dcm

pydicom = pytest.importorskip("pydicom")


def test_slices_follow_the_normal_whatever_the_order_of_acquisition(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"InstanceNumber": 100 - dcm.PHASES * z + t})
    cine = read_dicom_cine(dcm.write(tmp_path, stack[::-1]))
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))


def test_orientations_that_jitter_are_averaged(tmp_path: Path) -> None:
    angles = np.deg2rad([-0.3, 0.0, 0.3])
    turned = [
        np.stack([np.cos(a) * dcm.AXES[0] + np.sin(a) * dcm.AXES[1], np.cos(a) * dcm.AXES[1] - np.sin(a) * dcm.AXES[0]])
        for a in angles
    ]
    stack = dcm.set_tags(
        dcm.make_stack(), lambda z, t: {"ImageOrientationPatient": turned[z].round(6).ravel().tolist()}
    )
    cine = read_dicom_cine(dcm.write(tmp_path, stack))
    np.testing.assert_allclose(cine.affine[:2, 0], -dcm.AXES[0, :2] * dcm.SPACING[1], atol=1e-4)


@pytest.mark.parametrize(("between", "thickness"), [(dcm.GAP, dcm.GAP), (None, 7.0), (0.0, 7.0)])
def test_a_lone_slice_takes_its_thickness_from_a_tag(tmp_path: Path, between: float | None, thickness: float) -> None:
    stack = dcm.set_tags(dcm.make_stack(slices=1), lambda z, t: {"SpacingBetweenSlices": between})
    cine = read_dicom_cine(dcm.write(tmp_path, stack))
    assert cine.image.shape == (dcm.COLUMNS, dcm.ROWS, 1, dcm.PHASES)
    assert cine.spacing[2] == pytest.approx(thickness, rel=1e-4)
    assert np.linalg.det(cine.affine) > 0


def test_copies_of_an_enhanced_file_count_once(tmp_path: Path) -> None:
    file = dcm.make_enhanced([image for phases in dcm.make_stack() for image in phases])
    folder = dcm.write(tmp_path, [[file]])
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    path.with_name("copy").write_bytes(path.read_bytes())
    assert read_dicom_cine(folder).image.shape == (dcm.COLUMNS, dcm.ROWS, dcm.SLICES, dcm.PHASES)


def test_stops_at_slices_of_unequal_numbers_of_phases(tmp_path: Path) -> None:
    stack = dcm.make_stack()
    stack[1].pop()
    message = dcm.error_of(dcm.write(tmp_path, stack))
    assert "unequal numbers of phases (4, 3, 4): look at slice 2, with IM" in message
    assert "; add the missing files" in message
    assert "the stack of 11 images with IM000 (series 0)" in message


def test_stops_at_repeated_slices(tmp_path: Path) -> None:
    repeat = dcm.make_stack()[1:2]
    assert "slice 2 is there more than once (8 files, 2 series)" in dcm.error_of(
        dcm.write(tmp_path / "series", dcm.make_stack(), repeat)
    )
    doubled = [phases + dcm.make_stack()[z] for z, phases in enumerate(dcm.make_stack())]
    dcm.set_tags(doubled, lambda z, t: {"SeriesInstanceUID": "1.2.3"})
    assert "slice 1 has several images of one TriggerTime; keep one" in dcm.error_of(
        dcm.write(tmp_path / "phases", doubled)
    )


def test_copies_of_a_file_count_once(tmp_path: Path) -> None:
    stack = dcm.make_stack()
    cine = read_dicom_cine(dcm.write(dcm.write(tmp_path, stack) / "copy", stack[:2]).parent)
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))


def test_one_uid_for_all_files_makes_no_copies_of_them(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"SOPInstanceUID": "1.2.3"})
    np.testing.assert_array_equal(
        read_dicom_cine(dcm.write(tmp_path / "phases", stack)).image, dcm.expected_image(stack)
    )
    # Magnitude and phase images under one UID and time are no copies.
    doubled = [phases + dcm.make_stack(seed=1)[z] for z, phases in enumerate(dcm.make_stack())]
    dcm.set_tags(doubled, lambda z, t: {"SOPInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"})
    assert "slice 1 has several images of one TriggerTime" in dcm.error_of(dcm.write(tmp_path / "doubled", doubled))


@pytest.mark.parametrize("place", [0.5, 1.0, 5.0], ids=["between", "on a slice", "beyond"])
@pytest.mark.parametrize("per_phase", [False, True])
def test_a_single_image_parallel_to_the_cine_is_left_out(
    tmp_path: Path, place: float, per_phase: bool, caplog: pytest.LogCaptureFixture
) -> None:
    series = (lambda z, t: f"1.2.{t + 1}") if per_phase else (lambda z, t: f"1.2.{z + 1}")
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"SeriesInstanceUID": series(z, t)})
    scout = [
        [
            dcm.make_image(
                dcm.CORNER + place * dcm.GAP * dcm.NORMAL,
                99,
                SeriesInstanceUID="1.2.99",
                SeriesNumber=9,
                TriggerTime=5.0,
            )
        ]
    ]
    dcm.write(tmp_path, stack, scout)
    if per_phase and place == 1:
        # It looks like one phase more of that slice.
        assert "unequal numbers of phases (4, 5, 4)" in dcm.error_of(tmp_path)
        return
    np.testing.assert_array_equal(read_dicom_cine(tmp_path).image, dcm.expected_image(stack))
    assert re.search(r"left out 1 images, such as IM\d+ \(series 9\): single in series of their own", caplog.text)


def test_a_slice_of_a_series_a_phase_beside_slices_of_one_series_is_kept(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"SeriesInstanceUID": f"1.2.{z + 1}{t if z == 2 else ''}"})
    np.testing.assert_array_equal(read_dicom_cine(dcm.write(tmp_path, stack)).image, dcm.expected_image(stack))


def test_trigger_delays_order_phases_that_share_a_rounded_trigger_time(tmp_path: Path) -> None:
    rule = lambda z, t: {"TriggerTime": float(t // 2), "NominalCardiacTriggerDelayTime": 90.0 * t + z}
    stack = dcm.set_tags(dcm.make_stack(), rule)
    cine = read_dicom_cine(dcm.write(tmp_path, stack))
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))
    np.testing.assert_allclose(cine.times, [[90 * t + z for t in range(dcm.PHASES)] for z in range(dcm.SLICES)])


@pytest.mark.parametrize(
    ("pitch", "thickness", "said"), [(9.0, 8.0, True), (9.0, None, True), (18.0, 8.0, False), (1.0, 8.0, False)]
)
def test_every_second_slice_alone_is_called_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pitch: float, thickness: float | None, said: bool
) -> None:
    tags = {"SpacingBetweenSlices": pitch} | ({} if thickness is None else {"SliceThickness": thickness})
    stack = dcm.set_tags(dcm.make_stack(slices=5), lambda z, t: tags)
    if thickness is None:
        for phase in (phase for phases in stack for phase in phases):
            del phase.SliceThickness
    cine = read_dicom_cine(dcm.write(tmp_path, stack[::2]))
    assert np.linalg.norm(cine.affine[:3, 2]) == pytest.approx(18.0)
    assert (
        "its slices lie 18.0 mm apart, and were taken 9.0 mm apart by its files: are some missing?" in caplog.text
    ) == said


def test_stops_at_a_missing_slice(tmp_path: Path) -> None:
    stack = dcm.make_stack(slices=5)
    assert "unequally far apart (9.0, 18.0, 9.0 mm); add the missing slice" in dcm.error_of(
        dcm.write(tmp_path, stack[:2] + stack[3:])
    )


@pytest.mark.parametrize(
    "rule", [lambda z, t: z == 1, lambda z, t: z, lambda z, t: t == 2], ids=["slice", "shear", "phase"]
)
def test_stops_at_images_shifted_in_plane(tmp_path: Path, rule: Callable[[int, int], float]) -> None:
    place = lambda z, t: np.round(dcm.CORNER + z * dcm.GAP * dcm.NORMAL + 3 * rule(z, t) * dcm.AXES[0], 5).tolist()
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"ImagePositionPatient": place(z, t)})
    assert "shifted against each other in plane" in dcm.error_of(dcm.write(tmp_path, stack))


def test_shifts_below_half_a_pixel_leave_right_angles(tmp_path: Path) -> None:
    place = lambda z: np.round(dcm.CORNER + z * dcm.GAP * dcm.NORMAL + 0.4 * z * dcm.AXES[0], 5).tolist()
    cine = read_dicom_cine(
        dcm.write(tmp_path, dcm.set_tags(dcm.make_stack(), lambda z, t: {"ImagePositionPatient": place(z)}))
    )
    check_right_angles(cine.affine, "the cine")
    assert np.linalg.norm(cine.affine[:3, 3] - dcm.CORNER * [-1, -1, 1]) < 0.5


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda z, t: {"TriggerTime": None}, r"12 of them, such as IM000 \(series 0\), have no trigger time"),
        (
            lambda z, t: {"TriggerTime": None} if (z, t) == (1, 2) else {},
            r"1 of them, such as IM\d+ \(series 0\), have no trigger",
        ),
        (
            lambda z, t: {"NominalCardiacTriggerDelayTime": 9.0 * t} | ({"TriggerTime": None} if z == t == 1 else {}),
            r"1 of them, such as IM\d+ \(series 0\), have no trigger",
        ),
        (lambda z, t: {"TriggerTime": 0.0}, "its trigger times do not differ"),
        (lambda z, t: {"TriggerTime": 0.0} if z == 2 else {}, "its trigger times do not differ"),
    ],
    ids=["none", "one lacks it", "one lost it", "zeros", "zeros in a slice"],
)
def test_stops_without_trigger_times(tmp_path: Path, rule: Callable[[int, int], dict], words: str) -> None:
    """Whatever else might tell the order of the phases."""
    others = lambda z, t: {
        "InstanceNumber": 100 * z + t,
        "TemporalPositionIdentifier": t + 1,
        "AcquisitionTime": f"13315{z}.{t}0",
    }
    message = dcm.error_of(dcm.write(tmp_path, dcm.set_tags(dcm.set_tags(dcm.make_stack(), others), rule)))
    assert re.search(words, message)
    assert "TriggerTime or NominalCardiacTriggerDelayTime or Actual" in message
    assert "export it again with them, or convert it to NIfTI" in message


def test_stops_at_a_lone_slice_without_thickness(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(slices=1), lambda z, t: {"SpacingBetweenSlices": None, "SliceThickness": None})
    assert "its only slice has neither SpacingBetweenSlices nor SliceThickness" in dcm.error_of(
        dcm.write(tmp_path, stack)
    )
