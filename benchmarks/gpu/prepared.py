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

"""A data set in one file, small enough to travel to a machine that has neither the data nor the packages that read
them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from numpy.typing import NDArray
from scripts.data.datalists import select_pairs
from scripts.data.preprocessing import scale_slices
from scripts.errors import InputError
from scripts.files import whole_file
from scripts.training.datasets import SliceDataset
from scripts.training.evaluation import score_case
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
KEYS = ("pairs", "labels", "stack", "spacing", "subjects")


@dataclass(frozen=True)
class Case:
    """A pair of stacks to register and to score."""

    subject: str
    direction: str
    images: NDArray
    """Moving and fixed, (2, X, Y, Z) uint8."""
    labels: NDArray
    """Of both, (2, X, Y, Z) uint8."""
    spacing: tuple[float, float, float]
    """Voxel size in mm."""

    def pair(self, clip_percentile: float) -> Tensor:
        """What the network sees, (2, X, Y, Z) in [0, 1]."""
        return torch.cat(
            [scale_slices(image[None], clip_percentile) for image in torch.from_numpy(self.images).float()]
        )

    def score(self, field: NDArray, crop: Sequence[int]) -> dict[str, float]:
        """The figures of a field (2, X, Y, Z), as evaluate.yaml has them."""
        affine = np.diag([*self.spacing, 1.0])
        moving, fixed = (MetaTensor(torch.from_numpy(image).float()[None], affine=affine) for image in self.images)
        labels = (torch.from_numpy(label).float()[None] for label in self.labels)
        return score_case(torch.from_numpy(field), moving, fixed, *labels, crop, ("registered",))["registered"]


@dataclass(frozen=True)
class Prepared:
    """Slices to train on and stacks to score."""

    pairs: Tensor
    """Training slices, (N, 2, X, Y) in [0, 1], moving and fixed."""
    labels: Tensor
    """Of both images, (N, 2, X, Y) int8."""
    stack: NDArray
    """The number of the stack that each slice is of, (N,), in order."""
    spacing: NDArray
    """Voxel sizes of the stacks in mm, (stacks, 3)."""
    test: tuple[Case, ...]
    """ES to ED."""

    def cases(self) -> list[Case]:
        """The stacks to score, both ways."""
        back = [
            Case(case.subject, "ED_to_ES", case.images[::-1].copy(), case.labels[::-1].copy(), case.spacing)
            for case in self.test
        ]
        return [*self.test, *back]

    def slices(self, device: str, labeled: bool = False, size: int | None = None) -> SliceDataset:
        """The training slices on a device, with labels or without, whole or their central square of so many pixels."""
        return PreparedSlices(*(_central(x, size).to(device) for x in (self.pairs, self.labels)), labeled)

    def deepest(self) -> tuple[Tensor, Tensor]:
        """The training stack of the most slices, (1, 2, X, Y, Z), and its voxel size in mm, (1, 3)."""
        number = int(np.bincount(self.stack).argmax())
        chosen = self.pairs[torch.from_numpy(self.stack == number)]
        return chosen.movedim(0, -1)[None].contiguous(), torch.from_numpy(self.spacing[number])[None].float()


class PreparedSlices(SliceDataset):
    """The data set of slices, made of tensors that are there already."""

    def __init__(self, pairs: Tensor, labels: Tensor, labeled: bool) -> None:
        self.pairs = pairs
        self.labels = labels if labeled else None


def _central(slices: Tensor, size: int | None) -> Tensor:
    """The central square of slices (..., X, Y)."""
    if size is None:
        return slices
    low = [(length - size) // 2 for length in slices.shape[-2:]]
    return slices[..., low[0] : low[0] + size, low[1] : low[1] + size].contiguous()


def prepare(dataset_dir: str | Path, path: str | Path, size: int | None = None) -> int:
    """Write the train and test split of a data set into one file, in native pixels and 256 shades.

    Training slices are prepared as train.yaml does for the published protocol; the stacks to score are whole.

    Args:
        dataset_dir: in the layout of ACDC or M&Ms, with labels.
        path: file to write.
        size: in-plane size of the training slices; that of train.yaml by default.

    Returns:
        Its size in bytes.

    Raises:
        InputError: for a data set without labels, or a file that cannot be written.
    """
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "train.yaml"))
    parser.update({"bundle_root": str(ROOT), "working_spacing": False, **({"slice_size": [size] * 2} if size else {})})
    transform, fit = parser.get_parsed_content("train::preprocessing"), parser.get_parsed_content("slice_size")
    split = {name: select_pairs(dataset_dir, None, name, "ES_to_ED", seed=0) for name in ("train", "test")}
    for item in (item for items in split.values() for item in items):
        if not {"moving_label", "fixed_label"} <= set(item):
            raise InputError(f"{item['moving']}: has no label beside it or its pair; --prepare needs those of all.")
    spacing: list[NDArray] = []

    def load(item: dict) -> dict:
        case = transform(item)
        spacing.append(case["pair"].pixdim.numpy())
        return case

    stacks = [
        SliceDataset([item], load, fit, progress=False, labels=True)
        for item in tqdm(split["train"], desc="train", unit="pair")
    ]
    arrays = {
        "pairs": np.concatenate([_to_bytes(stack.pairs, 0.0, 1.0) for stack in stacks]),
        "labels": np.concatenate([stack.labels.numpy().astype(np.uint8) for stack in stacks]),
        "stack": np.repeat(np.arange(len(stacks), dtype=np.int16), [len(stack) for stack in stacks]),
        "spacing": np.stack(spacing),
        "subjects": np.array([item["subject"] for item in split["test"]]),
    }
    for number, item in enumerate(tqdm(split["test"], desc="test", unit="pair")):
        case = transform(item)
        images = [case[f"{key}_image"] for key in ("moving", "fixed")]
        arrays[f"test{number}_images"] = np.concatenate([_to_bytes(x, float(x.min()), float(x.max())) for x in images])
        arrays[f"test{number}_labels"] = np.concatenate(
            [case[f"{key}_label"].numpy().round().astype(np.uint8) for key in ("moving", "fixed")]
        )
        arrays[f"test{number}_spacing"] = case["pair"].pixdim.numpy()
    _write_arrays(Path(path), arrays)
    return Path(path).stat().st_size


def _to_bytes(image: Tensor, low: float, high: float) -> NDArray:
    """Intensities in 256 steps from one to the other."""
    return np.round((np.asarray(image, dtype=np.float32) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _write_arrays(path: Path, arrays: dict[str, NDArray]) -> None:
    """Write arrays as `numpy.load` reads them, packed by bzip2: ACDC's are a sixth smaller so than by
    `savez_compressed`.

    Raises:
        InputError: where the file cannot be written.
    """
    try:
        with whole_file(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_BZIP2) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    except OSError as error:
        raise InputError(f"--data {path}: cannot be written ({error}); give another file.") from error


def read(path: str | Path) -> Prepared:
    """What `prepare` wrote.

    Raises:
        InputError: for any other file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            pairs, labels, stack, spacing, subjects = (archive[key] for key in KEYS)
            test = tuple(
                Case(
                    str(subject),
                    "ES_to_ED",
                    archive[f"test{number}_images"],
                    archive[f"test{number}_labels"],
                    tuple(map(float, archive[f"test{number}_spacing"])),
                )
                for number, subject in enumerate(subjects)
            )
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"--data {path}: is not what python -m benchmarks.gpu --prepare DIR --data FILE writes ({error})."
        ) from error
    return Prepared(torch.from_numpy(pairs) / 255, torch.from_numpy(labels).to(torch.int8), stack, spacing, test)
