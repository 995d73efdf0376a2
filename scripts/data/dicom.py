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

"""A folder of DICOM cine MR, as a scanner exports it, to a cine: geometry in RAS mm, times in ms.

Only the tags listed here are read, none of which tells who the patient is; messages give the folder as the user typed
it and a file's name, never the folders between, which exports like to name after the patient.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scripts.cardiac.cines import Array, Cine
from scripts.errors import InputError
from scripts.files import files_below, is_dicom, plain_path

if TYPE_CHECKING:
    from pydicom import Dataset
# Degrees within which files belong to one stack.
SAME_ANGLE = 1.0
# Millimeters along the normal within which files belong to one slice.
SAME_POSITION = 0.1
# Part of the median gap between slices by which a gap may differ from it.
SAME_GAP = 0.05
# Part of the longest step between phases below which the shortest is called out.
UNEVEN = 0.25
# Part of a step between phases by which slices may begin apart without being called out.
LATE = 0.5
# Milliseconds after the trigger; the first that all files of a stack have orders its phases. Instance numbers are no
# substitute: some exports count them through the slices, some through the phases, some at random.
TIME_TAGS = ("TriggerTime", "NominalCardiacTriggerDelayTime", "ActualCardiacTriggerDelayTime")
# What an image of an Enhanced file has, and a classic file that was converted from one: such need no TriggerTime.
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
HEADER_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "FrameOfReferenceUID",
    "NumberOfFrames",
    *FRAME_GROUPS,
)
HEADER_TAGS += (*VALUE_TAGS, *KIND_TAGS, *GEOMETRY_TAGS, *GAP_TAGS, *TIME_TAGS, *FRAME_CONTENT_TAGS, *RESCALE_TAGS)
PIXEL_TAGS = ("Rows", "Columns", "NumberOfFrames", *VALUE_TAGS, "BitsAllocated", "HighBit", "PixelData")
PIXEL_TAGS += ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")


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
    spacing: Array
    """Between columns and between rows, (2,)."""
    axes: Array
    """Directions of increasing column and row index, (2, 3)."""
    position: Array
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


# Slices along the normal, the phases of each in no order.
Stack = list[list[Instance]]


def read_dicom_cine(folder: str | Path) -> Cine:
    """The cine in a folder of DICOM files.

    Files of any name are read, in subfolders too: classic ones, of an image each, and Enhanced ones, of many; what is
    no MR image is skipped. Images belong to one stack where orientation, pixel spacing and size agree, whatever their
    series; copies of a file count once. Stacks without a second phase, such as scouts, are skipped, and so are, with a
    line in the log, single images parallel to the cine in series of their own, and the phase, real and imaginary parts
    beside a magnitude.

    Returns:
        A cine named as the folder. Image (X, Y, Z, T), fp32, rescaled as the files state: X counts columns, Y rows, Z
        slices along the normal (row × column direction), so that the affine (RAS mm) is right-handed. Times (Z, T) in
        ms after the trigger.

    Raises:
        InputError: without pydicom or a cine, or for more cines than one; for files that cannot be read; for images
            without geometry, trigger times or readable pixels; for slices with unequal numbers of phases, repeated
            slices or phases, or slices that are not evenly spaced on a line along the normal.
    """
    try:
        from pydicom.config import disable_value_validation
    except ImportError as error:
        raise InputError(f"{folder}: reading DICOM needs pydicom; run `pip install pydicom`.") from error
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the DICOM files.")
    # Validation logs the values that it dislikes, such as UIDs.
    with disable_value_validation():
        instances = [one for path in files_below(folder) for one in read_instances(folder, path)]
        return read_stack(folder, find_cine(folder, instances))


def slices_of_one(folders: Sequence[Path]) -> list[list[Path]]:
    """Folders whose first images lie parallel in one frame of reference, as the slices of one cine do, in groups of two
    or more."""
    try:
        from pydicom.config import disable_value_validation
    except ImportError:
        return []
    firsts: dict[Path, Instance] = {}
    with disable_value_validation():
        for folder in folders:
            try:
                found = (one for path in files_below(folder) for one in read_instances(folder, path))
                first = next(found, None)
            except InputError:
                continue  # Its case says so.
            if first is not None and first.frame_of_reference:
                firsts[folder] = first
    groups = []
    for name in sorted({one.frame_of_reference for one in firsts.values()}):
        for stack in group_stacks([one for one in firsts.values() if one.frame_of_reference == name]):
            # Whole stacks, taken twice, begin at one place.
            if len(split_slices(stack)) == len(stack):
                groups.append([folder for folder, one in firsts.items() if one in stack])
    return [group for group in groups if len(group) > 1]


def find_cine(folder: Path, instances: Sequence[Instance]) -> Stack:
    """The one stack that has several phases, without copies of files and single images of other series.

    Raises:
        InputError: for none or several, which it lists.
    """
    grouped = group_stacks(instances)
    stacks = [[without_copies(phases) for phases in split_slices(magnitudes(stack) or stack)] for stack in grouped]
    parts = [one for stack in grouped if magnitudes(stack) for one in stack if not one.magnitude]
    several = [stack for stack in stacks if max(map(len, stack)) > 1]
    # A scout taken twice has two images at one place, but no two times; where a cine has none, `time_tag` says so.
    cines = [stack for stack in several if has_times(stack) or max(map(len, stack)) > 2] or several
    if not instances and any(path.name.endswith((".nii", ".nii.gz")) for path in files_below(folder)):
        raise InputError(
            f"{folder}: holds NIfTI files and no DICOM MR image; give --cine one of the files, or --dataset_dir the folder."
        )
    if not instances:
        raise InputError(f"{folder}: holds no DICOM MR image; give the folder that holds the DICOM files of the cine.")
    if not cines:
        raise InputError(
            f"{folder}: holds no cine, only single images; give the folder that holds the DICOM files of the cine."
        )
    if len(cines) > 1:
        listed = "; ".join(
            f"{len(stack)} slice{'s' if len(stack) > 1 else ''} of {max(map(len, stack))} phases with {stack[0][0].label}"
            for stack in sorted(cines, key=len, reverse=True)
        )
        raise InputError(
            f"{folder}: holds {len(cines)} different stacks of cines ({listed}); give each one a folder of its own."
        )
    timeless = [one.label for stack in several if stack is not cines[0] for phases in stack for one in phases]
    cine, singles = split_singles(cines[0])
    for left, words in (
        (timeless, "no different times at a place"),
        ([one.label for one in parts], "phase, real or imaginary parts beside a magnitude"),
        ([one.label for one in singles], "single in series of their own"),
    ):
        if left:
            logging.getLogger("inference").warning(f"{folder}: left out {len(left)} images, such as {left[0]}: {words}")
    return cine


def magnitudes(stack: Sequence[Instance]) -> list[Instance]:
    """The images that are not another part of a complex one."""
    return [one for one in stack if one.magnitude]


def without_copies(phases: Sequence[Instance]) -> list[Instance]:
    """The phases of a slice, each file once; copies are equal byte by byte, for some anonymizers give different files
    one UID."""
    if len({one.uid for one in phases}) == len(phases):
        return list(phases)
    return list(
        {(hashlib.sha256(one.path.read_bytes()).digest(), one.frame): one for one in reversed(phases)}.values()
    )[::-1]


def has_times(slices: Stack) -> bool:
    """Whether at least one slice has images of different times."""
    return any(
        len({one.times[tag] for one in phases if tag in one.times}) > 1 for phases in slices for tag in TIME_TAGS
    )


def split_singles(slices: Stack) -> tuple[Stack, list[Instance]]:
    """A stack without single images of series that are none of the cine's, such as a scout parallel to it, and those
    images.

    A series is the cine's where it has several images of one slice or, with a series for each phase, images in slices
    of several.
    """
    several = {
        name for phases in slices for name, number in Counter(one.series for one in phases).items() if number > 1
    }
    own = several or {one.series for phases in slices if len(phases) > 1 for one in phases}

    def is_single(one: Instance, phases: Sequence[Instance]) -> bool:
        # A slice all of whose phases are series of their own is one of the cine's.
        return one.series not in own and (len(phases) == 1 or any(other.series in own for other in phases))

    kept = [[one for one in phases if not is_single(one, phases)] for phases in slices]
    return [phases for phases in kept if phases], [one for phases in slices for one in phases if is_single(one, phases)]


def read_instances(folder: Path, path: Path) -> list[Instance]:
    """The headers of the images in a file: none where it is not an MR image, one of a classic file, all frames of an
    Enhanced one.

    Raises:
        InputError: for a file that cannot be read, a .dcm file that is not DICOM, a spoiled header, an image that lacks
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
        # Spoiled headers have pydicom raise whatever comes first.
        raise InputError(f"{folder}: {path.name} cannot be read as DICOM ({type(error).__name__}); {cure}") from error
    enhanced = (uid.EnhancedMRImageStorage, uid.LegacyConvertedEnhancedMRImageStorage)
    kind = header.get("SOPClassUID")
    if kind is None and header.file_meta.get("MediaStorageSOPClassUID") in (None, uid.MRImageStorage, *enhanced):
        raise InputError(f"{folder}: {path.name} cannot be read as DICOM (its header is cut off); {cure}")
    # A color image is a picture of an image, such as a screen shot.
    if kind not in (uid.MRImageStorage, *enhanced) or numbers(header, "SamplesPerPixel", default=1.0)[0] > 1:
        return []
    label = f"{path.name} (series {numbers(header, 'SeriesNumber', default=0.0)[0]:g})"
    if kind in enhanced:
        frames = frame_headers(header)
        if not frames:
            raise InputError(
                f"{folder}: {label} is Enhanced DICOM without {FRAME_GROUPS[1]}, which says where its frames lie; export it again."
            )
        return [read_instance(folder, path, f"{label}, frame {n + 1}", frame, n) for n, frame in enumerate(frames)]
    if numbers(header, "NumberOfFrames", default=1.0)[0] > 1:
        raise InputError(
            f"{folder}: {label} holds several frames in a class of files that has one each; export it again as "
            "Enhanced or classic DICOM."
        )
    return [read_instance(folder, path, label, header)]


