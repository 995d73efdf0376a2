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

"""A recorded step against the plain one, and a step against all that would wait for a GPU.

Without a GPU the step that would be recorded is run as it is, into the same places in memory, as a graph does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.networks.blocks import DVF2DDF
from scripts.data.preprocessing import PreparePair
from scripts.errors import InputError
from scripts.registration.inferers import FieldInferer
from scripts.registration.losses import WarpedSimilarity
from scripts.training.graphs import WARM_UP, GraphTrainer, record_cuda_graph
from scripts.training.handlers import NonFiniteLossHandler, WeightAveraging, running_mean
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from training_runs import make_pairs, make_unet, train

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]
STEPS = WARM_UP + 3


class Replay:
    """Stands for `record_cuda_graph` on a CPU: one run of the step is recorded, and each replay overwrites what that
    one put out."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        trainer = step.__closure__[step.__code__.co_freevars.index("self")].cell_contents
        places: dict[str, Tensor] = {}

        def replay() -> None:
            step()
            for key, value in trainer.output.items():
                if isinstance(value, Tensor):
                    places.setdefault(key, torch.empty_like(value)).copy_(value.detach())
            trainer.output = dict(places)

        return replay


class Recorder:
    """Keeps what a handler could keep of each iteration."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Tensor]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.outputs.append({key: value for key, value in engine.state.output.items() if value.ndim == 0})


def graph_trainer(**options: object) -> GraphTrainer:
    record = None if torch.device(options["device"]).type == "cuda" else Replay()
    return GraphTrainer(graph=True, record=record, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", ["projection", "agreement", "weighted_sum"])
@pytest.mark.parametrize("granularity", ["tensor", "vector"])
def test_recorded_steps_equal_plain_ones(device: str, strategy: str, granularity: str) -> None:
    """Parameters, records of every step and means of every epoch, in float64, with a rate that changes."""
    if (strategy, granularity) == ("agreement", "vector"):
        pytest.skip("agreement has no groups")
    batches = list(make_pairs(2 * STEPS, (16, 16)).to(device).split(2))
    surgery = {"strategy": strategy, "granularity": granularity, "weight": 2.0 if strategy == "weighted_sum" else 0.0}
    results = []
    for trainer_class in (SupervisedTrainer, graph_trainer):
        network = make_unet().to(device)
        # Powers of two: a graph reads its rate in fp32.
        optimizer = torch.optim.AdamW(network.parameters(), lr=2**-7, fused=True)
        averager = AveragedModel(network, multi_avg_fn=running_mean(0.1))
        recorder = Recorder()
        handlers = [
            LrScheduleHandler(
                torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), epoch_level=False, print_lr=False
            ),
            WeightAveraging(averager, network),
            NonFiniteLossHandler(every=4),
            recorder,
        ]
        _, trainer = train(
            network,
            batches,
            surgery,
            handlers=handlers,
            trainer_class=trainer_class,
            optimizer=optimizer,
            max_epochs=2,
            inferer=FieldInferer(integration=DVF2DDF(num_steps=2, padding_mode="border")),
        )
        results.append((network.state_dict() | averager.state_dict(), recorder.outputs, dict(trainer.state.metrics)))
    plain, recorded = results
    assert len(plain[1]) == len(recorded[1]) == 2 * STEPS
    for one, other in zip([plain[0], plain[2], *plain[1]], [recorded[0], recorded[2], *recorded[1]]):
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(
                torch.as_tensor(other[key]), torch.as_tensor(one[key]), rtol=1e-10, atol=1e-10, msg=key
            )


def test_outputs_stay_after_the_next_step_and_the_step_is_recorded_once() -> None:
    recorder, replay = Recorder(), Replay()
    network = make_unet()
    _, trainer = train(
        network,
        list(make_pairs(2 * STEPS, (16, 16)).split(2)),
        handlers=[recorder],
        trainer_class=partial(GraphTrainer, graph=True, record=replay),
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-2),
    )
    assert replay.recorded == 1
    assert len({output["loss"].item() for output in recorder.outputs}) == STEPS
    assert recorder.outputs[-1].keys() == {"loss", "smoothness", "conflict_ratio", "cosine"}
    assert trainer.batch[0] is trainer.batch[1], "what is one tensor stays one"


def test_labels_reach_the_loss_and_no_step_is_left_out() -> None:
    batches = [
        {"pair": make_pairs(2, (16, 16), seed).float(), "label": torch.full((2, 2, 16, 16), seed, dtype=torch.int8)}
        for seed in range(5)
    ]
    seen = []

    def loss(field: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        pair, label = target
        seen.append((pair[0, 0, 3, 3].item(), label.unique().tolist(), label.dtype))
        return WarpedSimilarity(nn.MSELoss())(field, pair)

    network = make_unet().float()
    trainer = GraphTrainer(
        graph=True,
        record=Replay(),
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters()),
        loss_function=loss,
        prepare_batch=PreparePair(channels_last=True),
        decollate=False,
    )
    trainer.run()
    assert seen == [(batch["pair"][0, 0, 3, 3].item(), [seed], torch.int8) for seed, batch in enumerate(batches)]
    assert trainer.batch[0].is_contiguous(memory_format=torch.channels_last)
    assert trainer.batch[0] is trainer.batch[1][0]


def test_the_integration_is_not_shared_with_validation() -> None:
    """MONAI's Warp keeps a grid of the last shape, which the graph reads."""
    network, inferer = make_unet(), FieldInferer(integration=DVF2DDF(num_steps=2, padding_mode="border"))
    options = {"optimizer": torch.optim.AdamW(network.parameters()), "trainer_class": graph_trainer, "inferer": inferer}
    _, trainer = train(network, [make_pairs(2, (16, 16))], **options)
    kept = trainer.inferer.integration.warp_layer.ref_grid
    inferer(make_pairs(1, (8, 8)), network.eval())
    assert inferer.integration.warp_layer.ref_grid.shape[-1] == 8
    assert trainer.inferer.integration.warp_layer.ref_grid is kept
    assert kept.shape == (2, 2, 16, 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scaler": torch.amp.GradScaler("cpu")}, "a step with amp is not recorded"),
        ({"accumulation_steps": 2}, "a step with accumulation_steps > 1 is not recorded"),
        ({"optimizer": torch.optim.SGD}, "SGD cannot be recorded"),
        ({"processes": True}, "a step with several processes is not recorded"),
        ({"sizes": (16, 24)}, r"all batches need one shape, got \(2, 2, 16, 16\) and \(2, 2, 24, 24\)"),
    ],
    ids=["amp", "accumulation", "optimizer", "processes", "shapes"],
)
def test_what_cannot_be_recorded_is_refused(options: dict, words: str, request: pytest.FixtureRequest) -> None:
    network = make_unet()
    if options.pop("processes", False):
        request.getfixturevalue("process_group")
        network = DistributedDataParallel(network)
    optimizer = options.pop("optimizer", torch.optim.AdamW)(network.parameters(), lr=1e-2)
    batches = [make_pairs(2, (size, size)) for size in options.pop("sizes", (16,))]
    with pytest.raises(InputError, match=f"^--graph True: .*{words}"):
        train(network, batches, trainer_class=graph_trainer, optimizer=optimizer, **options)


