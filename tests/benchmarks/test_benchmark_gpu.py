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

"""The measurement on a GPU, rehearsed: every part runs on a CPU from the prepared file alone, within a budget, and what
is finished is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from scripts.data.datalists import select_pairs
from scripts.errors import InputError
from scripts.registration.networks import RegistrationUNet
from scripts.training.datasets import SliceDataset
from scripts.training.evaluation import score_case

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.checks import ReadCounter, difference, time_steps
from benchmarks.gpu.parts import Part, run_parts
from benchmarks.gpu.prepared import prepare, read
from benchmarks.gpu.trainings import TRAININGS
from benchmarks.training import read_config

PARTS = ["versions", "parity", "precision", "synchronizations", "steps", *TRAININGS, "compiled", "volumes"]


@pytest.fixture(autouse=True)
def settings_stay() -> None:
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture(scope="module")
def prepared(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "phantoms.npz"
    assert prepare(phantoms, path, size=40) == path.stat().st_size
    return path


def test_every_part_runs_from_the_prepared_file(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no image is read where there is none")

    monkeypatch.setattr(nib, "load", refuse)
    gpu.main(["--rehearse", "--data", str(prepared), "--output_dir", str(tmp_path)])
    assert "so its figures say nothing" in capsys.readouterr().out
    files = list(tmp_path.rglob("*"))
    assert {file.name for file in files} == {"results.json", *(f"{name}.pt" for name in TRAININGS)}
    assert len(files) <= 8
    assert max(file.stat().st_size for file in files) < 2**24
    text = (tmp_path / "results.json").read_text()
    assert str(prepared) not in text
    result = json.loads(text)
    assert result["rehearsal"]
    parts = result["parts"]
    assert list(parts) == PARTS
    assert all(part["seconds"] > 0 for part in parts.values())
    assert max(parts["parity"]["handler"].values()) < 1e-10
    assert parts["precision"]["gradients"]["fp32"]["relative_error"] < 1e-3
    assert parts["precision"]["gradients"]["bf16"]["smallest_cosine"] < 1 - 1e-5
    for network in ("published", "shipped"):
        steps = parts["steps"][network]
        assert steps["surgery, eager"]["to_plain"]["median"] > 1
        assert 0 <= steps["surgery, graph"]["idle_percent"] < 100
        assert steps["not_measured"] == {}
    for name in TRAININGS:
        assert parts[name]["graph"]
        assert set(parts[name]["test"]) == {"ES_to_ED", "ED_to_ES"}
        assert 0 < parts[name]["test"]["ES_to_ED"]["dice"]["mean"] <= 100
    RegistrationUNet(conv_bias=True).load_state_dict(
        {key.removeprefix("backbone."): v for key, v in torch.load(tmp_path / "gsmorph.pt", weights_only=True).items()}
    )


def test_the_prepared_file_holds_what_training_and_evaluation_see(phantoms: Path, prepared: Path) -> None:
    data = read(prepared)
    config = read_config("shipped", "cpu", working_spacing=False)
    transform = config.get_parsed_content("train::preprocessing")
    train = SliceDataset(select_pairs(phantoms, None, "train"), transform, (40, 40), progress=False, labels=True)
    assert torch.allclose(data.pairs, train.pairs, atol=0.5 / 255 + 1e-6)
    assert torch.equal(data.labels, train.labels)
    assert np.bincount(data.stack).tolist() == [2, 2, 2]
    items = select_pairs(phantoms, None, "test", "both")
    cases = data.cases()
    assert [(case.subject, case.direction) for case in cases] == [(i["subject"], i["direction"]) for i in items]
    for case, item in zip(cases, items):
        loaded = transform(item)
        assert torch.allclose(case.pair(99.0), loaded["pair"].as_tensor(), atol=0.02)
        field = 2 * torch.rand(loaded["pair"].shape, generator=torch.Generator().manual_seed(0))
        keys = ("moving_image", "fixed_image", "moving_label", "fixed_label")
        expected = score_case(field, *(loaded[key] for key in keys), (32, 32))["registered"]
        found = case.score(field.numpy(), (32, 32))
        assert found == pytest.approx(expected, rel=0.02)
        assert found["dice"] == expected["dice"]
        assert found["hd95_mm"] == pytest.approx(expected["hd95_mm"])
    stack, spacing = data.deepest()
    assert stack.shape == (1, 2, 40, 40, 2)
    assert spacing[0].tolist() == pytest.approx(transform(items[0])["pair"].pixdim.tolist())


def test_crops_are_central_and_labels_come_where_wanted(prepared: Path) -> None:
    data = read(prepared)
    batch = data.slices("cpu", labeled=True, size=20)[[0, 1]]
    assert torch.equal(batch["pair"], data.pairs[:2, :, 10:30, 10:30])
    assert torch.equal(batch["label"], data.labels[:2, :, 10:30, 10:30])
    assert data.slices("cpu")[0].keys() == {"pair"}


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", "other arrays"])
def test_another_file_is_refused(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        np.savez(path, pairs=np.zeros(3))
    with pytest.raises(InputError, match=r"^--data .*file\.npz: is not what python -m benchmarks\.gpu --prepare"):
        read(path)


def test_what_cannot_be_prepared_leaves_no_file(copy: Path, tmp_path: Path) -> None:
    for label in copy.rglob("*_gt.nii.gz"):
        label.unlink()
    with pytest.raises(InputError, match="has no label beside it"):
        prepare(copy, tmp_path / "file.npz", size=40)
    assert not (tmp_path / "file.npz").exists()


@pytest.mark.parametrize("options", [[], ["--prepare", "DIR"]])
def test_the_file_is_asked_for(options: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        gpu.main(options)
    assert "--data FILE is needed" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--prepare", "DIR", "--data", str(tmp_path / "nowhere" / "file.npz")])
    assert "file.npz cannot be written: its folder is not there" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_passes_for_a_measurement(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--device cuda:0: no such device here"):
        gpu.main(["--data", str(prepared), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# --- the budget


class Clock:
    """Time that passes where a part says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def part(self, name: str, takes: float, *needs: str, says: float | None = None) -> Part:
        """A part that takes some seconds, and says so or says otherwise."""

        def run(results: dict) -> dict:
            self.now += takes
            return {"before": list(results)}

        return Part(name, run, lambda _: takes if says is None else says, needs)


