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

"""Headers of DICOM MR images: the tags that are read, and what they say of an image.

Only the tags listed here are read. Of a patient's ID no more than a hash is kept, which tells patients apart and no one
who they are. A series' description, which people type, is shown in the listing of a study and nowhere else.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scripts.errors import InputError
from scripts.files import is_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

# Milliseconds after the trigger; the first that all files of a stack have orders its phases. Instance numbers are no
# substitute: some exports count them through the slices, some through the phases, some at random.
TIME_TAGS = ("TriggerTime", "NominalCardiacTriggerDelayTime", "ActualCardiacTriggerDelayTime")
# What an image of an Enhanced file has, and a classic file that was converted from one: these need no TriggerTime.
FRAME_CONTENT_TAGS = ("StackID", "DimensionIndexValues")
# What every image must have, and how many numbers each is.
GEOMETRY_TAGS = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2, "Rows": 1, "Columns": 1}
GAP_TAGS = ("SpacingBetweenSlices", "SliceThickness")
FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
RESCALE_TAGS = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
# Tags of a complex image's parts, and the values that say that it is not the magnitude.
KIND_TAGS = {
    "ImageType": {"P", "R", "I"},
    "FrameType": {"P", "R", "I"},
    "ComplexImageComponent": {"PHASE", "REAL", "IMAGINARY"},
}
VALUE_TAGS = ("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "PixelRepresentation")
PADDING_TAGS = ("PixelPaddingValue", "PixelPaddingRangeLimit")
# Of GE, private: the velocity of a phase shift of 180 degrees, 0 for other images.
GE_VELOCITY = 0x001910CC
SEQUENCE_TAGS = (
    *("ScanningSequence", "SequenceVariant", "SequenceName", "AcquisitionContrast", "Tagging", "PhaseContrast"),
    *("VelocityEncodingMaximumValue", "ContrastBolusAgent", "ScanOptions"),
)
ECHO_TAGS = ("EchoTime", "EffectiveEchoTime")
INVERSION_TAGS = ("InversionTime", "InversionTimes")
ACQUIRED_TAGS = ("AcquisitionTime", "FrameAcquisitionDateTime", "AcquisitionDateTime")
BEAT_TAGS = ("NominalInterval", "RRIntervalTimeNominal")
PHASES_TAG = "CardiacNumberOfImages"
HEADER_TAGS = (
    *(
        "PatientID",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
    ),
    *("FrameOfReferenceUID", "NumberOfFrames", *FRAME_GROUPS, *VALUE_TAGS, *PADDING_TAGS, *KIND_TAGS, *GEOMETRY_TAGS),
    *(*GAP_TAGS, *TIME_TAGS, *FRAME_CONTENT_TAGS, *RESCALE_TAGS, *SEQUENCE_TAGS, *ECHO_TAGS, *INVERSION_TAGS),
    *(*ACQUIRED_TAGS, *BEAT_TAGS, PHASES_TAG, GE_VELOCITY),
)
# How far the two directions of an image's axes may be from unit vectors at right angles; more is not rounding.
SKEWED = 0.05
# Values of ImageType and FrameType that images of phase-encoded velocity have.
FLOW_TYPES = {"PCA", "M_PCA", "VELOCITY", "VELOCITY MAP", "PHASE CONTRAST M", "PHASE_CONTRAST", "FLOW_ENCODED"}
# In a SequenceName: the velocity encoded, such as fl2d1_v150in.
SIEMENS_FLOW = re.compile(r"_v\d+")
# In what the scanner, not a person, names a sequence of tags: spatial modulation of magnetization (SPAMM), CSPAMM.
TAGGED = re.compile(r"spamm|(?<![a-z])(grid|line)?_?tag(s|ging|ged)?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Instance:
    """The header of an image, a file or a frame of one: one phase of one slice. Vectors and lengths are DICOM's: LPS,
    mm."""

    path: Path
    label: str
    """Names the image in messages."""
    uid: str
    series: str
    size: tuple[int, int]
    """Columns and rows: (X, Y)."""
    spacing: NDArray
    """Between columns and between rows, (2,)."""
    axes: NDArray
    """Directions of increasing column and row index, (2, 3)."""
    position: NDArray
    """Center of the first voxel, (3,)."""
    gap: float | None
    """Distance of slices as the first of `GAP_TAGS` tells it."""
    pitch: float | None
    """Distance of the centers of slices, where the file tells it and it is no distance between their faces."""
    times: dict[str, float]
    """Those of `TIME_TAGS` that the image has."""
    rescale: tuple[float, float]
    """Slope and intercept of its intensities; the slope of an image whose least value is white is negative."""
    magnitude: bool = True
    """Whether it is not another part of a complex image, such as its phase."""
    frame_of_reference: str | None = None
    """Names the coordinates that `position` is in."""
    frame: int | None = None
    """Which of an Enhanced file's images it is, from 0; None for a file of one image."""
    study: str = ""
    number: int | None = None
    """Of its series."""
    description: str = ""
    """Of its series, as typed at the scanner: it may tell who the patient is."""
    contrasts: frozenset[str] = frozenset()
    """What its header says besides a plain cine: "flow", "perfusion", "tagging"."""
    protocol: tuple[object, ...] = ()
    """Scanning sequence and variant, echo time in ms, whether a contrast agent was given."""
    echo: float | None = None
    """Echo time, ms."""
    inversion: float | None = None
    """Inversion time, ms."""
    acquired: float | None = None
    """Time of day of its acquisition, s."""
    beat: float | None = None
    """Length of the heartbeat, ms."""
    padding: tuple[float, float] | None = None
    """Stored values from and to which a pixel was not acquired."""
    phases: int | None = None
    """How many images of its slice were taken, as its header has it."""
    patient: str = ""
    """A hash of the patient's ID; "" without one."""


