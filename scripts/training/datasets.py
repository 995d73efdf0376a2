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

"""Training slices and stacks, prepared once and held as plain tensors on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCrop
from scripts.errors import InputError
from scripts.registration.fields import has_contrast
from scripts.registration.pairs import intensities
from scripts.training.cache import prepare_items
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler

LABEL_KEYS = ("moving_label", "fixed_label")
UNLABELED = -1


class SliceDataset(Dataset):
    """All slices of all pairs as one tensor (N, 2 C, *size), moving and fixed (`pairs`), on a device; where wanted,
    their labels as another one.

    Slices that are constant in either image are left out.

    Args:
        data: items of a data list.
        transform: makes of an item a dict whose "pair" is (2 C, X, Y, Z), with labels "moving_label" and
            "fixed_label", (1, X, Y, Z).
        size: in-plane size; larger slices are cropped about their center, smaller ones padded with zeros.
        device: where the tensors live.
        progress: whether to show a progress bar while files are read.
        labels: whether to hold labels as well, int8; an image without a label has UNLABELED everywhere.
        cache_dir: where prepared slices are kept from run to run (`cache.prepare_items`); None for nowhere.

    Raises:
        InputError: where labels are wanted and no item has any.
    """

    def __init__(
        self,
        data: Sequence[dict],
        transform: Callable[[dict], dict],
        size: Sequence[int],
        device: str | torch.device = "cpu",
        progress: bool = True,
        labels: bool = False,
        cache_dir: str | Path | None = None,
    ) -> None:
        stacks = _read_pairs("pairs", lambda seen: seen, data, transform, size, progress, labels, cache_dir)
        pairs = [stack["pair"] for stack in stacks]
        self.pairs = (torch.cat(pairs) if pairs else torch.empty(0, 2, *size)).to(device)
        self.labels = None
        if labels:
            none = torch.empty(0, 2, *size, dtype=torch.int8)
            self.labels = torch.cat([none, *(stack["label"] for stack in stacks)]).to(device)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int | Sequence[int]) -> dict[str, Tensor]:
        """{"pair": (2 C, *size)} for one index, (B, 2 C, *size) for a list of B; with labels "label" (2, *size) or (B, 2,
        *size), moving then fixed."""
        index = torch.as_tensor(index).to(self.pairs.device, non_blocking=True)
        batch = {"pair": self.pairs[index]}
        return batch if self.labels is None else batch | {"label": self.labels[index]}


class StackDataset(Dataset):
    """All pairs as stacks (2, *size, Z), moving and fixed, on a device, each with its own depth and spacing.

    Slices at a stack's ends that are constant in either image are left out.

    Args:
        data, transform, size, device: see `SliceDataset`; the transform's "pair" has the affine of its grid.
        reading: "progress", "labels" and "cache_dir", see `SliceDataset`.

    Raises:
        InputError: where labels are wanted and no item has any.
    """

    def __init__(
        self,
        data: Sequence[dict],
        transform: Callable[[dict], dict],
        size: Sequence[int],
        device: str | torch.device = "cpu",
        **reading: object,
    ) -> None:
        stacks = _read_pairs("stacks", _between_ends, data, transform, size, **reading)
        self.stacks = [
            {key: value.to(device) for key, value in stack.items()} for stack in stacks if len(stack["pair"])
        ]

    def __len__(self) -> int:
        return len(self.stacks)

    def __getitem__(self, index: Sequence[int]) -> dict[str, Tensor]:
        """For a list of B: {"pair": (B, 2, *size, Z), "spacing": (B, 3) in mm}, with labels "label" in the pair's shape.

        Raises:
            InputError: for stacks of different depth.
        """
        chosen = [self.stacks[number] for number in index]
        if len({len(stack["pair"]) for stack in chosen}) > 1:
            raise InputError(f"--batch_size {len(chosen)}: stacks of different depth do not make a batch; make it 1.")
        batch = {key: torch.stack([stack[key] for stack in chosen]) for key in chosen[0]}
        # Slice by slice in memory, where the network takes them apart.
        return {key: value if key == "spacing" else value.movedim(1, -1) for key, value in batch.items()}


def pair_dataset(axes: int = 2, **options: object) -> SliceDataset | StackDataset:
    """The data set of slices (2 axes) or of stacks (3), with its options."""
    return {2: SliceDataset, 3: StackDataset}[axes](**options)


def _read_pairs(
    name: str,
    choose: Callable[[Tensor], Tensor],
    data: Sequence[dict],
    transform: Callable[[dict], dict],
    size: Sequence[int],
    progress: bool = True,
    labels: bool = False,
    cache_dir: str | Path | None = None,
) -> list[dict[str, Tensor]]:
    """Each pair of a data list as slices: "pair" (Z, 2 C, *size), with labels "label" (Z, 2, *size), and its "spacing" (3,)
    in mm where it has an affine.

    Args:
        name: in the cache.
        choose: which slices are kept, (Z,), of those that have contrast in both images.
        data, transform, size, progress, labels, cache_dir: see `SliceDataset`.
    """
    _check_labels(data, labels)
    fit = _fit_slices(size)

    def prepare(item: dict) -> dict[str, Tensor]:
        loaded = transform(item)
        pair = fit(loaded["pair"])
        kept = choose(has_contrast(intensities(pair)).all(dim=1))
        prepared = {"pair": pair[kept]}
        if labels:
            prepared["label"] = fit(stack_labels(loaded))[kept]
        if isinstance(loaded["pair"], MetaTensor):
            prepared["spacing"] = loaded["pair"].pixdim.float()
        return prepared

    return list(prepare_items(data, prepare, [name, transform, list(size), labels], cache_dir, progress))


def _between_ends(seen: Tensor) -> Tensor:
    """All slices from the first to the last of those that are seen, (Z,)."""
    return seen.cummax(dim=0).values & seen.flip(0).cummax(dim=0).values.flip(0)


def _check_labels(data: Sequence[dict], labels: bool) -> None:
    """Stop where labels are wanted and no item of a data list has any.

    Raises:
        InputError: saying so.
    """
    if labels and data and not any(key in item for item in data for key in LABEL_KEYS):
        raise InputError(
            "labels: no item of the training data has any; add moving_label and fixed_label, or set labels to false."
        )


def _fit_slices(size: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A function from a stack (C, X, Y, Z) to its slices (Z, C, *size), cropped about their center or padded with
    zeros."""
    fit = ResizeWithPadOrCrop((*size, -1))
    return lambda stack: fit(torch.as_tensor(stack)).as_tensor().movedim(-1, 0).contiguous()


