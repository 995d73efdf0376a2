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

"""Images of a DICOM folder by geometry: stacks of parallel images, their slices, the order of their phases, their grid."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scripts.data.dicom_headers import GAP_TAGS, TIME_TAGS, Instance
from scripts.errors import InputError

# Degrees within which files belong to one stack.
SAME_ANGLE = 1.0
# Millimeters along the normal within which files belong to one slice.
SAME_POSITION = 0.1
# Part of the median gap between slices by which a gap may differ from it.
SAME_GAP = 0.05

# Slices along the normal, the phases of each in no order.
Stack = list[list[Instance]]


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


def are_parallel(one: Instance, other: Instance) -> bool:
    """Whether two images have one orientation, both axes within `SAME_ANGLE`."""
    return (one.axes * other.axes).sum(1).min() >= np.cos(np.deg2rad(SAME_ANGLE))


def same_pixels(one: Instance, other: Instance) -> bool:
    """Whether two images have one matrix and pixel spacing."""
    return one.size == other.size and bool((np.abs(one.spacing - other.spacing) <= 1e-3 * other.spacing).all())


def group_stacks(instances: Sequence[Instance]) -> list[list[Instance]]:
    """Stacks: instances of one orientation, pixel spacing and size."""
    stacks: list[list[Instance]] = []
    for one in instances:
        for stack in stacks:
            if same_pixels(one, stack[0]) and are_parallel(one, stack[0]):
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


def mean_axes(stack: Sequence[Instance]) -> NDArray:
    """The orthonormal pair of directions (2, 3) nearest to the mean of the files'."""
    u, _, v = np.linalg.svd(np.mean([one.axes for one in stack], axis=0), full_matrices=False)
    return u @ v


def check_phases(what: str, slices: Stack) -> None:
    """Stop at slices that are there twice, or that have unequal numbers of phases.

    Raises:
        InputError: with the numbers, and the first slice that has too many or too few.
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
    if len(set(counts)) == 1:
        return
    usual = Counter(counts).most_common(1)[0][0]
    number, odd = next((number, phases) for number, phases in enumerate(slices, start=1) if len(phases) != usual)
    listed = f"{what}: its slices have unequal numbers of phases ({', '.join(map(str, counts))})"
    times = Counter(tuple(one.times.items()) for one in odd)
    twice = [one for one in odd if one.times and times[tuple(one.times.items())] > 1]
    if twice:
        raise InputError(
            f"{listed}: slice {number} has several images of one time, such as {twice[0].label}; keep one of each and move "
            "the others away."
        )
    raise InputError(
        f"{listed}: look at slice {number}, with {odd[0].label}; add the missing files or move such slices away."
    )


def count_bodies(images: Sequence[Instance]) -> int:
    """How many studies images are of that share no frame of reference with each other; 0 where that is one, or where names
    differ within a series, as where a program invented them for each file."""
    of_series: dict[str, set[tuple[str, str]]] = {}
    for one in images:
        of_series.setdefault(one.series, set()).add((one.study, one.frame_of_reference or ""))
    names = set().union(*of_series.values())
    if max(map(len, of_series.values())) > 1 or not all(map(all, names)):
        return 0
    count = min(len({study for study, _ in names}), len({frame for _, frame in names}))
    return count if count > 1 else 0


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
        # Constant times tell nothing: some exports fill in zeros.
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


def stack_affine(what: str, slices: Stack, axes: NDArray) -> NDArray:
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