def read_instances(folder: Path, path: Path) -> list[Instance]:
    """The headers of the images in a file: none where it is not an MR image, one of a classic file, all frames of an
    Enhanced one.

    Raises:
        InputError: for a file that cannot be read, a .dcm file that is not DICOM, a damaged header, an image that lacks
            its geometry, a classic file of several frames, or an Enhanced one that describes none.
    """
    from pydicom import uid

    cure = "export it again or move it out of the folder."
    hidden = path.name.startswith(".")  # such as an editor's lock, a broken link, or what macOS lays beside a file
    if not os.access(path, os.R_OK):
        if hidden:
            return []
        raise InputError(
            f"{folder}: {path.name} cannot be read: it is a broken link or lacks permission; repair it, {cure}"
        )
    if not is_dicom(path):
        if path.suffix.lower() == ".dcm" and not hidden:
            raise InputError(f"{folder}: {path.name} is not DICOM by its first bytes (cut off or empty?); {cure}")
        if not path.stat().st_size and not hidden:
            logging.getLogger("inference").warning(
                f"{folder}: {path.name} is empty and left out; an image whose copy failed?"
            )
        return []
    try:
        header = read_file(path, HEADER_TAGS, stop_before_pixels=True)
    except Exception as error:
        # With a damaged header pydicom may raise any kind of error.
        raise InputError(f"{folder}: {path.name} cannot be read as DICOM ({type(error).__name__}); {cure}") from error
    enhanced = (uid.EnhancedMRImageStorage, uid.LegacyConvertedEnhancedMRImageStorage)
    kind = header.get("SOPClassUID")
    if kind is None and header.file_meta.get("MediaStorageSOPClassUID") in (None, uid.MRImageStorage, *enhanced):
        raise InputError(f"{folder}: {path.name} cannot be read as DICOM (its header is cut off); {cure}")
    # A color image is a picture of an image, such as a screen shot.
    if kind not in (uid.MRImageStorage, *enhanced) or _read_numbers(header, "SamplesPerPixel", default=1.0)[0] > 1:
        return []
    label = f"{path.name} (series {_read_numbers(header, 'SeriesNumber', default=0.0)[0]:g})"
    if kind in enhanced:
        frames = _frame_headers(header)
        if not frames:
            raise InputError(
                f"{folder}: {label} is Enhanced DICOM without {FRAME_GROUPS[1]}, which says where its frames lie; export it again."
            )
        return [_read_instance(folder, path, f"{label}, frame {n + 1}", frame, n) for n, frame in enumerate(frames)]
    if _read_numbers(header, "NumberOfFrames", default=1.0)[0] > 1:
        raise InputError(
            f"{folder}: {label} holds several frames in a class of files that has one each; export it again as "
            "Enhanced or classic DICOM."
        )
    return [_read_instance(folder, path, label, header)]