def stack_labels(item: dict) -> Tensor:
    """The labels of an item's pair on its grid, (2, X, Y, Z) int8; UNLABELED for an image without one."""
    pair, labels = item["pair"], []
    for key in LABEL_KEYS:
        if key in item:
            label = torch.as_tensor(item[key]).movedim(-1, 0)
            # The pair may have another working spacing; their outer pixel edges coincide.
            label = F.interpolate(label.float(), size=pair.shape[1:3], mode="nearest-exact").movedim(0, -1)
            labels.append(label[0].round().to(torch.int8))
        else:
            labels.append(torch.full(pair.shape[1:], UNLABELED, dtype=torch.int8))
    return torch.stack(labels)


def batch_loader(dataset: Dataset, batch_size: int, shared_seed: int | None = None) -> DataLoader:
    """A loader that fetches each shuffled batch by one indexing of the resident tensor; an incomplete last batch is
    dropped.

    The order comes from torch's global random state, which a checkpoint restores.

    Args:
        dataset: indexed by lists.
        batch_size: pairs a batch; a smaller data set makes one batch.
        shared_seed: of the order, where the processes of `torch.distributed` share each batch; None for one process
            alone.

    Raises:
        InputError: for a batch or a data set that the processes cannot share evenly.
    """
    if len(dataset) == 0:
        sampler = SequentialSampler(dataset)
    elif shared_seed is None:
        sampler = RandomSampler(dataset)
    else:
        # Its shares of the first, second, ... batch_size slices of the order are the processes' shares of the batches.
        sampler = DistributedSampler(dataset, seed=shared_seed, drop_last=True)
        if batch_size % sampler.num_replicas or not len(sampler):
            raise InputError(
                f"--batch_size {batch_size}: {sampler.num_replicas} processes cannot share it and the {len(dataset)} "
                f"slices evenly; give a multiple of {sampler.num_replicas}, or start as many processes as divide it."
            )
        batch_size //= sampler.num_replicas
    batches = BatchSampler(sampler, min(batch_size, max(len(sampler), 1)), drop_last=True)
    return DataLoader(dataset, sampler=batches, batch_size=None)


class FrameDataset(Dataset):
    """All frames of all slices of unlabeled cines, resident on a device; a pair is a frame and another one of the same
    slice.

    Frames that are constant in a slice are left out of it.

    Args:
        data: items with "cine", as `cases.inference_cases` lists them.
        transform: makes of an item a dict whose "moving" is (T, X, Y, Z), scaled; a pair, T = 1, gives its "fixed" as
            second frame.
        size: in-plane size; larger slices are cropped about their center, smaller ones padded with zeros.
        device: where the frames live.
        progress: whether to show a progress bar while files are read.
        cache_dir: where prepared frames are kept from run to run (`cache.prepare_items`); None for nowhere.
    """

    def __init__(
        self,
        data: Sequence[dict],
        transform: Callable[[dict], dict],
        size: Sequence[int],
        device: str | torch.device = "cpu",
        progress: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        fit = _fit_slices(size)

        def prepare(item: dict) -> dict[str, Tensor]:
            loaded = transform(item)
            stack = torch.as_tensor(loaded["moving"])
            if len(stack) == 1 and "fixed" in loaded:
                stack = torch.cat([stack, torch.as_tensor(loaded["fixed"])])
            if len(stack) < 2:
                raise InputError(f"{item.get('case')}: has one frame; a pair needs two.")
            return {"cine": fit(stack)}

        frames, first, count = [torch.empty(0, *size)], [], []
        for prepared in prepare_items(
            data, prepare, ["frames", transform, list(size)], cache_dir, progress, unit="cine"
        ):
            for cine in prepared["cine"]:
                cine = cine[has_contrast(cine[None])[0]]
                if len(cine) < 2:
                    continue
                first += [len(first)] * len(cine)
                count += [len(cine)] * len(cine)
                frames.append(cine)
        self.frames = torch.cat(frames).to(device)
        self.first, self.count = torch.tensor(first, dtype=torch.long), torch.tensor(count, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Sequence[int]) -> dict[str, Tensor]:
        """{"pair": (B, 2, *size)} for a list of B frames: each as moving image, with a random other frame of its slice
        as fixed image."""
        index = torch.as_tensor(index)
        first, count = self.first[index], self.count[index]
        step = 1 + (torch.rand(len(index)) * (count - 1)).long()
        fixed = first + (index - first + step) % count
        index, fixed = (frames.to(self.frames.device, non_blocking=True) for frames in (index, fixed))
        return {"pair": torch.stack([self.frames[index], self.frames[fixed]], dim=1)}
