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

"""Short trainings in MONAI's trainer for test_handlers.py, in this process and in two; importable by a spawned
process."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer
from scripts.devices import distribute
from scripts.registration.losses import SmoothnessLoss, WarpedSimilarity
from scripts.registration.networks import RegistrationUNet
from scripts.surgery import handler as surgery_handler
from scripts.surgery.handler import GradientSurgeryHandler
from scripts.training.handlers import NonFiniteLossHandler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

LEARNING_RATE = 0.1

# Two-process trainings by name; what is left out is the default of `ddp_train`.
DDP_CASES = {
    "plain": {},
    "bare network": {"bare": True},
    "bucket views": {"ddp": {"gradient_as_bucket_view": True}},
    "vector": {"surgery": {"granularity": "vector"}},
    "accumulation": {"accumulation_steps": 2},
    "unused parameter": {"unused": True, "ddp": {"find_unused_parameters": True}},
    "batch norm": {"norm": "batch"},
    "single precision": {"dtype": torch.float32},
}


def make_pairs(count: int, size: Sequence[int], seed: int = 0) -> Tensor:
    """(count, 2, *size) in float64: smooth blobs, the fixed one shifted, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64) for n in size], indexing="ij")
    pairs = torch.rand(count, 2, *size, generator=generator, dtype=torch.float64) * 0.1
    for pair in pairs:
        for image in pair:
            centers = torch.rand(len(size), generator=generator, dtype=torch.float64) - 0.5
            image += torch.exp(-4 * sum((axis - center) ** 2 for axis, center in zip(axes, centers)))
    return pairs


class WithUnused(nn.Module):
    """A network with a parameter that its forward pass leaves out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, pair: Tensor) -> Tensor:
        return self.network(pair)


def make_unet(norm: str = "instance", spatial_dims: int = 2, seed: int = 0) -> nn.Module:
    """A small registration U-Net in float64 whose initial fields are about a voxel large."""
    torch.manual_seed(seed)
    return RegistrationUNet(spatial_dims, features=(4, 6, 8), norm=norm, flow_std=0.2).double()


def train(
    network: nn.Module,
    batches: Sequence[Tensor],
    surgery: dict | None = None,
    handlers: Sequence = (),
    scaler: torch.amp.GradScaler | None = None,
    weight_decay: float = 0.0,
    trainer_class: Callable[..., SupervisedTrainer] = SupervisedTrainer,
    optimizer: torch.optim.Optimizer | None = None,
    handler: GradientSurgeryHandler | None = None,
    **options: object,
) -> tuple[list[dict[str, Tensor]], SupervisedTrainer]:
    """Train by surgery and SGD; returns the gradients after each iteration, by parameter name, and the trainer.

    Args:
        network: bare or wrapped; trained in place.
        batches: pairs, one batch an iteration.
        surgery: arguments of `GradientSurgeryHandler` beside the defaults here.
        handlers: attached after the surgery.
        scaler: used as MONAI's trainer uses its own, which needs CUDA.
        weight_decay: of SGD.
        trainer_class: makes the trainer.
        optimizer: instead of SGD.
        handler: instead of one made of `surgery`.
        options: of `SupervisedTrainer`.
    """
    surgery = {"network": network, "constraint": SmoothnessLoss(), **(surgery or {})}
    device = next(network.parameters()).device
    options = {"max_epochs": 1, "decollate": False, "loss_function": WarpedSimilarity(nn.MSELoss()), **options}
    trainer = trainer_class(
        device=device,
        train_data_loader=[{"image": batch, "label": batch} for batch in batches],
        network=network,
        optimizer=optimizer or torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay),
        train_handlers=[handler or GradientSurgeryHandler(**surgery), *handlers],
        amp=scaler is not None,
        **options,
    )
    if scaler is not None:
        trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine, "scaler", scaler))
    gradients = []
    trainer.add_event_handler(
        IterationEvents.MODEL_COMPLETED,
        lambda _: gradients.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}),
    )
    trainer.run()
    return gradients, trainer


@contextmanager
def recorded_decisions() -> Iterator[list[Tensor]]:
    """Which groups conflicted, (groups,) of booleans for each settlement within."""
    decisions, aggregate = [], surgery_handler.aggregate

    def recording(*arguments: object) -> tuple:
        combined, conflicts = aggregate(*arguments)
        decisions.append(conflicts.conflicting)
        return combined, conflicts

    with mock.patch.object(surgery_handler, "aggregate", recording):
        yield decisions


def ddp_network(norm: str = "instance", unused: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network that every process of a case starts from."""
    network = make_unet(norm).to(dtype)
    return WithUnused(network) if unused else network


