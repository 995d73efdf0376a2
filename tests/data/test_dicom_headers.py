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

"""What a file's header says of its images, and files that are no image or are spoiled."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from scripts.data.dicom import read_dicom_cine
from scripts.data.dicom_headers import read_instances, time_of_day
from scripts.errors import InputError

from tests import dicom_files as dcm

pydicom = pytest.importorskip("pydicom")
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    generate_uid,
)


def test_other_files_are_skipped(tmp_path: Path) -> None:
    stack = dcm.make_stack()
    dcm.write(tmp_path, stack)
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "empty").touch()
    (tmp_path / ".#notes.txt").symlink_to("editor@host")
    (tmp_path / "._IM000.dcm").write_bytes(b"\0\5\26\7")
    report = pydicom.Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", generate_uid(), "SR"
    directory = pydicom.Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = MediaStorageDirectoryStorage, generate_uid()
    dcm.write(
        tmp_path / "more", [[dcm.make_image(dcm.CORNER, SOPClassUID=CTImageStorage, Modality="CT"), report, directory]]
    )
    cine = read_dicom_cine(tmp_path)
    np.testing.assert_array_equal(cine.image, dcm.expected_image(stack))


@pytest.mark.parametrize("size", [0, 100, 140, 300, None])
def test_no_image_vanishes_because_its_file_is_spoiled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int | None
) -> None:
    path = min(dcm.write(tmp_path, dcm.make_stack()).glob("part*/IM*"))
    if size is None:
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_bytes(path.read_bytes()[:size])
        path = path.rename(path.with_suffix(".dcm")) if size == 100 else path
    if size == 0:
        assert "unequal numbers of phases" in dcm.error_of(tmp_path)
        assert f"{path.name} is empty and left out; an image whose copy failed?" in caplog.text
    else:
        words = {None: "cannot be read: it is a broken link", 100: "is not DICOM by its first bytes"}
        assert f": {path.name} {words.get(size, 'cannot be read as DICOM')}" in dcm.error_of(tmp_path)


def test_trigger_delays_of_converted_multi_frame_files_are_times(tmp_path: Path) -> None:
    rule = lambda z, t: {"TriggerTime": None, "NominalCardiacTriggerDelayTime": 80.0 * t, "StackID": "1"}
    cine = read_dicom_cine(dcm.write(tmp_path, dcm.set_tags(dcm.make_stack(), rule)))
    np.testing.assert_allclose(cine.times, [[0, 80, 160, 240]] * dcm.SLICES)


def test_private_headers_of_frames_change_nothing(tmp_path: Path) -> None:
    """Philips has a classic header of each frame beside the public groups, in which place, scale and time are
    others."""
    stack = dcm.make_stack()
    expected = read_dicom_cine(dcm.write(tmp_path / "classic", stack))
    file = dcm.make_enhanced([image for phases in stack for image in phases])
    for number, groups in enumerate(file.PerFrameFunctionalGroupsSequence):
        private = pydicom.Dataset()
        private.ImagePositionPatient, private.RescaleSlope = [0.0, 0.0, 0.0], 4.5
        private.TriggerTime, private.SOPClassUID = float(-number), MRImageStorage
        groups.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
        groups.add_new(0x2005140F, "SQ", [private])
    found = read_dicom_cine(dcm.write(tmp_path / "enhanced", [[file]]))
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(found.times, expected.times)


@pytest.mark.parametrize("meta", ["explicit", "implicit", "none", "none, implicit"])
@pytest.mark.parametrize("enhanced", [False, True])
def test_files_without_a_preamble_are_read(tmp_path: Path, meta: str, enhanced: bool) -> None:
    stack = dcm.make_stack()
    dcm.write(tmp_path / "classic", stack)
    syntax = ImplicitVRLittleEndian if "implicit" in meta else ExplicitVRLittleEndian
    files = [[dcm.make_enhanced([image for phases in stack for image in phases])]] if enhanced else stack
    folder = dcm.write(tmp_path / "files", files, syntax=syntax)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        body = path.read_bytes()
        # The tags of the data set begin with its class.
        path.write_bytes(body[132:] if "none" not in meta else body[body.index(bytes([8, 0, 22, 0])) :])
    np.testing.assert_array_equal(read_dicom_cine(folder).image, dcm.expected_image(stack))


def test_pictures_in_color_are_no_images(tmp_path: Path) -> None:
    stack = dcm.make_stack()
    color = dcm.make_image(
        dcm.CORNER, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, TriggerTime=99.0
    )
    np.testing.assert_array_equal(
        read_dicom_cine(dcm.write(tmp_path, stack, [[color]])).image, dcm.expected_image(stack)
    )


def test_stops_at_enhanced_files_that_do_not_say_where_their_frames_lie(tmp_path: Path) -> None:
    file = dcm.make_enhanced([image for phases in dcm.make_stack() for image in phases])
    del file.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence
    message = dcm.error_of(dcm.write(tmp_path / "one", [[file]]))
    assert "(series 7), frame 5 has no valid ImagePositionPatient" in message
    del file.PerFrameFunctionalGroupsSequence
    assert "(series 7) is Enhanced DICOM without PerFrameFunctionalGroupsSequence" in dcm.error_of(
        dcm.write(tmp_path / "all", [[file]])
    )
    file = dcm.make_enhanced([image for phases in dcm.make_stack() for image in phases])
    file.PixelData = file.PixelData[: dcm.ROWS * dcm.COLUMNS * 5]
    assert "cannot be read" in dcm.error_of(dcm.write(tmp_path / "cut", [[file]]))


def test_stops_at_classic_files_of_several_frames(tmp_path: Path) -> None:
    message = dcm.error_of(
        dcm.write(tmp_path, dcm.make_stack(1), [[dcm.make_image(dcm.CORNER, SeriesNumber=7, NumberOfFrames=3)]])
    )
    assert "(series 7) holds several frames in a class of files that has one each" in message


@pytest.mark.parametrize("tag", ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"])
def test_stops_at_files_without_geometry(tmp_path: Path, tag: str) -> None:
    message = dcm.error_of(dcm.write(tmp_path, [[dcm.make_image(dcm.CORNER, **{tag: None})]]))
    assert f"IM000 (series 0) has no valid {tag}; export it again" in message


def test_rounded_directions_are_taken_at_their_length(tmp_path: Path) -> None:
    rounded = dcm.AXES.round(3)
    assert np.abs(np.linalg.norm(rounded, axis=1) - 1).max() > 1e-4
    stack = dcm.set_tags(dcm.make_stack(), lambda *_: {"ImageOrientationPatient": rounded.ravel().tolist()})
    cine = read_dicom_cine(dcm.write(tmp_path / "rounded", stack))
    np.testing.assert_allclose(
        cine.affine, read_dicom_cine(dcm.write(tmp_path / "exact", dcm.make_stack())).affine, atol=0.05
    )
    message = dcm.error_of(
        dcm.write(tmp_path / "none", [[dcm.make_image(dcm.CORNER, ImageOrientationPatient=[0.0] * 6)]])
    )
    assert "IM000 (series 0) has no valid ImageOrientationPatient" in message


def test_a_spoiled_header_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "IM7").write_bytes(bytes(128) + b"DICM")

    def spoiled(*_: object, **__: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(pydicom, "dcmread", spoiled)
    with pytest.raises(
        InputError, match=r"IM7 cannot be read as DICOM \(error\); export it again or move it out of the folder"
    ):
        read_dicom_cine(tmp_path)


@pytest.mark.parametrize(
    ("tags", "seconds"),
    [
        ({"AcquisitionTime": "101210.5"}, 36730.5),
        ({"AcquisitionDateTime": "20240704101210.25"}, 36730.25),
        ({"FrameAcquisitionDateTime": "20240704101210+0200"}, 36730.0),
        ({"AcquisitionTime": ""}, None),
        ({"AcquisitionTime": "noon"}, None),
    ],
)
def test_times_of_day_are_read_with_and_without_a_date(tags: dict[str, str], seconds: float | None) -> None:
    header = pydicom.Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, value in tags.items():
            setattr(header, tag, value)
        assert time_of_day(header) == seconds


def test_descriptions_are_shown_without_what_a_terminal_would_obey(tmp_path: Path) -> None:
    folder = dcm.write(
        tmp_path, dcm.set_tags(dcm.make_stack(), lambda z, t: {"SeriesDescription": "cine\x1b[31m\nSAX"})
    )
    (instance,) = read_instances(folder, folder / "part0" / "IM000")
    assert instance.description == "cine [31m SAX"


@pytest.mark.parametrize(
    ("tags", "tagged"),
    [
        ({"SequenceName": "*fl2d1_cspamm"}, True),
        ({"ScanOptions": ["FAST_GEMS", "TAG"]}, True),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "TAGGED"]}, True),
        ({"SequenceName": "*tfi2d1_15", "ScanOptions": ["PER", "RG", "STAGE_2"]}, False),
        ({"SeriesDescription": "tagging 4 chambers"}, False),  # what people type is no proof
    ],
)
def test_tags_that_the_scanner_names(tmp_path: Path, tags: dict, tagged: bool) -> None:
    folder = dcm.write(tmp_path, dcm.set_tags(dcm.make_stack(), lambda z, t: tags))
    found = [one for path in folder.rglob("IM*") for one in read_instances(folder, path)]
    assert found
    assert {one.contrasts for one in found} == {frozenset({"tagging"} if tagged else ())}
