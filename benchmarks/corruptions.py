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

"""What goes wrong with cines on their way to a registration, each at three severities.

Files get mixed up (frames, slices, patients, labels), headers lie, images are poor, and networks break. Each kind is a pure
function of a case; what it draws, it draws from a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scripts.cardiac.cines import LABELS


@dataclass(frozen=True)
class Case:
    """A cine with a label of one frame, as a user hands them over."""

    # Intensities (X, Y, Z, T).
    image: NDArray[np.float32]
    # Voxel size in mm along X, Y and Z.
    spacing: tuple[float, float, float]
    # Frame that the label belongs to, counted from 1.
    reference: int
    # Of the reference frame, (X, Y, Z); None lets the network draw it.
    label: NDArray[np.uint8] | None = None
    # Standard deviation of what is added to the registration network's weights, of that of each weight tensor.
    broken: float = 0.0


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption."""

    # case, severity, another subject's case, a long-axis cine (X, Y, T) -> corrupted case.
    apply: Callable[[Case, float, Case, NDArray], Case]
    # From mild to gross.
    severities: tuple[float, float, float]
    # What the severities are.
    meaning: str
    # Whether it happens to a label that somebody drew.
    of_label: bool = False
    # Whether it takes a cycle of frames, of which end diastole and end systole are not enough.
    of_cycle: bool = False


def _systole(case: Case) -> int:
    """The frame, counted from 1, that differs most from the reference."""
    fixed = case.image[..., [case.reference - 1]]
    return int(np.abs(case.image - fixed).mean(axis=(0, 1, 2)).argmax()) + 1


def _middle(case: Case, number: float) -> NDArray[np.integer]:
    """Indices of so many neighboring slices in the middle of the stack."""
    first = (case.image.shape[2] - int(number)) // 2
    return np.arange(first, first + int(number))


def _share(case: Case, severity: float) -> int:
    """A share of the slices, at least one."""
    return max(round(severity * case.image.shape[2]), 1)


