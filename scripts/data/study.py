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

"""A patient's study as a scanner exports it, one folder of many series: which stacks it holds, and which is the cine.

Scanners export the slices of one stack as one series or as a series each, and put scouts, flows, perfusion and maps
beside them. What belongs together and what it is, is told from headers and geometry, never from names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scripts.cardiac.planes import SHORT_AXIS, TO_APEX, plane_of
from scripts.data.dicom_headers import Instance
from scripts.data.dicom_stacks import (
    Stack,
    group_stacks,
    has_times,
    magnitudes,
    mean_axes,
    split_singles,
    split_slices,
    without_copies,
)
from scripts.errors import InputError

# What a stack shows: a heartbeat; the same with tags; an image a heartbeat; an image an inversion or echo time;
# phase-encoded velocity; one image a slice.
KINDS = ("cine", "tagging", "perfusion", "mapping", "flow", "still")
# Seconds between the images of a place from which on each is of a heartbeat of its own.
A_BEAT_APART = 0.3
# Milliseconds of trigger times that no heartbeat lasts.
MANY_BEATS = 5000.0
# Of the heartbeat that the phases of a cine cover at least.
PART_OF_A_BEAT = 0.3
# Degrees at least between the normals of a short-axis stack and of a long-axis view.
ACROSS = 65.0
# Degrees between two long-axis views at least.
APART = 30.0


@dataclass(frozen=True, eq=False)
class Row:
    """Images of a folder that form one stack: a row of its listing."""

    series: tuple[int, ...]
    """Numbers of the series that it joins."""
    slices: Stack
    kind: str
    """One of `KINDS`."""
    parts: tuple[Instance, ...] = ()
    """Phase, real and imaginary parts that lie beside its magnitudes."""
    older: tuple[Instance, ...] = ()
    """Slices that were taken again by a later series."""
    singles: tuple[Instance, ...] = ()
    """Single images of other series among its slices, such as a scout parallel to it."""
    plane: str | None = None
    """One of `planes.PLANES`, or None where the orientation tells none."""
    letter: str = ""
    """Tells apart the rows of one series."""

    @property
    def images(self) -> list[Instance]:
        """All images, without parts."""
        return [one for phases in self.slices for one in phases]

    @property
    def phases(self) -> int:
        """Images of a slice, at most."""
        return max(map(len, self.slices))

    @property
    def is_timed(self) -> bool:
        """Whether its images of a place may be phases; a scout taken twice has two, but no two times."""
        return self.phases > 1 and (has_times(self.slices) or self.phases > 2)

    @property
    def name(self) -> str:
        """The numbers of its series, as --series takes one."""
        return ", ".join(f"{number}{self.letter}" for number in self.series)

    @property
    def size(self) -> str:
        """Slices and phases in words."""
        return f"{len(self.slices)} x {self.phases}"

    def __str__(self) -> str:
        return f"series {self.name} ({self.plane or 'plane unknown'}, {self.kind}, {self.size})"


class Choice(NamedTuple):
    """The row that is taken of a study, and those it was taken from."""

    row: Row
    others: list[Row]


def study_rows(instances: Sequence[Instance]) -> list[Row]:
    """The stacks of a folder, cines of many slices first, without the copies of files."""
    numbers = _series_numbers(instances)
    rows = [row for group in group_stacks(instances) for row in _rows_of(group, numbers)]
    to_apex = _to_apex(rows)
    rows = [replace(row, plane=plane_of(_affine_of(row.images), to_apex)) for row in rows]
    rows.sort(key=lambda row: (KINDS.index(row.kind), row.plane != SHORT_AXIS, -len(row.slices), row.series))
    return _with_letters(rows)


def list_rows(folder: Path, rows: Sequence[Row]) -> str:
    """The listing of a study: number, plane, kind, slices and phases, pixel size in mm and description of each stack;
    the one that would be taken has a star."""
    try:
        taken = choose_row(folder, rows).row
    except InputError:
        taken = None
    cells = [("", "--series", "plane", "kind", "slices x phases", "pixels, mm", "description")]
    for row in rows:
        first = row.images[0]
        pixels = " x ".join(f"{length:.3g}" for length in first.spacing)
        texts = (row.name, row.plane or "unknown", row.kind, row.size, pixels, first.description[:40])
        cells.append(("*" if row is taken else "", *texts))
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]
    count = len({one.series for row in rows for one in (*row.images, *row.parts, *row.older)})
    return "\n".join([f"{folder}: {count} series in {len(rows)} stacks; * is taken without --series", *lines])


def choose_row(folder: Path, rows: Sequence[Row], series: str | None = None) -> Choice:
    """The stack of a folder that is registered: the one that holds a given series, else the short-axis cine of the most
    slices, else the only cine.

    Args:
        folder: named in messages.
        rows: of `study_rows`.
        series: a number, or a row's number with its letter.

    Raises:
        InputError: for a folder without any cine, with several cines of which none is a short-axis stack, and without
            the series that was asked for or for one of a single image a slice.
    """
    moving = [row for row in rows if row.phases > 1]
    taken = _best_row(folder, moving) if series is None else _row_of_series(folder, rows, series)
    return Choice(taken, [row for row in moving if row is not taken])


def _row_of_series(folder: Path, rows: Sequence[Row], series: str) -> Row:
    """The first cine of a series."""
    named = [row for row in rows if series in (*map(str, row.series), *(f"{n}{row.letter}" for n in row.series))]
    for row in named:
        if row.phases > 1:
            return row
    what = "one image a slice, which is no cine" if named else "no such series"
    names = _names([row for row in rows if row.phases > 1])
    raise InputError(
        f"{folder}: has {what} under --series {series}; give one of {names}, as --list_series True lists them."
    )


def _best_row(folder: Path, moving: Sequence[Row]) -> Row:
    """The short-axis stack of the most slices, else the only cine, or the only one of several slices."""
    # Where a cine has no times, `time_tag` says so.
    several = [row for row in moving if row.is_timed] or moving
    if not several:
        raise InputError(
            f"{folder}: holds no cine, only single images; give the folder that holds the DICOM files of the cine."
        )
    cines = [row for row in several if row.kind == "cine"] or several
    stacks = [row for row in cines if row.plane == SHORT_AXIS and len(row.slices) > 1]
    # Of several, the one of the most slices, then of the most phases, then the last one taken.
    best = max(stacks or cines, key=lambda row: (len(row.slices), row.phases, max(row.series)))
    others = [row for row in cines if row is not best]
    alone = not others or (best.plane is None and len(best.slices) > max(len(row.slices) for row in others) == 1)
    if not stacks and not alone:
        raise InputError(
            f"{folder}: holds {len(cines)} cines and no short-axis stack ({'; '.join(map(str, cines[:8]))}); give one by --series."
        )
    return best


def _names(rows: Iterable[Row]) -> str:
    """The numbers of rows."""
    return "; ".join(row.name for row in rows) or "none"


def _rows_of(group: Sequence[Instance], numbers: dict[str, int]) -> list[Row]:
    """The rows of images of one orientation, spacing and size: a series of another kind than cine each for itself, the
    others joined where no two of them are of one place."""
    images = magnitudes(group) or list(group)
    parts = [one for one in group if not one.magnitude] if magnitudes(group) else []
    by_series = defaultdict(list)
    for phases in (without_copies(phases) for phases in split_slices(images)):
        for one in phases:
            by_series[one.series].append(one)
    kinds = {name: _kind_of(split_slices(own)) for name, own in by_series.items()}
    joined = [name for name, kind in kinds.items() if kind in ("cine", "still")]
    sets = [[name] for name in kinds if name not in joined] + _acquisitions({name: by_series[name] for name in joined})
    rows = []
    for names in sets:
        everything = split_slices([one for name in names for one in by_series[name]])
        kept, singles = split_singles(everything)
        slices, older = _latest(kept or everything, numbers)
        singles = singles if kept else []
        beside = tuple(one for one in parts if len(sets) == 1 or one.series in names)
        rows.append(_row(slices, numbers, parts=beside, older=tuple(older), singles=tuple(singles)))
        rows += [_row(split_slices(singles), numbers)] if singles else []
    return rows


def _row(slices: Stack, numbers: dict[str, int], **others: tuple[Instance, ...]) -> Row:
    """A row of slices."""
    series = tuple(sorted({numbers[one.series] for phases in slices for one in phases}))
    return Row(series, slices, _kind_of(slices), **others)


def _kind_of(slices: Stack) -> str:
    """What a stack shows, one of `KINDS`."""
    images = [one for phases in slices for one in phases]
    said = frozenset().union(*(one.contrasts for one in images))
    if "flow" in said:
        return "flow"
    if max(map(len, slices)) < 2:
        return "still"
    if said:
        return "tagging" if "tagging" in said else "perfusion"
    if any(len({getattr(one, name) for one in phases}) > 1 for phases in slices for name in ("echo", "inversion")):
        return "mapping"
    return "perfusion" if all(_spans_beats(phases) for phases in slices) else "cine"


def _spans_beats(phases: Sequence[Instance]) -> bool:
    """Whether the images of a slice are of one phase in many heartbeats, by the times of day and after the trigger."""
    clock = sorted({one.acquired for one in phases if one.acquired is not None})
    if len(clock) > 2 and len(clock) > 0.8 * len(phases):
        return float(np.median(np.diff(clock))) > A_BEAT_APART
    times = [one.times["TriggerTime"] for one in phases if "TriggerTime" in one.times]
    beat = next((one.beat for one in phases if one.beat), None)
    return len(times) > 2 and (
        np.ptp(times) > MANY_BEATS or (beat is not None and 0 < np.ptp(times) < PART_OF_A_BEAT * beat)
    )


def _acquisitions(by_series: dict[str, list[Instance]]) -> list[list[str]]:
    """Series, by name, that were taken as one stack.

    All are, where no two series with several images of a place meet in one. Else those of one study and one protocol
    are; and where such meet still, each series of several slices is a stack of its own.
    """
    if not by_series:
        return []
    everything = list(by_series)
    if not _meet(everything, by_series):
        return [everything]
    groups: dict[tuple, list[str]] = defaultdict(list)
    for name, own in by_series.items():
        groups[(own[0].study, *own[0].protocol)].append(name)
    found = []
    for names in groups.values():
        if _meet(names, by_series):
            stacks = [name for name in names if len(split_slices(by_series[name])) > 1 and _is_phased(by_series[name])]
            found += [[name] for name in stacks]
            names = [name for name in names if name not in stacks]
        found += [names] if names else []
    return found


def _is_phased(images: Sequence[Instance]) -> bool:
    """Whether a series has several images of a slice."""
    return max(map(len, split_slices(images))) > 1


def _meet(names: Iterable[str], by_series: dict[str, list[Instance]]) -> bool:
    """Whether two series with several images of a slice have one slice in common."""
    images = [one for name in names for one in by_series[name]]
    return any(
        sum(number > 1 for number in Counter(one.series for one in phases).values()) > 1
        for phases in split_slices(images)
    )


def _latest(slices: Stack, numbers: dict[str, int]) -> tuple[Stack, list[Instance]]:
    """Slices that were taken several times, by series of several phases with numbers of their own, as the last of these
    has them; and the images that are left out."""
    kept, older = [], []
    for phases in slices:
        phased = [name for name, count in Counter(one.series for one in phases).items() if count > 1]
        if len(phased) > 1 and all(one.number is not None for one in phases):
            last = max(phased, key=lambda name: numbers[name])
            older += [one for one in phases if one.series in phased and one.series != last]
            phases = [one for one in phases if one.series not in phased or one.series == last]
        kept.append(phases)
    return kept, older


def _series_numbers(instances: Iterable[Instance]) -> dict[str, int]:
    """A number for each series: its own, or where any has none or two share one, its place in the order of files."""
    firsts: dict[str, Instance] = {}
    for one in instances:
        firsts.setdefault(one.series, one)
    own = [one.number for one in firsts.values()]
    if None in own or len(set(own)) < len(own):
        return {name: place for place, name in enumerate(firsts, start=1)}
    return {name: one.number for name, one in firsts.items()}


def _with_letters(rows: list[Row]) -> list[Row]:
    """Rows with letters where one series has several."""
    counts, seen = Counter(number for row in rows for number in row.series), Counter()
    lettered = []
    for row in rows:
        letter = ""
        if max(counts[number] for number in row.series) > 1:
            letter = chr(ord("a") + seen[row.series[0]] % 26)
        seen.update(row.series)
        lettered.append(replace(row, letter=letter))
    return lettered


def _affine_of(images: Sequence[Instance]) -> NDArray:
    """Directions of the slices' axes in RAS in an affine (4, 4) of no other meaning."""
    axes = mean_axes(images) * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([*axes, np.cross(*axes)])
    return affine


