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

"""Pixels as files encode, scale and pad them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scripts.data.dicom import read_dicom_cine

from tests import dicom_files as dcm

pydicom = pytest.importorskip("pydicom")
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, JPEGLosslessSV1  # noqa: E402


def test_intensities_are_rescaled_file_by_file(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"RescaleSlope": 0.5 + z, "RescaleIntercept": -10.0 * t})
    cine = read_dicom_cine(dcm.write(tmp_path, stack))
    slope, intercept = 0.5 + np.arange(dcm.SLICES)[:, None], -10.0 * np.arange(dcm.PHASES)
    np.testing.assert_allclose(cine.image, dcm.expected_image(stack) * slope + intercept, rtol=1e-6)
    assert cine.image.dtype == np.float32


def test_lossless_jpeg_gives_what_plain_pixels_give(tmp_path: Path) -> None:
    """What archives make of a scanner's files; encoded by GDCM."""
    import gdcm

    expected = read_dicom_cine(dcm.write(tmp_path / "plain", dcm.make_stack()))
    folder = dcm.write(tmp_path / "compressed", dcm.make_stack())
    for path in (path for path in folder.rglob("*") if path.is_file()):
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    found = read_dicom_cine(folder)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    np.testing.assert_allclose(found.times, expected.times)


@pytest.mark.parametrize(("bits", "signed"), [(12, False), (None, False), (16, True)])
def test_images_whose_least_value_is_white_are_turned_over(tmp_path: Path, bits: int | None, signed: bool) -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": int(signed)}
    tags |= {"RescaleSlope": 2.0, "RescaleIntercept": -50.0, "BitsStored": bits or 16}
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: tags)
    for image in (image for phases in stack for image in phases):
        image.PixelData = (np.frombuffer(image.PixelData, np.int16) % 4096).tobytes()
    white = -1 if signed else 2 ** (bits or 16) - 1
    np.testing.assert_array_equal(
        read_dicom_cine(dcm.write(tmp_path, stack)).image, 2 * (white - dcm.expected_image(stack).astype(np.int32)) - 50
    )


def test_stops_at_pixels_that_cannot_be_read(tmp_path: Path) -> None:
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"PixelData": b"\0\0"})
    assert "(series 0) cannot be read (Explicit VR Little Endian); is the file complete?" in dcm.error_of(
        dcm.write(tmp_path / "short", stack)
    )
    stack = dcm.set_tags(
        dcm.make_stack(),
        lambda z, t: {"PixelData": dcm.make_image(dcm.CORNER).PixelData * 2} if (z, t) == (1, 2) else {},
    )
    assert re.search(
        r"IM\d+ \(series 0\) has pixels of the shape \(8, 6, 2\), not \(8, 6\)",
        dcm.error_of(dcm.write(tmp_path / "long", stack)),
    )
    fragment = pydicom.encaps.encapsulate([b"\0\0\0\0"])
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {"PixelData": fragment})
    for syntax, name in (
        (JPEG2000Lossless, "(JPEG 2000 Image Compression (Lossless Only))"),
        (MPEG2MPML, "(MPEG2 Main Profile"),
    ):
        assert name in dcm.error_of(dcm.write(tmp_path / syntax, stack, syntax=syntax))


@pytest.mark.parametrize("ranged", [False, True])
def test_padding_widens_no_range(tmp_path: Path, ranged: bool) -> None:
    tags = {"PixelPaddingValue": -2000, **({"PixelPaddingRangeLimit": -1500} if ranged else {})}
    stack = dcm.set_tags(dcm.make_stack(), lambda z, t: {**tags, "RescaleSlope": 2.0, "RescaleIntercept": 5.0})
    for image in (image for phases in stack for image in phases):
        pixels = np.frombuffer(image.PixelData, np.int16).reshape(dcm.ROWS, dcm.COLUMNS).copy()
        pixels[:, :2] = -2000
        pixels[0, 2] = -1600 if ranged else -2000
        image.PixelData = pixels.tobytes()
    pixels = np.frombuffer(stack[0][0].PixelData, np.int16).reshape(dcm.ROWS, dcm.COLUMNS).copy()
    pixels[3, 3] = -2000  # in one phase alone
    stack[0][0].PixelData = pixels.tobytes()
    cine = read_dicom_cine(dcm.write(tmp_path, stack))
    valid = np.ones((dcm.COLUMNS, dcm.ROWS, 3), bool)
    valid[:2] = valid[2, 0] = False
    np.testing.assert_array_equal(cine.valid, valid)
    assert cine.image.min() == pytest.approx(2 * dcm.expected_image(stack)[valid].clip(-100).min() + 5)
    seen = np.broadcast_to(valid[..., None], cine.image.shape).copy()
    seen[3, 3, 0, 0] = False
    np.testing.assert_array_equal(cine.image[seen], (2 * dcm.expected_image(stack) + 5)[seen])
    assert set(cine.image[~seen]) == {cine.image.min()}


def test_without_padding_all_is_valid(tmp_path: Path) -> None:
    assert read_dicom_cine(dcm.write(tmp_path / "none", dcm.make_stack())).valid is None
    unused = dcm.set_tags(dcm.make_stack(), lambda z, t: {"PixelPaddingValue": -2000})
    assert read_dicom_cine(dcm.write(tmp_path / "unused", unused)).valid is None
