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

"""The sensitivity benchmark: runs that differ in what they say, a budget that does not, resumption run by run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from scripts.api import ROOT
from scripts.cardiac.phantom import write_phantom_dataset

from benchmarks import sensitivity
from benchmarks.sensitivity import Run

RUNS = [Run(), Run("weighted_sum", 0.01), Run(batch_size=16)]


@pytest.fixture(autouse=True)
def keep_threads() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms"), 4, seed=0, size=(32, 32), slices=3, frames=4)


@pytest.fixture
def small(phantoms: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "small.yaml").write_text("slice_size: [32, 32]\ncrop_size: [32, 32]\nlearning_rate: 1.0\n")
    return [
        "--dataset_dir",
        str(phantoms),
        "--output_dir",
        str(tmp_path / "out"),
        "--config",
        str(tmp_path / "small.yaml"),
    ]


def test_plan_varies_what_it_says_about_the_defaults() -> None:
    runs = sensitivity.plan()
    assert runs[0] == Run()
    assert len({run.name for run in runs}) == len(runs) == len(set(runs))
    config = sensitivity.ConfigWorkflow(
        str(ROOT / "configs" / "train.yaml"),
        str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
    ).parser
    config["device"] = "cpu"
    defaults = {
        key: config.get_parsed_content(key) for key in ("strategy", "weight", "learning_rate", "batch_size", "seed")
    }
    assert Run() == Run(**defaults)
    surgery = {(run.learning_rate, run.batch_size) for run in runs if run.strategy == "projection"}
    assert surgery == {(rate, batch) for rate in sensitivity.RATES for batch in sensitivity.BATCHES}
    assert {run.weight for run in runs if replace(run, weight=0.0) == Run("weighted_sum")} == set(sensitivity.WEIGHTS)


def test_runs_share_a_budget_and_are_resumed_one_by_one(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sensitivity, "plan", lambda: RUNS)
    out = tmp_path / "out"
    first = sensitivity.main([*small, "--epochs", "2", "--runs", "2"])
    assert [Run(**result["run"]) for result in first] == RUNS[:2]
    before = {path: path.read_bytes() for path in out.glob("*seed0.json")}
    figure = tmp_path / "figures" / "sensitivity.png"
    results = sensitivity.main([*small, "--epochs", "2", "--figure", str(figure)])
    assert "2 of 3 runs are finished" in capsys.readouterr().out
    assert results[:2] == first
    assert all(path.read_bytes() == content for path, content in before.items())
    # Two subjects of three slices train; an incomplete batch is left out.
    assert [(result["slices"], result["steps"]) for result in results] == [(8, 2), (8, 2), (12, 2)]
    assert all(result["run"]["learning_rate"] == 1e-3 for result in results)
    with (out / "sensitivity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["strategy"], row["weights"]) for row in rows[:4:3]] == [
        ("projection", "mean"),
        ("weighted_sum", "last"),
    ]
    assert float(rows[1]["dice"]) == results[0]["last"]["dice"] != results[0]["mean"]["dice"]
    assert json.loads((out / "sensitivity.json").read_text())["runs"] == results
    assert Image.open(figure).size[0] > 1000
    # Another budget is another measurement.
    monkeypatch.setattr(sensitivity, "plan", lambda: RUNS[:1])
    (again,) = sensitivity.main([*small, "--epochs", "1"])
    assert again["steps"] * 2 == first[0]["steps"]


def test_fields_of_these_runs_can_fold(small: list[str], tmp_path: Path) -> None:
    """The overrides reach the workflow: without a weight, at a rate out of proportion, a displacement folds."""
    settings = {"epochs": 2, "device": "cpu", "config": [small[-1]]}
    with sensitivity.tqdm(disable=True) as progress:
        torn = sensitivity.train(
            Run("weighted_sum", 0.0, learning_rate=0.1, batch_size=2), settings, small[1], progress
        )
    assert torn["last"]["folding_percent"] > 0


def test_labels_are_needed(small: list[str], phantoms: Path, tmp_path: Path) -> None:
    for path in phantoms.rglob("*"):
        if path.is_file() and "_gt" not in path.name:
            copy = tmp_path / "bare" / path.relative_to(phantoms)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    with pytest.raises(sensitivity.InputError, match="no label"):
        sensitivity.main(["--dataset_dir", str(tmp_path / "bare"), *small[2:], "--epochs", "1", "--runs", "1"])
    assert not list((tmp_path / "out").glob("*"))
