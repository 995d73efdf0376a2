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

"""DICOM files made by tests: a small oblique stack as a scanner would write it, classic and Enhanced."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scripts.data.dicom import read_dicom_cine
from scripts.errors import InputError

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileMetaDataset  # noqa: E402
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid  # noqa: E402

ROWS, COLUMNS, SLICES, PHASES = 6, 8, 3, 4
# Between rows and between columns, as PixelSpacing has it.
SPACING = (1.5, 1.25)
GAP = 9.0
AXES = np.array([[0.77038, 0.618446, 0.155046], [-0.15161, 0.41389, -0.897613]])
NORMAL = np.cross(*AXES)
CORNER = np.array([-67.3, -244.9, 121.4])
PATIENT = "Doe^Jane"

Slice = list[pydicom.Dataset]


def make_image(position: np.ndarray, seed: int = 0, axes: np.ndarray = AXES, **tags: object) -> pydicom.Dataset:
    """One MR image; a tag that is None is left out."""
    image = pydicom.Dataset()
    image.PatientName, image.PatientID, image.SeriesDescription = PATIENT, "4711-JD", f"cine {PATIENT}"
    image.SOPClassUID, image.SOPInstanceUID, image.Modality = MRImageStorage, generate_uid(), "MR"
    image.ImageOrientationPatient, image.ImagePositionPatient = (
        axes.round(6).ravel().tolist(),
        np.round(position, 5).tolist(),
    )
    image.PixelSpacing, image.SliceThickness, image.SpacingBetweenSlices = list(SPACING), 7.0, GAP
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.PixelData = np.random.default_rng(seed).integers(-100, 900, (ROWS, COLUMNS), dtype=np.int16).tobytes()
    for tag, value in tags.items():
        if value is None:
            delattr(image, tag)
        else:
            setattr(image, tag, value)
    return image


def make_stack(
    slices: int = SLICES, phases: int = PHASES, corner: np.ndarray = CORNER, axes: np.ndarray = AXES, seed: int = 0
) -> list[Slice]:
    """Slices of phases along the normal, a series each; slice z is triggered at 10 + z ms and every 90 + z ms
    thereafter."""
    step = GAP * np.cross(*axes)
    return [
        [
            make_image(
                corner + z * step,
                1000 * seed + 100 * z + t,
                axes,
                SeriesInstanceUID=uid,
                TriggerTime=10.0 + z + (90 + z) * t,
            )
            for t in range(phases)
        ]
        for z, uid in enumerate(generate_uid() for _ in range(slices))
    ]


def set_tags(stack: list[Slice], rule: Callable[[int, int], dict[str, object]]) -> list[Slice]:
    """The stack with tags by slice and phase, both counted from 0; None removes a tag."""
    for z, phases in enumerate(stack):
        for t, image in enumerate(phases):
            for tag, value in rule(z, t).items():
                if value is None:
                    delattr(image, tag)
                else:
                    setattr(image, tag, value)
    return stack


def write(folder: Path, *stacks: list[Slice], syntax: str = ExplicitVRLittleEndian) -> Path:
    """Files in shuffled order, in subfolders, without a suffix."""
    images = [image for stack in stacks for phases in stack for image in phases]
    random.Random(0).shuffle(images)
    for number, image in enumerate(images):
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID, image.file_meta.MediaStorageSOPClassUID = syntax, image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        path = folder / f"part{number % 2}" / f"IM{number:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(path, enforce_file_format=True)
    return folder


def expected_image(stack: list[Slice]) -> np.ndarray:
    """(X, Y, Z, T) from (rows, columns) of each file."""
    return np.stack([np.stack([image.pixel_array.T for image in phases], axis=-1) for phases in stack], axis=2)


def error_of(folder: Path) -> str:
    """The message for a folder: it names the folder, and nothing of the patient."""
    with pytest.raises(InputError) as caught:
        read_dicom_cine(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert not re.search("doe|jane|4711", message, re.IGNORECASE)
    return message


def make_enhanced(images: Slice, time_tag: str = "NominalCardiacTriggerDelayTime") -> pydicom.Dataset:
    """One Enhanced file of the images of classic ones, which keep nothing but their pixels, places, times and
    rescaling."""

    def group(**macros: dict) -> pydicom.Dataset:
        item = pydicom.Dataset()
        for name, tags in macros.items():
            macro = pydicom.Dataset()
            for tag, value in tags.items():
                setattr(macro, tag, value)
            setattr(item, name, [macro])
        return item

    moved = (
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "SliceThickness",
        "SpacingBetweenSlices",
    )
    file = make_image(
        CORNER, SOPClassUID=EnhancedMRImageStorage, NumberOfFrames=len(images), SeriesNumber=7, **dict.fromkeys(moved)
    )
    file.SeriesInstanceUID, file.PixelData = generate_uid(), b"".join(image.PixelData for image in images)
    measures = {tag: images[0][tag].value for tag in moved[2:]}
    orientation = {"ImageOrientationPatient": images[0].ImageOrientationPatient}
    file.SharedFunctionalGroupsSequence = [group(PixelMeasuresSequence=measures, PlaneOrientationSequence=orientation)]
    file.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePositionSequence={"ImagePositionPatient": image.ImagePositionPatient},
            CardiacSynchronizationSequence={time_tag: image.TriggerTime},
            PixelValueTransformationSequence={
                "RescaleSlope": image.get("RescaleSlope", 1.0),
                "RescaleIntercept": image.get("RescaleIntercept", 0.0),
            },
        )
        for image in images
    ]
    return file