def broken(name: str, error: BaseException) -> Part:
    def run(_: dict) -> dict:
        raise error

    return Part(name, run, lambda _: 0.0)


def run(parts: list[Part], budget: float, clock: Callable[[], float]) -> tuple[dict, list[list[str]]]:
    kept: list[list[str]] = []
    return run_parts(parts, budget, lambda results: kept.append(list(results)), clock), kept


def test_a_part_that_does_not_fit_is_skipped_and_a_shorter_one_is_not() -> None:
    clock = Clock()
    parts = [clock.part("a", 6), clock.part("long", 5), clock.part("b", 4), clock.part("c", 0.5)]
    results, kept = run(parts, 10, clock)
    assert results["long"] == {"skipped": "needs 5 s, and 4 s are left"}
    assert results["a"]["seconds"] == 6
    assert results["b"] == {"before": ["a", "long"], "seconds": 4}
    assert results["c"] == {"skipped": "needs 0 s, and 0 s are left"}
    assert kept == [["a"], ["a", "long"], ["a", "long", "b"], ["a", "long", "b", "c"]]


def test_a_part_that_takes_longer_than_it_said_leaves_less() -> None:
    clock = Clock()
    results, _ = run([clock.part("a", 20, says=1), clock.part("b", 1)], 10, clock)
    assert results["b"] == {"skipped": "needs 1 s, and 0 s are left"}


def test_a_failure_bars_what_needs_it_alone() -> None:
    clock = Clock()
    parts = [
        broken("a", ArithmeticError("off\nby one")),
        clock.part("b", 1, "a"),
        clock.part("c", 1, "b"),
        clock.part("d", 1),
    ]
    results, _ = run(parts, 10, clock)
    assert results["a"]["failed"] == "off"
    assert "ArithmeticError" in results["a"]["traceback"]
    assert results["b"] == {"skipped": "needs a"}
    assert results["c"] == {"skipped": "needs b"}
    assert results["d"]["seconds"] == 1


