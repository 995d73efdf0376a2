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

"""Labeled short-axis slices and stacks as MONAI's engines take them, to train and to validate a segmentation
network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from monai.inferers import Inferer, SimpleInferer
from scripts.cardiac.segmentation import CLASSES, neighbors, prepare, resize, segment_stack
from scripts.data.datalists import select_pairs
from scripts.data.folds import in_fold
from scripts.data.loading import LoadPaird
from scripts.errors import InputError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import tqdm

ROLES = ("moving", "fixed")


def select_frames(
    dataset_dir: str | None,
    data_list: str | None,
    split: str,
    seed: int = 0,
    label_values: Sequence[int | None] | None = None,
    fold: Sequence[int] | None = None,
) -> list[dict]:
    """The labeled frames of a split or of a fold of it, see `datalists.select_pairs` for the arguments, `folds.in_fold` and
    `labeled_frames`."""
    pairs = select_pairs(dataset_dir, data_list, split, seed=seed, label_values=label_values)
    subjects = set(in_fold([pair["subject"] for pair in pairs], fold))
    return labeled_frames([pair for pair in pairs if pair["subject"] in subjects])


def labeled_frames(pairs: Sequence[dict]) -> list[dict]:
    """The labeled frames of the pairs of a data list (`datalists.select_pairs`), each once.

    Returns:
        Items with "subject", "phase" (as "ED", where the direction of the pair tells), "fixed" and "fixed_label"
        (paths), "beside", the pair's other image, and where the pair has them "fixed_frame", "beside_frame" and
        "label_values".

    Raises:
        InputError: where there are pairs and none has a label.
    """
    items = {}
    for pair in pairs:
        phases = dict(zip(ROLES, str(pair.get("direction", "")).split("_to_")))
        for role in ROLES:
            if f"{role}_label" not in pair:
                continue
            other = ROLES[1 - ROLES.index(role)]
            given = {"fixed": role, "fixed_label": f"{role}_label", "fixed_frame": f"{role}_frame"}
            given |= {"beside": other, "beside_frame": f"{other}_frame"}
            item = {name: pair[key] for name, key in given.items() if key in pair}
            item |= {key: pair[key] for key in ("subject", "label_values") if key in pair}
            items[item["fixed"], item.get("fixed_frame")] = item | {"phase": phases.get(role, role)}
    if pairs and not items:
        raise InputError(f"{pairs[0]['moving']}: has no label, nor has any other image of its split; add moving_label.")
    return list(items.values())


def load_stack(item: Mapping) -> dict:
    """An item of `labeled_frames` with "image", "beside" and "label" (1, X, Y, Z), the latter uint8, and "spacing" (3,)
    in mm.

    "beside" is the image itself where the pair's other one is not given or lies on another grid.

    Raises:
        InputError: as `LoadPaird`.
    """
    loaded = LoadPaird(keys=("fixed", "fixed_label", "beside"))(item)
    beside = loaded.get("beside", loaded["fixed"])
    on_its_grid = beside.shape == loaded["fixed"].shape and torch.allclose(beside.affine, loaded["fixed"].affine)
    return {
        "subject": item["subject"],
        "phase": item["phase"],
        "image": loaded["fixed"].as_tensor(),
        "beside": (beside if on_its_grid else loaded["fixed"]).as_tensor(),
        "label": loaded["fixed_label"].as_tensor().to(torch.uint8),
        "spacing": loaded["fixed"].pixdim,
    }


class LabeledSlices(Dataset):
    """All slices of labeled frames as one tensor, with their labels, their neighbors, the same slices in the pair's other
    frame where that is labeled, too, and where the heart lies.

    Args:
        data: items of `labeled_frames`.
        spacing: mm; pixels of the network.
        size: pixels; slices are cropped about their center or padded with zeros to this.
        phases: 1, or 2 for slices beside the same ones in the pair's other frame.
        device: where the tensors live.
        progress: whether to show a progress bar while files are read.
    """

    def __init__(
        self,
        data: Sequence[dict],
        spacing: float,
        size: Sequence[int],
        phases: int = 1,
        device: str | torch.device = "cpu",
        progress: bool = True,
    ) -> None:
        stacks = [
            _prepare_labeled(load_stack({key: item[key] for key in item if key != "beside"}), spacing, size)
            for item in tqdm(data, desc="reading stacks", disable=not progress, unit="stack")
        ]
        columns = {name: [stack[name] for stack in stacks] for name in ("image", "label", "center", "extent")}
        counts = [len(image) for image in columns["image"]]
        # Neighbors are counted within their stack, and slices over all stacks.
        starts = torch.tensor([0, *counts]).cumsum(0).tolist()
        around = [(stack["neighbors"] + start) for stack, start in zip(stacks, starts)]
        empty = {"image": (0, 1, *size), "label": (0, 1, *size), "center": (0, 2), "extent": (0, 2)}
        self.columns = {
            name: torch.cat(parts).to(device) if parts else torch.zeros(empty[name]) for name, parts in columns.items()
        }
        self.neighbors = torch.cat(around, dim=1).to(device) if around else torch.zeros(2, 0, dtype=torch.long)
        self.phases = phases
        self.beside = torch.tensor(_find_beside(data, starts, counts), dtype=torch.long, device=device)

    def __len__(self) -> int:
        return len(self.columns["image"])

    def __getitem__(self, index: Sequence[int]) -> dict[str, Tensor]:
        """Of a list of B slices "image" (B, AROUND * phases, *size), each between its neighbors, "label" (B, 1, *size),
        and where the heart of their stack has its center and how far the image reaches, "center" and "extent", (B, 2) in
        pixels."""
        index = torch.as_tensor(index, device=self.neighbors.device)
        batch = {name: column[index] for name, column in self.columns.items()}
        seen = [
            torch.stack([self.neighbors[0, z], z, self.neighbors[1, z]])
            for z in (index, self.beside[index])[: self.phases]
        ]
        return batch | {"image": torch.cat([self.columns["image"][z] for z in torch.cat(seen)], dim=1)}


def _find_beside(data: Sequence[Mapping], starts: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Of each slice of labeled frames, one after the other, the same slice in its pair's other frame, or itself where that
    has no label or other slices."""

    def name(item: Mapping, role: str) -> tuple:
        return item.get(role), item.get(f"{role}_frame")

    stacks = {name(item, "fixed"): (start, count) for item, start, count in zip(data, starts, counts)}
    found = []
    for item, start, count in zip(data, starts, counts):
        other, as_many = stacks.get(name(item, "beside"), (start, count))
        found += [z + (other if as_many == count else start) for z in range(count)]
    return found


