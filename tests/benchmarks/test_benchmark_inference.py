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

"""The benchmark of field computation compares what it says, and times no method whose fields do not register."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts.data.loading import read_cine
from scripts.errors import InputError

from benchmarks import inference

itk = pytest.importorskip("itk")
TINY = ["--crop", "64", "--rounds", "2", "--slices", "2", "--iterations", "10", "--no_cine"]
STILL: Callable = lambda pairs: torch.zeros_like(pairs)


@pytest.fixture(autouse=True)
def keep_threads() -> None:
    threads, itk_threads = torch.get_num_threads(), itk.MultiThreaderBase.GetGlobalMaximumNumberOfThreads()
    yield
    torch.set_num_threads(threads)
    itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(itk_threads)


def test_prints_and_writes_ratios_of_each_round(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    inference.main([*TINY, "--json", str(tmp_path / "inference.json")])
    written = json.loads((tmp_path / "inference.json").read_text())
    ours = {f"ours, {form}, batch {batch}" for form in ("contiguous", "channels_last") for batch in inference.BATCHES}
    assert set(written["seconds"]) == ours | {"demons", "symmetric"}
    assert written["not_timed"] == []
    assert written["versions"]["itk"] == itk.Version.GetITKVersion()
    assert written["slices"] == 2
    initial = written["methods"].pop("no registration")
    assert set(written["methods"]) == set(written["seconds"])
    for name, row in written["methods"].items():
        seconds, base = written["seconds"][name], written["seconds"][inference.OURS]
        assert len(seconds) == 2
        assert row["milliseconds"]["median"] == pytest.approx(1e3 * sum(seconds) / 2 / 2)
        assert row["times_ours"]["median"] == pytest.approx(sum(s / b for s, b in zip(seconds, base)) / 2)
        assert row["times_ours"]["q1"] <= row["times_ours"]["median"] <= row["times_ours"]["q3"]
        assert row["mse"] < initial["mse"]
        assert row["dice"] > initial["dice"]
    printed = capsys.readouterr().out
    for name in written["methods"]:
        assert f"\n{name}  " in printed


def test_a_method_that_does_not_register_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(inference.ITK, "demons", lambda iterations: STILL)
    result = inference.main([*TINY, "--variants", "demons"])
    assert result["not_timed"] == ["demons"]
    assert set(result["seconds"]) == {inference.OURS}
    assert "demons: 1.000 of a phantom's mean squared difference is left; not timed" in capsys.readouterr().out


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_nothing_is_timed_where_ours_does_not_register(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(inference, "make_network_method", lambda *_, **__: lambda pairs: torch.full_like(pairs, value))
    monkeypatch.setattr(inference, "time_rounds", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="nothing was timed"):
        inference.main([*TINY, "--variants", "contiguous"])


def test_bfloat16_is_not_imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    with pytest.raises(InputError, match="cpu has no bfloat16 arithmetic"):
        inference.main([*TINY, "--variants", "bf16"])


def test_batches_and_formats_give_the_same_fields() -> None:
    checkpoint = str(inference.ROOT / "models" / "model.pt")
    methods = inference.make_methods(["contiguous", "channels_last"], checkpoint, "cpu", 1)
    pairs = inference.phantom_slices(3, 64)["pairs"]
    expected, *others = (method(pairs) for method in methods.values())
    assert len(others) == 5
    assert expected.abs().max() > 1
    for field in others:
        torch.testing.assert_close(field, expected, atol=1e-3, rtol=0)


def test_a_data_set_is_cropped_padded_and_scored_with_its_labels(phantoms: Path) -> None:
    slices = inference.acdc_slices(str(phantoms), count=9, size=38)
    assert slices["pairs"].shape == slices["labels"].shape == (2, 2, 38, 38)
    assert slices["pairs"].amin(dim=(2, 3)).eq(0).all()
    assert slices["pairs"].amax(dim=(2, 3)).eq(1).all()
    assert set(slices["labels"].unique().tolist()) == {0, 1, 2, 3}
    row = inference.score(torch.zeros_like(slices["pairs"]), slices)
    assert row["mse"] > 0
    assert 30 < row["dice"] < 95
    assert "dice" not in inference.score(torch.zeros_like(slices["pairs"]), {"pairs": slices["pairs"]})
    result = inference.main([*TINY, "--slices", "1", "--variants", "contiguous", "--dataset_dir", str(phantoms)])
    assert result["data"] == "slices of the test split"
    assert result["slices"] == 1


def test_a_missing_checkpoint_or_itk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"absent\.pt: no such checkpoint"):
        inference.main([*TINY, "--checkpoint", "absent.pt"])
    monkeypatch.setitem(inference.sys.modules, "itk", None)
    with pytest.raises(InputError, match="itk: is not installed; pip install itk"):
        inference.main(TINY)


def test_a_whole_case_is_timed_from_file_to_files(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, weights = phantoms / "phantom001", str(inference.ROOT / "models" / "model.pt")
    cine, label = subject / "phantom001_4d.nii.gz", subject / "phantom001_frame01_gt.nii.gz"
    case = inference.time_case("cpu", weights, 64, str(cine), str(label))
    assert case["shape"] == [40, 36, 2, 4]
    assert case["cpu_seconds"] > 0
    assert case["seconds"] > 0
    # Without a cine it is a phantom with its label.
    given = {}

    def register(cine: str, **options: str) -> SimpleNamespace:
        given.update(options)
        return SimpleNamespace(cine=read_cine(cine))

    monkeypatch.setattr(inference, "register_cine", register)
    assert inference.time_case("cpu", weights, 32)["shape"] == [32, 32, 10, 20]
    assert given["reference_label"].endswith("_frame01_gt.nii.gz")


def test_a_pair_of_stacks_is_timed_in_its_parts() -> None:
    weights = str(inference.ROOT / "models" / "model.pt")
    stack = inference.time_stack("cpu", weights, 64, rounds=2, slices=3)
    assert stack.keys() == {"slice by slice", "with motion along the stack", "contours of both images"}
    assert all(row["seconds"]["q1"] > 0 for row in stack.values())
