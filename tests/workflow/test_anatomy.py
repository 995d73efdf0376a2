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

"""Maps of the heart beside the intensities of a pair."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from monai.data import MetaTensor
from phantom_cases import PHANTOM
from scripts.data.folds import in_fold
from scripts.data.loading import PairFrames, in_parts
from scripts.errors import InputError
from scripts.registration.networks import PaddedNetwork
from scripts.workflow.anatomy import AddAnatomy, assign_folds, weights_of
from scripts.workflow.contours import SegmentCase
from torch import Tensor, nn

WEIGHTS = ROOT / "models" / "segmentation.pt"
AFFINE = torch.diag(torch.tensor([1.4, 1.6, 8.0, 1.0], dtype=torch.float64))


def random_labels(frames: int, generator: torch.Generator) -> Tensor:
    """Blocks of all structures, (T, 40, 36, 3), uint8."""
    blocks = torch.randint(0, 4, (frames, 10, 9, 3), generator=generator, dtype=torch.uint8)
    return blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def make_case(frames: int = 1, size: tuple[int, int] = (40, 36), axes: int = 2, **more: object) -> dict:
    """A segmented case of noise, on pixels of (40, 36), and its pair on a grid of `size` as inference makes it."""
    generator = torch.Generator().manual_seed(frames)
    labels = {name: random_labels(n, generator) for name, n in (("segmented", frames), ("fixed_segmented", 1))}
    moving, fixed = (MetaTensor(torch.rand(n, *size, 3, generator=generator), affine=AFFINE) for n in (frames, 1))
    return PairFrames(axes)({"kind": "cine", "moving": moving, "fixed": fixed, **labels, **more})


def phantom_pair(**more: object) -> dict:
    """Two frames of the phantom as training prepares them."""
    affine = torch.from_numpy(PHANTOM.affine)
    images = [MetaTensor(torch.from_numpy(PHANTOM.image(t))[None].float(), affine=affine) for t in (3, 1)]
    pair = MetaTensor(torch.cat(images).as_tensor(), affine=affine)
    return {"moving_image": images[0], "fixed_image": images[1], "pair": pair, **more}


@pytest.mark.parametrize("axes", [2, 3])
def test_labels_of_both_images_lie_beside_their_intensities(axes: int) -> None:
    case = make_case(frames=2, axes=axes)
    with warnings.catch_warnings(action="error"):  # MONAI's, of two affines
        pair = AddAnatomy()(case)["pair"]
    assert torch.equal(pair[[0, 4]].as_tensor(), case["pair"].as_tensor())
    assert torch.equal(pair.affine, AFFINE)
    frames = pair.as_tensor() if axes == 3 else pair.as_tensor().unflatten(-1, (3, 2))
    for value in (1, 2, 3):
        for t in range(2):
            assert torch.equal(frames[value, ..., t], (case["segmented"][t] == value).float())
            assert torch.equal(frames[4 + value, ..., t], (case["fixed_segmented"][0] == value).float())


def test_maps_come_to_the_pair_s_grid_by_what_of_each_pixel_is_theirs() -> None:
    coarse = AddAnatomy()(make_case(size=(10, 9)))["pair"]
    maps = coarse[1:4].as_tensor()
    assert maps.shape == (3, 10, 9, 3)
    assert maps.sum(dim=0).max() < 1 + 1e-6
    exact = torch.stack([(make_case()["segmented"][0] == value).float() for value in (1, 2, 3)])
    # A pixel sees its neighbors, too; none is made or lost but at the border.
    torch.testing.assert_close(maps.mean(dim=(1, 2)), exact.mean(dim=(1, 2)), atol=0.02, rtol=0)


def test_parts_of_a_cine_have_the_maps_of_the_whole() -> None:
    case = make_case(frames=5, axes=3)
    whole = AddAnatomy()(case)["pair"]
    parts = [PairFrames(3)(part) for part in in_parts(case, voxels=2 * case["moving"][0].numel())]
    assert [len(part["moving"]) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([AddAnatomy()(part)["pair"] for part in parts], dim=-1), whole)


def test_where_something_was_measured_stays_the_last_channel() -> None:
    valid = torch.rand(40, 36, 3) > 0.1
    pair = AddAnatomy()(make_case(valid=valid))["pair"]
    assert torch.equal(pair[:8], AddAnatomy()(make_case())["pair"])
    assert torch.equal(pair[8], make_case(valid=valid)["pair"][2])


def test_a_frame_without_a_structure_has_no_maps_and_the_fixed_image_none_beside_it() -> None:
    case = make_case(frames=3, axes=3)
    case["segmented"][1] = 0
    pair, whole = AddAnatomy()(case)["pair"], AddAnatomy()(make_case(frames=3, axes=3))["pair"]
    assert pair[[1, 2, 3, 5, 6, 7], ..., 1].eq(0).all()
    assert torch.equal(pair[..., [0, 2]], whole[..., [0, 2]])


def test_cases_of_inference_without_contours_have_no_maps() -> None:
    case = make_case()
    del case["segmented"], case["fixed_segmented"]
    case |= {"moving_image": case["moving"], "fixed_image": case["fixed"]}
    for transform in (AddAnatomy(), AddAnatomy(WEIGHTS)):
        assert transform(case)["pair"][[1, 2, 3, 5, 6, 7]].eq(0).all()


def test_pairs_of_training_are_segmented_as_inference_segments_them() -> None:
    case = phantom_pair()
    images = {"moving": case["moving_image"], "fixed": case["fixed_image"]}
    segmented = SegmentCase(WEIGHTS)({"case": "heart", "kind": "pair", "plane": "", **images})
    maps = AddAnatomy(WEIGHTS)(case)["pair"].as_tensor()
    assert maps[[1, 2, 3, 5, 6, 7]].flatten(1).any(dim=1).all()
    assert torch.equal(maps, AddAnatomy()({**case, **segmented})["pair"].as_tensor())
    assert AddAnatomy()(case)["pair"][[1, 2, 3, 5, 6, 7]].eq(0).all()


class KeepMaps(nn.Module):
    """A network that says where the moving image's structures are, and how large it is asked."""

    def forward(self, pair: Tensor) -> Tensor:
        self.seen = pair
        return pair[:, 1:4]