def _prepare_labeled(stack: dict, spacing: float, size: Sequence[int]) -> dict[str, Tensor]:
    """A stack of `load_stack` as `LabeledSlices` holds it: its slices, and for each what goes with it."""
    slices = prepare(stack["image"][0], stack["spacing"].tolist(), spacing)
    shares = F.one_hot(stack["label"][0].long(), CLASSES).permute(2, 3, 0, 1).float()
    label = resize(shares.contiguous(), slices.shape[2:]).argmax(dim=1, keepdim=True)
    extent = torch.tensor([min(n, limit) for n, limit in zip(slices.shape[2:], size)]).float()
    slices, label = _fit(slices, size), _fit(label, size).to(torch.uint8)
    heart = label.nonzero()[:, 2:].float()
    center = heart.mean(dim=0) if len(heart) else torch.tensor(size).float() / 2
    return {
        "image": slices,
        "label": label,
        "center": center.expand(len(slices), 2),
        "extent": extent.expand(len(slices), 2),
        "neighbors": neighbors(len(slices), float(stack["spacing"][2])),
    }


def _fit(slices: Tensor, size: Sequence[int]) -> Tensor:
    """Slices (N, C, X, Y) cropped or padded with zeros about their center to a size."""
    pads = []
    for old, new in zip(reversed(slices.shape[2:]), reversed(size)):
        first = (new - old) // 2
        pads += [first, new - old - first]
    return F.pad(slices, pads)


class LabeledStacks(Dataset):
    """Labeled frames one a time, whole and on their own grid, see `load_stack`; read once.

    Args:
        data: items of `labeled_frames`.
    """

    def __init__(self, data: Sequence[dict]) -> None:
        self.stacks = [load_stack(item) for item in data]

    def __len__(self) -> int:
        return len(self.stacks)

    def __getitem__(self, index: int) -> dict:
        return self.stacks[index]


class PrepareSlices:
    """`prepare_batch` of MONAI's trainer for batches of `LabeledSlices`: (network input, label), augmented.

    Args:
        augment: as `slice_augmentation.RandomSliceAugmentation`.
    """

    def __init__(self, augment: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.augment = augment

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys = ("image", "label", "center", "extent")
        image, label = self.augment(*(batchdata[key].to(device, non_blocking=non_blocking) for key in keys))
        return image.contiguous(memory_format=torch.channels_last), label


def prepare_stack(
    batchdata: Mapping, device: torch.device, non_blocking: bool = False, **kwargs: object
) -> tuple[Tensor, Tensor, tuple[list[float]], dict]:
    """`prepare_batch` of MONAI's evaluator for `LabeledStacks` one a time: image and label (1, 1, X, Y, Z), and what
    `StackInferer` needs beside them."""
    return batchdata["image"], batchdata["label"], (batchdata["spacing"][0].tolist(), batchdata["beside"]), {}


class PrecisionInferer(SimpleInferer):
    """A forward pass in bfloat16 where wanted; its prediction is fp32.

    Args:
        bf16: whether to.
    """

    def __init__(self, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            prediction = super().__call__(inputs, network, *args, **kwargs)
        return prediction.float()


class StackInferer(Inferer):
    """Probabilities (1, C, X, Y, Z) of a stack (1, 1, X, Y, Z) with a spacing in mm, beside the stack in another phase, see
    `cardiac.segmentation.segment_stack`.

    Args:
        working_spacing: mm; pixels of the network.
    """

    def __init__(self, working_spacing: float) -> None:
        super().__init__()
        self.working_spacing = working_spacing

    def __call__(self, inputs: Tensor, network: nn.Module, spacing: Sequence[float], beside: Tensor) -> Tensor:
        stack, beside = inputs[0, 0].cpu(), beside[0, 0].cpu()
        return segment_stack(network, stack, spacing, self.working_spacing, beside=beside)[None]


def of_structure(value: int) -> Callable[[list[dict]], tuple[list[Tensor], list[Tensor]]]:
    """An `output_transform` of MONAI's metrics that takes one structure's channel of predictions and labels in one-hot
    form."""
    return lambda output: tuple([item[key][value : value + 1] for item in output] for key in ("pred", "label"))
