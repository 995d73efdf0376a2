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

"""Maps of the heart beside the intensities of a pair: what a registration that knows anatomy is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scripts.cardiac.segmentation import CLASSES, resize
from scripts.data.folds import unseen_by
from scripts.errors import InputError
from scripts.training.checkpoints import hash_checkpoint
from scripts.workflow.contours import segment_images
from scripts.workflow.segmenters import Segment, load_segmenter
from torch import Tensor

STRUCTURE_COUNT = CLASSES - 1  # RV, myocardium and LV cavity


class Weights(NamedTuple):
    """A file of weights and its SHA-256, by which prepared slices are known to be of these."""

    path: str
    sha256: str


def weights_of(path: str | Path) -> Weights:
    """The weights of a segmentation network of this bundle.

    Raises:
        InputError: naming the file, for one that is not there, or a folder.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder; give the weights of the bundle's own segmentation network.")
    return Weights(str(path), hash_checkpoint(path))


def assign_folds(data: Sequence[Mapping], segmentations: Sequence[str | Path] | None = None) -> list[dict]:
    """Items of training data with "segmented_by", the `Weights` of a network that has not seen the item's subject.

    A network does better on hearts that it was trained on, and a registration that was trained with those maps would
    rely on maps more than others deserve.

    Args:
        data: items of a data list, with "subject".
        segmentations: weights of networks trained on one fold of these subjects each, in order (`folds.in_fold`); None
            leaves the items as they are.

    Raises:
        InputError: as `weights_of`, and for a single fold.
    """
    if segmentations is None:
        return [dict(item) for item in data]
    if isinstance(segmentations, str) or len(segmentations) < 2:
        cure = "give the weights of two folds or more, such as \"['A.pt','B.pt']\"."
        raise InputError(f"--segmentations {segmentations}: {cure}")
    weights, subjects = [weights_of(path) for path in segmentations], [item["subject"] for item in data]
    chosen = [unseen_by(subject, subjects, len(weights)) for subject in subjects]
    return [{**item, "segmented_by": weights[number]} for item, number in zip(data, chosen)]


class AddAnatomy(Transform):
    """Puts maps of RV, myocardium and LV of both images of a pair, 1 inside and 0 outside, beside their intensities.

    They come from "segmented" (T, X, Y, Z) and "fixed_segmented" (1, X, Y, Z), as `contours.SegmentCase` makes them. Items
    of training and evaluation have neither, and are segmented here, both images together (`phases.find_contours`).

    Args:
        segmentation: weights (`segmenters.load_segmenter`) for items that do not name theirs as "segmented_by"
            (`assign_folds`); None for inference, where nothing is segmented here.
        device: where the network runs.

    Raises:
        InputError: naming the file, for weights that are not there or another network's.
    """

    def __init__(self, segmentation: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.weights = None if segmentation is None else weights_of(segmentation)
        self.device = str(device)
        self.networks: dict[Weights, Segment] = {}

    def __getstate__(self) -> dict:
        """Without the loaded networks, so that equal transforms have one key in the cache of prepared slices."""
        return self.__dict__ | {"networks": {}}

    def __call__(self, data: Mapping) -> dict:
        """Of "pair" (2, X, Y, ...) makes "pair" (8, X, Y, ...): intensities, RV, myocardium and LV of the moving image, then
        those of the fixed one. A third channel of the pair, where its images hold a measurement, stays the last one.

        The pair's last axes hold slices or frames, as `LoadPaird` and `PairFrames` make them. Where either image shows
        no structure, as on a long-axis view, the maps of both are 0. A case of inference is "in_plane" where no map can
        lead along its stack: it has no contours, or one slice.
        """
        pair = _plain(data["pair"])
        moving, fixed = (_to_maps(_plain(labels), pair.shape[1:3]) for labels in self._labels(data))
        shown = moving.flatten(0, 3).any(dim=0) & fixed.any()
        # The one frame of the fixed image is that of all pairs.
        maps = [(image * shown).reshape(STRUCTURE_COUNT, *pair.shape[1:]).to(pair) for image in (moving, fixed)]
        combined = torch.cat([pair[:1], maps[0], pair[1:2], maps[1], pair[2:]])
        affine = data["pair"].affine if isinstance(data["pair"], MetaTensor) else None
        combined = combined if affine is None else MetaTensor(combined, affine=affine)
        return {**data, "pair": combined, "in_plane": "segmented" not in data or moving.shape[3] == 1}

    def _labels(self, data: Mapping) -> tuple[Tensor, Tensor]:
        """Label maps (T, X, Y, Z) of the moving and (1, X, Y, Z) of the fixed image, 0 where there are none."""
        if "segmented" in data:
            return data["segmented"], data["fixed_segmented"]
        moving, fixed = data["moving_image"], data["fixed_image"]
        weights = data.get("segmented_by", self.weights)
        # Cases of inference, which have a kind, are segmented before or not at all.
        if "kind" not in data and weights is not None:
            if weights not in self.networks:
                self.networks[weights] = load_segmenter(weights.path, self.device)
            if (found := segment_images(torch.cat([fixed, moving]), self.networks[weights])) is not None:
                return found[0][1:], found[0][:1]
        return torch.zeros(moving.shape, dtype=torch.uint8), torch.zeros(fixed.shape, dtype=torch.uint8)


def _plain(values: Tensor) -> Tensor:
    """Values without the meta data that MONAI would carry on."""
    return values.as_tensor() if isinstance(values, MetaTensor) else torch.as_tensor(values)


def _to_maps(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Label maps (T, X, Y, Z) as maps of each structure (STRUCTURE_COUNT, *size, Z, T) on a grid of `size` in-plane."""
    slices = labels.movedim(-1, 1)
    values = torch.arange(1, CLASSES).view(-1, 1, 1)
    maps = resize((slices.flatten(0, 1)[:, None] == values).float(), size)
    return maps.unflatten(0, slices.shape[:2]).permute(2, 3, 4, 1, 0)