def _other_frames(case: Case, share: float) -> NDArray[np.integer]:
    """Indices of neighboring frames, a share of the cycle (at least one), about systole; never the reference."""
    others = np.array([t for t in range(case.image.shape[-1]) if t != case.reference - 1])
    number = min(max(round(share * case.image.shape[-1]), 1), len(others))
    middle = int(np.abs(others - (_systole(case) - 1)).argmin())
    first = min(max(middle - number // 2, 0), len(others) - number)
    return others[first : first + number]


def _fit(image: NDArray, shape: tuple[int, ...]) -> NDArray:
    """The center of an image of other size, padded by its edges."""
    for axis, size in enumerate(shape):
        missing = max(size - image.shape[axis], 0)
        pads = [(0, 0)] * image.ndim
        pads[axis] = (missing // 2, missing - missing // 2)
        image = np.pad(image, pads, mode="edge")
        start = (image.shape[axis] - size) // 2
        image = np.take(image, range(start, start + size), axis=axis)
    return image


def _at_phases(image: NDArray, frames: int) -> NDArray:
    """A cine (..., T) with another number of frames, each the nearest in its share of the cycle."""
    return image[..., np.round(np.arange(frames) * image.shape[-1] / frames).astype(int) % image.shape[-1]]


def _as_bright(image: NDArray, like: NDArray) -> NDArray:
    """Intensities in the range of another image, by their 1st and 99th percentiles."""
    (low, high), (to_low, to_high) = np.percentile(image, (1, 99)), np.percentile(like, (1, 99))
    return (image - low) / max(high - low, 1e-6) * (to_high - to_low) + to_low


def _exchange_frames(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """The frame of systole and one that lies a share of the cycle (at least a frame) later exchange their places."""
    frames = case.image.shape[-1]
    order, one = np.arange(frames), _systole(case) - 1
    two = (one + max(round(severity * frames), 1)) % frames
    if two == case.reference - 1:
        two = (two - 1) % frames
    order[[one, two]] = order[[two, one]]
    return replace(case, image=case.image[..., order])


def _shift_slice(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """A middle slice lies so many mm off along both axes together, in all frames, as after another breath-hold."""
    image, z = case.image.copy(), _middle(case, 1)[0]
    pixels = [severity / np.sqrt(2) / length for length in case.spacing[:2]]
    image[:, :, z] = ndimage.shift(image[:, :, z], (*pixels, 0), order=1, mode="nearest")
    return replace(case, image=image)


def _mistake_reference(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """The label was drawn on another frame: the one that is named lies a share of the way to systole on."""
    step = round(severity * (_systole(case) - case.reference))
    return replace(case, reference=case.reference + (step or 1))


def _add_noise(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """Rician noise, its standard deviation a share of the 99th percentile."""
    generator, sd = np.random.default_rng(0), severity * np.percentile(case.image, 99)
    real, imaginary = (generator.normal(0, sd, case.image.shape) for _ in range(2))
    return replace(case, image=np.hypot(case.image + real, imaginary).astype(np.float32))


def _lose_frames(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """A share of the cycle (at least a frame) is missing, from the frame after the reference on."""
    frames, first = case.image.shape[-1], case.reference - 1
    number = min(max(round(severity * frames), 1), frames - 3)
    lost = {(first + 1 + n) % frames for n in range(number)}
    kept = [t for t in range(frames) if t not in lost]
    return replace(case, image=case.image[..., kept], reference=kept.index(first) + 1)


def _end_early(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """The cine begins with the reference, and a share of the cycle is missing at its end."""
    frames, first = case.image.shape[-1], case.reference - 1
    kept = max(round((1 - severity) * frames), 3)
    order = (first + np.arange(kept)) % frames
    return replace(case, image=case.image[..., order], reference=1)


def _blank_slices(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """A middle slice is missing, and blank, in a share of the frames (at least one)."""
    image, z = case.image.copy(), _middle(case, 1)[0]
    for t in range(image.shape[-1]) if severity == 1 else _other_frames(case, severity):
        image[:, :, z, t] = 0
    return replace(case, image=image)


def _take_long_axis(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """A share of the slices (at least one) shows a long-axis view."""
    image = case.image.copy()
    view = _as_bright(_at_phases(_fit(long_axis, image.shape[:2]), image.shape[-1]), image)
    image[:, :, _middle(case, _share(case, severity))] = view[:, :, None]
    return replace(case, image=image)


def _exchange_ventricles(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """RV and LV have each other's label in a share of the slices (at least one)."""
    label, chosen = case.label.copy(), _middle(case, _share(case, severity))
    values = np.arange(4, dtype=label.dtype)
    values[[LABELS["rv"], LABELS["lv"]]] = LABELS["lv"], LABELS["rv"]
    label[..., chosen] = values[label[..., chosen]]
    return replace(case, label=label)


def _move_label(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """The label lies so many slices off."""
    return replace(case, label=np.roll(case.label, int(severity), axis=2))


def _mirror_slices(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """A number of slices is mirrored, in all frames."""
    image, chosen = case.image.copy(), _middle(case, severity)
    image[:, :, chosen] = image[::-1, :, chosen]
    return replace(case, image=image)


def _mistake_spacing(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """The header gives pixels so many times too small."""
    x, y, z = case.spacing
    return replace(case, spacing=(x / severity, y / severity, z))


def _blur(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """A Gaussian of so many mm in plane."""
    sigma = [severity / length for length in case.spacing[:2]]
    return replace(case, image=ndimage.gaussian_filter(case.image, (*sigma, 0, 0)))


def _shade(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """Intensities fall along the first axis, in all frames, to one part of so many."""
    gain = np.exp(-np.log(severity) * np.linspace(0, 1, case.image.shape[0]))
    return replace(case, image=(case.image * gain[:, None, None, None]).astype(np.float32))


def _mix_hearts(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """The last share of the slices (at least one) is another subject's."""
    image = case.image.copy()
    number = _share(case, severity)
    foreign = _as_bright(_at_phases(_fit(other.image, image.shape[:2]), image.shape[-1]), image)
    places = np.linspace(0, foreign.shape[2] - 1, image.shape[2]).round().astype(int)
    image[:, :, -number:] = foreign[:, :, places[-number:]]
    return replace(case, image=image)


def _mix_frames(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """A share of the frames (at least one) is another subject's."""
    image = case.image.copy()
    foreign = _as_bright(_at_phases(_fit(other.image, image.shape[:2]), image.shape[-1]), image)
    places = np.linspace(0, foreign.shape[2] - 1, image.shape[2]).round().astype(int)
    chosen = _other_frames(case, severity)
    image[..., chosen] = foreign[:, :, places][..., chosen]
    return replace(case, image=image)


def _enlarge_label(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """The label is so many times too wide and too high, about the center of each slice's heart."""
    label = np.zeros_like(case.label)
    for z in range(label.shape[2]):
        part = case.label[..., z]
        if part.any():
            center = np.array(ndimage.center_of_mass(part > 0))
            offset = center - center / severity
            label[..., z] = ndimage.affine_transform(part, np.eye(2) / severity, offset, order=0)
    return replace(case, label=label)


def _cut_view(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """The image ends within the left ventricle: beyond its border lies a share of the ventricle's width."""
    inside = np.flatnonzero(np.isin(case.label, (LABELS["myo"], LABELS["lv"])).any(axis=(1, 2)))
    end = inside[-1] + 1 - max(round(severity * (inside[-1] + 1 - inside[0])), 1)
    return replace(case, image=case.image[:end], label=case.label[:end])


def _break_network(case: Case, severity: float, other: Case, long_axis: NDArray) -> Case:
    """Noise is added to the registration network's weights."""
    return replace(case, broken=severity)


CORRUPTIONS = {
    "frames exchanged": Corruption(
        _exchange_frames, (0.0, 0.25, 0.5), "share of the cycle between them", of_cycle=True
    ),
    "slice shifted": Corruption(_shift_slice, (5, 10, 20), "mm"),
    "wrong reference": Corruption(
        _mistake_reference, (0.25, 0.5, 1.0), "share of the way to systole", of_label=True, of_cycle=True
    ),
    "noise": Corruption(_add_noise, (0.1, 0.3, 1.0), "standard deviation, of the 99th percentile"),
    "frames missing": Corruption(
        _lose_frames, (0.1, 0.25, 0.5), "share of the cycle, from its reference on", of_cycle=True
    ),
    "cycle cut short": Corruption(_end_early, (0.1, 0.25, 0.5), "share of the cycle, its end", of_cycle=True),
    "slice missing": Corruption(_blank_slices, (0.1, 0.5, 1.0), "share of the frames", of_cycle=True),
    "long axis": Corruption(_take_long_axis, (0.1, 0.5, 1.0), "share of the slices"),
    "RV taken for LV": Corruption(_exchange_ventricles, (0.1, 0.5, 1.0), "share of the slices", of_label=True),
    "label of another slice": Corruption(_move_label, (1, 2, 3), "slices", of_label=True),
    "slices mirrored": Corruption(_mirror_slices, (1, 2, 3), "slices"),
    "wrong spacing": Corruption(_mistake_spacing, (1.25, 1.6, 2.5), "times too small, in plane"),
    "blur": Corruption(_blur, (2, 4, 8), "standard deviation in mm"),
    "shading": Corruption(_shade, (2, 5, 20), "ratio of both edges"),
    "two hearts mixed": Corruption(_mix_hearts, (0.1, 0.3, 0.5), "share of the slices"),
    "frame of another subject": Corruption(_mix_frames, (0.1, 0.3, 0.5), "share of the frames", of_cycle=True),
    "heart cut": Corruption(_cut_view, (0.05, 0.2, 0.5), "share of the left ventricle's width"),
    "label too large": Corruption(_enlarge_label, (1.15, 1.3, 1.6), "times, in plane", of_label=True),
    "broken network": Corruption(
        _break_network, (0.3, 1.0, 3.0), "standard deviation of noise on the weights, of theirs"
    ),
}
