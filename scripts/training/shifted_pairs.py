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

"""Training pairs for a motion along the stack: maps of both images in cells, and what each whole shift does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from scripts.errors import InputError
from scripts.registration.depth import STEP, to_cells
from scripts.registration.pairs import exchange, halves, intensities
from scripts.registration.shifts import Shifts, measure_shifts
from scripts.training.cache import prepare_items
from scripts.training.checkpoints import hash_checkpoint
from scripts.training.datasets import LABEL_KEYS, stack_labels
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

STRUCTURES = (1, 2, 3)  # RV, myocardium and LV cavity


class ShiftDataset(Dataset):
    """All labeled pairs both ways: those of moving to fixed first, then those of fixed to moving.

    Args:
        data: items of a data list with labels of both images; others are left out.
        transform: makes of an item a dict whose "pair" is (2 C, X, Y, Z) with maps (`workflow.anatomy.AddAnatomy`), with
            labels "moving_label" and "fixed_label", (1, X, Y, Z).
        in_plane: see `shifts.measure_shifts`.
        weights: file of its weights, on which prepared pairs depend.
        device: where the network is, and the tensors live.
        progress: whether to show a progress bar.
        cache_dir: see `cache.prepare_items`.

    Raises:
        InputError: where no item has both labels.
    """

    def __init__(
        self,
        data: Sequence[dict],
        transform: Callable[[dict], dict],
        in_plane: nn.Module,
        weights: str | Path,
        device: str | torch.device = "cpu",
        progress: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        labeled = [item for item in data if all(key in item for key in LABEL_KEYS)]
        if data and not labeled:
            raise InputError("depth: no item of the training data has moving_label and fixed_label; add them.")

        def prepare(item: dict) -> dict[str, Tensor]:
            loaded = transform(item)
            # Measured where the network is; what is kept lies on the CPU.
            pair, labels = torch.as_tensor(loaded["pair"]).float().to(device), stack_labels(loaded)
            masks = torch.stack([labels == value for value in STRUCTURES], dim=1)
            pads = [0, 0, 0, -pair.shape[2] % STEP, 0, -pair.shape[1] % STEP]
            maps = torch.cat([image[:, 1:] for image in halves(pair[None])], dim=1)
            prepared = {"cells": to_cells(F.pad(maps, pads))[0].cpu(), "spacing": loaded["pair"].pixdim.float()}
            images = intensities(pair[None])[0]
            for way, flipped in (("there", False), ("back", True)):
                ordered = (images.flip(0), masks.flip(0)) if flipped else (images, masks)
                for name, table in measure_shifts(in_plane, *ordered)._asdict().items():
                    prepared[f"{way}_{name}"] = table[0].half().cpu()
            return prepared

        settings = ["shifts", transform, hash_checkpoint(weights)]
        items = prepare_items(labeled, prepare, settings, cache_dir, progress)
        self.pairs = [{key: value.to(device) for key, value in item.items()} for item in items]

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: Sequence[int]) -> dict[str, Tensor]:
        """For a list of one number: "pair" (1, 2 * maps, x, y, Z) in cells, "spacing" (1, 3) in mm of a cell of STEP pixels
        and a slice, and the tables of `Shifts` by name.

        Raises:
            InputError: for more than one, whose depths may differ.
        """
        if len(index) != 1:
            raise InputError(f"--batch_size {len(index)}: stacks of different depth do not make a batch; make it 1.")
        number, turned = index[0] % len(self.pairs), index[0] >= len(self.pairs)
        item = {key: value[None] for key, value in self.pairs[number].items()}
        cells, way = item["cells"], "back_" if turned else "there_"
        tables = {key.removeprefix(way): value for key, value in item.items() if key.startswith(way)}
        size = item["spacing"] * item["spacing"].new_tensor([STEP, STEP, 1])
        return {"pair": exchange(cells) if turned else cells, "spacing": size, **tables}


class PrepareShifts:
    """`prepare_batch` of MONAI's engines for `ShiftDataset`: (cells, `Shifts`), by chance mirrored along each axis and with
    the in-plane axes exchanged.

    Args:
        augment: whether chance has a say.
    """

    def __init__(self, augment: bool = True) -> None:
        self.augment = augment

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Shifts]:
        pair, *tables = (
            batchdata[key].to(device=device, dtype=torch.float32, non_blocking=non_blocking)
            for key in ("pair", *Shifts._fields)
        )
        shifts = Shifts(*tables)
        if not self.augment:
            return pair, shifts
        *mirrored, exchanged = (torch.rand(4) < 0.5).tolist()
        axes = tuple(axis for axis, chosen in zip((-3, -2, -1), mirrored) if chosen)
        pair, shifts = pair.flip(axes) if axes else pair, shifts.flip(axes)
        return (pair.transpose(-3, -2), shifts.transpose()) if exchanged else (pair, shifts)
