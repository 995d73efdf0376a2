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

"""Handlers of the trainer's events."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.handlers import CheckpointSaver, StatsHandler
from scripts.registration.losses import SmoothnessLoss, WarpedSimilarity
from scripts.surgery.handler import GradientSurgeryHandler
from scripts.training.checkpoints import LastCheckpoint, ResumeHandler
from scripts.training.graphs import GraphTrainer
from scripts.training.handlers import (
    EpochShuffling,
    NonFiniteLossHandler,
    TrainingProgress,
    WeightAveraging,
    running_mean,
)
from surgery_by_hand import RECORDS, parameters_of
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import BatchSampler, DistributedSampler
from training_runs import make_pairs, make_unet, train


def test_records_reach_stats_handler_and_progress_bar(capsys: pytest.CaptureFixture) -> None:
    names = ("smoothness", "conflict_ratio", "cosine")
    stats = StatsHandler(name="surgery", output_transform=lambda output: {name: output[name] for name in names})
    _, trainer = train(make_unet(), list(make_pairs(2, (16, 16)).split(1)), handlers=[stats, TrainingProgress()])
    printed = capsys.readouterr()
    iteration = next(line for line in printed.out.splitlines() if "Iter: 2/2" in line)
    epoch = next(line for line in printed.out.splitlines() if "Metrics" in line)
    for name in names:
        assert f"{name}: {trainer.state.output[name].item():.4f}" in iteration
    for name in RECORDS:
        assert f"{name}: {trainer.state.metrics[name]:.4f}" in epoch
    assert f"conflicts={trainer.state.output['conflict_ratio'].item():.3g}" in printed.err


def test_the_bar_moves_where_figures_are_read_more_seldom(capsys: pytest.CaptureFixture) -> None:
    train(make_unet(), list(make_pairs(3, (16, 16)).split(1)), handlers=[TrainingProgress(every=2)])
    drawn = capsys.readouterr().err.replace("\r", "\n").splitlines()
    # Figures are drawn as they come, then the bar moves.
    with_figures = [(line.split("/3")[0][-1], "similarity=" in line) for line in drawn if "/3" in line]
    assert with_figures.index(("1", False)) < with_figures.index(("2", True))
    train(make_unet(), list(make_pairs(3, (16, 16)).split(1)), handlers=[TrainingProgress(every=20)])
    assert "2/3" in capsys.readouterr().err


class Spoiled(nn.Module):
    """A network whose third field in training is NaN."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, pair: Tensor) -> Tensor:
        self.calls += 1
        return self.network(pair) * (float("nan") if self.calls == 3 else 1.0)


@pytest.mark.parametrize("spoiled", ["image", "field"])
def test_non_finite_loss_stops_before_weights_and_checkpoints_change(tmp_path: Path, spoiled: str) -> None:
    batches = list(make_pairs(8, (16, 16)).split(2))
    # A NaN field leaves the similarity finite, since sampling clips coordinates to the border: only the smoothness
    # tells.
    network = Spoiled(make_unet()) if spoiled == "field" else make_unet()
    if spoiled == "image":
        batches[2][0, 1, 5, 5] = torch.nan
    contents: dict[Path, bytes] = {}

    class Reader:
        def attach(self, engine: Engine) -> None:
            event = Events.ITERATION_STARTED
            engine.add_event_handler(
                event, lambda _: contents.update({p: p.read_bytes() for p in tmp_path.glob("*.pt")})
            )

    saver = CheckpointSaver(str(tmp_path), {"network": network}, epoch_level=False, save_interval=1)
    with pytest.raises(FloatingPointError, match="step 3"):
        train(network, batches, handlers=[NonFiniteLossHandler(), saver, Reader()])
    assert len(contents) == 2
    assert contents == {path: path.read_bytes() for path in tmp_path.glob("*.pt")}
    saved = torch.load(next(path for path in contents if "iteration=2" in path.name))
    assert saved.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=0)


def test_a_fused_optimizer_skips_a_step_that_is_not_finite_without_waiting(tmp_path: Path) -> None:
    """As on a GPU: the flag is read two steps late, and neither weights nor checkpoint have changed since the bad
    one."""
    network, states = make_unet(), []
    similarity = WarpedSimilarity(nn.MSELoss())
    calls = iter([1.0, 1.0, float("nan"), 1.0, 1.0, 1.0])

    class Reader:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda _: states.append(parameters_of(network)))

    saver = CheckpointSaver(str(tmp_path), {"network": network}, save_final=True)
    with pytest.raises(FloatingPointError, match=r"step 1 to 5 \(epoch 1\)"):
        train(
            network,
            list(make_pairs(12, (16, 16)).split(2)),
            handlers=[NonFiniteLossHandler(every=5, waits=False), saver, Reader()],
            optimizer=torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True),
            loss_function=lambda field, pair: next(calls) * similarity(field, pair),
        )
    assert len(states) == 5
    saved = torch.load(next(tmp_path.glob("*.pt")))
    for name, value in states[1].items():
        assert not torch.equal(value, states[0][name]) or "bias" in name
        for later in (*states[2:], saved):
            assert torch.equal(later[name], value), name


