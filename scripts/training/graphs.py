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

"""A trainer that records its whole step as one CUDA graph and replays it: no launches between the kernels, nothing to
wait for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from monai.engines import SupervisedTrainer
from scripts.errors import InputError
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

Step = Callable[[], None]
WARM_UP = 3  # iterations that run as usual before one is recorded: cuDNN, the optimizer's state and caches need them


class GraphTrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer`; with `graph` its iterations are replays of a CUDA graph, recorded once from its own
    `_iteration`.

    The graph holds forward pass, losses, backward passes, the optimizer's step, and all that handlers do on the events
    between them, such as `GradientSurgeryHandler`; `prepare_batch` (augmentation) and the handlers of Ignite's own
    events stay outside. Batches are copied into one place on the device, so all are of one shape. What handlers of
    `IterationEvents` do on tensors is replayed, what they do in Python is not: they run in the first iterations and
    once while the step is recorded.

    `engine.state.output` holds the same entries as without a graph. Its scalars are of this iteration for good;
    "image", "label" and "pred" are overwritten by the next one.

    Args:
        args: of `SupervisedTrainer`.
        graph: whether to record the step.
        record: makes of a step a function that replays it; the default records a CUDA graph.
        kwargs: of `SupervisedTrainer`.

    Raises:
        InputError: with `graph`, for mixed precision with a scaler, compilation, accumulation or several processes, and
            for a step that cannot be recorded.
    """

    def __init__(
        self, *args: object, graph: bool = False, record: Callable[[Step], Step] | None = None, **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)
        self.graph = graph
        if not graph:
            return
        unsupported = {
            "amp": self.amp,
            "compile": self.compile,
            "accumulation_steps > 1": self.accumulation_steps > 1,
            "several processes": isinstance(self.network, DistributedDataParallel),
        }
        for name, given in unsupported.items():
            if given:
                raise InputError(f"--graph True: a step with {name} is not recorded; leave one of them out.")
        # One for all: what a backward pass meets on a stream, a later one waits for there.
        self.stream = torch.cuda.Stream(self.state.device) if self.state.device.type == "cuda" else None
        self.record = record or partial(record_cuda_graph, stream=self.stream)
        self.augment_and_load, self.prepare_batch = self.prepare_batch, lambda *_, **__: self.batch
        # Copies of its own: MONAI's Warp keeps a grid of the last shape it met, and whoever shares it would free the
        # one that the graph reads.
        self.inferer, self.loss_function = copy.deepcopy((self.inferer, self.loss_function))
        # Recorded gradients lie in the graph's own memory.
        self.optim_set_to_none = True
        self.batch: tuple | None = None
        self.replay: Step | None = None
        self.output: dict = {}
        self.warm = 0

    def _iteration(self, engine: GraphTrainer, batchdata: dict[str, Tensor]) -> dict:
        if not self.graph:
            return super()._iteration(engine, batchdata)
        batch = self.augment_and_load(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        self.fill(batch)

        def step() -> None:
            output = super(GraphTrainer, self)._iteration(engine, batchdata)
            # An output that kept its autograd graph would tie the step that is recorded to an earlier one.
            self.output = {key: value.detach() if isinstance(value, Tensor) else value for key, value in output.items()}

        if self.warm < WARM_UP:
            _make_capturable(self.optimizer, engine.state.device)
            _on_side_stream(step, self.stream)
            self.warm += 1
        else:
            self.replay = self.replay or self.record(step)
            self.replay()
        engine.state.output = {
            key: value.clone() if isinstance(value, Tensor) and value.ndim == 0 else value
            for key, value in self.output.items()
        }
        return engine.state.output

    def fill(self, batch: tuple[Tensor, Tensor | tuple[Tensor, ...]]) -> None:
        """Copy an input and its target, a tensor or a tuple of tensors, to where the graph reads them.

        Raises:
            InputError: for a batch of another shape than the first one.
        """
        image, target = batch
        new = [image, *(target if isinstance(target, tuple) else (target,))]
        if self.batch is None:
            # What is one tensor stays one.
            places = {id(tensor): torch.empty_like(tensor) for tensor in new}
            self.places = [places[id(tensor)] for tensor in new]
            self.batch = (self.places[0], tuple(self.places[1:]) if isinstance(target, tuple) else self.places[1])
        if [tensor.shape for tensor in new] != [place.shape for place in self.places]:
            shapes = " and ".join(str(tuple(tensors[0].shape)) for tensors in (self.places, new))
            raise InputError(f"--graph True: all batches need one shape, got {shapes}; leave graph out.")
        for place, tensor in {id(place): (place, tensor) for place, tensor in zip(self.places, new)}.values():
            place.copy_(tensor)


def _make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimizer keep its rate on a CUDA device, where a scheduler changes it and a graph reads it.

    Raises:
        InputError: for an optimizer whose step cannot be recorded.
    """
    for group in optimizer.param_groups:
        if "capturable" not in group:
            name = type(optimizer).__name__
            raise InputError(
                f"--graph True: {name} cannot be recorded; take one with `capturable`, such as torch.optim.AdamW."
            )
        if device.type == "cuda":
            group["capturable"] = True
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)


def _on_side_stream(step: Step, stream: torch.cuda.Stream | None) -> None:
    """Run a step on a CUDA stream of its own, as the recording does; without one, on a CPU, just run it."""
    if stream is None:
        step()
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        step()
    current.wait_stream(stream)


def record_cuda_graph(step: Step, stream: torch.cuda.Stream | None = None) -> Step:
    """Record a step, which does nothing yet; returns what replays it.

    Args:
        step: what to record.
        stream: on which, of the step's device; None takes one of the current device.

    Raises:
        InputError: where the step waits for the device or copies from the host.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            step()
    except RuntimeError as error:
        # The end of a recording that failed has an error of its own, which hides the first one.
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        if not isinstance(cause, RuntimeError):
            raise cause from None
        reason = str(cause).strip().splitlines()[0]
        raise InputError(f"--graph True: this step cannot be recorded ({reason}); leave graph out.") from error
    return graph.replay