def ddp_train(
    rank: int,
    pairs: Tensor,
    norm: str = "instance",
    unused: bool = False,
    bare: bool = False,
    dtype: torch.dtype = torch.float64,
    **case: dict,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """One case in one of two processes, each with its own half of every batch; returns the trained parameters and the
    decisions."""
    network = ddp_network(norm, unused, dtype)
    wrapped = DistributedDataParallel(network, **case.pop("ddp", {}))
    surgery = {"network": network if bare else wrapped, **case.pop("surgery", {})}
    torch.manual_seed(rank)
    with recorded_decisions() as decisions:
        train(wrapped, pairs[:, rank::2].to(dtype), surgery, weight_decay=0.1 if unused else 0.0, **case)
    return {name: parameter.detach() for name, parameter in network.named_parameters()}, decisions


def count_exchanges(steps: int = 3) -> int:
    """All-reduces in some steps of a network of several megabytes, wrapped as multi_gpu_train.yaml does it."""
    network = RegistrationUNet(2, norm="instance", flow_std=0.2).double()
    wrapped = distribute(network, "cpu")
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        train(wrapped, make_pairs(steps, (32, 32)).split(1))
    return sum(event.name == "gloo:all_reduce" for event in profiler.events())


def spoil_in_one_process(
    rank: int, waits: bool, similarity_factor: float = 1.0, smoothness_factor: float = 1.0
) -> tuple[list[dict[str, Tensor]], str]:
    """Weights after each step, and the error, of a training whose third losses are multiplied by these factors in the
    second process alone."""
    network, states, calls = make_unet().float(), [], {"similarity": 0, "smoothness": 0}
    wrapped, losses = DistributedDataParallel(network), (WarpedSimilarity(nn.MSELoss()), SmoothnessLoss())

    def spoiled(name: str, loss: Tensor, factor: float) -> Tensor:
        calls[name] += 1
        return loss * (factor if calls[name] == 3 and rank else 1.0)

    class Reader:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED, lambda _: states.append(copy.deepcopy(network.state_dict()))
            )

    try:
        train(
            wrapped,
            make_pairs(12, (16, 16)).float().split(2),
            {"constraint": lambda field: spoiled("smoothness", losses[1](field), smoothness_factor)},
            handlers=[Reader(), NonFiniteLossHandler(every=5, waits=waits)],
            optimizer=torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True),
            loss_function=lambda field, pair: spoiled("similarity", losses[0](field, pair), similarity_factor),
        )
    except FloatingPointError as error:
        return states, str(error)
    return states, ""


def ddp_process(rank: int, folder: Path, pairs: Tensor) -> None:
    """Run every case as one of two processes and save the results as `rank.pt`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    results = {name: ddp_train(rank, pairs, **case) for name, case in DDP_CASES.items()}
    results |= {
        "exchanges": count_exchanges(),
        "skipped loss": spoil_in_one_process(rank, waits=False, similarity_factor=float("nan")),
        "skipped gradient": spoil_in_one_process(rank, waits=False, smoothness_factor=1e30),
        "stopped at loss": spoil_in_one_process(rank, waits=True, similarity_factor=float("nan")),
        "stopped at gradient": spoil_in_one_process(rank, waits=True, smoothness_factor=1e30),
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
