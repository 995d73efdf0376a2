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

"""The benchmark measures what it says: on small steps, and not at all where surgery is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT
from scripts.errors import InputError
from scripts.surgery.rules import RULES

from benchmarks import inference, sensitivity, step, strain, table, training

TINY = ["--device", "cpu", "--batch", "2", "--size", "32", "--rounds", "3", "--network", "pyramid"]

REFERENCE = """
from torch import nn
steps = []
def load_model(config):
    assert config["ImgSize"] == 32 and config["FeatNum"][-1] == 256
    network = nn.Conv2d(2, 2, 1)
    network.forward = lambda moving, fixed: {"Moved": moving, "Fixed": fixed}
    return network
class GradientDescent:
    def __init__(self, model, optimizer, similarity, smoothness, weights, strategy):
        assert strategy == "LayerWise"
    def update_gradient(self, forward):
        assert forward["Fixed"].shape == (2, 1, 32, 32)
        steps.append(1)
"""


@pytest.fixture(autouse=True)
def keep_threads() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_prints_and_writes_ratios_of_each_round(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model_func.py").write_text(REFERENCE)
    variants = [
        "--variants",
        "contiguous",
        "channels_last",
        "--reference",
        str(tmp_path),
        "--json",
        str(tmp_path / "step.json"),
    ]
    step.main(TINY + variants)
    written = json.loads((tmp_path / "step.json").read_text())
    names = {f"{kind}, {form}" for kind in ("plain", "surgery") for form in ("contiguous", "channels_last")}
    assert set(written["steps"]) == names | {step.AS_WRITTEN, "reference"}
    assert written["float64_error"] < 1e-10
    seconds = written["seconds"]
    assert all(len(values) == 3 for values in seconds.values())
    ratios = sorted(s / p for s, p in zip(seconds["surgery, channels_last"], seconds["plain, channels_last"]))
    row = written["steps"]["surgery, channels_last"]
    assert row["to_plain_same_format"]["median"] == pytest.approx(ratios[1])
    assert row["to_plain_same_format"]["q1"] == pytest.approx((ratios[0] + ratios[1]) / 2)
    assert row["to_plain_as_written"]["median"] > 0
    assert row["to_reference"]["median"] > 0
    printed = capsys.readouterr().out
    for name in written["steps"]:
        assert f"\n{name}" in printed


def test_wrong_surgery_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "projection", lambda conflicts: (1, 0.001 * torch.ones_like(conflicts.dot)))
    monkeypatch.setattr(step, "time_rounds", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="nothing was timed"):
        step.main(TINY)


def test_bf16_is_skipped_aloud_where_it_would_be_imitated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(device: str, bf16: bool) -> None:
        if bf16:
            raise InputError("cpu has no bfloat16 arithmetic")

    monkeypatch.setattr(step, "check_bf16", refuse)
    result = step.main([*TINY, "--variants", "channels_last", "bf16"])
    assert "bf16: skipped, cpu has no bfloat16 arithmetic" in capsys.readouterr().out
    assert not [name for name in result["steps"] if "bf16" in name]


@pytest.mark.parametrize("module", [step, training, inference, strain, sensitivity, table])
def test_a_device_that_is_not_there_is_named_before_anything_runs(module: ModuleType, tmp_path: Path) -> None:
    words = {sensitivity: ["--dataset_dir", str(tmp_path)], table: ["--dataset_dir", str(tmp_path)]}.get(module, [])
    words += ["--output_dir", str(tmp_path / "out")] if words else []
    device = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(InputError, match=f"--device {device}: no such device here; use one of cpu"):
        module.main([*words, "--device", device])
    assert not (tmp_path / "out").exists()


def test_bfloat16_runs_and_a_missing_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(step.InputError, match=r"model_func\.py: no such file; --reference takes a checkout"):
        step.main([*TINY, "--variants", "bf16", "--reference", str(tmp_path)])


def test_strain_of_registered_phantoms_is_printed_beside_the_exact_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "strain.json"
    strain.main(["--subjects", "1", "--size", "96", "--frames", "4", "--json", str(path)])
    assert str(ROOT) not in path.read_text()
    (row,) = json.loads(path.read_text())["rows"]
    assert row["radial_global"] > 0.2
    assert row["circumferential_global"] < -0.1
    lines = capsys.readouterr().out.splitlines()
    for name in ("radial", "circumferential"):
        for part in ("global", "worst_sector"):
            errors = [row[f"{name}_{part}_{kind}"] for kind in ("exact", "registered")]
            assert 0 < errors[0] < 0.02
            assert errors[0] < errors[1] < 0.15
            (line,) = (line for line in lines if line.startswith(f"{name} {part.replace('_', ' ')}"))
            assert all(f"{error:.4f}" in line for error in errors)
        assert row[f"{name}_global_registered"] < row[f"{name}_worst_sector_registered"]
    assert 0 < row["lv_ef_percent_registered"] < 10
    assert f"{row['lv_ef_percent_registered']:.4f}" in lines[-1]
