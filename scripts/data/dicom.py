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

Messages give the folder as the user typed it and a file's name, never the folders between, which exports often name
after the patient.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from scripts.cardiac.cines import Cine
from scripts.data.dicom_headers import Instance, class_of, read_instances
from scripts.data.dicom_pixels import read_images
from scripts.data.dicom_stacks import (
    Stack,
    are_parallel,
    check_phases,
    count_bodies,
    group_stacks,
    mean_axes,
    same_pixels,
    split_slices,
    stack_affine,
    time_tag,
)
from scripts.data.padding import fill_padding
from scripts.data.study import Choice, Row, choose_row, list_rows, study_rows
from scripts.data.times import cycle_ms, is_heartbeat
from scripts.errors import InputError
from scripts.files import files_below, is_archive, plain_path
from tqdm import tqdm

# Files from which on a bar shows that they are being read.
MANY_FILES = 200
# Part of the longest step between phases below which the shortest is called out.
UNEVEN = 0.25
# Times the median step between phases above which a phase seems to be missing.
TWICE = 1.7
# Part of a step between phases by which slices may begin apart without being called out.
LATE = 0.5


def read_dicom_cine(folder: str | Path, series: int | str | None = None) -> Cine:
    """The cine in a folder of DICOM files, be it one cine or a whole study.

    Files of any name are read, in subfolders too: classic ones, of an image each, and Enhanced ones, of many; what is
    no MR image is skipped. Images belong to one stack where orientation, pixel spacing and size agree, whatever their
    series, unless two series hold one slice (`study.study_rows`); copies of a file count once. Of several stacks the
    short-axis cine of the most slices is taken (`study.choose_row`), and a line in the log says so. Left out with a line
    are single images parallel to the cine in series of their own, the phase, real and imaginary parts beside a
    magnitude, and slices that a later series took again.

    Args:
        folder: with files in it or below.
        series: the number of a series that the stack holds, as `list_series` has it; None chooses.

    Returns:
        A cine named as the folder. Image (X, Y, Z, T), fp32, rescaled as the files state: X counts columns, Y rows, Z
        slices along the normal (row × column direction), so that the affine (RAS mm) is right-handed. Times (Z, T) in
        ms after the trigger; None where their cycle is no heartbeat's. Padding has the least intensity of the rest, and
        is not `valid`.

    Raises:
        InputError: without pydicom or a cine, or for several cines of which none is a short-axis stack; for files that
            cannot be read, where they may be of the stack: it is one slice, or does not fit together; for images
            without geometry, trigger times or readable pixels, or of another matrix than the rest of their series; for
            slices with unequal numbers of phases, repeated slices or phases, or slices that are not evenly spaced on a
            line along the normal.
    """
    folder = Path(folder)
    with _quiet_pydicom(folder):
        instances, unread = _instances_of(folder)
        choice = choose_row(folder, study_rows(instances), None if series is None else str(series))
        # A lone slice may lack a phase unnoticed; among several slices, one would have fewer phases than the others.
        if unread and len(choice.row.slices) == 1:
            raise unread[0]
        _check_strays(folder, choice.row, instances)
        try:
            cine = _read_stack(folder, choice)
        except InputError:
            if unread:
                raise unread[0] from None
            raise
        _tell(folder, choice)
        return cine


def list_series(folder: str | Path) -> str:
    """The listing of a folder's stacks, see `study.list_rows`; it has the descriptions of series, which may tell who the
    patient is.

    Raises:
        InputError: as `read_dicom_cine` does for files that cannot be read.
    """
    folder = Path(folder)
    with _quiet_pydicom(folder):
        return list_rows(folder, study_rows(_instances_of(folder)[0]))


def slices_of_one(folders: Sequence[Path]) -> list[list[Path]]:
    """Folders whose first images lie parallel in one frame of reference, as the slices of one cine do, in groups of two
    or more."""
    firsts = {folder: one for folder, one in _first_images(folders).items() if one.frame_of_reference}
    groups = []
    for name in sorted({one.frame_of_reference for one in firsts.values()}):
        for stack in group_stacks([one for one in firsts.values() if one.frame_of_reference == name]):
            # Whole stacks, taken twice, begin at one place.
            if len(split_slices(stack)) == len(stack):
                groups.append([folder for folder, one in firsts.items() if one in stack])
    return [group for group in groups if len(group) > 1]


