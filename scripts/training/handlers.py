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

"""Ignite handlers: thin listeners to a trainer's events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import Evaluator, IterationEvents
from monai.handlers import ValidationHandler
from monai.utils import CommonKeys
from scripts.errors import NotFiniteError
from scripts.surgery.handler import unwrap
from scripts.training.checkpoints import how_to_go_on
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import BatchSampler, DistributedSampler

BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]"


class Validation(ValidationHandler):
    """MONAI's `ValidationHandler` every so many epochs, and after the last one.

    Args:
        validator: the evaluator.
        interval: epochs, 1 or more.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        super().__init__(interval, validator, epoch_level=True)

    def attach(self, engine: Engine) -> None:
        def due(engine, epoch):
            return epoch % self.interval == 0 or epoch == engine.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)


class NonFiniteLossHandler:
    """Stops training before a NaN or infinite loss, field or gradient reaches the weights.

    On a CPU, and where the optimizer cannot skip a step by itself, each step is checked before its backward pass
    (torch's backward pass of `grid_sample` on a CPU crashes at NaN coordinates) and before the optimizer's step. Else,
    on a GPU, nothing waits for the device: a flag there makes the fused optimizer skip this and all later steps, as a
    GradScaler does, and it is read every few steps and before an epoch's validation and checkpoint. Several processes
    share the flag. Gradients are checked as the optimizer gets them, after surgery and clipping; with a GradScaler,
    which skips steps of its own, they are not. Attach it before `GradientSurgeryHandler`, validation and checkpoints.

    Args:
        every: iterations between two readings of the flag.
        waits: whether to look at each step before its backward pass; None decides as above.
        folder: where `LastCheckpoint` writes, for the message.

    Raises:
        NotFiniteError: naming epoch, iteration and the last checkpoint. Checkpoints written so far stay as they are.
    """

    def __init__(self, every: int = 1, waits: bool | None = None, folder: str | Path | None = None) -> None:
        self.every = every
        self.waits = waits
        self.folder = folder
        self.flag: Tensor | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self._stop)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop)

    def _start(self, engine: Engine) -> None:
        skips = getattr(engine.optimizer, "_step_supports_amp_scaling", False)
        if self.waits is None:
            self.waits = engine.state.device.type != "cuda" or not skips
        # The same tensor in a later run: a recorded step reads it.
        self.flag = torch.zeros((), device=engine.state.device) if self.flag is None else self.flag.zero_()
        if not self.waits and skips and not engine.amp:
            engine.optimizer.found_inf = self.flag
        event, scaler = IterationEvents.BACKWARD_COMPLETED, engine.scaler if engine.amp else None
        scaled = scaler is not None and scaler.is_enabled()
        if not scaled and not engine.has_event_handler(self._check_gradients, event):
            # Attached only now, to see what all other handlers made of the gradients.
            engine.add_event_handler(event, self._check_gradients)

    def _check_loss(self, engine: Engine) -> None:
        # The field, too: sampling clips NaN coordinates to the border, so the similarity stays finite, and its backward
        # may crash.
        output = engine.state.output
        values = [output[key] for key in (CommonKeys.LOSS, CommonKeys.PRED) if key in output]
        self._mark(torch.stack([value.detach().isfinite().all() for value in values]).all())
        if idist.get_world_size() > 1:
            # All stop alike: they would average in the gradients of the one whose step is not finite. GPUs only queue
            # this.
            dist.all_reduce(self.flag, dist.ReduceOp.MAX)
        if self.waits:
            self._stop(engine)

    def _check_gradients(self, engine: Engine) -> None:
        parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # Processes share the gradients already. Norms are a fast pass; one that overflows is taken for an overflow.
        self._mark(torch.stack(torch._foreach_norm(gradients)).isfinite().all())
        if self.waits:
            self._stop(engine)

    def _mark(self, finite: Tensor) -> None:
        """Set the flag where something is not finite, without waiting for the device."""
        torch.maximum(self.flag, (~finite).to(self.flag.dtype), out=self.flag)

    def _stop(self, engine: Engine) -> None:
        """Raise where the flag is set: this waits for the device."""
        if self.flag:
            when = "" if self.waits else f"{max(engine.state.iteration - self.every, 0) + 1} to "
            raise NotFiniteError(
                f"the loss, the field or a gradient is not finite at step {when}{engine.state.iteration} (epoch "
                f"{engine.state.epoch}); {how_to_go_on(self.folder, engine.state.epoch)}"
            )


