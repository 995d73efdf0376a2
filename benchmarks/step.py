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

"""Cost of one training step by surgery against the plain weighted sum, side by side in one process.

    python -m benchmarks.step [--device cuda:0] [--batch 8] [--rounds 20] [--json step.json] [--reference PATH]

Each variant is a `SupervisedTrainer` of its own on the published network, driven an iteration at a time: forward pass,
losses, backward passes, surgery with its records, fused AdamW. The variants take turns in each round, in a random
order, and are compared within it: on a CPU by the process's CPU time on one thread, on a GPU by the clock with the
device waited for. Before any timing, one step by surgery in float64 must equal the same step computed from two separate
backward passes.

Then the pieces of a channels-last step are timed apart: the passes through the network and the losses, whose second
backward pass is what surgery cannot do without, the rule, and the optimizer.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from scripts.devices import check_bf16, check_device
from scripts.errors import InputError, one_line
from scripts.registration.losses import SmoothnessLoss, WarpedSimilarity
from scripts.registration.networks import PyramidNetwork, RegistrationUNet
from scripts.surgery.handler import GradientSurgeryHandler
from scripts.surgery.rules import aggregate
from torch import Tensor, nn

from benchmarks.options import positive, writable
from benchmarks.setting import keep, processor, setting
from benchmarks.timing import format_rows, quartiles, time_rounds

NETWORKS = {"unet": lambda: RegistrationUNet(conv_bias=True), "pyramid": PyramidNetwork}
WEIGHT = 0.01  # of the smoothness in the plain step
TAU = 1e-5
FORMATS = {
    "contiguous": {},
    "channels_last": {"channels_last": True},
    "bf16": {"channels_last": True, "bf16": True},
    "compile": {"channels_last": True, "compile": True},
}
AS_WRITTEN = "plain, contiguous, unfused"
REFERENCE = "reference"
FORWARD, ONE_BACKWARD, TWO_BACKWARD = "forward", "forward, one backward", "forward, two backward"
RULE, OPTIMIZER = "rule", "optimizer"
GATE = 1e-10


class Autocast(nn.Module):
    """A network whose forward pass runs in bfloat16 where that is safe."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pair: Tensor) -> Tensor:
        with torch.autocast(pair.device.type, dtype=torch.bfloat16):
            return self.network(pair)


class WeightedLoss(nn.Module):
    """Similarity + weight * smoothness of a field and its pair: what training without surgery descends."""

    def __init__(self, weight: float = WEIGHT) -> None:
        super().__init__()
        self.similarity = WarpedSimilarity(nn.MSELoss())
        self.smoothness = SmoothnessLoss()
        self.weight = weight

    def forward(self, field: Tensor, pair: Tensor) -> Tensor:
        return self.similarity(field, pair) + self.weight * self.smoothness(field)