def read_file(path: Path, tags: Sequence[str], **options: object) -> Dataset:
    """Some tags of a DICOM file, be it without preamble or transfer syntax."""
    from pydicom import dcmread, uid

    file = dcmread(path, force=True, specific_tags=list(tags), **options)
    if "TransferSyntaxUID" not in file.file_meta:
        file.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian if file.original_encoding[0] else uid.ExplicitVRLittleEndian
        )
    return file


def frame_headers(header: Dataset) -> list[Dataset]:
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


def read_instance(folder: Path, path: Path, label: str, header: Dataset, frame: int | None = None) -> Instance:
    """An image by its header.

    Raises:
        InputError: where that lacks its geometry.
    """
    geometry = {tag: numbers(header, tag, count) for tag, count in GEOMETRY_TAGS.items()}
    if (axes := geometry["ImageOrientationPatient"]) is not None:
        # Rounded cosines are not of length 1.
        lengths = np.linalg.norm(axes.reshape(2, 3), axis=1, keepdims=True)
        geometry["ImageOrientationPatient"] = axes.reshape(2, 3) / lengths if lengths.all() else None
    missing = ", ".join(tag for tag, value in geometry.items() if value is None)
    if missing:
        raise InputError(f"{folder}: {label} has no valid {missing}; export it again or move it out of the folder.")
    pitch, thickness = (
        None if (value := numbers(header, tag)) is None or value[0] <= 0 else float(value[0]) for tag in GAP_TAGS
    )
    slope, intercept = (float(numbers(header, tag, default=default)[0]) for tag, default in RESCALE_TAGS.items())
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        bits, signed = (
            int(numbers(header, tag, default=default)[0])
            for tag, default in (("BitsStored", 16), ("PixelRepresentation", 0))
        )
        white = -1 if signed else 2**bits - 1
        slope, intercept = -slope, slope * white + intercept
    values = {tag: header.get(tag) or () for tag in KIND_TAGS}
    values = {tag: {value} if isinstance(value, str) else set(value) for tag, value in values.items()}
    times = {tag: float(value[0]) for tag in TIME_TAGS if (value := numbers(header, tag)) is not None}
    if TIME_TAGS[0] not in times and frame is None and not any(tag in header for tag in FRAME_CONTENT_TAGS):
        times = {}  # A classic file that lost its TriggerTime may have lost more.
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
        times=times,
        rescale=(slope, intercept),
        magnitude=not any(values[tag] & others for tag, others in KIND_TAGS.items()),
        frame_of_reference=str(header.get("FrameOfReferenceUID") or "") or None,
        frame=frame,
    )