def _to_apex(rows: Sequence[Row]) -> NDArray | None:
    """The long axis of a study from base to apex in RAS, (3,): the normal of its largest short-axis stack; None where
    it has none.

    A short-axis stack is a cine of several slices that lies as most do; or, in a heart that lies otherwise, the only
    one that crosses two long-axis views or more at right angles.
    """
    cines = [row for row in rows if row.kind == "cine"]
    normals = {id(row): _affine_of(row.images)[:3, 2] for row in cines}
    many = sorted((row for row in cines if len(row.slices) > 1), key=lambda row: -len(row.slices))
    found = [row for row in many if plane_of(_affine_of(row.images)) == SHORT_AXIS]
    if not found:
        singles = [normals[id(row)] for row in cines if len(row.slices) == 1]
        found = [row for row in many if _crosses_two(normals[id(row)], singles)]
        found = found if len(found) == 1 else []
    if not found:
        return None
    normal = normals[id(found[0])]
    return normal if normal @ TO_APEX >= 0 else -normal


def _crosses_two(normal: NDArray, others: Sequence[NDArray]) -> bool:
    """Whether two planes of different directions are at right angles to one."""
    crossing = [other for other in others if abs(float(normal @ other)) < np.cos(np.deg2rad(ACROSS))]
    return any(abs(float(a @ b)) < np.cos(np.deg2rad(APART)) for a, b in combinations(crossing, 2))