def test_padding_makes_no_structure() -> None:
    pair = AddAnatomy()(make_case(axes=3))["pair"].as_tensor()[None, ..., 0]
    pair[:, :, [0, -1]], pair[:, :, :, [0, -1]] = 0, 0
    network = KeepMaps()
    assert torch.equal(PaddedNetwork(network, (16, 16, 1))(pair), pair[:, 1:4])
    assert network.seen.shape == (1, 8, 48, 48, 3)
    assert network.seen[:, 1:4].sum() == pair[:, 1:4].sum()


def test_no_training_subject_is_segmented_by_the_network_of_its_fold(tmp_path: Path) -> None:
    folds = []
    for name in ("A", "B"):
        folds.append(str(shutil.copy(WEIGHTS, tmp_path / f"{name}.pt")))
    data = [{"subject": name, "moving": name} for name in ("p4", "p1", "p3", "p2", "p5", "p1")]
    items = assign_folds(data, folds)
    seen = [in_fold([item["subject"] for item in data], [i, 2]) for i in range(2)]
    for item, before in zip(items, data):
        assert item["subject"] not in seen[folds.index(item["segmented_by"].path)]
        assert {key: item[key] for key in before} == before
    assert assign_folds(data, None) == data


def test_an_item_s_own_network_segments_it(tmp_path: Path) -> None:
    state = torch.load(WEIGHTS, weights_only=True)
    torch.save(
        {name: value * 0 if "output_block" in name else value for name, value in state.items()}, tmp_path / "flat.pt"
    )
    pair = AddAnatomy(WEIGHTS)(phantom_pair(segmented_by=weights_of(tmp_path / "flat.pt")))["pair"]
    assert pair[[1, 2, 3, 5, 6, 7]].eq(0).all()


def test_a_transform_is_known_by_its_weights_not_by_what_it_has_done(tmp_path: Path) -> None:
    transform = AddAnatomy(WEIGHTS)
    before = pickle.dumps(transform)
    transform(phantom_pair())
    assert pickle.dumps(transform) == before
    state = torch.load(WEIGHTS, weights_only=True)
    torch.save({name: value * 2 for name, value in state.items()}, tmp_path / "other.pt")
    other = AddAnatomy(tmp_path / "other.pt")
    torch.save(state, tmp_path / "other.pt")
    assert pickle.dumps(AddAnatomy(tmp_path / "other.pt")) != pickle.dumps(other)


def test_bad_input_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.pt: no such checkpoint"):
        AddAnatomy(tmp_path / "no.pt")
    with pytest.raises(InputError, match=r"is a folder; give the weights"):
        AddAnatomy(tmp_path)
    with pytest.raises(InputError, match=r"model\.pt: holds the weights of another network"):
        AddAnatomy(ROOT / "models" / "model.pt")(phantom_pair())
    for given in ([WEIGHTS], str(WEIGHTS), []):
        with pytest.raises(InputError, match=r"--segmentations .*: give the weights of two folds or more"):
            assign_folds([{"subject": "a"}], given)