def is_one_study(folders: Sequence[Path]) -> bool:
    """Whether folders, two or more, hold images of one study: their first ones name it."""
    studies = [one.study for one in _first_images(folders).values()]
    return len(folders) == len(studies) > 1 and all(studies) and len(set(studies)) == 1


def _first_images(folders: Sequence[Path]) -> dict[Path, Instance]:
    """The header of the first image of each folder that has one that can be read."""
    try:
        from pydicom.config import disable_value_validation
    except ImportError:
        return {}
    firsts = {}
    with disable_value_validation():
        for folder in folders:
            try:
                found = (one for path in files_below(folder) for one in read_instances(folder, path))
                first = next(found, None)
            except InputError:
                continue  # The error is told when the folder is read as a case.
            if first is not None:
                firsts[folder] = first
    return firsts


def _quiet_pydicom(folder: Path) -> AbstractContextManager[None]:
    """A context in which pydicom does not log invalid values, such as UIDs.

    Raises:
        InputError: without pydicom.
    """
    try:
        from pydicom.config import disable_value_validation
    except ImportError as error:
        raise InputError(f"{folder}: reading DICOM needs pydicom; run `pip install pydicom`.") from error
    return disable_value_validation()


def _instances_of(folder: Path) -> tuple[list[Instance], list[InputError]]:
    """The headers of all MR images in a folder and below it, and what is wrong with those that cannot be read, which is
    logged.

    Raises:
        InputError: for a folder without any, or without any that can be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the DICOM files.")
    paths = files_below(folder)
    instances, unread, others = [], [], Counter()
    for path in tqdm(paths, desc="reading DICOM headers", unit="file", leave=False, disable=len(paths) < MANY_FILES):
        try:
            found = read_instances(folder, path)
        except InputError as error:
            unread.append(error)
            continue
        instances += found
        if not found and (kind := class_of(path)):
            others[kind] += 1
    if unread and not instances:
        raise unread[0]
    listed = ", ".join(f"{number} of {kind}" for kind, number in others.most_common())
    if instances and others:
        logging.getLogger("inference").info(f"{folder}: left out what is no MR image: {listed}")
    if unread:
        logging.getLogger("inference").warning(f"{unread[0]} It is left out ({len(unread)} such files).")
    if not instances and any(path.name.endswith((".nii", ".nii.gz")) for path in paths):
        raise InputError(
            f"{folder}: holds NIfTI files and no DICOM MR image; give --cine one of the files, or --dataset_dir the folder."
        )
    if not instances:
        instead = f" but {listed}" if others else ""
        cure = "give the folder that holds the DICOM files of the cine."
        if archive := next((path for path in paths if is_archive(path)), None):
            cure = f"unpack its archives, such as {archive.name}, and give the folder that comes of it."
        raise InputError(f"{folder}: holds no DICOM MR image{instead}; {cure}")
    _check_patients(folder, instances)
    return instances, unread


def _check_patients(folder: Path, instances: Iterable[Instance]) -> None:
    """Stop at images of several patients.

    Raises:
        InputError: naming an image of two of them.
    """
    firsts: dict[str, Instance] = {}
    for one in instances:
        if one.patient:
            firsts.setdefault(one.patient, one)
    if len(firsts) > 1:
        one, other = list(firsts.values())[:2]
        raise InputError(
            f"{folder}: holds images of {len(firsts)} patients, such as {one.label} and {other.label}; give each patient a "
            "folder, and --dataset_dir the folder of these."
        )


def _check_strays(folder: Path, row: Row, instances: Iterable[Instance]) -> None:
    """Stop at images that lie parallel to a stack, are of one of its series and have another matrix or pixel spacing:
    without them a phase or a slice would be missing.

    Raises:
        InputError: naming the first of them.
    """
    first, series = row.images[0], {one.series for one in row.images}
    strays = [
        one for one in instances if one.series in series and are_parallel(one, first) and not same_pixels(one, first)
    ]
    if strays:
        one = strays[0]
        what, here, there = "pixels", one.size, first.size
        if here == there:
            what, here, there = "mm a pixel", one.spacing, first.spacing
        listed, others = (" x ".join(f"{n:g}" for n in sizes) for sizes in (here, there))
        raise InputError(
            f"{folder}: {one.label} has {listed} {what}, and others of its series have {others} ({len(strays)} such images); "
            "export the series again, or move what does not belong to it out of the folder."
        )


def _tell(folder: Path, choice: Choice) -> None:
    """Log which stack was taken of several, and what was left out of it."""
    row, log = choice.row, logging.getLogger("inference")
    others = [other for other in choice.others if other.is_timed]
    if others:
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        log.info(f"{folder}: takes {row}; --series takes another: {'; '.join(map(str, others[:8]))}{more}")
    timeless = [one for other in choice.others for one in other.images if not other.is_timed]
    for left, words in (
        (timeless, "no different times at a place"),
        (row.parts, "phase, real or imaginary parts beside a magnitude"),
        (row.singles, "single in series of their own"),
        (row.older, "slices that a later series took again"),
    ):
        if left:
            log.warning(f"{folder}: left out {len(left)} images, such as {left[0].label}: {words}")


def _read_stack(folder: Path, choice: Choice) -> Cine:
    """The cine of a stack; see `read_dicom_cine` for axes, units and errors."""
    row = choice.row
    slices, images = row.slices, row.images
    what = f"{folder}: the stack of {len(images)} images with {min(images, key=lambda one: one.path).label}"
    check_phases(what, slices)
    tag = time_tag(what, slices)
    slices = [sorted(phases, key=lambda phase: phase.times[tag]) for phases in slices]
    affine = stack_affine(what, slices, mean_axes(images))
    found = read_images(folder, images)
    pixels = _stack_up(slices, {one: image for one, (image, _) in found.items()})
    valid = None
    if any(padding is not None for _, padding in found.values()):
        nothing = np.zeros(pixels.shape[:2], bool)
        valid = fill_padding(
            pixels, _stack_up(slices, {one: nothing if mask is None else mask for one, (_, mask) in found.items()})
        )
    if valid is not None:
        share = 100 * (1 - valid.mean())
        logging.getLogger("inference").info(
            f"{what}: {share:.1f} % of its voxels are padding, and no image is compared there"
        )
    times = np.array([[phase.times[tag] for phase in phases] for phases in slices])
    _call_out_steps(what, times)
    doubts = _doubts_of(row, times)
    for doubt in doubts:
        logging.getLogger("inference").warning(f"{what}: {doubt}")
    if not is_heartbeat(times):
        logging.getLogger("inference").warning(
            f"{what}: its cycle would last {cycle_ms(times):.4g} ms by its {tag}, which is no heartbeat; times are left out"
        )
        times = None
    basis = "unknown" if row.plane is None else "read"
    return Cine(plain_path(folder).name, pixels, affine, times, valid, row.plane, basis, tuple(doubts))


def _stack_up(slices: Stack, arrays: dict[Instance, np.ndarray]) -> np.ndarray:
    """Arrays (X, Y) of the images of slices as (X, Y, Z, T)."""
    return np.stack([np.stack([arrays[phase] for phase in phases], axis=-1) for phases in slices], axis=2)


def _doubts_of(row: Row, times: np.ndarray) -> list[str]:
    """Sentences on a stack with times (Z, T) that seems to lack phases, or to be of several bodies."""
    doubts, steps = [], np.diff(times, axis=1)
    gaps = np.argwhere(steps > TWICE * np.median(steps))
    told = {one.phases for one in row.images} - {None}
    if len(gaps) and times.shape[1] > 3:
        z, t = gaps[0]
        doubts.append(
            f"In slice {z + 1} the phases {t + 1} and {t + 2} are {steps[z, t]:.3g} ms apart, and others "
            f"{np.median(steps):.3g}: is one missing?"
        )
    elif len(told) == 1 and max(told) > row.phases:
        doubts.append(f"There are {row.phases} phases, and {max(told)} were taken by the headers: are some missing?")
    if count := count_bodies(row.images):
        doubts.append(f"Slices are of {count} studies that name no place in common: are they of one patient?")
    return doubts


def _call_out_steps(what: str, times: np.ndarray) -> None:
    """Log phases that are unevenly far apart, and slices that begin at different times."""
    steps, first = np.diff(times, axis=1), times[:, 0]
    if steps.min() < UNEVEN * steps.max():
        logging.getLogger("inference").warning(
            f"{what}: its phases are {steps.min():.3g} to {steps.max():.3g} ms apart; where these are two "
            "acquisitions, keep one of them."
        )
    if np.ptp(first) > LATE * np.median(steps):
        logging.getLogger("inference").warning(
            f"{what}: its slices begin {first.min():.3g} to {first.max():.3g} ms after the trigger, with phases "
            f"{np.median(steps):.3g} ms apart; where a slice lacks its first phase, its frames are a phase late."
        )