def _make_pair(batch: int, size: int, device: str) -> Tensor:
    """(batch, 2, size, size) in [0, 1]: smooth random images, the fixed ones a little different."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 2, size // 8, size // 8, generator=generator)
    coarse[:, 1] = 0.8 * coarse[:, 0] + 0.2 * coarse[:, 1]
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").to(device)


def make_step(
    network: nn.Module,
    pair: Tensor,
    surgery: bool,
    channels_last: bool = False,
    bf16: bool = False,
    compile: bool = False,
    fused: bool = True,
) -> Callable[[], None]:
    """One iteration of a trainer on a batch, as a function without arguments.

    Args:
        network: trained in place.
        pair: the batch (B, 2, X, Y), on its device.
        surgery: gradient surgery; else descend the weighted sum of the losses.
        channels_last: memory format of network and batch.
        bf16: autocast of the network.
        compile: `torch.compile` of the network.
        fused: the optimizer's fused form.
    """
    if channels_last:
        network, pair = (
            network.to(memory_format=torch.channels_last),
            pair.contiguous(memory_format=torch.channels_last),
        )
    network = Autocast(network) if bf16 else network
    trainer = SupervisedTrainer(
        device=pair.device,
        max_epochs=1,
        train_data_loader=[{"image": pair, "label": pair}],
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4, fused=fused),
        loss_function=WarpedSimilarity(nn.MSELoss()) if surgery else WeightedLoss(),
        train_handlers=[GradientSurgeryHandler(network, SmoothnessLoss(), tau=TAU)] if surgery else [],
        decollate=False,
        compile=compile,
        optim_set_to_none=True,
    )
    trainer.logger.setLevel("ERROR")

    def step() -> None:
        trainer.state.max_epochs += 1
        trainer.run()

    trainer.run()
    return step


def _make_pieces(network: nn.Module, pair: Tensor) -> dict[str, Callable[[], None]]:
    """What a channels-last step consists of, each as a function without arguments; those of passes begin with a forward
    pass of their own.

    Args:
        network: trained in place.
        pair: the batch (B, 2, X, Y), on its device.
    """
    network = network.to(memory_format=torch.channels_last)
    pair = pair.contiguous(memory_format=torch.channels_last)
    similarity, smoothness = WarpedSimilarity(nn.MSELoss()), SmoothnessLoss()
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def gradients(*losses: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, ...]]:
        field = network(pair)
        last = len(losses) - 1
        return [
            torch.autograd.grad(loss(field), parameters, retain_graph=number < last)
            for number, loss in enumerate(losses)
        ]

    both = gradients(smoothness, lambda field: similarity(field, pair))
    for parameter, gradient in zip(parameters, both[1]):
        parameter.grad = gradient
    return {
        FORWARD: lambda: network(pair),
        ONE_BACKWARD: lambda: gradients(lambda field: similarity(field, pair) + WEIGHT * smoothness(field)),
        TWO_BACKWARD: lambda: gradients(smoothness, lambda field: similarity(field, pair)),
        RULE: lambda: aggregate(both[1], both[0], tau=TAU),
        OPTIMIZER: optimizer.step,
    }


def _compare_pieces(seconds: dict[str, list[float]]) -> dict[str, dict]:
    """Milliseconds of each piece, and its ratio to forward pass and one backward pass, round by round."""
    return {
        name: {
            "milliseconds": quartiles([1e3 * value for value in values]),
            "to_one_backward": quartiles([value / base for value, base in zip(values, seconds[ONE_BACKWARD])]),
        }
        for name, values in seconds.items()
    }


def import_reference(path: str | Path, name: str) -> ModuleType:
    """A module of the authors' code, from a checkout of their repository.

    Raises:
        InputError: where the path holds no such checkout.
    """
    source = Path(path) / "source"
    if not (source / f"{name}.py").is_file():
        raise InputError(f"{source / name}.py: no such file; --reference takes a checkout of the authors' repository.")
    sys.path.insert(0, str(source))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(source))


def make_reference(path: str | Path, size: int, device: str) -> tuple[nn.Module, object]:
    """The authors' network for images of size² and its `GradientDescent`, in their published setting."""
    theirs = import_reference(path, "model_func")
    model = theirs.load_model(
        {
            "ModelType": "VoxelMorph",
            "BackBone": "UNet",
            "FeatNum": [16, 32, 64, 128, 256],
            "ImgSize": size,
            "IntegrateConfig": {"UseIntegrate": False, "TimeStep": 8},
        }
    ).to(device)
    weights = {"Similarity": 1, "Smoothness": WEIGHT}
    return model, theirs.GradientDescent(
        model, torch.optim.AdamW(model.parameters(), lr=1e-4), "MSE", "Grad", weights, "LayerWise"
    )


def make_reference_step(path: str | Path, pair: Tensor) -> Callable[[], None]:
    """One step of the authors' code on a batch."""
    model, descent = make_reference(path, pair.shape[-1], pair.device)
    moving, fixed = pair[:, :1].contiguous(), pair[:, 1:].contiguous()

    def step() -> None:
        descent.update_gradient(model(moving, fixed))

    step()
    return step


