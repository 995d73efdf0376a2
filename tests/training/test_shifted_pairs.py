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

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from scripts.errors import InputError
from scripts.registration.depth import CELL
from scripts.registration.pairs import halves
from scripts.registration.shifts import measure_shifts
from scripts.training.shifted_pairs import PrepareShifts, ShiftDataset
from torch import nn

SPACING = (1.5, 1.25, 8.0)


class Still(nn.Module):
    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(pair)


def loaded(item: dict) -> dict:
    """An item as `AddAnatomy` leaves it: random blocks as labels, whose maps lie beside noise."""
    generator = torch.Generator().manual_seed(item["number"])
    blocks = torch.randint(0, 4, (2, 1, 5, 4, item["slices"]), generator=generator).float()
    labels = torch.nn.functional.interpolate(blocks, size=(40, 32, item["slices"]))
    maps = torch.cat([labels == value for value in (1, 2, 3)], dim=1).float()
    pair = torch.cat([torch.rand(2, 1, *labels.shape[2:], generator=generator), maps], dim=1).flatten(0, 1)
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    return {"pair": MetaTensor(pair, affine=affine), "moving_label": labels[0], "fixed_label": labels[1]}


@pytest.fixture
def dataset(tmp_path) -> ShiftDataset:
    weights = tmp_path / "weights.pt"
    torch.save({}, weights)
    items = [{"number": n, "slices": 4 + n, "moving_label": "m", "fixed_label": "f"} for n in range(2)]
    return ShiftDataset([*items, {"number": 9, "slices": 3}], loaded, Still(), weights, progress=False)


def test_each_labeled_pair_is_there_both_ways(dataset: ShiftDataset) -> None:
    assert len(dataset) == 4
    for number in range(4):
        batch, item = dataset[[number]], loaded({"number": number % 2, "slices": 4 + number % 2})
        labels = torch.cat([item["moving_label"], item["fixed_label"]])
        labels = labels.flip(0) if number >= 2 else labels
        masks = torch.stack([labels == value for value in (1, 2, 3)], dim=1)
        shifts = measure_shifts(Still(), torch.zeros(2, *masks.shape[2:]), masks)
        for name, table in shifts._asdict().items():
            torch.testing.assert_close(batch[name].float(), table, rtol=1e-3, atol=0.1)
        # The images' structures in whole cells, of which the labels' blocks are.
        for image, mask in zip(halves(batch["pair"]), masks):
            torch.testing.assert_close(image[0, :, :5, :4], mask[:, ::CELL, ::CELL].float())
        assert batch["spacing"].tolist() == [pytest.approx([24.0, 20.0, 8.0])]


def test_a_batch_holds_one_pair(dataset: ShiftDataset) -> None:
    with pytest.raises(InputError, match=r"--batch_size 2: .*make it 1"):
        dataset[[0, 1]]


def test_data_without_labels_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no item of the training data has moving_label and fixed_label"):
        ShiftDataset([{"number": 1, "slices": 3}], loaded, Still(), tmp_path / "weights.pt")


def test_augmentation_turns_cells_and_tables_alike(dataset: ShiftDataset) -> None:
    torch.manual_seed(0)
    batch, device, seen = dataset[[1]], torch.device("cpu"), set()
    plain, shifts = PrepareShifts(augment=False)(batch, device)
    assert torch.equal(plain, batch["pair"])
    for _ in range(40):
        pair, tables = PrepareShifts()(batch, device)
        seen.add(tuple(pair.flatten()[:200].tolist()))
        # Without a shift the moving image is what its maps say: in sums over what a velocity has of cells.
        moving = 4 * CELL**2 * torch.nn.functional.avg_pool3d(halves(pair)[0], (2, 2, 1))
        torch.testing.assert_close(tables.moved[:, 3], moving, rtol=1e-3, atol=0.1)
        assert sorted(tables.error.flatten().tolist()) == sorted(shifts.error.flatten().tolist())
    assert len(seen) > 8