def class_of(path: Path) -> str:
    """The name of what a DICOM file holds, such as "CT Image Storage" or "MR Image Storage in color"; "" for another file,
    or one that does not tell."""
    from pydicom import uid

    if not is_dicom(path):
        return ""
    try:
        header = read_file(path, ["SOPClassUID", "SamplesPerPixel"], stop_before_pixels=True)
        name = uid.UID(header.get("SOPClassUID") or "").name
    except Exception:
        return ""
    return f"{name} in color" if _read_numbers(header, "SamplesPerPixel", default=1.0)[0] > 1 else name


def read_file(path: Path, tags: Sequence[str], **options: object) -> Dataset:
    """Some tags of a DICOM file, be it without preamble or transfer syntax."""
    from pydicom import dcmread, uid

    file = dcmread(path, force=True, specific_tags=list(tags), **options)
    if "TransferSyntaxUID" not in file.file_meta:
        file.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian if file.original_encoding[0] else uid.ExplicitVRLittleEndian
        )
    return file


def _frame_headers(header: Dataset) -> list[Dataset]:
    """The tags of each frame of an Enhanced file: its own functional groups over those that all frames share (DICOM
    PS3.3, C.7.6.16)."""
    from pydicom import Dataset

    shared, own = (header.get(name) or [] for name in FRAME_GROUPS)
    frames = []
    for groups in own:
        frame = Dataset()
        frame.update({element.tag: element for element in header if element.VR != "SQ"})
        for group in (
            element for part in (*shared, groups) for element in part if element.VR == "SQ" and element.value
        ):
            # Philips keeps a classic header of another geometry and scale in a private one.
            if not group.tag.is_private:
                frame.update(group.value[0])
        frames.append(frame)
    return frames


def _read_instance(folder: Path, path: Path, label: str, header: Dataset, frame: int | None = None) -> Instance:
    """An image by its header.

    Raises:
        InputError: where that lacks its geometry.
    """
    geometry = _geometry_of(header)
    missing = ", ".join(tag for tag, value in geometry.items() if value is None)
    if missing:
        raise InputError(f"{folder}: {label} has no valid {missing}; export it again or move it out of the folder.")
    pitch, thickness = (_if_positive(_first_number(header, (tag,))) for tag in GAP_TAGS)
    values = {tag: _texts(header, tag) for tag in KIND_TAGS}
    number = _first_number(header, ("SeriesNumber",))
    echo, padding = _first_number(header, ECHO_TAGS), _first_number(header, PADDING_TAGS[:1])
    phases, patient = _first_number(header, (PHASES_TAG,)), str(header.get("PatientID") or "").strip()
    return Instance(
        path=path,
        label=label,
        uid=f"{header.get('SOPInstanceUID', path)} {frame}",
        series=str(header.get("SeriesInstanceUID")),
        size=(int(geometry["Columns"][0]), int(geometry["Rows"][0])),
        spacing=geometry["PixelSpacing"][::-1],
        axes=geometry["ImageOrientationPatient"],
        position=geometry["ImagePositionPatient"],
        gap=pitch or thickness,
        pitch=pitch if pitch and pitch >= (thickness or 0) else None,
        times=_times_of(header, frame),
        rescale=_rescale_of(header),
        magnitude=not any(values[tag] & others for tag, others in KIND_TAGS.items()),
        frame_of_reference=str(header.get("FrameOfReferenceUID") or "") or None,
        frame=frame,
        study=str(header.get("StudyInstanceUID") or ""),
        number=None if number is None else int(number),
        description=" ".join(re.sub(r"[^ -~]", " ", str(header.get("SeriesDescription") or "")).split()),
        contrasts=_contrasts_of(header),
        protocol=(
            *(str(header.get(tag) or "") for tag in ("ScanningSequence", "SequenceVariant")),
            None if echo is None else round(echo, 1),
            bool(header.get("ContrastBolusAgent")),
        ),
        echo=echo,
        inversion=_first_number(header, INVERSION_TAGS),
        acquired=time_of_day(header),
        beat=_first_number(header, BEAT_TAGS),
        padding=None if padding is None else _padding_range(padding, _first_number(header, PADDING_TAGS[1:])),
        phases=None if phases is None else int(phases),
        patient=hashlib.sha256(patient.encode()).hexdigest() if patient else "",
    )


