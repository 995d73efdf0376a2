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

"""Label maps: from a file's values to this project's structures, checked by one function for every workflow."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import permutations, product

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage
from scipy.ndimage import binary_dilation, generate_binary_structure
from scripts.cardiac.cines import LABELS
from scripts.errors import InputError
from torch import Tensor

RV, MYO, LV = (LABELS[name] for name in ("rv", "myo", "lv"))
NAMES = {"rv": "RV", "myo": "myocardium", "lv": "LV"}
# Share of a structure's rim that another one must cover to lie around it.
AROUND = 0.8
# Share of a slice above which a label is no drawing of a heart, however near the image is cut to it.
FULL = 0.9
# Share of neighbors with one value in a slice, of those of which one at least is labeled: noise of two values has 0.33,
# and of ACDC's 200 labels none has less than 0.87. Told from some number of neighbors on.
SPECKLED, ENOUGH = 0.5, 1000
# A pixel and its neighbors in a slice.
CROSS = generate_binary_structure(2, 1)[..., None]
# Voxels below which a label is no drawing, and one of its structures is doubted: the smallest structure of ACDC's and
# Sunnybrook's labels has more than 300.
FEWEST = 10
# Share of the LV's rim that is its myocardium, below which it is doubted; on a long axis, open at the base, it is 0.7.
LEAST_AROUND = 0.5
# Values that a label map of the heart may have beside 0, at most.
MOST_VALUES = 8
# By how much more of the variance inside a label another frame must explain to be suspected as the label's own. On
# ACDC's 85 subjects for training and validation the 170 right labels stay below 0.13 in every frame of their cines;
# 138 of 170 that were given the other phase's frame are found.
FITS_BETTER = 0.15


def name_structures(label: MetaTensor, path: str, values: Sequence[int | None] | None = None) -> MetaTensor:
    """A label map (1, X, Y, Z) with the values of `cines.LABELS`, and 0 elsewhere.

    Args:
        label: integers, as in the file.
        path: of the file, for messages.
        values: the file's values of RV, myocardium and LV in this order, None for an absent one; None takes the file's
            for this project's.

    Raises:
        InputError: naming the file, for values that are no structure, for a label that fills its slices, is noise or next to
            nothing, and for values that the structures' places contradict, as where RV and LV are exchanged; with the
            values that their places suggest. What is no more than strange is logged.
    """
    found = [int(value) for value in torch.unique(label.as_tensor()).tolist() if value]
    own = tuple(LABELS.values()) if values is None else tuple(values)
    others = [value for value in found if value not in own]
    if others and values is None:
        raise InputError(f"{path}: holds {_list_values(others)}, which are no structures; {_cure_values(label, found)}")
    if others and len(others) == len(found):
        raise InputError(
            f"{path}: holds {_list_values(found)}, none of --label_values {list(own)}; {_cure_values(label, found)}"
        )
    if others:
        logging.getLogger("data").warning(
            f"{path}: {_list_values(others)} are no structures by --label_values, and are left out."
        )
    renamed = torch.zeros_like(label.as_tensor())
    for structure, value in zip(LABELS.values(), own):
        if value is not None:
            renamed[label.as_tensor() == value] = structure
    if (what := _no_drawing(renamed[0].cpu().numpy())) is not None:
        raise InputError(f"{path}: {what}; give a label map that is 0 outside the structures of the heart.")
    pair = _cavity_and_wall(renamed, [value for value in LABELS.values() if (renamed == value).any()])
    if pair and pair != (LV, MYO):
        inner, outer = (own[structure - 1] for structure in pair)
        raise InputError(
            f"{path}: has {outer} around {inner}, so that {inner} seems to be the cavity of the LV and {outer} its "
            f"myocardium; {_cure_values(label, found)}"
        )
    for sentence in _oddities(renamed[0].cpu().numpy(), [value for value in own if value is not None]):
        logging.getLogger("data").warning(f"{path}: {sentence}")
    return MetaTensor(renamed, meta=dict(label.meta))


def better_frame(images: Tensor, label: Tensor, frame: int) -> int | None:
    """The frame that a label fits better than its own, by more than `FITS_BETTER`; None where there is none.

    Args:
        images: (T, X, Y, Z).
        label: structures (1, X, Y, Z) on the same grid.
        frame: the label's own, counted from 0.

    Returns:
        The frame, counted from 0. It explains the most of the variance of intensities inside the label by what is blood
        and what is myocardium in each slice: where the label is of another frame, blood lies under its myocardium.
    """
    inside = torch.as_tensor(label)[0] > 0
    structures = torch.as_tensor(label)[0][inside].numpy()
    slices = torch.nonzero(inside)[:, -1].numpy()
    fits = [_explained(torch.as_tensor(image)[inside].numpy(), structures, slices) for image in images]
    best = int(np.argmax(fits))
    return best if fits[best] - fits[frame] > FITS_BETTER else None


def better_turn(image: Tensor, label: Tensor) -> str | None:
    """In words, the way to turn a label that fits its image better than as it is, by more than `FITS_BETTER`; None where
    there is none. A header that tells another orientation than the array has makes such a label.

    Args:
        image: (X, Y, Z).
        label: structures (1, X, Y, Z) on the same grid.

    Returns:
        Such as "axis 1 reversed". Of 102 right labels of ACDC and Sunnybrook none fits better any other way, and of each
        way to turn them 97 % or more are found.
    """
    array, pixels = torch.as_tensor(label)[0].numpy(), torch.as_tensor(image).numpy()
    voxels = np.argwhere(array > 0)
    structures, fits = array[tuple(voxels.T)], {}
    orders = [(0, 1, 2), (1, 0, 2)] if array.shape[0] == array.shape[1] else [(0, 1, 2)]
    for order, turned in product(orders, product((False, True), repeat=3)):
        at = np.where(turned, np.array(array.shape) - 1 - voxels[:, order], voxels[:, order])
        fits[order, turned] = _explained(pixels[tuple(at.T)], structures, at[:, 2])
    best = max(fits, key=fits.get)
    if fits[best] - fits[orders[0], (False,) * 3] <= FITS_BETTER:
        return None
    words = ["axes 1 and 2 exchanged"] * (best[0] != orders[0])
    return " and ".join([*words, *(f"axis {axis} reversed" for axis, flip in enumerate(best[1], start=1) if flip)])


def _explained(intensities: NDArray, structures: NDArray, slices: NDArray) -> float:
    """Share of the variance that blood and myocardium explain, pooled over the slices that have enough of both."""
    total = within = 0.0
    for number in np.unique(slices):
        here = slices == number
        classes = [intensities[here & (structures != MYO)], intensities[here & (structures == MYO)]]
        # A few pixels of one kind are no evidence.
        if min(map(len, classes)) >= 20:
            total += np.square(intensities[here] - intensities[here].mean(dtype=float)).sum(dtype=float)
            within += sum(np.square(values - values.mean(dtype=float)).sum(dtype=float) for values in classes)
    return 1 - within / total if total else 0.0


def _no_drawing(label: NDArray) -> str | None:
    """Why structures (X, Y, Z) cannot be those of a heart, whoever drew them; None where they can."""
    number = int((label > 0).sum())
    if 0 < number < FEWEST:
        return f"labels {number} voxel{'s' * (number > 1)} in all"
    share = (label > 0).mean(axis=(0, 1)).max()
    if share > FULL:
        return f"labels {100 * share:.0f} % of a slice"
    same = pairs = 0
    for axis in (0, 1):
        first, second = np.moveaxis(label, axis, 0)[1:], np.moveaxis(label, axis, 0)[:-1]
        labeled = (first > 0) | (second > 0)
        pairs += labeled.sum()
        same += (labeled & (first == second)).sum()
    if pairs >= ENOUGH and same < SPECKLED * pairs:
        return f"is noise: only {100 * same / pairs:.0f} % of the neighbors of its labeled pixels have the same value"
    return None


def _oddities(label: NDArray, values: Sequence[int]) -> Iterator[str]:
    """What is strange about structures (X, Y, Z), in sentences; `values` are those that the file may have."""
    label = _box(label)
    numbers = {name: int((label == value).sum()) for name, value in LABELS.items()}
    rv, myo, lv = numbers.values()
    for name, number in numbers.items():
        if 0 < number < FEWEST:
            yield f"its {NAMES[name]} has {number} voxel{'s' * (number > 1)} in all: stray pixels?"
    if rv and not myo and not lv:
        yield (
            f"holds {values[0]} alone, so that figures are the RV's; where that is the LV's cavity, give --label_values "
            f"'[None, None, {values[0]}]'."
        )
    if myo and not lv:
        yield "labels myocardium without a cavity of the LV, of which there will be no figures: is one value missing?"
    if myo and lv and (share := _share_around(label)) < LEAST_AROUND:
        yield f"only {100 * share:.0f} % of the rim of its LV is myocardium: do both belong to one heart?"
    slices = np.flatnonzero((label == LV).any(axis=(0, 1)))
    if gaps := sorted(set(range(slices[0], slices[-1])) - set(slices)) if len(slices) else []:
        yield f"its LV is missing in slices between others ({_list_values([z + 1 for z in gaps])}): are they not drawn?"
    if parts := [z + 1 for z in slices if ndimage.label(label[..., z] == LV)[1] > 1]:
        yield f"its LV has several parts in slices ({_list_values(parts)}): stray pixels?"


def _share_around(label: NDArray) -> float:
    """Share of the rim of the LV's cavity (X, Y, Z) that is its myocardium."""
    cavity = label == LV
    return float((label[binary_dilation(cavity, CROSS) & ~cavity] == MYO).mean())


