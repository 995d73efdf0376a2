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

"""Resident slices and their batches."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from scripts.errors import InputError
from scripts.training.datasets import FrameDataset, SliceDataset, StackDataset, batch_loader


def make_dataset(count: int = 3) -> SliceDataset:
    """Stacks of different sizes, each of two slices that hold their own number, but for a pixel: none is constant."""
    stacks = [torch.full((2, 6 + 2 * n, 9, 2), 2.0 * n) + torch.tensor([0.0, 1.0]) for n in range(count)]
    for n, stack in enumerate(stacks):
        stack[:, 1 + n, 4] += 50
    return SliceDataset([{"pair": stack} for stack in stacks], lambda item: item, (8, 8), progress=False)


def test_slices_are_cropped_or_padded_into_one_tensor() -> None:
    dataset = make_dataset()
    assert dataset.pairs.shape == (6, 2, 8, 8)
    assert [pair[0, 4, 4].item() for pair in dataset.pairs] == [0, 1, 2, 3, 4, 5]
    assert dataset.pairs[1, :, 0].sum() == 0
    assert dataset.pairs[3, :, 0].min() == 3


def test_slices_that_are_constant_in_either_image_are_left_out() -> None:
    stack = torch.rand(2, 8, 8, 4)
    stack[0, ..., 1] = 0.3
    stack[1, ..., 2] = 0
    item = {"pair": stack, "moving_label": torch.ones(1, 8, 8, 4), "fixed_label": 2 * torch.ones(1, 8, 8, 4)}
    dataset = SliceDataset([item], lambda item: item, (8, 8), progress=False, labels=True)
    assert torch.equal(dataset.pairs, stack[..., [0, 3]].movedim(-1, 0))
    assert dataset.labels.shape == (2, 2, 8, 8)


def test_an_epoch_sees_every_slice_once_in_an_order_that_the_seed_repeats() -> None:
    loader = batch_loader(make_dataset(), 2)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append([pair[0, 4, 4].item() for batch in loader for pair in batch["pair"]])
    assert all(sorted(order) == [0, 1, 2, 3, 4, 5] for order in orders)
    assert orders[0] == orders[1] != orders[2]


def test_an_incomplete_batch_is_dropped_but_never_the_only_one() -> None:
    assert [len(batch["pair"]) for batch in batch_loader(make_dataset(), 4)] == [4]
    assert [len(batch["pair"]) for batch in batch_loader(make_dataset(), 100)] == [6]


def share(monkeypatch: pytest.MonkeyPatch, rank: int, world: int, count: int, batch_size: int) -> list[list[float]]:
    """The batches of a second epoch of 2 * count slices in one of several processes."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    loader = batch_loader(make_dataset(count), batch_size, shared_seed=7)
    loader.sampler.sampler.set_epoch(2)
    return [batch["pair"][:, 0, 4, 4].tolist() for batch in loader]


@pytest.mark.parametrize(("world", "count", "batch_size"), [(2, 7, 4), (3, 7, 3), (2, 3, 4), (2, 3, 100)])
def test_processes_share_the_batches_of_one(
    monkeypatch: pytest.MonkeyPatch, world: int, count: int, batch_size: int
) -> None:
    (*alone,) = share(monkeypatch, 0, 1, count, batch_size)
    shares = [share(monkeypatch, rank, world, count, batch_size) for rank in range(world)]
    together = [sorted(value for part in parts for value in part) for parts in zip(*shares)]
    assert together == [sorted(batch) for batch in alone]
    assert len(alone) == max(2 * count // batch_size, 1)


@pytest.mark.parametrize(("world", "count", "batch_size"), [(2, 3, 3), (3, 3, 4), (8, 3, 8)])
def test_what_processes_cannot_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, world: int, count: int, batch_size: int
) -> None:
    with pytest.raises(
        InputError, match=f"--batch_size {batch_size}: {world} processes cannot share it and the {2 * count} slices"
    ):
        share(monkeypatch, 0, world, count, batch_size)


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size should be a positive integer"):
        batch_loader(make_dataset(), 0)


def test_no_data_gives_no_batch() -> None:
    assert len(batch_loader(make_dataset(0), 4)) == 0