def numbers(header: Dataset, tag: str, count: int = 1, default: float | None = None) -> Array | None:
    """The numbers of a tag, (count,); where it is absent, empty or no such numbers, the default that many times, or
    None."""
    try:
        values = np.array(header.get(tag), dtype=float).reshape(count)
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if np.isfinite(values).all():
        return values
    return None if default is None else np.full(count, default)


def group_stacks(instances: Sequence[Instance]) -> list[list[Instance]]:
    """Stacks: instances of one orientation (both axes within `SAME_ANGLE`), pixel spacing and size."""
    stacks: list[list[Instance]] = []
    for one in instances:
        for stack in stacks:
            parallel = (one.axes * stack[0].axes).sum(1).min() >= np.cos(np.deg2rad(SAME_ANGLE))
            if parallel and one.size == stack[0].size and np.allclose(one.spacing, stack[0].spacing, rtol=1e-3):
                stack.append(one)
                break
        else:
            stacks.append([one])
    return stacks


def split_slices(stack: Sequence[Instance]) -> Stack:
    """Slices along the normal: one ends where the next position is more than `SAME_POSITION` ahead."""
    normal = np.cross(*mean_axes(stack))
    ordered = sorted(stack, key=lambda one: float(one.position @ normal))
    steps = np.diff([one.position @ normal for one in ordered])
    bounds = [0, *(np.flatnonzero(steps > SAME_POSITION) + 1), len(ordered)]
    return [ordered[start:stop] for start, stop in pairwise(bounds)]