def _cavity_and_wall(label: Tensor, values: Sequence[int]) -> tuple[int, int] | None:
    """The two values of a label map (1, X, Y, Z) of which the second lies all around the first in its slices, as the
    LV's myocardium does around its cavity; None where no two do."""
    array, shares = _box(torch.as_tensor(label)[0].cpu().numpy()), {}
    rims = {value: array[binary_dilation(array == value, CROSS) & (array != value)] for value in values}
    for inner, outer in permutations(values, 2):
        shares[inner, outer] = (rims[inner] == outer).mean() if len(rims[inner]) else 0.0
    # To accept values takes less evidence than to refuse them.
    if shares.get((LV, MYO), 0.0) >= 0.5 and shares.get((MYO, RV), 0.0) <= AROUND:
        return LV, MYO
    best = max(shares, key=shares.get, default=None)
    return best if best and shares[best] > AROUND else None


def _box(array: NDArray) -> NDArray:
    """The part of a label map (X, Y, Z) that is not 0, with a pixel around it in plane."""
    where = np.nonzero(array)
    if not len(where[0]):
        return array
    return array[tuple(slice(max(axis.min() - 1, 0), axis.max() + 2) for axis in where[:2])]


def _cure_values(label: Tensor, values: Sequence[int]) -> str:
    """What to do about values, with those that the structures' places suggest."""
    cure = "give the file's values of RV, myocardium and LV by --label_values"
    if min(values) < 0:
        return "labels are integers from 0 on: write it again so."
    if len(values) > MOST_VALUES:
        return "it seems to be an image; give a label map, whose values for three structures --label_values may name."
    if len(values) == 1:
        return f"{cure}, None for one that is absent: '[None, None, {values[0]}]' where this is the LV's cavity."
    pair = _cavity_and_wall(label, values)
    if pair is None:
        return f"{cure}, None for one that is absent, such as '[3, 2, 1]'."
    array = _box(torch.as_tensor(label)[0].cpu().numpy())
    beside = binary_dilation(array == pair[1], CROSS)
    contact = {value: int((beside & (array == value)).sum()) for value in values if value not in pair}
    rv = max(contact, key=contact.get) if any(contact.values()) else None
    return f"{cure}, by their places '[{rv}, {pair[1]}, {pair[0]}]'."


def _list_values(values: Sequence[int]) -> str:
    """Values in a message, the first of many."""
    shown = ", ".join(map(str, values[:MOST_VALUES]))
    return f"{shown}, …" if len(values) > MOST_VALUES else shown