def test_labels_lie_on_their_pairs_and_missing_ones_are_marked() -> None:
    label = torch.zeros(1, 6, 8, 2)
    label[:, 2:4, 4:6] = 3
    wide = label.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    items = [
        {"pair": torch.cat([label, label]) / 3, "moving_label": label, "fixed_label": label},
        # On a finer grid than the pair, as where the working spacing is coarse.
        {"pair": torch.cat([label, label]) / 3, "moving_label": wide},
    ]
    dataset = SliceDataset(items, lambda item: item, (8, 4), progress=False, labels=True)
    batch = dataset[[0, 1, 2, 3]]
    assert batch["label"].dtype == torch.int8
    assert batch["label"].shape == batch["pair"].shape == (4, 2, 8, 4)
    assert torch.equal(batch["label"][:, 0].float(), (3 * batch["pair"][:, 0]).round())
    assert batch["label"][:2, 1].max() == 3
    assert batch["label"][2:, 1, 1:7].unique().tolist() == [-1]
    assert set(SliceDataset(items, lambda item: item, (8, 4), progress=False)[[0]]) == {"pair"}
    with pytest.raises(InputError, match="no item of the training data has any"):
        SliceDataset([{"pair": items[0]["pair"]}], lambda item: item, (8, 4), progress=False, labels=True)


def test_stacks_keep_their_depth_and_spacing() -> None:
    pairs = [torch.rand(2, 9, 6, depth) for depth in (5, 1, 4)]
    pairs[0][0, ..., :2] = 0.0
    pairs[2][1, ..., 1] = 0.7  # between others a blank slice stays
    items = [
        {
            "pair": MetaTensor(pair, affine=torch.diag(torch.tensor([1.5, 1.5, step, 1.0]))),
            "moving_label": pair[:1] > 0.5,
        }
        for pair, step in zip(pairs, (5.0, 17.0, 10.0))
    ]
    dataset = StackDataset(items, lambda item: item, (8, 8), progress=False, labels=True)
    batches = [dataset[[number]] for number in range(3)]
    assert [tuple(batch["pair"].shape) for batch in batches] == [(1, 2, 8, 8, depth) for depth in (3, 1, 4)]
    assert [batch["spacing"].tolist() for batch in batches] == [[[1.5, 1.5, step]] for step in (5, 17, 10)]
    assert torch.equal(batches[0]["pair"][0, :, :, 1:7], pairs[0][:, :8, :, 2:])
    assert torch.equal(batches[0]["label"][0, 0, :, 1:7], (pairs[0][0, :8, :, 2:] > 0.5).to(torch.int8))
    assert batches[0]["label"][:, 1, :, 1:7].eq(-1).all()
    assert sorted(batch["pair"].shape[-1] for batch in batch_loader(dataset, 1)) == [1, 3, 4]
    with pytest.raises(InputError, match="--batch_size 2"):
        dataset[[0, 2]]


def test_frames_are_paired_within_their_slice() -> None:
    cines = [
        torch.arange(3.0).view(3, 1, 1, 1).expand(3, 8, 8, 2) + 10 * torch.arange(2),
        torch.full((2, 6, 6, 1), 100.0),
    ]
    cines[1] = cines[1] + torch.arange(2.0).view(2, 1, 1, 1)
    cines = [cine.clone() for cine in cines]
    for cine in cines:
        cine[:, 2, 2] += 50
    dataset = FrameDataset([{"moving": cine} for cine in cines], lambda item: item, (8, 8), progress=False)
    assert len(dataset) == 8
    slices = [{0, 1, 2}, {10, 11, 12}, {100, 101}]
    seen = set()
    for _ in range(30):
        for moving, fixed in dataset[list(range(8))]["pair"][:, :, 4, 4].int().tolist():
            assert moving != fixed
            assert any({moving, fixed} <= frames for frames in slices)
            seen.add((moving, fixed))
    assert len(seen) == 6 + 6 + 2


def test_blank_frames_are_in_no_pair() -> None:
    cine = torch.rand(3, 8, 8, 3)
    cine[1, ..., 0] = 0
    cine[1:, ..., 2] = 0.5
    dataset = FrameDataset([{"moving": cine}], lambda item: item, (8, 8), progress=False)
    assert torch.equal(dataset.frames, torch.cat([cine[[0, 2], ..., 0], cine[..., 1]]))
    assert all(
        (pair.amax((1, 2)) > pair.amin((1, 2))).all() for _ in range(20) for pair in dataset[list(range(5))]["pair"]
    )


def test_a_pair_gives_its_two_frames_and_a_single_frame_is_refused() -> None:
    mark = torch.eye(8)[:, :, None] * 5
    pair = {"moving": mark.expand(1, 8, 8, 2), "fixed": 1 + mark.expand(1, 8, 8, 2), "case": "a"}
    dataset = FrameDataset([pair], lambda item: item, (8, 8), progress=False)
    assert dataset[[0, 1, 2, 3]]["pair"][:, :, 0, 1].tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]
    with pytest.raises(InputError, match="a: has one frame"):
        FrameDataset([{"moving": torch.zeros(1, 8, 8, 2), "case": "a"}], lambda item: item, (8, 8), progress=False)