def handler_gradients(network: nn.Module, pair: Tensor, runs: int = 1, amp: bool = False) -> list[Tensor]:
    """What the handler leaves in `.grad` of each parameter, from the last of some runs over one batch, whose steps have
    length zero.

    Args:
        network: whose weights stay as they are.
        pair: the batch (B, 2, X, Y), on the network's device.
        runs: with a scaler some first ones overflow, until its scale fits.
        amp: fp16 with a gradient scaler.
    """
    found: list[Tensor] = []
    trainer = SupervisedTrainer(
        device=pair.device,
        max_epochs=runs,
        train_data_loader=[{"image": pair, "label": pair}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=WarpedSimilarity(nn.MSELoss()),
        train_handlers=[GradientSurgeryHandler(network, SmoothnessLoss(), tau=TAU)],
        decollate=False,
        amp=amp,
    )
    trainer.logger.setLevel("ERROR")

    def keep(_: Engine) -> None:
        found[:] = [p.grad.detach().clone() for p in network.parameters()]

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    trainer.run()
    return found


def surgery_error(network: nn.Module, pair: Tensor) -> float:
    """Largest difference, relative to the largest entry, between the handler's gradients and those of two separate
    backward passes."""
    network, pair = copy.deepcopy(network).double(), pair.double()
    gradients = []
    for loss in (WarpedSimilarity(nn.MSELoss()), lambda field, _: SmoothnessLoss()(field)):
        copied = copy.deepcopy(network)
        loss(copied(pair), pair).backward()
        gradients.append([p.grad.flatten() for p in copied.parameters()])
    floor = TAU * max(r.norm() for r in gradients[1])
    expected = []
    for s, r in zip(*gradients):
        conflict = s @ r < 0 and r.norm() >= floor
        expected.append(s - (s @ r) / (r @ r) * r if conflict else s)
    found = [gradient.flatten() for gradient in handler_gradients(network, pair)]
    scale = max(g.abs().max() for g in expected)
    return float(max((a - b).abs().max() for a, b in zip(found, expected)) / scale)


def _baseline(name: str, names: Sequence[str]) -> str:
    """The plain step in the same format."""
    plain = f"plain, {name.partition(', ')[2]}"
    return plain if plain in names else AS_WRITTEN


def _compare(seconds: dict[str, list[float]]) -> dict[str, dict]:
    """Milliseconds of each step and ratios, round by round: to the plain step in its own format, as written, and to the
    reference."""
    table = {}
    for name, values in seconds.items():
        row = {"milliseconds": quartiles([1e3 * value for value in values])}
        for label, other in (
            ("to_plain_same_format", _baseline(name, list(seconds))),
            ("to_plain_as_written", AS_WRITTEN),
            ("to_reference", REFERENCE),
        ):
            if other in seconds and other != name:
                row[label] = quartiles([value / base for value, base in zip(values, seconds[other])])
        table[name] = row
    return table


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, write the JSON; returns what it writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=positive, default=8, help="pairs of slices a step")
    parser.add_argument("--size", type=positive, default=128, help="pixels along both axes")
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="unet", help="unet is the published one")
    parser.add_argument("--variants", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--reference", help="checkout of the authors' repository, timed beside")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)

    check_device(options.device)
    if options.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    network = NETWORKS[options.network]().to(options.device)
    pair = _make_pair(options.batch, options.size, options.device)
    error = surgery_error(network, pair[:2])
    print(f"float64: surgery differs from two separate backward passes by {error:.1e} of the largest gradient")
    if not error < GATE:
        raise SystemExit(f"error: that is more than {GATE:.0e}; nothing was timed.")

    new = lambda surgery, **form: make_step(copy.deepcopy(network), pair, surgery, **form)
    steps = {AS_WRITTEN: new(False, fused=False)}
    skipped = {}
    for name in options.variants:
        try:
            check_bf16(options.device, name == "bf16")
            steps |= {f"{kind}, {name}": new(kind == "surgery", **FORMATS[name]) for kind in ("plain", "surgery")}
        except Exception as failure:
            if name not in ("compile", "bf16"):
                raise
            skipped[name] = str(failure).strip().splitlines()[0]
            print(f"{name}: skipped, {skipped[name]}")
    if options.reference:
        steps[REFERENCE] = make_reference_step(options.reference, pair)
    time_rounds(steps, 2, options.device)
    seconds = time_rounds(steps, options.rounds, options.device)
    table = _compare(seconds)
    pieces = _make_pieces(copy.deepcopy(network), pair)
    time_rounds(pieces, 2, options.device)
    apart = _compare_pieces(time_rounds(pieces, options.rounds, options.device))
    hardware = f"{processor(options.device)}, {'one thread, CPU time' if options.device == 'cpu' else 'clock'}"
    print(
        f"{options.network}, batch {options.batch}, {options.size} x {options.size}, {options.rounds} rounds; {hardware}"
    )
    print(f"{format_rows(table)}\n\n{format_rows(apart)}")
    result = {
        **setting("benchmarks.step", sys.argv[1:] if argv is None else argv, options, hardware),
        "float64_error": error,
        "skipped": skipped,
        "steps": table,
        "pieces": apart,
        "seconds": seconds,
    }
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
