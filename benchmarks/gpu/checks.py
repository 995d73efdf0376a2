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

"""Whether the device computes what it should, and how fast a step is; on a CPU each part runs, and says so of what it
stands for."""

from __future__ import annotations

import copy
import platform
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import torch
from monai.bundle import ConfigParser
from scripts.devices import allow_tf32, settings_kept
from scripts.errors import first_cause
from scripts.surgery.rules import GRANULARITIES, STRATEGIES, aggregate, group_indices
from scripts.training.datasets import batch_loader
from scripts.training.graphs import WARM_UP
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import training
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import Results
from benchmarks.step import GATE, NETWORKS, Autocast, handler_gradients, make_reference_step, make_step, surgery_error
from benchmarks.timing import quartiles, time_rounds

PLAIN, EAGER, GRAPH = "plain, eager", "surgery, eager", "surgery, graph"
TRAINING, REFERENCE = "training, graph", "the authors' step"
WEAK = 1e-3  # of the largest norm; directions of weaker gradients are not compared


def versions(bench: Bench, _: Results) -> dict:
    """The device and the packages."""
    found = {name: version(name) for name in ("monai", "pytorch-ignite", "numpy", "nibabel")}
    found |= {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if not bench.on_gpu:
        return {"versions": found, "device": bench.device}
    properties = torch.cuda.get_device_properties(bench.device)
    return {
        "versions": found | {"cudnn": torch.backends.cudnn.version()},
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": properties.total_memory / 2**30,
    }


# --- does it compute what it should


def parity(bench: Bench, _: Results) -> dict:
    """In float64: the handler against two separate backward passes on the device, and the rules against the CPU's.

    Raises:
        ArithmeticError: where one is off.
    """
    torch.manual_seed(0)
    pair = bench.pair(2)
    handler = {name: surgery_error(make().to(bench.device), pair) for name, make in NETWORKS.items()}
    shapes = [(8, 2, 3, 3), (8,), (16, 8, 3, 3), (16,)]
    groups = {kind: group_indices(["a.weight", "a.bias", "b.weight", "b.bias"], kind) for kind in GRANULARITIES}
    rules = {
        f"{strategy}, {kind}": _rule_error(strategy, shapes, groups[kind], bench.device)
        for strategy in STRATEGIES
        for kind in GRANULARITIES
    }
    worst = max(*handler.values(), *rules.values())
    if not worst < GATE:
        raise ArithmeticError(f"float64: off by {worst:.1e} of the largest gradient, more than {GATE:.0e}.")
    return {"handler": handler, "rules": rules}


def _rule_error(strategy: str, shapes: Sequence[tuple[int, ...]], groups: Sequence[int], device: str) -> float:
    """Largest difference between a rule on a device and on the CPU, relative to the largest entry."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    gradients = draw(), draw()
    weight = 0.5 if strategy == "weighted_sum" else 0.0
    expected, _ = aggregate(*gradients, strategy, groups, weight=weight)
    found, _ = aggregate(*([x.to(device) for x in side] for side in gradients), strategy, groups, weight=weight)
    scale = max(float(x.abs().max()) for x in expected)
    return max(float((a.cpu() - b).abs().max()) for a, b in zip(found, expected)) / scale


def precision(bench: Bench, _: Results) -> dict:
    """The gradients of a step on the published network in each precision against float64 on the CPU."""
    torch.manual_seed(0)
    pair = bench.pair(min(bench.batch, 8))
    network = NETWORKS["unet"]().to(bench.device)
    # At its start the field is next to nothing, and so are its gradients.
    step = make_step(network, pair, surgery=False)
    for _ in range(bench.steps):
        step()
    exact = handler_gradients(copy.deepcopy(network).cpu().double(), pair.cpu().double())
    found = {}
    with settings_kept():
        for name, tf32, wrap, options in (
            ("fp32", False, nn.Identity, {}),
            ("TF32", True, nn.Identity, {}),
            ("bf16", True, Autocast, {}),
            ("fp16 with a scaler", True, nn.Identity, {"runs": 16, "amp": True}),
        ):
            allow_tf32(tf32)
            copied = copy.deepcopy(network)
            gradients = handler_gradients(wrap(copied) if wrap is Autocast else copied, pair, **options)
            found[name] = difference(gradients, exact)
    return {"gradients": found, **({} if bench.on_gpu else {"stand_in": "a CPU computes TF32 and fp16 in fp32"})}


def difference(found: Sequence[Tensor], exact: Sequence[Tensor]) -> dict[str, float]:
    """Of two lists of gradients: |found - exact| / |exact| over all, and the smallest cosine of a tensor that is not
    weak."""
    found = [x.detach().cpu().double() for x in found]
    total = lambda tensors: float(torch.stack(torch._foreach_norm(list(tensors))).norm())
    norms = [float(x.norm()) for x in exact]
    cosines = [
        float((a * b).sum() / (a.norm() * norm)) for a, b, norm in zip(found, exact, norms) if norm > WEAK * max(norms)
    ]
    return {
        "relative_error": total(a - b for a, b in zip(found, exact)) / total(exact),
        "smallest_cosine": min(cosines),
    }


# --- does anything wait


class ReadCounter(TorchDispatchMode):
    """Counts operations whose result the host must know: values read, and shapes that depend on values."""

    READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.count += func._schema.name in self.READS
        return func(*args, **(kwargs or {}))


def _count_reads(loop: Callable[[], None]) -> int:
    """Of a loop, by the operations."""
    with ReadCounter() as counter:
        loop()
    return counter.count


def _count_waits(loop: Callable[[], None]) -> int:
    """Of a loop, by CUDA's own record of synchronizations."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            loop()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in heard)


def synchronizations(bench: Bench, _: Results) -> dict:
    """How often the host waits for the device in an epoch of train.yaml as it is, of some steps with their loader and
    augmentation, and in as many steps of the authors' code."""
    dataset = bench.data.slices(bench.device)
    portion = lambda: training.Part(batch_loader(dataset, bench.batch), bench.steps)
    parser = bench.config("shipped")
    # As on a GPU: a CPU's steps are looked at one by one.
    parser["train::handlers"] = [
        item | ({"waits": False} if item["_target_"].endswith("NonFiniteLossHandler") else {})
        for item in parser["train::handlers"]
    ]
    loops = {"train.yaml": training.as_loop(training.make_training(parser, portion()))}
    if bench.reference:
        step = make_reference_step(bench.reference, bench.pair(bench.batch))
        loops["the authors' steps"] = lambda: [step() for _ in range(bench.steps)]
    counters = {"values_read": _count_reads} | ({"waits": _count_waits} if bench.on_gpu else {})
    found = {}
    for name, loop in loops.items():
        loop()
        found[name] = {"steps": bench.steps, **{kind: count(loop) for kind, count in counters.items()}}
    stand_in = {} if bench.on_gpu else {"stand_in": "values read, in place of CUDA's record of synchronizations"}
    return {"epoch": found, **stand_in}


# --- how fast is it


def steps(bench: Bench, _: Results) -> dict:
    """The step of the published and of the shipped network against its floors."""
    peaks = training.measure_peaks(bench.device)
    found = {network: time_steps(bench, network, peaks) for network in ("published", "shipped")}
    stand_in = {} if bench.on_gpu else {"stand_in": "steps in place of graphs, operators in place of kernels"}
    return {"peak_gflops": peaks[0] / 1e9, "peak_gigabytes_a_second": peaks[1] / 1e9, **found, **stand_in}


def time_steps(bench: Bench, network: str, peaks: tuple[float, float]) -> dict:
    """The loops of a network side by side: milliseconds a step, floors of a step, and what share of the time no kernel
    runs; "not_measured" says what failed, and why."""
    loops, failures = {}, {}
    for name, make in _step_makers(bench, network).items():
        try:
            loops[name] = make()
            # As often as a graph needs to be recorded.
            time_rounds({name: loops[name]}, 1 + WARM_UP // bench.steps, bench.device, progress=False)
        except Exception as error:
            if name in (PLAIN, EAGER):
                raise
            failures[name] = str(first_cause(error))
            loops.pop(name, None)
    seconds = time_rounds(loops, bench.rounds, bench.device, progress=False)
    counted, found = training.count(loops[EAGER], bench.steps), {}
    for name, values in seconds.items():
        each = [value / bench.steps for value in values]
        found[name] = {
            "milliseconds": quartiles([1e3 * value for value in each]),
            "to_plain": quartiles([a / b for a, b in zip(values, seconds[PLAIN])]),
        }
        if name in (EAGER, GRAPH):
            floors = training.against_floors(*counted, peaks, float(np.median(each)))
            floors.pop("milliseconds")
            found[name] |= floors
            try:
                found[name]["idle_percent"] = training.measure_idle(loops[name], bench.device)
            except Exception as error:
                failures[f"idle share of {name}"] = str(first_cause(error))
    return {**found, "not_measured": failures}


def _step_makers(bench: Bench, network: str) -> dict[str, Callable[[], training.Loop]]:
    """What makes the loops of a network, of as many steps each."""
    batch = {"pair": bench.pair(bench.batch)}
    dataset = bench.data.slices(bench.device)
    step = lambda parser: training.make_step_loop(parser, batch, bench.steps)
    portion = lambda: training.Part(batch_loader(dataset, bench.batch), bench.steps)
    makers = {
        PLAIN: lambda: step(_without_surgery(bench.config(network))),
        EAGER: lambda: step(bench.config(network)),
        GRAPH: lambda: step(bench.config(network, graph=True)),
        TRAINING: lambda: training.as_loop(training.make_training(bench.config(network, graph=True), portion())),
    }
    if bench.reference and network == "published":
        theirs = make_reference_step(bench.reference, batch["pair"])
        makers[REFERENCE] = lambda: lambda: [theirs() for _ in range(bench.steps)]
    return makers


def _without_surgery(parser: ConfigParser) -> ConfigParser:
    """The same training by the weighted sum of both losses, in one backward pass."""
    kept = [item for item in parser["train::handlers"] if not item["_target_"].endswith("GradientSurgeryHandler")]
    parser["train::handlers"] = kept
    parser["train::loss"] = {"_target_": "benchmarks.step.WeightedLoss"}
    return parser


def compiled(bench: Bench, _: Results) -> dict:
    """The published step by torch.compile in its reduce-overhead mode, beside the same as a CUDA graph."""
    batch = {"pair": bench.pair(bench.batch)}
    options = {"compile": True, "train::trainer::compile_kwargs": {"mode": "reduce-overhead"}}
    if not bench.on_gpu:
        # The compiler of a CPU takes minutes: what it would be given runs as it is.
        options["train::trainer::compile_kwargs"] = {"backend": "eager"}
    loops = {
        "compiled": training.make_step_loop(bench.config("published", **options), batch, bench.steps),
        GRAPH: training.make_step_loop(bench.config("published", graph=True), batch, bench.steps),
    }
    time_rounds(loops, 1 + WARM_UP // bench.steps, bench.device, progress=False)
    seconds = time_rounds(loops, bench.rounds, bench.device, progress=False)
    stand_in = {} if bench.on_gpu else {"stand_in": "the backend that compiles nothing"}
    return {
        **{
            name: {"milliseconds": quartiles([1e3 * v / bench.steps for v in values])}
            for name, values in seconds.items()
        },
        **stand_in,
    }


def volumes(bench: Bench, _: Results) -> dict:
    """A step of volume.yaml on the deepest training stack: milliseconds, and the memory that it takes at most."""
    stack, spacing = bench.data.deepest()
    low = [(length - bench.size) // 2 for length in stack.shape[2:4]]
    stack = stack[:, :, low[0] : low[0] + bench.size, low[1] : low[1] + bench.size].to(bench.device)
    settings = ConfigParser.load_config_file(str(training.ROOT / "configs" / "volume.yaml"))
    settings = {key: value for key, value in settings.items() if key != "initial_weights"}
    parser = bench.config("shipped", **{**settings, "augmentation": None})
    batches = [{"pair": stack, "spacing": spacing.to(bench.device)}] * bench.steps
    loop, peak = training.build(lambda: training.as_loop(training.make_training(parser, batches)), bench.device)
    values = time_rounds({"step": loop}, max(bench.rounds // 3, 1), bench.device, progress=False)["step"]
    milliseconds = quartiles([1e3 * value / bench.steps for value in values])
    return {"shape": list(stack.shape), "milliseconds": milliseconds, "peak_mb": peak}
