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

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from scripts.cardiac.segmentation import Segmenter, make_network
from scripts.training.labeled_slices import load_stack, select_frames

from benchmarks.segmentation import agreement, ejection_fractions, main, score_subject


class Oracle(Segmenter):
    """Gives the drawn label back, without its RV."""

    sees_beside = False

    def __init__(self, item: dict) -> None:
        object.__setattr__(self, "label", load_stack(item)["label"][0].numpy())

    def __call__(self, image, spacing, beside=None):
        return self.label * (self.label != 1)


def test_a_missed_structure_scores_nothing_and_the_others_everything(phantoms: Path) -> None:
    item = select_frames(str(phantoms), None, "test")[0]
    (row,) = score_subject(Oracle(item), [item])
    assert (row["dice_rv"], row["dice_myo"], row["dice_lv"]) == (0, 100, 100)
    assert row["hd95_mm_lv"] == 0
    assert row["rv_ml"] == 0 < row["rv_ml_drawn"]
    assert row["lv_ml"] == row["lv_ml_drawn"] > 1


def test_the_subject_s_other_frame_is_seen_unless_told_not_to(phantoms: Path) -> None:
    items = select_frames(str(phantoms), None, "test")
    images = [load_stack(item)["image"][0].numpy() for item in items]
    shown = []

    def segment(image, spacing, beside=None):
        if beside is not None:
            shown.extend([image, beside])
        return labels[int(np.array_equal(image, images[1]))]

    labels = [load_stack(item)["label"][0].numpy() for item in items]
    segment.sees_beside = True
    rows = score_subject(segment, items)
    # End systole beside end diastole.
    assert [row["phase"] for row in rows] == [item["phase"] for item in items] == ["ES", "ED"]
    assert all(np.array_equal(*pair) for pair in zip(shown, images, strict=True))
    shown.clear()
    score_subject(segment, items, alone=True)
    assert not shown


def test_ejection_fractions_and_their_limits_of_agreement() -> None:
    volumes = {"ED": (100.0, 120.0), "ES": (40.0, 60.0)}
    rows = [
        {
            "subject": "s",
            "phase": phase,
            **{f"{name}_ml{end}": v for name in ("lv", "rv") for end, v in zip(("", "_drawn"), pair)},
        }
        for phase, pair in volumes.items()
    ]
    (found,) = ejection_fractions([*rows, {**rows[0], "subject": "without ES"}])
    assert (found["lv_ef"], found["rv_ef_drawn"]) == (60, 50)
    limits = agreement([1.0, 3.0, float("nan")])
    assert limits["bias"] == 2
    assert limits["limits"] == pytest.approx(1.96 * 2**0.5)


def test_it_prints_and_writes_what_it_measured(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    torch.save(make_network().state_dict(), tmp_path / "weights.pt")
    options = ["--dataset_dir", str(phantoms), "--split", "test", "--checkpoint", str(tmp_path / "weights.pt")]
    main([*options, "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    assert "Dice rv" in printed or "Dice RV" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["summary"]["phases"]["ED"]["frames"] == 1
    assert str(tmp_path) not in json.dumps(found)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_document_says_what_was_measured(split: str) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / f"segmentation_{split}.json").read_text())["summary"]
    text = (ROOT / "docs" / "segmentation.md").read_text()
    for phase, figures in found["phases"].items():
        means = [figures[f"{key}_{name}"] for key in ("dice", "hd95_mm") for name in ("rv", "myo", "lv")]
        cells = [f"{mean['mean']:.1f} ± {mean['std']:.1f}" for mean in means]
        assert " | ".join([f"| `{split}`, {phase}", str(figures["frames"]), *cells]) in text
    for name in ("lv", "rv"):
        one = found["ejection_fraction"][name]
        row = next(r for r in text.splitlines() if r.startswith(f"| {name.upper()} | segmented in both frames |"))
        assert f"{one['bias']:+.1f} ± {one['limits']:.1f} ({one['median_absolute']:.1f})" in row


def test_the_shipped_weights_reach_what_is_asked_of_them() -> None:
    phases = json.loads((ROOT / "benchmarks" / "results" / "segmentation_test.json").read_text())["summary"]["phases"]
    least = {"ED": {"rv": 90, "myo": 87, "lv": 95}, "ES": {"rv": 84, "myo": 88, "lv": 90}}
    for phase, structures in least.items():
        assert all(phases[phase][f"dice_{name}"]["mean"] >= dice for name, dice in structures.items())
