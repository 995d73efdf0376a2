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

"""Scores of cases and the tables they end in, against plain NumPy and SciPy."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from scipy.ndimage import binary_erosion, distance_transform_edt, map_coordinates
from scripts.data.acdc import acdc_pairs
from scripts.data.datalists import folder_splits
from scripts.data.loading import LoadPaird
from scripts.training.evaluation import (
    FIGURES,
    EvaluationReport,
    ScoreRegistrationd,
    average_key_score,
    average_score,
    name_rows,
    score_case,
)
from torch.utils.data import DataLoader, DistributedSampler


def crop(image: np.ndarray, size: int = 128) -> np.ndarray:
    starts = [max(n // 2 - size // 2, 0) for n in image.shape[:2]]
    return image[starts[0] : starts[0] + size, starts[1] : starts[1] + size]


def plain_scores(
    moving: np.ndarray, fixed: np.ndarray, moving_label: np.ndarray, fixed_label: np.ndarray
) -> dict[str, float]:
    """Dice, pooled HD95 in voxels and MSE of one unregistered subject, without this project's code or MONAI's."""
    row = {}
    for name, value in (("rv", 1), ("myo", 2), ("lv", 3)):
        a, b = moving_label == value, fixed_label == value
        if not a.any() and not b.any():
            continue
        row[f"dice_{name}"] = 200 * (a & b).sum() / (a.sum() + b.sum())
        edges = [mask & ~binary_erosion(mask) for mask in (a, b)]
        if a.any() and b.any():
            distances = [distance_transform_edt(~edges[1 - i])[edges[i]] for i in (0, 1)]
            row[f"hd95_{name}"] = np.percentile(np.concatenate(distances), 95)
    row["dice"] = np.mean([v for k, v in row.items() if k.startswith("dice")])
    row["hd95_voxel"] = np.mean([v for k, v in row.items() if k.startswith("hd95")])
    scaled = [(x - x.min((0, 1))) / (x.max((0, 1)) - x.min((0, 1))) for x in map(crop, (moving, fixed))]
    row["mse"] = 100 * np.mean((scaled[0] - scaled[1]) ** 2)
    return row


def test_initial_row_of_the_shared_test_split_is_that_of_plain_numpy(acdc: Path) -> None:
    found, expected = [], []
    for item in acdc_pairs(acdc, folder_splits(acdc)["test"]):
        loaded = LoadPaird()(item)
        loaded.update(
            moving_image=loaded["moving"], fixed_image=loaded["fixed"], pred=torch.zeros(2, *loaded["fixed"].shape[1:])
        )
        scores = ScoreRegistrationd()(loaded)["scores"]
        assert scores["initial"] == scores["registered"]
        found.append(scores["initial"])
        arrays = [
            np.asarray(nib.load(item[key]).dataobj, float) for key in ("moving", "fixed", "moving_label", "fixed_label")
        ]
        expected.append(plain_scores(*arrays))
    assert len(found) == len(folder_splits(acdc)["test"]) == 14
    for key in ("dice", "dice_rv", "dice_myo", "dice_lv", "hd95_voxel", "mse"):
        for one, other in zip(found, expected):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key
    # The published initial row on other subjects is near 60.
    assert 55 < np.mean([row["dice"] for row in found]) < 66
    assert all(row["folding_percent"] == 0 for row in found)


def make_case(shape: tuple[int, int, int] = (24, 20, 2)) -> dict[str, MetaTensor]:
    rng = np.random.default_rng(0)
    affine = torch.diag(torch.tensor([1.5, 1.5, 8.0, 1.0], dtype=torch.float64))
    case = {
        key: MetaTensor(torch.from_numpy(rng.random((1, *shape))).float(), affine=affine)
        for key in ("moving_image", "fixed_image")
    }
    for key in ("moving_label", "fixed_label"):
        case[key] = MetaTensor(torch.from_numpy(rng.integers(0, 4, (1, *shape))).float(), affine=affine)
    return case


def test_registered_figures_pull_labels_and_images_as_scipy_does() -> None:
    case = make_case()
    shape = case["fixed_image"].shape[1:]
    field = torch.zeros(2, *shape)
    field[0], field[1] = 1.25, -2.25
    scores = ScoreRegistrationd((16, 16))({**case, "pred": field})["scores"]
    x, y = np.meshgrid(*map(np.arange, shape[:2]), indexing="ij")
    region = (slice(4, 20), slice(2, 18))
    moving, fixed, moving_label, fixed_label = (
        case[key][0].numpy().astype(float) for key in ("moving_image", "fixed_image", "moving_label", "fixed_label")
    )
    squares, dice = [], []
    for z in range(shape[2]):
        pulled = map_coordinates(moving[..., z], [x + 1.25, y - 2.25], order=1, mode="nearest")[region]
        low, high = moving[..., z][region].min(), moving[..., z][region].max()
        target = fixed[..., z][region]
        squares.append(((pulled - low) / (high - low) - (target - target.min()) / (target.max() - target.min())) ** 2)
    rounded = [
        np.clip(np.round(axis + shift), 0, n - 1).astype(int) for axis, shift, n in zip((x, y), (1.25, -2.25), shape)
    ]
    pulled_label = moving_label[rounded[0], rounded[1]]
    for value in (1, 2, 3):
        a, b = pulled_label == value, fixed_label == value
        dice.append(200 * (a & b).sum() / (a.sum() + b.sum()))
    assert scores["registered"]["mse"] == pytest.approx(100 * np.mean(squares), rel=1e-4)
    assert scores["registered"]["dice"] == pytest.approx(np.mean(dice), rel=1e-6)
    for name, value in (("rv", 1), ("lv", 3)):
        moved, target, start = ((x == value).sum() for x in (pulled_label, fixed_label, moving_label))
        expected = 100 * (moved - target) / max(start, target)
        assert scores["registered"][f"volume_error_{name}"] == pytest.approx(expected)
    assert scores["registered"]["folding_percent"] == 0


def test_a_slice_that_is_blank_in_the_crop_alone_has_a_finite_error() -> None:
    case = make_case()
    case["moving_image"][:, 4:20, 2:18, 1] = 0.5
    for field in (torch.zeros(2, 24, 20, 2), torch.full((2, 24, 20, 2), 3.0)):
        scores = score_case(field, case["moving_image"], case["fixed_image"], None, None, (16, 16))
        assert scores["registered"]["mse"] < 100


def test_without_labels_there_is_no_overlap_and_the_key_is_the_error() -> None:
    case = make_case()
    scores = score_case(torch.zeros(2, 24, 20, 2), case["moving_image"], case["fixed_image"], None, None, (16, 16))
    assert np.isnan(scores["registered"]["dice"])
    output = [{"scores": scores}]
    for metric, expected in (
        (average_key_score(), -scores["registered"]["mse"]),
        (average_score("mse"), scores["registered"]["mse"]),
    ):
        engine = Engine(lambda *_: output)
        metric.attach(engine, "value")
        assert engine.run([0]).metrics["value"] == pytest.approx(expected)


def report(rows: list[tuple[str, str, float]], folder: Path) -> None:
    scores = lambda value: {stage: dict.fromkeys(FIGURES, value) for stage in ("initial", "registered")}
    data = [([{"subject": s, "direction": d}], [{"scores": scores(value)}]) for s, d, value in rows]

    def step(engine: Engine, item: tuple) -> list:
        engine.state.batch = item[0]
        return item[1]

    engine = Engine(step)
    EvaluationReport(folder).attach(engine)
    engine.run(data)


def test_report_has_a_row_a_subject_and_both_directions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    nan = float("nan")
    rows = [("a", "ES_to_ED", 1.0), ("a", "ED_to_ES", 5.0), ("b", "ES_to_ED", 3.0), ("b", "ED_to_ES", nan)]
    report(rows, tmp_path / "new")
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    for stage in ("initial", "registered"):
        assert set(summary[stage]) == set(FIGURES)
        assert summary[stage]["dice"] == {"mean": 2.0, "std": 1.0}
        assert summary["ED_to_ES"][stage]["hd95_mm"] == {"mean": 5.0, "std": 0.0}
    assert set(FIGURES) <= set(summary["definitions"])
    with (tmp_path / "new" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["subject"] for row in table] == ["a", "b"]
    assert table[1]["registered_mse"] == "3.0"
    assert table[1]["ED_to_ES_registered_mse"] == ""
    printed = capsys.readouterr().out
    assert "ES_to_ED, 2 subjects" in printed
    assert "2.000 ± 1.000" in printed
    assert not list((tmp_path / "new").glob(".part*"))


def test_a_report_says_how_many_subjects_have_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report([("a", "ES_to_ED", 1.0), ("b", "ES_to_ED", float("nan"))], tmp_path)
    assert "ES_to_ED, 2 subjects, 1 labeled" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["subjects"], summary["labeled_subjects"]) == (2, 1)


def test_means_leave_out_what_cases_lack() -> None:
    nan = float("nan")
    cases = [{"dice": 80.0, "mse": 1.0}, {"dice": nan, "mse": 3.0}, {"dice": 90.0, "mse": 2.0}]
    engine = Engine(lambda _, case: [{"scores": {"registered": case}}])
    for name, metric in (("dice", average_score("dice")), ("mse", average_score("mse")), ("key", average_key_score())):
        metric.attach(engine, name)
    assert engine.run(cases).metrics == pytest.approx({"dice": 85.0, "mse": 2.0, "key": 85.0})
    # A second run forgets the first one.
    assert engine.run(cases[1:2]).metrics == pytest.approx({"dice": nan, "mse": 3.0, "key": -3.0}, nan_ok=True)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_processes_find_the_mean_of_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(count) * 100
    cases = [{"dice": value, "mse": value} for value in values]
    parts: list[list] = []
    monkeypatch.setattr(idist, "all_gather", lambda rows: [*parts, rows])
    for rank in range(3):
        # With two cases the third process has none of its own: the sampler repeats one.
        loader = DataLoader(cases, sampler=DistributedSampler(cases, 3, rank, shuffle=False), batch_size=None)
        engine = Engine(lambda _, case: [{"scores": {"registered": case}}])
        metric = average_score("dice")
        metric.attach(engine, "dice")
        engine.run(loader)
        parts.append(metric.rows)
    assert engine.state.metrics["dice"] == np.mean(values)


def test_a_structure_that_one_label_lacks_is_left_out() -> None:
    case = make_case()
    case["moving_label"][case["moving_label"] == 1] = 0
    scores = ScoreRegistrationd((16, 16))({**case, "pred": torch.zeros(2, 24, 20, 2)})["scores"]["initial"]
    assert np.isnan(scores["dice_rv"])
    assert scores["dice"] == pytest.approx((scores["dice_myo"] + scores["dice_lv"]) / 2)


def test_two_pairs_of_a_subject_are_two_rows(tmp_path: Path) -> None:
    rows = [
        {"subject": s, "case": c, "direction": "d"} for s, c in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b1"))
    ]
    assert list(name_rows(rows)) == ["a1", "a2", "b1", "b1_2"]
    report([("a", "frame 3 to 1", 1.0), ("a", "ES_to_ED", 2.0)], tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["registered"]["dice"]["mean"] == 2.0
    assert summary["frame 3 to 1"]["registered"]["dice"]["mean"] == 1.0


def test_a_subject_may_have_one_direction_alone(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path)
    scores = {stage: dict.fromkeys(FIGURES, 1.0) for stage in ("initial", "registered")}
    batch = [{"subject": "a", "direction": "ES_to_ED"}, {"subject": "b", "direction": "ED_to_ES"}]
    for item in batch:
        report.collect(SimpleNamespace(state=SimpleNamespace(batch=[item], output=[{"scores": scores}])))
    report.write(SimpleNamespace(state=SimpleNamespace(dataloader=batch)))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["registered_dice"] for row in rows] == ["1.0", ""]
    assert [row["ED_to_ES_registered_dice"] for row in rows] == ["", "1.0"]
    assert (tmp_path / "summary.json").is_file()
