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

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_nifti
from scripts.cardiac.segmentation import make_network
from scripts.data.datalists import select_pairs
from scripts.errors import InputError
from scripts.training.labeled_slices import (
    LabeledSlices,
    LabeledStacks,
    PrecisionInferer,
    PrepareSlices,
    StackInferer,
    labeled_frames,
    load_stack,
    of_structure,
    prepare_stack,
    select_frames,
)


@pytest.fixture(scope="module")
def frames(phantoms: Path) -> list[dict]:
    return labeled_frames(select_pairs(str(phantoms), None, "train"))


def test_each_labeled_frame_counts_once(phantoms: Path, frames: list[dict]) -> None:
    both = labeled_frames(select_pairs(str(phantoms), None, "train", direction="both"))
    assert len(frames) == len(both) == 6
    assert sorted(item["phase"] for item in frames) == ["ED"] * 3 + ["ES"] * 3
    assert len({item["fixed"] for item in frames}) == 6


def test_frames_of_cines_have_the_project_s_labels(mms: Path, phantoms: Path) -> None:
    found, expected = (
        LabeledStacks(labeled_frames(select_pairs(str(folder), None, "val"))) for folder in (mms, phantoms)
    )
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected):
        assert torch.equal(one["label"], other["label"])
        assert one["phase"] == other["phase"]


def test_images_without_labels_are_left_out(frames: list[dict]) -> None:
    half = {"moving": "a.nii", "fixed": "b.nii", "fixed_label": "c.nii", "subject": "s", "direction": "ES_to_ED"}
    (found,) = labeled_frames([half])
    assert found == {"fixed": "b.nii", "fixed_label": "c.nii", "beside": "a.nii", "subject": "s", "phase": "ED"}
    assert labeled_frames([]) == []
    with pytest.raises(InputError, match=r"a\.nii: has no label"):
        labeled_frames([{"moving": "a.nii", "fixed": "b.nii", "subject": "s"}])


def test_slices_hold_image_label_and_neighbors_at_the_working_spacing(frames: list[dict]) -> None:
    data = LabeledSlices(frames[:2], spacing=2.0, size=(64, 60), progress=False)
    stacks = LabeledStacks(frames[:2])
    count = [stack["image"].shape[-1] for stack in stacks]
    assert len(data) == sum(count)
    batch = data[list(range(len(data)))]
    assert batch["image"].shape == (len(data), 3, 64, 60)
    assert batch["label"].shape == (len(data), 1, 64, 60)
    assert batch["label"].dtype == torch.uint8
    # The second stack's first slice has none below, and none of the first stack.
    start = count[0]
    assert torch.equal(batch["image"][start, 0], batch["image"][start, 1])
    assert torch.equal(batch["image"][start, 2], batch["image"][start + 1, 1])
    # The area of a structure in mm² survives.
    drawn = (stacks[0]["label"] > 0).sum() * stacks[0]["spacing"][:2].prod()
    assert (batch["label"][:start] > 0).sum() * 4.0 == pytest.approx(drawn.item(), rel=0.1)
    where = batch["label"][:start].nonzero()[:, 2:].float().mean(dim=0)
    torch.testing.assert_close(batch["center"][0], where)


def test_each_slice_lies_beside_itself_in_the_other_phase(frames: list[dict]) -> None:
    data = LabeledSlices(frames, spacing=2.0, size=(48, 48), phases=2, progress=False)
    images = data[list(range(len(data)))]["image"]
    assert torch.equal(images[data.beside][:, :3], images[:, 3:])
    assert torch.equal(data.beside[data.beside], torch.arange(len(data)))
    assert (data.beside != torch.arange(len(data))).all()
    for item in frames:
        (other,) = (one for one in frames if one["subject"] == item["subject"] and one["phase"] != item["phase"])
        assert torch.equal(load_stack(item)["beside"], load_stack(other)["image"])