def mean_axes(stack: Sequence[Instance]) -> Array:
    """The orthonormal pair of directions (2, 3) nearest to the mean of the files'."""
    u, _, v = np.linalg.svd(np.mean([one.axes for one in stack], axis=0), full_matrices=False)
    return u @ v


def read_stack(folder: Path, slices: Stack) -> Cine:
    """The cine of a stack; see `read_dicom_cine` for axes, units and errors."""
    images = [one for phases in slices for one in phases]
    what = f"{folder}: the stack of {len(images)} images with {min(images, key=lambda one: one.path).label}"
    check_phases(what, slices)
    tag = time_tag(what, slices)
    slices = [sorted(phases, key=lambda phase: phase.times[tag]) for phases in slices]
    affine = stack_affine(what, slices, mean_axes(images))
    arrays = read_images(folder, images)
    pixels = np.stack([np.stack([arrays[phase] for phase in phases], axis=-1) for phases in slices], axis=2)
    times = np.array([[phase.times[tag] for phase in phases] for phases in slices])
    steps = np.diff(times, axis=1)
    if steps.min() < UNEVEN * steps.max():
        logging.getLogger("inference").warning(
            f"{what}: its phases are {steps.min():.3g} to {steps.max():.3g} ms apart; where these are two "
            "acquisitions, keep one of them."
        )
    first = times[:, 0]
    if np.ptp(first) > LATE * np.median(steps):
        logging.getLogger("inference").warning(
            f"{what}: its slices begin {first.min():.3g} to {first.max():.3g} ms after the trigger, with phases "
            f"{np.median(steps):.3g} ms apart; where a slice lacks its first phase, its frames are a phase late."
        )
    return Cine(plain_path(folder).name, pixels, affine, times)


def check_phases(what: str, slices: Stack) -> None:
    """Stop at slices that are there twice, or that have unequal numbers of phases.

    Raises:
        InputError: with the numbers.
    """
    for number, phases in enumerate(slices, start=1):
        series = Counter(phase.series for phase in phases)
        # One series a phase is no repeat of the slice.
        if len(series) > 1 and max(series.values()) > 1:
            raise InputError(
                f"{what}: slice {number} is there more than once ({len(phases)} files, {len(series)} series); keep one of each and "
                "move the others out of the folder."
            )
    counts = [len(phases) for phases in slices]
    if len(set(counts)) > 1:
        listed = ", ".join(map(str, counts))
        raise InputError(
            f"{what}: its slices have unequal numbers of phases ({listed}); add the missing files or move such slices away."
        )


def time_tag(what: str, slices: Stack) -> str:
    """The tag of `TIME_TAGS` that tells the phases of every slice apart.

    Raises:
        InputError: where none does.
    """
    cure = "export it again with them, or convert it to NIfTI (`dcm2niix`) and give --cine that file"
    images, repeated = [one for phases in slices for one in phases], ""
    for tag in TIME_TAGS:
        lacking = [one.label for one in images if tag not in one.times]
        distinct = [len({phase.times.get(tag) for phase in phases}) for phases in slices]
        # Constant times are none: some exports fill in zeros.
        if lacking or min(distinct) == 1:
            continue
        several = [
            number for number, (phases, count) in enumerate(zip(slices, distinct), start=1) if count < len(phases)
        ]
        if not several:
            return tag
        repeated = repeated or f"slice {several[0]} has several images of one {tag}"
    if repeated:
        raise InputError(f"{what}: {repeated}; keep one of each and move the others away.")
    lacking = [one.label for one in images if not one.times]
    missing = (
        f"{len(lacking)} of them, such as {lacking[0]}, have no trigger time"
        if lacking
        else "its trigger times do not differ"
    )
    raise InputError(f"{what}: {missing} ({' or '.join(TIME_TAGS)}), which order its phases; {cure}.")


