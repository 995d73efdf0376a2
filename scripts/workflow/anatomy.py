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

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scripts.cardiac.planes import is_long_axis
from scripts.cardiac.segmentation import CLASSES, Segmenter, resize
from scripts.data.folds import unseen_by
from scripts.errors import InputError
from scripts.training.checkpoints import hash_checkpoint
from scripts.workflow.segmenters import load_segmenter
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
    """Puts the probabilities of RV, myocardium and LV of both images of a pair beside their intensities.

    A frozen network segments each image whole and on its own grid, and its probabilities come to the pair's grid.

    Args:
        segmentation: weights of `cardiac.segmentation.make_network`, for items that do not name theirs as
            "segmented_by" (`assign_folds`).
        device: where the network runs.

    Raises:
        InputError: naming the file, for weights that are not there or another network's.
    """

    def __init__(self, segmentation: str | Path, device: str | torch.device = "cpu") -> None:
        self.weights = weights_of(segmentation)
        self.device = str(device)
        self.networks: dict[Weights, Segmenter] = {}

    def __getstate__(self) -> dict:
        """Without the loaded networks, so that equal transforms have one key in the cache of prepared slices."""
        return self.__dict__ | {"networks": {}}

    def __call__(self, data: Mapping) -> dict:
        """Of "pair" (2, X, Y, ...), "moving_image" (T, X, Y, Z) and "fixed_image" (1, X, Y, Z), native, makes "pair" (8,
        X, Y, ...): intensities, RV, myocardium and LV of the moving image, then those of the fixed one. A third channel
        of the pair, where its images hold a measurement, stays the last one.

        The pair's last axes hold slices or frames, as `LoadPaird` and `PairFrames` make them. On a long-axis view all
        maps are 0.
        """
        pair = torch.as_tensor(data["pair"])
        parts = []
        for image, key in zip(pair[:2], ("moving_image", "fixed_image")):
            maps = self._segment(data[key], pair.shape[1:3], data)
            frames = pair[0].numel() // maps[0, ..., 0].numel()
            # (maps, X, Y, Z, T), frames fastest; the one frame of the fixed image is that of all pairs.
            maps = maps.expand(*maps.shape[:-1], frames).reshape(STRUCTURE_COUNT, *image.shape)
            parts += [image[None], maps.to(image)]
        combined = torch.cat([*parts, pair[2:]])
        affine = data["pair"].affine if isinstance(data["pair"], MetaTensor) else None
        return {**data, "pair": combined if affine is None else MetaTensor(combined, affine=affine)}

    def _segment(self, image: Tensor, size: Sequence[int], data: Mapping) -> Tensor:
        """Probabilities (maps, *size, Z, T) of the frames of an image (T, X, Y, Z) on a grid of `size` in-plane."""
        frames = torch.as_tensor(image)
        if is_long_axis(data.get("plane") or None):
            return torch.zeros(STRUCTURE_COUNT, *size, frames.shape[-1], len(frames))
        weights, spacing = data.get("segmented_by", self.weights), image.pixdim.tolist()
        if weights not in self.networks:
            self.networks[weights] = load_segmenter(weights.path, self.device)
        segmenter = self.networks[weights]
        found = [
            torch.from_numpy(segmenter.probabilities(np.asarray(frame), spacing)[1:]).movedim(-1, 0) for frame in frames
        ]
        return torch.stack([resize(maps, size).movedim(0, -1) for maps in found], dim=-1)