def running_mean(share: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """The `multi_avg_fn` of an `AveragedModel` that follows the weights closely at first and slowly later.

    The n-th update (from 0) takes a share 3 / (3 + n) of the current weights, which is polynomial-decay averaging with
    eta = 2 (Shamir and Zhang, ICML 2013), but never less than `share`, where it becomes an exponential mean.

    Args:
        share: of the current weights, in the long run.
    """

    def update(means: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_(means, weights, max(3 / (3 + int(count)), share))

    return update


class WeightAveraging:
    """Updates a running mean of the weights after the optimizer's step of each iteration.

    What `AveragedModel.update_parameters` does, without its copy of the count to the device, for which it would wait.
    Where the weights were replaced between two runs of the trainer, as in federated learning by the server's, the mean
    starts anew from them.

    Args:
        averager: its `module` is the network with the mean weights; its `multi_avg_fn` takes all of them at the first
            update.
        network: the network that is trained.
    """

    def __init__(self, averager: AveragedModel, network: nn.Module) -> None:
        self.averager = averager
        self.network = network
        self.count = 0
        self.norms: Tensor | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _norms(self) -> Tensor:
        """The norm of each tensor of weights, which tells whether they are the same."""
        return torch.stack(torch._foreach_norm(list(unwrap(self.network).parameters())))

    @torch.no_grad()
    def _start(self, engine: Engine) -> None:
        if self.norms is not None and not torch.equal(self.norms, self._norms()):
            for mean, new in zip(
                self.averager.module.state_dict().values(), unwrap(self.network).state_dict().values()
            ):
                mean.copy_(new)
            self.averager.n_averaged.zero_()
        # Of a run that does not complete nothing is known.
        self.norms = None

    @torch.no_grad()
    def _finish(self, engine: Engine) -> None:
        self.norms = self._norms()

    def _start_epoch(self, engine: Engine) -> None:
        # Not before: a resumed training knows the count only then.
        self.count = int(self.averager.n_averaged)

    @torch.no_grad()
    def _update(self, engine: Engine) -> None:
        mean, network = self.averager.module, unwrap(self.network)
        self.averager.multi_avg_fn(list(mean.parameters()), list(network.parameters()), self.count)
        if buffers := list(mean.buffers()):
            torch._foreach_copy_(buffers, list(network.buffers()))
        self.averager.n_averaged += 1
        self.count += 1


class EpochShuffling:
    """Tells a `DistributedSampler` the epoch, so that each epoch has an order of its own.

    Args:
        sampler: the sampler, or a `BatchSampler` around it.
    """

    def __init__(self, sampler: DistributedSampler | BatchSampler) -> None:
        self.sampler = getattr(sampler, "sampler", sampler)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self.sampler.set_epoch(engine.state.epoch))


class CaseProgress:
    """A progress bar over the cases of an evaluator."""

    def attach(self, engine: Engine) -> None:
        ProgressBar(desc="cases", bar_format=BAR).attach(engine)


class TrainingProgress:
    """A progress bar an epoch with the loss and, where surgery runs, the conflict ratio and the smoothness.

    Args:
        every: iterations between two readings of the figures, each of which waits for the device.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.shown: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        # In this order, so that an iteration's figures are there when the bar moves.
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self.read)
        ProgressBar(desc="epoch", bar_format=BAR).attach(engine, output_transform=lambda _: self.shown)

    def read(self, engine: Engine) -> None:
        """The figures of this iteration."""
        keys = {"similarity": CommonKeys.LOSS, "smoothness": "smoothness", "conflicts": "conflict_ratio"}
        output = engine.state.output
        self.shown = {name: f"{output[key].item():.3g}" for name, key in keys.items() if key in output}