def stack_affine(what: str, slices: Stack, axes: Array) -> Array:
    """Voxel index to RAS mm, (4, 4), from the positions of the slices, axes at right angles; of a lone slice by its
    thickness.

    Raises:
        InputError: where a lone slice has no such tag, gaps are unequal, or slices are shifted in plane.
    """
    normal, first = np.cross(*axes), slices[0][0]
    positions = np.array([np.mean([phase.position for phase in phases], axis=0) for phases in slices])
    gaps = np.diff(positions @ normal)
    if len(gaps) and np.abs(gaps - np.median(gaps)).max() > SAME_GAP * np.median(gaps):
        listed = ", ".join(f"{gap:.1f}" for gap in gaps)
        raise InputError(
            f"{what}: its slices are unequally far apart ({listed} mm); add the missing slice or move some away."
        )
    if not len(gaps) and first.gap is None:
        raise InputError(
            f"{what}: its only slice has neither {' nor '.join(GAP_TAGS)}; export it again with one of them."
        )
    # One grid has one place for all slices and phases; a shift along the slices would shear it.
    in_plane = np.array([phase.position for phases in slices for phase in phases]) @ axes.T
    shift = np.abs(in_plane - in_plane.mean(axis=0)).max()
    if shift > first.spacing.min() / 2:
        raise InputError(
            f"{what}: its images are shifted against each other in plane (by {shift:.1f} mm); keep the files of one "
            "stack only, or bring them onto one grid."
        )
    if len(gaps) and first.pitch is not None and gaps.mean() > 1.5 * first.pitch:
        logging.getLogger("inference").warning(
            f"{what}: its slices lie {gaps.mean():.1f} mm apart, and were taken {first.pitch:.1f} mm apart by its "
            "files: are some missing?"
        )
    step = (gaps.mean() if len(gaps) else first.gap) * normal
    origin = positions.mean(axis=0) - step * (len(slices) - 1) / 2
    affine = np.eye(4)
    affine[:3] = np.column_stack([axes[0] * first.spacing[0], axes[1] * first.spacing[1], step, origin])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def read_images(folder: Path, instances: Sequence[Instance]) -> dict[Instance, Array]:
    """Rescaled intensities (X, Y) in fp32 by image; each file is read once, whatever it holds.

    Raises:
        InputError: where they cannot be decoded, or are more or fewer than the header says.
    """
    by_path: dict[Path, list[Instance]] = {}
    for one in instances:
        by_path.setdefault(one.path, []).append(one)
    return {
        one: array for path, frames in by_path.items() for one, array in zip(frames, read_pixels(folder, path, frames))
    }


def read_pixels(folder: Path, path: Path, frames: Sequence[Instance]) -> list[Array]:
    """Rescaled intensities (X, Y) of the images of one file; errors as in `read_images`."""
    from pydicom.pixels import pixel_array

    images = []
    for one in frames:
        try:
            if not images:
                file = read_file(path, PIXEL_TAGS)
            pixels = pixel_array(file, index=one.frame).T.astype(np.float32)
        except (AttributeError, RuntimeError, ValueError) as error:
            meta = read_file(path, ["SOPClassUID"], stop_before_pixels=True).file_meta
            encoding = getattr(meta.get("TransferSyntaxUID"), "name", "unknown encoding")
            raise InputError(
                f"{folder}: the pixels of {one.label} cannot be read ({encoding}); export it again, uncompressed, or run "
                "`pip install python-gdcm` where that is missing."
            ) from error
        if pixels.shape != one.size:
            raise InputError(
                f"{folder}: {one.label} has pixels of the shape {pixels.shape}, not {one.size} as its header says; export it again."
            )
        slope, intercept = one.rescale
        images.append(pixels * np.float32(slope) + np.float32(intercept))
    return images
