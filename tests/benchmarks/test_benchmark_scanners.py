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

"""The benchmark of other scanners: changed pairs show the same heart, under labels that fit, and rows are those of an
evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_nifti
from monai.transforms import Compose
from scripts.cardiac.phantom import write_phantom_dataset
from scripts.data.loading import LoadPaird
from scripts.errors import InputError

from benchmarks import scanners


def centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return (affine @ [*np.argwhere(mask).mean(axis=0), 1.0])[:3]


@pytest.mark.parametrize("size", [0.7, 2.1])
def test_another_pixel_size_shows_the_same_heart(tmp_path: Path, size: float) -> None:
    x, y = np.meshgrid(np.arange(48), np.arange(40), indexing="ij")
    disc = ((x - 20) ** 2 + (y - 23) ** 2 < 100)[..., None].astype(np.float32)
    affine = np.array([[0, 1.4, 0, 5], [-1.4, 0, 0, 9], [0, 0, 8, -3], [0, 0, 0, 1.0]])
    keys = ("moving", "fixed", "moving_label", "fixed_label")
    item = LoadPaird()({key: str(write_nifti(tmp_path / f"{key}.nii.gz", disc, affine)) for key in keys})
    found = scanners.ResamplePaird(size)(item)
    for key in keys:
        image, at = np.asarray(found[key][0]), found[key].affine.numpy()
        assert found[key].pixdim[:2].tolist() == pytest.approx([size, size], rel=0.02)
        mask = image > 0.5
        assert np.allclose(centroid(mask, at), centroid(disc > 0.5, affine), atol=size / 4)
        assert mask.sum() * np.prod(found[key].pixdim[:2].tolist()) == pytest.approx(disc.sum() * 1.4**2, rel=0.05)
    assert set(np.unique(found["moving_label"])) == {0.0, 1.0}


TURNS = ("mirrored", "turned by 90 degrees")


@pytest.mark.parametrize("name", [name for name in scanners.CHANGES if name not in TURNS])
def test_a_change_of_intensities_is_one_and_leaves_places_and_labels(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(50, 500, 24 * 20 * 2, dtype=np.float32).reshape(24, 20, 2)
    paths = {key: str(write_nifti(tmp_path / f"{key}.nii.gz", ramp)) for key in ("moving", "fixed")}
    paths["fixed_label"] = str(write_nifti(tmp_path / "fixed_label.nii.gz", (ramp > 200).astype(np.uint8)))
    item = LoadPaird()(paths)
    found = Compose([scanners.CHANGES[name]()]).set_random_state(0)(dict(item))
    assert np.abs(np.asarray(found["moving"]) - ramp).max() > 1
    assert np.array_equal(found["fixed_label"], item["fixed_label"])
    assert np.array_equal(found["moving"].affine, item["moving"].affine)
    assert np.array_equal(found["moving"], found["fixed"]) == ("noise" not in name)


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_takes_labels_along(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(50, 500, 24 * 20 * 2, dtype=np.float32).reshape(24, 20, 2)
    label = (ramp > 200).astype(np.float32)
    item = LoadPaird()(
        {
            key: str(write_nifti(tmp_path / f"{key}.nii.gz", label if "label" in key else ramp))
            for key in scanners.PAIR + scanners.LABELS
        }
    )
    found = scanners.CHANGES[name]()(dict(item))
    for one, other in (("moving", "moving_label"), ("fixed", "fixed_label")):
        assert not np.array_equal(found[one][0], ramp)
        assert np.array_equal(np.asarray(found[one][0]) > 200, np.asarray(found[other][0]) > 0)
        assert np.allclose(found[one].affine, found[other].affine)


def test_rows_are_those_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_phantom_dataset(tmp_path / "data", 3, seed=0, size=(96, 96), slices=2, frames=4, progress=False)
    words = [
        "--dataset_dir",
        str(root),
        "--split",
        "test",
        "--spacings",
        "2.5",
        "--json",
        str(tmp_path / "scanners.json"),
    ]
    rows = scanners.main(words)
    assert json.loads((tmp_path / "scanners.json").read_text())["rows"] == rows
    by_run = {(row["images"], row["working_spacing"], row["direction"]): row for row in rows}
    assert len(by_run) == len(rows) == 8 + 2 * len(scanners.CHANGES)
    for row in rows:
        assert 60 < row["dice"] < 100
    for direction in ("ES_to_ED", "ED_to_ES"):
        figures = {run[:2]: row["dice"] for run, row in by_run.items() if run[2] == direction}
        # These phantoms have the working spacing already.
        coarse = "pixels of 2.5 mm"
        assert figures["native", True] == figures["native", False] > figures[coarse, True] > figures[coarse, False]
        assert all(figures[name, True] != figures["native", True] for name in scanners.CHANGES)
    for change, images in ((2.5, "pixels of 2.5 mm"), ("coil shading", "coil shading")):
        again = scanners.score(change, True, str(root), "test", str(scanners.ROOT / "models" / "model.pt"), "cpu")
        assert again["ES_to_ED"]["dice"] == by_run[images, True, "ES_to_ED"]["dice"]
    assert "2.5 mm" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--device cuda:99: no such device here"):
        scanners.main(["--dataset_dir", str(tmp_path), "--device", "cuda:99"])