def test_without_another_phase_a_slice_lies_beside_itself(frames: list[dict], tmp_path: Path) -> None:
    data = LabeledSlices(frames[:1], spacing=2.0, size=(48, 48), phases=2, progress=False)
    images = data[list(range(len(data)))]["image"]
    assert torch.equal(images[:, :3], images[:, 3:])
    elsewhere = write_nifti(tmp_path / "other.nii.gz", np.ones((5, 5, 2), np.float32))
    stack = load_stack({**frames[0], "beside": str(elsewhere)})
    assert torch.equal(stack["beside"], stack["image"])


def test_an_odd_difference_in_size_keeps_image_and_label_together(tmp_path: Path) -> None:
    label = np.zeros((31, 17, 2), np.uint8)
    label[12:19, 6:11] = 3
    paths = {
        "fixed": str(write_nifti(tmp_path / "image.nii.gz", 100.0 * label + 7.0)),
        "fixed_label": str(write_nifti(tmp_path / "label.nii.gz", label)),
    }
    data = LabeledSlices([{**paths, "subject": "s", "phase": "ED"}], spacing=1.5, size=(24, 24), progress=False)
    batch = data[[0, 1]]
    assert torch.equal(batch["label"] == 3, batch["image"][:, 1:2] > 0.5)
    assert batch["label"].any(dim=(0, 1, 3)).nonzero().tolist() == [[n] for n in range(8, 15)]
    assert batch["extent"].tolist() == [[24.0, 17.0]] * 2


def test_a_label_of_other_values_is_refused(tmp_path: Path) -> None:
    paths = {
        "fixed": str(write_nifti(tmp_path / "image.nii.gz", np.ones((9, 9, 2), np.float32))),
        "fixed_label": str(write_nifti(tmp_path / "label.nii.gz", np.full((9, 9, 2), 7, np.uint8))),
    }
    with pytest.raises(InputError, match=r"label\.nii\.gz: holds 7"):
        LabeledStacks([{**paths, "subject": "s", "phase": "ED"}])


def test_batches_reach_the_network_augmented(frames: list[dict]) -> None:
    data = LabeledSlices(frames[:1], spacing=2.0, size=(24, 24), progress=False)
    prepare = PrepareSlices(lambda image, label, center, extent: (image + 1, label))
    image, label = prepare(data[[0, 1]], torch.device("cpu"))
    torch.testing.assert_close(image, data[[0, 1]]["image"] + 1)
    assert torch.equal(label, data[[0, 1]]["label"])


def test_a_stack_is_inferred_on_its_own_grid(frames: list[dict]) -> None:
    batch = {
        key: value[None] if isinstance(value, torch.Tensor) else [value]
        for key, value in LabeledStacks(frames[:1])[0].items()
    }
    image, label, arguments, _ = prepare_stack(batch, torch.device("cpu"))
    found = StackInferer(2.0)(image, make_network((4, 6, 8)).eval(), *arguments)
    assert found.shape == (1, 4, *label.shape[2:])


def test_bfloat16_stays_inside() -> None:
    torch.manual_seed(0)
    network, image = make_network((4, 6, 8)).eval(), torch.rand(1, 3, 16, 16)
    exact, rounded = (PrecisionInferer(bf16)(image, network) for bf16 in (False, True))
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.1


def test_a_structure_is_its_channel() -> None:
    output = [{"pred": torch.arange(4).view(4, 1, 1), "label": torch.arange(4, 8).view(4, 1, 1)}]
    prediction, label = of_structure(2)(output)
    assert (prediction[0].item(), label[0].item()) == (2, 6)


def test_a_fold_has_its_subjects_alone(phantoms: Path) -> None:
    subjects = [
        sorted({item["subject"] for item in select_frames(str(phantoms), None, "train", fold=fold)})
        for fold in (None, [0, 2], [1, 2])
    ]
    assert len(subjects[0]) == 3
    assert subjects[1:] == [subjects[0][::2], subjects[0][1::2]]
