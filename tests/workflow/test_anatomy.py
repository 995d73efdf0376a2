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
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.data import MetaTensor
from scripts.cardiac.segmentation import resize
from scripts.data.folds import in_fold
from scripts.errors import InputError
from scripts.workflow.anatomy import AddAnatomy, assign_folds, weights_of
from scripts.workflow.segmenters import load_segmenter

WEIGHTS = ROOT / "models" / "segmentation.pt"
SPACING = (1.4, 1.6, 8.0)


def make_case(frames: int = 1, size: tuple[int, int] = (40, 36), slices: int = 3, **more: object) -> dict:
    """A case of noise on its native grid, and its pair on a grid of another size as `PairFrames` makes it."""
    generator = torch.Generator().manual_seed(frames)
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    moving, fixed = (MetaTensor(torch.rand(n, *size, slices, generator=generator), affine=affine) for n in (frames, 1))
    pair = torch.rand(2, size[0] + 8, size[1] + 4, slices * frames, generator=generator)
    return {"moving_image": moving, "fixed_image": fixed, "pair": MetaTensor(pair, affine=affine), **more}


def expected_maps(image: np.ndarray, size: tuple[int, ...]) -> torch.Tensor:
    """RV, myocardium and LV of a stack (X, Y, Z) as the segmentation network alone gives them, (3, *size, Z)."""
    maps = torch.from_numpy(load_segmenter(WEIGHTS).probabilities(image, SPACING))[1:]
    return torch.stack([resize(maps[None, ..., z], size)[0] for z in range(maps.shape[-1])], dim=-1)


def test_probabilities_of_both_images_lie_beside_their_intensities() -> None:
    case = make_case()
    pair = AddAnatomy(WEIGHTS)(case)["pair"]
    assert pair.shape == (8, 48, 40, 3)
    assert torch.equal(pair[[0, 4]].as_tensor(), case["pair"].as_tensor())
    assert torch.equal(pair.affine, case["pair"].affine)
    for first, key in ((1, "moving_image"), (5, "fixed_image")):
        expected = expected_maps(case[key][0].numpy(), (48, 40))
        torch.testing.assert_close(pair[first : first + 3].as_tensor(), expected)


def test_each_frame_of_a_cine_has_its_own_maps_and_the_fixed_image_s() -> None:
    case = make_case(frames=2)
    pair = AddAnatomy(WEIGHTS)(case)["pair"].as_tensor().unflatten(-1, (3, 2))
    for frame in range(2):
        expected = expected_maps(case["moving_image"][frame].numpy(), (48, 40))
        torch.testing.assert_close(pair[1:4, ..., frame], expected)
    torch.testing.assert_close(pair[5:, ..., 0], expected_maps(case["fixed_image"][0].numpy(), (48, 40)))
    assert torch.equal(pair[5:, ..., 0], pair[5:, ..., 1])
    volumes = dict(case, pair=MetaTensor(case["pair"].as_tensor().unflatten(-1, (3, 2))))
    assert torch.equal(AddAnatomy(WEIGHTS)(volumes)["pair"].as_tensor(), pair)


def test_where_something_was_measured_stays_the_last_channel() -> None:
    case = make_case()
    valid = torch.rand(1, 48, 40, 3)
    with_valid = dict(case, pair=MetaTensor(torch.cat([case["pair"].as_tensor(), valid]), affine=case["pair"].affine))
    pair = AddAnatomy(WEIGHTS)(with_valid)["pair"].as_tensor()
    assert torch.equal(pair, torch.cat([AddAnatomy(WEIGHTS)(case)["pair"].as_tensor(), valid]))


def test_a_long_axis_view_has_no_maps() -> None:
    pair = AddAnatomy(WEIGHTS)(make_case(plane="4CH"))["pair"]
    assert pair[[1, 2, 3, 5, 6, 7]].eq(0).all()
    assert AddAnatomy(WEIGHTS)(make_case(plane="SAX"))["pair"][1:4].any()


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
    case = make_case(segmented_by=weights_of(tmp_path / "flat.pt"))
    pair = AddAnatomy(WEIGHTS)(case)["pair"]
    torch.testing.assert_close(pair[1:4].as_tensor(), torch.full((3, 48, 40, 3), 0.25))


def test_a_transform_is_known_by_its_weights_not_by_what_it_has_done(tmp_path: Path) -> None:
    transform = AddAnatomy(WEIGHTS)
    before = pickle.dumps(transform)
    transform(make_case())
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
        AddAnatomy(ROOT / "models" / "model.pt")(make_case())
    for given in ([WEIGHTS], str(WEIGHTS), []):
        with pytest.raises(InputError, match=r"--segmentations .*: give the weights of two folds or more"):
            assign_folds([{"subject": "a"}], given)