def test_an_output_does_not_keep_its_autograd_graph() -> None:
    network = make_unet()
    _, trainer = train(
        network,
        [make_pairs(2, (16, 16))],
        trainer_class=partial(GraphTrainer, graph=True, record=Replay()),
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-2),
    )
    assert trainer.warm == 1
    assert not any(value.requires_grad for value in trainer.state.output.values())


class BrokenCapture:
    """Stands for `torch.cuda.graph`, whose end raises an error of its own where the recording failed."""

    def __init__(self, graph: object, stream: object = None) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError("Cannot copy from CPU\nmore"), InputError, r"cannot be recorded \(Cannot copy from CPU\); leave"),
        (FloatingPointError("not finite"), FloatingPointError, "^not finite$"),
    ],
)
def test_a_recording_that_fails_says_why(
    error: Exception, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", BrokenCapture)
    with pytest.raises(kind, match=words):
        record_cuda_graph(step)


def test_without_graph_it_is_the_plain_trainer() -> None:
    batches = list(make_pairs(4, (16, 16)).split(2))
    network = make_unet()
    other = copy.deepcopy(network)
    expected, _ = train(network, batches)
    found, _ = train(other, batches, trainer_class=GraphTrainer)
    for one, two in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


class DoneError(Exception):
    """Training comes to its end here, before the records of the epoch are read."""


class Stop:
    """Ends a training after some iterations."""

    def __init__(self, after: int) -> None:
        self.after = after

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.after), self)

    def __call__(self, engine: Engine) -> None:
        raise DoneError


def shipped_training(
    device: str, steps: int, folder: Path, *handlers: object, amp: bool = False, log_every: int = 20
) -> SupervisedTrainer:
    """A training as train.yaml ships it for a GPU, with all of its handlers, on a small network and pairs."""
    config = ConfigParser()
    config.read_config(str(ROOT / "configs" / "train.yaml"))
    label = torch.zeros(2, 2, 24, 24, dtype=torch.int8, device=device)
    options = {
        "bundle_root": str(ROOT),
        "output_dir": str(folder),
        "device": device,
        "crop_size": [16, 16],
        "amp": amp,
        "log_every": log_every,
        "network_def::stride": 4,
        "network_def::backbone::features": [8, 8],
        "network_def::backbone::hidden": 8,
        "augmentation::elastic": 2.0,
        "train::handlers::0::waits": False,
        "train::dataloader": [{"pair": torch.rand(2, 2, 24, 24, device=device), "label": label} for _ in range(steps)],
        "validate::dataloader": [],
    }
    if device == "cpu":
        options["bare_network"] = "@starting_network"  # fake parameters are nowhere to be moved from
    for key, value in options.items():
        config[key] = value
    trainer = config.get_parsed_content("train::trainer")
    for handler in handlers:
        handler.attach(trainer)
    if amp:
        trainer.scaler = torch.amp.GradScaler(device)
    return trainer


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "scaler"])
def test_nothing_reads_a_value_in_a_step(amp: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On fake tensors, which have no values to read: augmentation, step, schedule and running mean, three times."""
    # A copy of a fake tensor, as AveragedModel makes, belongs to the same mode.
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)
    with FakeTensorMode():
        with pytest.raises(DoneError):
            shipped_training("cpu", 4, tmp_path, Stop(after=3), amp=amp).run()
        # Where losses are logged at each step, they are read.
        with pytest.raises(DataDependentOutputException):
            shipped_training("cpu", 4, tmp_path, Stop(after=3), amp=amp, log_every=1).run()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "scaler"])
def test_nothing_waits_for_a_gpu_in_a_step(amp: bool, tmp_path: Path) -> None:
    """By CUDA's own counter of synchronizations; MONAI's grids are made in the first step."""

    class Strict:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED(once=1), lambda _: torch.cuda.set_sync_debug_mode("error")
            )

    try:
        with pytest.raises(DoneError):
            shipped_training("cuda", 6, tmp_path, Strict(), Stop(after=5), amp=amp).run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