def test_what_was_finished_before_an_end_is_kept() -> None:
    clock, kept = Clock(), []
    parts = [clock.part("a", 1), broken("b", KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        run_parts(parts, 10, lambda results: kept.append(dict(results)), clock)
    assert kept == [{"a": {"before": [], "seconds": 1}}]


def test_failures_end_the_command_with_their_reasons(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [broken("a", ArithmeticError("off")), Part("b", lambda _: {}, lambda _: 1e9)]
    monkeypatch.setattr(gpu, "make_parts", lambda _: parts)
    with pytest.raises(InputError, match=r"^a: off; b: needs 1000000000 s"):
        gpu.main(["--rehearse", "--budget", "9", "--data", str(prepared), "--output_dir", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text())["parts"]["a"]["failed"] == "off"


def test_a_training_needs_what_the_last_one_took_or_its_steps(prepared: Path, tmp_path: Path) -> None:
    bench = gpu.Bench("cpu", read(prepared), tmp_path, batch=2)
    steps = {"steps": {"published": {"training, graph": {"milliseconds": {"median": 10.0}}}}}
    # Six slices make three steps an epoch.
    first = gpu.seconds_needed(bench, "gsmorph", steps)
    assert first == pytest.approx(1.1 * 500 * 3 * 0.01 + 20)
    assert gpu.seconds_needed(bench, "gs_pcgrad", {**steps, "gsmorph": {"seconds": 50.0}}) == pytest.approx(55)
    assert gpu.seconds_needed(bench, "gs_pcgrad", {**steps, "gsmorph": {"failed": "off"}}) == first
    # Where no graph can be recorded, by the step as it is launched.
    eager = {"steps": {"published": {"surgery, eager": {"milliseconds": {"median": 20.0}}, "not_measured": {}}}}
    assert gpu.seconds_needed(bench, "gsmorph", eager) == pytest.approx(1.1 * 500 * 3 * 0.02 + 20)


def test_without_a_graph_steps_are_timed_and_trained_as_they_are(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Callable[[], None]) -> None:
        raise InputError("--graph True: this step cannot be recorded (why); leave graph out.")

    monkeypatch.setattr("benchmarks.gpu.bench.run_as_is", refuse)
    sizes = {"batch": 2, "size": 16, "steps": 4, "rounds": 1, "most_steps": 1}
    bench = gpu.Bench("cpu", read(prepared), tmp_path, **sizes)
    steps = time_steps(bench, "shipped", (1e9, 1e9))
    assert set(steps["not_measured"]) == {"surgery, graph", "training, graph"}
    assert "cannot be recorded (why)" in steps["not_measured"]["training, graph"]
    assert steps["surgery, eager"]["idle_percent"] >= 0
    trained = gpu.train(bench, "recipe", {"steps": {"shipped": steps}})
    assert not trained["graph"]
    assert trained["steps"] == 1


# --- what is counted


def test_values_that_the_host_reads_are_counted() -> None:
    x = torch.ones(3)
    with ReadCounter() as counter:
        y = (x + 1).sum()
        assert counter.count == 0
        y.item()
        bool(y > 0)
        x.nonzero()
    assert counter.count == 3


def test_gradients_are_compared_by_length_and_direction() -> None:
    exact = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), torch.tensor([1e-6])]
    found = [torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor([-1e-6])]
    # The last one is too weak to have a direction.
    assert difference(found, exact) == pytest.approx({"relative_error": 3 / 5, "smallest_cosine": 4 / 5}, rel=1e-5)


def test_the_parts_are_in_the_order_of_their_worth(prepared: Path, tmp_path: Path) -> None:
    assert [part.name for part in gpu.make_parts(gpu.Bench("cpu", read(prepared), tmp_path))] == PARTS
    assert all((ROOT / chosen.config).is_file() for chosen in TRAININGS.values())
