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

"""What is refused on loading, and random states that return."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
import torch
from ignite.engine import Engine, Events
from scripts import files
from scripts.errors import InputError, NotFiniteError
from scripts.training import checkpoints
from scripts.training.checkpoints import (
    BestWeights,
    LastCheckpoint,
    RandomState,
    ResumeHandler,
    check_unused,
    how_to_go_on,
    load_weights,
)
from torch import nn


def test_random_states_return() -> None:
    keeper = RandomState()
    state = keeper.state_dict()
    drawn = [random.random(), torch.rand(3)]
    random.random()
    torch.rand(5)
    keeper.load_state_dict(state)
    again = [random.random(), torch.rand(3)]
    assert drawn[0] == again[0]
    assert torch.equal(drawn[1], again[1])


def test_weights_load(tmp_path: Path) -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    assert load_weights(target, tmp_path / "model.pt") is target
    assert torch.equal(source.weight, target.weight)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such checkpoint"),
        (b"no weights", "is not a readable checkpoint"),
        (nn.Linear(4, 4).state_dict(), "weights of another network"),
        (nn.Conv2d(1, 1, 1).state_dict(), "weights of another network"),
        ({f"layer{n}": torch.zeros(1) for n in range(200)}, "weights of another network"),
        ([1, 2], "holds no weights by name"),
        ({"weight": torch.full((3, 2), torch.nan), "bias": torch.zeros(3)}, "NaN or Inf in weight"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=words) as caught:
        load_weights(nn.Linear(2, 3), path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("path", [None, False, ""])
def test_no_weights_are_not_taken_for_any(path: object) -> None:
    with pytest.raises(InputError, match=f"^{path}: no such checkpoint"):
        load_weights(nn.Linear(2, 3), path)


def test_resuming_needs_the_whole_state(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    torch.save({"network": network.state_dict()}, tmp_path / "last.pt")
    handler = ResumeHandler(
        str(tmp_path / "last.pt"), {"network": network, "optimizer": torch.optim.SGD(network.parameters(), 0.1)}
    )
    with pytest.raises(InputError, match="lacks optimizer"):
        handler(None)
    with pytest.raises(InputError, match="no such checkpoint"):
        ResumeHandler(str(tmp_path / "none.pt"), {"network": network})(None)


@pytest.mark.parametrize("scheduled", [False, True])
def test_resuming_with_another_rate_is_refused_and_a_scheduled_one_is_not(tmp_path: Path, scheduled: bool) -> None:
    def start(rate: float, resume: Path | None = None) -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))], rate)
        state = {"optimizer": optimizer}
        engine = Engine(lambda *_: None)
        engine.optimizer = optimizer
        if scheduled:
            state["schedule"] = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: state["schedule"].step())
        if resume:
            ResumeHandler(str(resume), state).attach(engine)
        LastCheckpoint(str(tmp_path), state).attach(engine)
        engine.run([0], max_epochs=2 if resume else 1)
        return optimizer

    start(1e-3)
    resumed = start(1e-3, tmp_path / "last_checkpoint_epoch=1.pt")
    assert resumed.param_groups[0]["lr"] == (0.25e-3 if scheduled else 1e-3)
    with pytest.raises(InputError, match=r"optimizer's lr 0\.001, and now it is 0\.002; .* --initial_weights"):
        start(2e-3, tmp_path / "last_checkpoint_epoch=2.pt")


def test_resuming_needs_epochs_of_one_length_and_enough_of_them(tmp_path: Path) -> None:
    def start(steps: int, epochs: int, resume: Path | None = None) -> None:
        engine = Engine(lambda *_: None)
        engine.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
        # MONAI's trainers have a loader of their own, ignite's state has the one that it is run on.
        engine.data_loader = list(range(steps))
        state = {"optimizer": engine.optimizer}
        if resume:
            ResumeHandler(str(resume), state).attach(engine)
        LastCheckpoint(str(tmp_path), state).attach(engine)
        engine.state.max_epochs = epochs
        engine.run(engine.data_loader, max_epochs=epochs)

    start(2, 3)
    last = tmp_path / "last_checkpoint_epoch=3.pt"
    with pytest.raises(InputError, match="has had 3 epochs, and --max_epochs is 2; give a larger one"):
        start(2, 2, last)
    with pytest.raises(
        InputError, match="has epochs of 2 steps, and these data and --batch_size make 5; resume with its own"
    ):
        start(5, 4, last)
    start(2, 4, last)
    assert (tmp_path / "last_checkpoint_epoch=4.pt").exists()


def test_the_scale_of_fp16_is_resumed(tmp_path: Path) -> None:
    def start(scale: float, resume: Path | None = None) -> torch.amp.GradScaler:
        engine = Engine(lambda *_: None)
        engine.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
        state = {"optimizer": engine.optimizer}
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        if resume:
            ResumeHandler(str(resume), state).attach(engine)
        LastCheckpoint(str(tmp_path), state).attach(engine)
        engine.run([0], max_epochs=2 if resume else 1)
        return engine.scaler

    start(64.0)
    assert start(2.0**16, tmp_path / "last_checkpoint_epoch=1.pt").get_scale() == 64.0


def test_best_weights_survive_a_resumption(tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)

    def run(handler: BestWeights, score: float) -> float:
        """A run with that score as weight; the weight that is kept."""
        with torch.no_grad():
            network.weight.fill_(score)
        engine = Engine(lambda *_: None)
        engine.state.key_metric_name = "score"
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: e.state.metrics.update(score=score))
        handler.attach(engine)
        engine.run([0])
        return torch.load(handler.path, weights_only=True)["weight"].item()

    first = BestWeights(tmp_path / "model.pt", network)
    assert [run(first, score) for score in (1.0, 3.0, 2.0)] == [1.0, 3.0, 3.0]
    resumed = BestWeights(tmp_path / "model.pt", network)
    resumed.load_state_dict(first.state_dict())
    assert [run(resumed, score) for score in (2.5, 4.0)] == [3.0, 4.0]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    # In another folder, which never saw those weights, the first ones are the best.
    elsewhere = BestWeights(tmp_path / "elsewhere" / "model.pt", network)
    elsewhere.load_state_dict(first.state_dict())
    assert run(elsewhere, 2.5) == 2.5


def test_a_training_does_not_replace_another_one_unasked(tmp_path: Path) -> None:
    check_unused(tmp_path / "new", None)
    (tmp_path / "model.pt").touch()  # as fine-tuned weights that evaluation is to score
    check_unused(tmp_path, None)
    torch.save({"optimizer": {}}, tmp_path / "last_checkpoint_epoch=3.pt")
    with pytest.raises(
        InputError, match=r"last_checkpoint_epoch=3\.pt: is of an earlier training.*--resume.*--overwrite"
    ):
        check_unused(tmp_path, None)
    check_unused(tmp_path, tmp_path / "last_checkpoint_epoch=3.pt")
    check_unused(tmp_path, None, overwrite=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS; run `git lfs pull`"),
        (b"<!DOCTYPE html>", "a web page; download the file"),
        (b"PK", "is the file complete"),
        (None, "lacks optimizer; resume from a checkpoint named last_checkpoint_epoch=N.pt"),
    ],
)
def test_what_cannot_be_resumed_is_refused_before_anything_is_written(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "last.pt"
    torch.save({"weight": torch.ones(1)}, path) if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=rf"last\.pt: .*{message}"):
        check_unused(tmp_path / "OUT", path)
    assert not (tmp_path / "OUT").exists()


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Linear(2, 2)
    engine = Engine(lambda *_: None)
    LastCheckpoint(str(tmp_path), {"network": network}).attach(engine)
    engine.run([0], max_epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["last_checkpoint_epoch=2.pt"]
    state = torch.load(tmp_path / "last_checkpoint_epoch=2.pt", weights_only=True)
    assert set(state) == {"network", "trainer"}

    def full_disk(_: object, file: BinaryIO) -> None:
        # As torch does: the system's error is hidden behind one of its own.
        try:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 576 vs 534")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(InputError, match=r"last_checkpoint_epoch=3\.pt: the disk is full; free some space"):
            engine.run([0], max_epochs=3)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["last_checkpoint_epoch=2.pt"]
    with torch.no_grad():
        network.weight[0, 0] = torch.nan
    words = (
        r"last_checkpoint_epoch=3\.pt: was not written, since network is not finite; .* by --resume .*_epoch=2\.pt, or"
    )
    with pytest.raises(NotFiniteError, match=words):
        LastCheckpoint(str(tmp_path), {"network": network})(engine)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["last_checkpoint_epoch=2.pt"]


def test_the_cure_names_the_checkpoint_of_the_epoch_before_alone(tmp_path: Path) -> None:
    """That of another epoch is of an earlier training in this folder."""
    last = tmp_path / "last_checkpoint_epoch=2.pt"
    last.touch()
    for folder, epoch in ((tmp_path, 1), (tmp_path, 2), (None, 3)):
        assert "no epoch is complete" in how_to_go_on(folder, epoch)
    assert f"--resume {last}, or" in how_to_go_on(tmp_path, 3)
    assert "--initial_weights" not in how_to_go_on(tmp_path, 3)
    (tmp_path / "model.pt").touch()
    assert f"from --initial_weights {tmp_path / 'model.pt'}." in how_to_go_on(str(tmp_path), 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real error of a real writer."""
    monkeypatch.setattr(files, "own_name", lambda *_: tmp_path / "part")
    (tmp_path / "part").symlink_to("/dev/full")
    best = BestWeights(tmp_path / "model.pt", nn.Linear(500, 500))
    with pytest.raises(InputError, match=r"model\.pt: the disk is full; free some space"):
        best(SimpleNamespace(state=SimpleNamespace(metrics={"score": 1.0}, key_metric_name="score", epoch=1)))
    assert not list(tmp_path.iterdir())


def test_other_processes_resume_with_draws_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = RandomState().state_dict()
    restored: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda saved, device: restored.append(device))
    state["cuda"] = [state["torch"]] * 2
    draws = []
    for rank in range(3):
        monkeypatch.setattr(checkpoints.idist, "get_rank", lambda rank=rank: rank)
        RandomState().load_state_dict(state)
        draws.append(torch.rand(4).tolist())
        # Only the first process's CUDA state is that of its own draws.
        assert restored == [0, 1]
    assert len({tuple(draw) for draw in draws}) == 3