def test_the_flag_is_read_before_an_epoch_ends(tmp_path: Path) -> None:
    network = make_unet()
    with pytest.raises(FloatingPointError, match=r"step 1 to 2 \(epoch 1\)"):
        train(
            network,
            list(make_pairs(4, (16, 16)).split(2)),
            handlers=[
                NonFiniteLossHandler(every=50, waits=False),
                CheckpointSaver(str(tmp_path), {"n": network}, save_interval=1),
            ],
            optimizer=torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True),
            loss_function=lambda field, pair: float("nan") * field.mean(),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "trainer_class", [SupervisedTrainer, partial(GraphTrainer, graph=True, record=lambda step: step)]
)
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("waits", [True, False])
def test_a_gradient_that_is_not_finite_reaches_neither_weights_nor_checkpoint(
    waits: bool, accumulation_steps: int, trainer_class: Callable, tmp_path: Path
) -> None:
    """The last step of the second epoch: both losses are finite in single precision, the square of |r| is not."""
    if accumulation_steps > 1 and trainer_class is not SupervisedTrainer:
        pytest.skip("a recorded step does not accumulate")
    network, smoothness, calls, states = make_unet().float(), SmoothnessLoss(), [], []

    def constraint(field: Tensor) -> Tensor:
        calls.append(1)
        return smoothness(field) * (1e30 if len(calls) == 8 else 1.0)

    class Reader:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED, lambda _: states.append(parameters_of(network)))

    # As in the configs, the check is attached before the surgery.
    with pytest.raises(FloatingPointError, match=r"a gradient is not finite at step .*8 \(epoch 2\)"):
        train(
            network,
            list(make_pairs(8, (16, 16)).float().split(2)),
            handler=NonFiniteLossHandler(every=5, waits=waits),
            handlers=[
                GradientSurgeryHandler(network, constraint),
                LastCheckpoint(str(tmp_path), {"network": network}),
                Reader(),
            ],
            optimizer=torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True),
            trainer_class=trainer_class,
            accumulation_steps=accumulation_steps,
            max_epochs=3,
        )
    assert len(calls) == 8
    for name, value in parameters_of(network).items():
        assert torch.equal(value, states[-1][name]), name
    (checkpoint,) = tmp_path.glob("*.pt")
    assert checkpoint.name == "last_checkpoint_epoch=1.pt"


def test_each_epoch_has_an_order_of_its_own() -> None:
    sampler = DistributedSampler(range(64), num_replicas=2, rank=1)
    orders: list[list[int]] = []
    engine = Engine(lambda engine, batch: None)
    EpochShuffling(BatchSampler(sampler, 4, drop_last=True)).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: orders.append(list(sampler)))
    engine.run([0], max_epochs=3)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_running_mean_follows_its_recursion(share: float) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    averager = AveragedModel(network, multi_avg_fn=running_mean(share))
    handler = WeightAveraging(averager, network)

    def step(engine: Engine, shift: float) -> None:
        assert handler.count == averager.n_averaged
        with torch.no_grad():
            network[0].weight += shift
            network[1].running_mean += shift

    trainer = Engine(step)
    handler.attach(trainer)
    mean, weight = None, network[0].weight.detach().clone()
    shifts = [0.5, -1.0, 2.0, 0.25, 3.0] * 10
    trainer.run(shifts)
    for n, shift in enumerate(shifts):
        weight = weight + shift
        mean = weight if n == 0 else mean + max(share, 3 / (3 + n)) * (weight - mean)
    torch.testing.assert_close(averager.module[0].weight.detach(), mean)
    assert torch.equal(averager.module[0].weight, network[0].weight) == (share == 1)
    # Statistics are those of the network, not a mean.
    assert torch.equal(averager.module[1].running_mean, network[1].running_mean)


def test_the_running_mean_starts_anew_where_weights_come_from_outside() -> None:
    """As a federated server sends them between two rounds; weights that stay do not interrupt the mean."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    averager = AveragedModel(network, multi_avg_fn=running_mean(0.1))
    trainer = Engine(lambda *_: [parameter.data.add_(1.0) for parameter in network.parameters()])
    WeightAveraging(averager, network).attach(trainer)
    trainer.run([0] * 5)
    trainer.run([0] * 5)
    assert averager.n_averaged == 10
    assert not torch.equal(averager.module[0].weight, network[0].weight)
    sent = {name: torch.full_like(value, 7) for name, value in network.state_dict().items()}
    network.load_state_dict(sent)
    trainer.run([0])
    assert averager.n_averaged == 1
    for mean, now in zip(averager.module.parameters(), network.parameters()):
        assert torch.equal(mean, now)
        assert (mean == 8).all()


def test_the_running_mean_of_a_resumed_training_goes_on(tmp_path: Path) -> None:
    """Its weights come from outside, too, and its mean with them."""
    network = nn.Linear(3, 2).double()
    results = []
    for resume in (None, str(tmp_path / "last_checkpoint_epoch=2.pt")):
        trained = copy.deepcopy(network)
        averager = AveragedModel(trained, multi_avg_fn=running_mean(0.1))
        trainer = Engine(lambda *_, trained=trained: [parameter.data.add_(1.0) for parameter in trained.parameters()])
        trainer.optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        state = {"network": trained, "averager": averager}
        WeightAveraging(averager, trained).attach(trainer)
        LastCheckpoint(str(tmp_path), state).attach(trainer)
        ResumeHandler(resume, state).attach(trainer)
        trainer.run([0] * 5, max_epochs=2 if resume is None else 3)
        results.append(averager)
    assert [int(averager.n_averaged) for averager in results] == [10, 15]