def _geometry_of(header: Dataset) -> dict[str, NDArray | None]:
    """The numbers of each of `GEOMETRY_TAGS`, None where it has none, sizes that are not above 0, or directions that are no
    unit vectors at right angles; those of length 1, which rounded cosines are not."""
    geometry = {tag: _read_numbers(header, tag, count) for tag, count in GEOMETRY_TAGS.items()}
    for tag in ("PixelSpacing", "Rows", "Columns"):
        if geometry[tag] is not None and not (geometry[tag] > 0).all():
            geometry[tag] = None
    if (axes := geometry["ImageOrientationPatient"]) is not None:
        rows = axes.reshape(2, 3)
        is_valid = np.abs(rows @ rows.T - np.eye(2)).max() < SKEWED
        geometry["ImageOrientationPatient"] = rows / np.linalg.norm(rows, axis=1, keepdims=True) if is_valid else None
    return geometry


def _rescale_of(header: Dataset) -> tuple[float, float]:
    """Slope and intercept from stored values to intensities, of which bright ones are large also where the stored ones
    are small (MONOCHROME1)."""
    slope, intercept = (float(_read_numbers(header, tag, default=default)[0]) for tag, default in RESCALE_TAGS.items())
    if header.get("PhotometricInterpretation") != "MONOCHROME1":
        return slope, intercept
    bits, signed = (
        int(_read_numbers(header, tag, default=default)[0])
        for tag, default in (("BitsStored", 16), ("PixelRepresentation", 0))
    )
    white = -1 if signed else 2**bits - 1
    return -slope, slope * white + intercept


def _times_of(header: Dataset, frame: int | None) -> dict[str, float]:
    """The times that a header tells, by their tags."""
    times = {tag: float(value[0]) for tag in TIME_TAGS if (value := _read_numbers(header, tag)) is not None}
    # A classic file that lost its TriggerTime may have lost more.
    is_classic = frame is None and not any(tag in header for tag in FRAME_CONTENT_TAGS)
    return {} if is_classic and TIME_TAGS[0] not in times else times


def _if_positive(value: float | None) -> float | None:
    """A number above 0; None for any other."""
    return value if value is not None and value > 0 else None


def _texts(header: Dataset, tag: str) -> set[str]:
    """The values of a tag, which may be one or several."""
    value = header.get(tag) or ()
    return {value} if isinstance(value, str) else set(value)


def _contrasts_of(header: Dataset) -> frozenset[str]:
    """What an image shows besides anatomy, of "flow", "perfusion" and "tagging", as its header says it."""
    types = set().union(*(_texts(header, tag) for tag in ("ImageType", "FrameType", "AcquisitionContrast")))
    encoded = _read_numbers(header, "VelocityEncodingMaximumValue", default=0.0)[0]
    ge = header.get(GE_VELOCITY)
    flow = (
        types & FLOW_TYPES
        or header.get("PhaseContrast") == "YES"
        or encoded > 0
        or SIEMENS_FLOW.search(str(header.get("SequenceName") or ""))
        or (ge is not None and isinstance(ge.value, (int, float)) and ge.value > 0)
    )
    named = " ".join(str(header.get(tag) or "") for tag in ("SequenceName", "ScanOptions", "ImageType"))
    tagging = "TAGGING" in types or str(header.get("Tagging") or "NONE") != "NONE" or TAGGED.search(named)
    found = {"flow": flow, "tagging": tagging, "perfusion": "PERFUSION" in types}
    return frozenset(name for name, there in found.items() if there)


def time_of_day(header: Dataset) -> float | None:
    """Seconds after midnight at which an image was acquired; None where its header does not tell."""
    for tag in ACQUIRED_TAGS:
        # A date may stand before the time.
        found = re.search(r"(?:^|^\d{8})(\d{2})(\d{2})(\d{2}(?:\.\d+)?)(?:[+-]\d{4})?$", str(header.get(tag) or ""))
        if found:
            hours, minutes, seconds = map(float, found.groups())
            return 3600 * hours + 60 * minutes + seconds
    return None


def _padding_range(value: float, limit: float | None) -> tuple[float, float]:
    """The stored values of padding, from and to: one value, or those up to a limit (DICOM PS3.3, C.7.5.1.1.2)."""
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _first_number(header: Dataset, tags: Sequence[str]) -> float | None:
    """The number of the first of some tags that has one; None where none has."""
    return next((float(value[0]) for tag in tags if (value := _read_numbers(header, tag)) is not None), None)


def _read_numbers(header: Dataset, tag: str, count: int = 1, default: float | None = None) -> NDArray | None:
    """The numbers of a tag, (count,); where it is absent, empty or no such numbers, the default that many times, or
    None."""
    try:
        values = np.array(header.get(tag), dtype=float).reshape(count)
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if np.isfinite(values).all():
        return values
    return None if default is None else np.full(count, default)
