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

"""Gradient surgery in MONAI's trainer: a thin listener to its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys
from scripts.errors import InputError
from scripts.surgery.rules import RULES, STRATEGIES, aggregate, group_indices
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def unwrap(network: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper, if there is one."""
    return getattr(network, "_orig_mod", network)


def _prepare_to_compile(network: nn.Module) -> None:
    """Make what `torch.compile` wraps fit for two gradients of one forward pass: both are wrong, or an error, without.

    Activations in place lose gradients on a CPU (inductor, torch 2.13), and a graph whose buffers the first gradient
    gives away has none for the second.
    """
    for module in network.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False
    torch._functorch.config.donated_buffer = False


def _spacing_of(batch: object) -> tuple[Tensor, ...]:
    """The voxel sizes (B, d) of a batch that tells them under "spacing"."""
    return (batch["spacing"],) if isinstance(batch, Mapping) and "spacing" in batch else ()


class GradientSurgeryHandler:
    """Makes one gradient of those of similarity and smoothness in MONAI's `SupervisedTrainer`, before the optimizer steps.

    The trainer's loss function is the similarity alone; its `backward` leaves s in `.grad`. On LOSS_COMPLETED this
    handler takes the gradient r of the smoothness from the same forward pass, and on BACKWARD_COMPLETED it replaces s
    by what `strategy` makes of s and r (Dou et al., GSMorph, MICCAI 2023). Gradient clipping and whatever else reads
    `.grad` must be attached after it. Adam preconditions the result, so the parameter update itself is not exactly
    orthogonal to r.

    Right with fp32 and float64, fp16 with a GradScaler (r is scaled as s is), bf16, `accumulation_steps` (both
    gradients are summed before it), `torch.compile`, unused parameters, BatchNorm and DistributedDataParallel
    (both gradients are averaged over the ranks before it).

    After each iteration `engine.state.output` holds "smoothness", "conflict_ratio" and "cosine" as scalar tensors
    beside the trainer's "loss" (values under accumulation: those of the optimizer's last step, 0 before the first). After
    each epoch `engine.state.metrics` holds the epoch's means: `similarity` and `smoothness` over its iterations,
    `conflict_ratio`, `cosine` and `ill_posed` (number of groups left alone by the guard) over the optimizer's steps
    whose gradients were finite.

    Args:
        network: the network to train, bare or wrapped as the trainer's is.
        constraint: the smoothness, a function of the trainer's prediction (the field, (B, d, *spatial)) that returns a
            scalar; where the batch has a "spacing", (B, d) in mm, of that as well.
        strategy: "projection" (GSMorph), "pcgrad_symmetric", "upgrad", "config", "agreement" (GS-Agr) or
            "weighted_sum"; see `scripts.surgery.rules`.
        granularity: "tensor" (GSMorph), "module" or "vector" (GS-PCGrad).
        tau: r is taken for zero in groups with |r| < tau * max |r|, where it is rounding noise; 1e-5 suits fp32, 0
            turns it off.
        weight: of the smoothness, for "weighted_sum" alone.

    Raises:
        InputError: for an unknown strategy or granularity, a tau outside [0, 1), a weight below 0 or for a strategy
            that has none.
        ValueError: for a network without trainable parameters, and on attachment or start for a trainer whose gradients
            could not be right: DistributedDataParallel with `static_graph=True`, or sharded parameters.
    """

    records = ("similarity", "smoothness", "conflict_ratio", "cosine", "ill_posed")

    def __init__(
        self,
        network: nn.Module,
        constraint: Callable[[Tensor], Tensor],
        strategy: str = "projection",
        granularity: str = "tensor",
        tau: float = 1e-5,
        weight: float = 0.0,
    ) -> None:
        if strategy not in STRATEGIES:
            raise InputError(f"strategy is one of {', '.join(STRATEGIES)}, got {strategy!r}.")
        if not isinstance(tau, (int, float)) or not 0 <= tau < 1:
            raise InputError(f"tau is at least 0 and below 1, got {tau!r}.")
        if not isinstance(weight, (int, float)) or not weight >= 0:
            raise InputError(f"weight is a number from 0 on, got {weight!r}.")
        if weight and strategy != "weighted_sum":
            raise InputError(f"strategy {strategy!r} has no weight, got {weight!r}; weighted_sum has one.")
        named = [(name, p) for name, p in unwrap(network).named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the network has no parameter that requires a gradient.")
        self.network = network
        self.constraint = constraint
        self.strategy = strategy
        self.tau = tau
        self.weight = weight
        self.parameters = [parameter for _, parameter in named]
        self.groups = group_indices([name for name, _ in named], granularity)
        self.smoothness_gradients: list[Tensor] | None = None
        self.reached = [False] * len(named)
        self.exchange: dist.Work | None = None
        self.sums: Tensor | None = None

    def attach(self, engine: Engine) -> None:
        """Listen to a `SupervisedTrainer`."""
        self._check(engine)
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.STARTED, self._announce)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._differentiate)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._operate)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _check(self, engine: Engine) -> None:
        """Refuse a trainer whose gradients could not be right, and see to those of a compiled one."""
        # MONAI attaches handlers before its trainer has a network: hence once more on STARTED.
        for network in (unwrap(self.network), unwrap(getattr(engine, "network", self.network))):
            if getattr(network, "static_graph", False):
                raise ValueError(
                    "GradientSurgeryHandler cannot work with DistributedDataParallel(static_graph=True): its reducer "
                    "counts one backward pass a step, surgery makes two, and the gradients would be wrong in "
                    "silence. Use static_graph=False."
                )
            kinds = {kind.__name__ for module in network.modules() for kind in type(module).__mro__}
            if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
                raise ValueError(
                    "GradientSurgeryHandler needs whole gradient tensors: use DistributedDataParallel, not sharding."
                )

        if hasattr(getattr(engine, "network", None), "_orig_mod"):
            _prepare_to_compile(engine.network)

    def _announce(self, engine: Engine) -> None:
        """Log the strategy."""
        guard = f"tau {self.tau:g}" if self.strategy in RULES else f"weight {self.weight:g}"
        groups = max(self.groups) + 1
        engine.logger.info(
            f"gradient surgery: {self.strategy}, {groups} groups of {len(self.parameters)} tensors, {guard}"
        )

    def _start_epoch(self, engine: Engine) -> None:
        if self.sums is None:
            # Losses, conflicts, and how many there were of each.
            self.sums = self.parameters[0].new_zeros(7, dtype=torch.float32)
            self.conflicts, self.finite = self.sums.new_zeros(3), self.sums.new_zeros(())
        # In place: a step that was recorded as a CUDA graph adds to this very tensor.
        self.sums.zero_()
        self._forget()

    def _forget(self) -> None:
        """Reset the sum of the smoothness gradients."""
        self.smoothness_gradients = None
        self.reached = [False] * len(self.parameters)

    def _differentiate(self, engine: Engine) -> None:
        """Take the smoothness gradient from the forward pass of this iteration (before the trainer's backward frees its
        graph)."""
        field = engine.state.output[CommonKeys.PRED]
        with torch.autocast(self.parameters[0].device.type, enabled=False):
            smoothness = self.constraint(field, *_spacing_of(engine.state.batch))
            scaler = engine.scaler if engine.amp else None
            loss = smoothness if scaler is None else scaler.scale(smoothness)
            loss = loss / getattr(engine, "accumulation_steps", 1)
            gradients = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        self.reached = [reached or g is not None for reached, g in zip(self.reached, gradients)]
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients)]
        if self.smoothness_gradients is None:
            self.smoothness_gradients = gradients
        else:
            torch._foreach_add_(self.smoothness_gradients, gradients)
        engine.state.output["smoothness"] = smoothness.detach()
        if self._is_last_of_accumulation(engine):
            self._start_averaging(engine)

    @staticmethod
    def _is_last_of_accumulation(engine: Engine) -> bool:
        """Whether the trainer's optimizer steps after this iteration (as `SupervisedTrainer._iteration` decides it)."""
        steps, length = getattr(engine, "accumulation_steps", 1), engine.state.epoch_length
        done = engine.state.iteration if length is None else (engine.state.iteration - 1) % length + 1
        return done % steps == 0 or done == length

    def _start_averaging(self, engine: Engine) -> None:
        """Under DDP, average the smoothness gradients over the ranks, all at once: `autograd.grad` goes past DDP's
        reducer."""
        if not isinstance(unwrap(engine.network), DistributedDataParallel):
            return
        group = unwrap(engine.network).process_group
        flat = torch.cat([gradient.flatten() for gradient in self.smoothness_gradients]) / dist.get_world_size(group)
        self.smoothness_gradients = self._as_parameters(flat)
        # Asynchronous: it overlaps with the trainer's backward pass.
        self.exchange = dist.all_reduce(flat, group=group, async_op=True)

    def _as_parameters(self, flat: Tensor) -> list[Tensor]:
        """One vector, cut into tensors of the parameters' shapes."""
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters)]

    @torch.no_grad()
    def _operate(self, engine: Engine) -> None:
        """Replace the similarity gradients in `.grad` by the combined ones, where the optimizer is about to step."""
        output, steps = engine.state.output, self._is_last_of_accumulation(engine)
        if steps:
            if self.exchange is not None:
                self.exchange.wait()
            similarity = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            gradients = similarity, self.smoothness_gradients
            combined, conflicts = aggregate(*gradients, self.strategy, self.groups, self.tau, self.weight)
            there = [(p.grad, g) for p, g in zip(self.parameters, combined) if p.grad is not None]
            if there:
                torch._foreach_copy_(*map(list, zip(*there)))
            for parameter, gradient, reached in zip(self.parameters, combined, self.reached):
                # Where neither loss knows the parameter it stays without a gradient, and weight decay leaves it alone
                # too.
                if parameter.grad is None and reached:
                    parameter.grad = gradient
            self._forget()
            self.conflicts = torch.stack([conflicts.ratio, conflicts.cosine, (~conflicts.well_posed).sum()]).float()
            # A GradScaler skips a step that overflowed: it is none of the epoch's.
            self.finite = (conflicts.similarity_norm + conflicts.smoothness_norm).isfinite().all().float()
        losses = torch.stack([output[CommonKeys.LOSS].detach(), output["smoothness"]]).float()
        counted = self.finite * float(steps)
        counts = torch.stack([torch.ones_like(counted), counted])
        self.sums += torch.cat([losses, torch.where(counted > 0, self.conflicts, 0.0), counts])
        output["conflict_ratio"], output["cosine"] = self.conflicts[0], self.conflicts[1]

    def _report(self, engine: Engine) -> None:
        """The epoch's means into `engine.state.metrics`: the only place that waits for the device."""
        *values, iterations, steps = self.sums.tolist()
        counts = [iterations] * 2 + [max(steps, 1.0)] * 3
        engine.state.metrics.update({name: v / n for name, v, n in zip(self.records, values, counts)})
