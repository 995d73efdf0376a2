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

"""A training as users run it: slices a second and seconds an epoch, with loading and augmentation, and where the time
goes.

    python -m benchmarks.training [--dataset_dir DIR] [--network shipped] [--rounds 20] [--reference PATH] [--json
    training.json]

Loops over the same slices take turns in each round, in a random order, and are compared within it, slice for slice (on
a CPU by the process's CPU time on one thread, on a GPU by the clock with the device waited for): `train.yaml` itself,
batches from its loader, augmented, and its handlers but those that log, validate and save; its step on one batch that
lies ready; its loader alone, and with the augmentation; the same training with TorchJD's equivalent aggregation; the
authors' loop with their own data set class, where a checkout is given; on a GPU, the training and the step as a CUDA
graph, and the step by torch.compile in its reduce-overhead mode. Then the step is counted: its arithmetic and the bytes
that its kernels move, against what this device does at best in the same run, and on a GPU how much of the kernel
timeline is idle.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.utils import set_determinism
from scripts.cardiac.phantom import write_phantom_dataset
from scripts.data.preprocessing import PreparePair
from scripts.devices import allow_tf32, check_device, time_kernels
from scripts.errors import InputError, one_line
from scripts.surgery.rules import aggregate as aggregate_gradients
from scripts.training.datasets import SliceDataset, batch_loader
from scripts.training.graphs import WARM_UP
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.options import positive, writable
from benchmarks.setting import keep, processor, setting
from benchmarks.step import import_reference, make_reference
from benchmarks.timing import format_rows, quartiles, time_rounds

ROOT = Path(__file__).parent.parent
NETWORKS = {
    "shipped": {},
    "published": {
        "network_def::backbone": {"_target_": "scripts.registration.networks.RegistrationUNet", "conv_bias": True},
        "integration": None,
    },
}
KEPT_HANDLERS = ("NonFiniteLossHandler", "GradientSurgeryHandler", "LrScheduleHandler", "WeightAveraging")
TRAINING, STEP, TORCHJD, REFERENCE = "training", "step alone", "TorchJD", "the authors' loop"
LOADER, AUGMENTATION = "loader alone", "loader and augmentation alone"
GRAPH, STEP_GRAPH, STEP_COMPILED = "training, graph", "step alone, graph", "step alone, reduce-overhead"
REFERENCE_BATCH = 32
# Trains (or loads) the slices of one round.
Loop = Callable[[], None]


class Part:
    """A fixed number of batches at a time of a loader that never ends."""

    def __init__(self, loader: Iterable[dict], steps: int) -> None:
        self.loader = loader
        self.steps = steps
        self.batches = self.endless()

    def endless(self) -> Iterator[dict]:
        """Epoch after epoch."""
        while True:
            yield from self.loader

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict]:
        for _ in range(self.steps):
            yield next(self.batches)


def read_config(network: str, device: str, **overrides: object) -> ConfigParser:
    """train.yaml with one of NETWORKS, without the handlers that log, validate and save."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "train.yaml"))
    settings = {"bundle_root": str(ROOT), "device": device, **NETWORKS[network], **overrides}
    for key, value in settings.items():
        parser[key] = value
    kept = [item for item in parser["train::handlers"] if item["_target_"].split(".")[-1] in KEPT_HANDLERS]
    parser["train::handlers"] = kept
    return parser


def make_training(parser: ConfigParser, batches: Iterable[dict]) -> SupervisedTrainer:
    """The trainer of a configuration, over these batches."""
    parser["train::dataloader"] = batches
    torch.manual_seed(0)
    trainer = parser.get_parsed_content("train::trainer")
    trainer.logger.setLevel("ERROR")
    trainer.state.max_epochs = 0
    return trainer


def as_loop(trainer: SupervisedTrainer) -> Loop:
    """All batches of a trainer once."""

    def loop() -> None:
        trainer.state.max_epochs += 1
        trainer.run()

    return loop


def _make_torchjd_loop(parser: ConfigParser, batches: Iterable[dict]) -> Loop:
    """The same training as a user of TorchJD writes it: the Jacobian's two rows, then its aggregation tensor by tensor.

    `DualProj` with all preference on the similarity is GSMorph's rule. Its quadratic program is solved by SciPy:
    TorchJD's own solver is not under a permissive license.

    Raises:
        InputError: where TorchJD is not installed, or its rule is not ours.
    """
    try:
        from torchjd.aggregation import DualProj
        from torchjd.linalg import DualConeProjector
    except ImportError as error:
        raise InputError(
            "torchjd: is not installed; pip install torchjd==0.18.0, or give --without torchjd."
        ) from error
    from scipy.optimize import nnls

    class Projector(DualConeProjector):
        def __call__(self, preferred: Tensor, gramian: Tensor) -> Tensor:
            matrix = gramian.double().cpu().numpy()
            root = np.linalg.cholesky(matrix + 1e-14 * np.trace(matrix) * np.eye(2)).T
            weights = np.apply_along_axis(lambda u: u + nnls(root, -root @ u)[0], -1, preferred.double().cpu().numpy())
            return torch.from_numpy(weights).to(preferred)

    network, optimizer = (parser.get_parsed_content(name) for name in ("network", "optimizer"))
    prepare, inferer = (parser.get_parsed_content(name) for name in ("train::trainer::prepare_batch", "train::inferer"))
    similarity, smoothness = (parser.get_parsed_content(name) for name in ("train::loss", "smoothness"))
    device, parameters = torch.device(parser["device"]), list(network.parameters())
    aggregate = DualProj(pref_vector=torch.tensor([1.0, 0.0], device=device), projector=Projector())
    check_rule(aggregate, device)

    def loop() -> None:
        network.train()
        for batch in batches:
            image, target = prepare(batch, device)
            optimizer.zero_grad()
            field = inferer(image, network)
            losses = similarity(field, target), smoothness(field)
            rows = [torch.autograd.grad(loss, parameters, retain_graph=loss is losses[0]) for loss in losses]
            for parameter, s, r in zip(parameters, *rows):
                # Where r is zero but for rounding there is nothing to project on, nor a Gramian to solve with.
                both = torch.stack([s.flatten(), r.flatten()])
                parameter.grad = aggregate(both).view_as(s) if bool(r.norm() > 0) else s
            optimizer.step()

    return loop


def check_rule(aggregate: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """Stop where an aggregation of (2, n) is not the projection of `scripts.surgery`.

    Raises:
        InputError: naming the difference.
    """
    for seed in range(4):
        s, r = torch.randn(2, 50, generator=torch.Generator().manual_seed(seed)).to(device)
        error = float((aggregate(torch.stack([s, r])) - aggregate_gradients([s], [r])[0][0]).abs().max())
        if error > 1e-4:
            raise InputError(f"torchjd: its aggregation differs from the projection by {error:.1e}; nothing was timed.")


def make_reference_loop(path: str | Path, pairs: Tensor, folder: Path, device: str) -> Loop:
    """The authors' network, step, data set class and loader at their own batch, on 8-bit PNG files of these slices (N,
    2, X, Y).

    OpenCV, with which they read files, is stood in for by Pillow where it is not installed.

    Raises:
        InputError: where the path holds no such checkout, or there are fewer slices than their batch has.
    """
    if len(pairs) < REFERENCE_BATCH:
        raise InputError(f"--reference: needs {REFERENCE_BATCH} slices, got {len(pairs)}; give a larger data set.")
    from PIL import Image

    if "cv2" not in sys.modules and importlib.util.find_spec("cv2") is None:
        sys.modules["cv2"] = types.SimpleNamespace(
            IMREAD_GRAYSCALE=0, imread=lambda name, _: np.asarray(Image.open(name).convert("L"))
        )
    items = []
    for number, pair in enumerate((255 * pairs).round().byte().cpu().numpy()):
        item = {"Moving": {}, "Fixed": {}}
        for role, image in zip(item, pair):
            for kind, array in (("IMG", image), ("SEG", np.zeros_like(image))):
                item[role][kind] = f"{number}_{role}_{kind}.png"
                Image.fromarray(array).save(folder / item[role][kind])
        items.append(item)
    data = import_reference(path, "data_func").RegistrationDataSet(items, str(folder))
    batches = Part(DataLoader(data, batch_size=REFERENCE_BATCH, shuffle=True, drop_last=True), 1)
    model, descent = make_reference(path, pairs.shape[-1], device)

    def loop() -> None:
        for batch in batches:
            fields = model(batch["Moving"]["IMG"].to(device), batch["Fixed"]["IMG"].to(device))
            descent.update_gradient(fields)

    return loop


class ByteCounter(TorchDispatchMode):
    """Sums the bytes that operations read and write, each tensor once an operation; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        if not any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def measure_peaks(device: str) -> tuple[float, float]:
    """Operations a second of a large matrix product in the training's precision, and bytes a second of a large copy, at
    best."""
    on_gpu = device.startswith("cuda")
    a, b = torch.randn(2, *[8192 if on_gpu else 1024] * 2, device=device)
    c = torch.randn(2**28 if on_gpu else 2**24, device=device)
    d = torch.empty_like(c)
    steps = {"product": lambda: a @ b, "copy": lambda: d.copy_(c)}
    time_rounds(steps, 2, device, progress=False)
    seconds = {name: min(values) for name, values in time_rounds(steps, 8, device, progress=False).items()}
    return 2 * len(a) ** 3 / seconds["product"], 2 * c.numel() * c.element_size() / seconds["copy"]


def count(loop: Loop, steps: int) -> tuple[float, float]:
    """Operations and bytes of one step of a loop.

    The bytes are those of the operations as they are launched, one after the other: fusing them would move less.
    """
    with FlopCounterMode(display=False) as flops, ByteCounter() as traffic:
        loop()
    return flops.get_total_flops() / steps, traffic.bytes / steps


def against_floors(operations: float, moved: float, peaks: tuple[float, float], seconds: float) -> dict[str, float]:
    """A step's arithmetic and traffic, the least time that each takes at these peaks a second, and its own time against
    the larger."""
    floors = operations / peaks[0], moved / peaks[1]
    return {
        "milliseconds": 1e3 * seconds,
        "gflop": operations / 1e9,
        "gigabytes": moved / 1e9,
        "arithmetic_floor_ms": 1e3 * floors[0],
        "memory_floor_ms": 1e3 * floors[1],
        "to_larger_floor": seconds / max(floors),
    }


def measure_idle(loop: Loop, device: str) -> float:
    """Percent of the time between a loop's first and last kernel in which no kernel runs; on a CPU, operators stand for
    kernels."""
    on_gpu = device.startswith("cuda")
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=kinds) as profiler:
        loop()
        if on_gpu:
            torch.cuda.synchronize(device)
    # As recorded: the profiler's own list takes seconds. Annotations span the gaps between the kernels that they name.
    kernels = [
        (event.start_ns(), event.end_ns())
        for event in profiler.profiler.kineto_results.events()
        if event.device_type() == (DeviceType.CUDA if on_gpu else DeviceType.CPU) and not event.is_user_annotation()
    ]
    return idle_percent(kernels)


def idle_percent(intervals: Sequence[tuple[float, float]]) -> float:
    """Percent of the time between the first start and the last end that no interval covers."""
    busy, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return 100 * (1 - busy / (end - min(start for start, _ in intervals)))


def build(make: Callable[[], Loop], device: str) -> tuple[Loop, float]:
    """A loop, and the MB that building it and its first round added at most: weights, optimizer, gradients,
    activations."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        loop = make()
        loop()
        return loop, (torch.cuda.max_memory_allocated(device) - before) / 1e6
    # The allocator's own record: the process's resident memory also holds what earlier loops left to be used again.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loop = make()
        loop()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return loop, max(np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]), default=0) / 1e6


def _compare(seconds: dict[str, list[float]], slices: dict[str, int], epoch: int) -> dict[str, dict]:
    """Milliseconds a slice, slices a second, seconds an epoch, and ratios slice for slice, round by round."""
    each = {name: [value / slices[name] for value in values] for name, values in seconds.items()}
    table = {}
    for name, values in each.items():
        median = float(np.median(values))
        row = {"milliseconds_a_slice": quartiles([1e3 * value for value in values])}
        if name not in (LOADER, AUGMENTATION):
            row |= {"slices_a_second": 1 / median, "seconds_an_epoch": epoch * median}
        others = {"to_step_alone": STEP, "to_training": TRAINING, "to_reference": REFERENCE}
        row |= {
            label: quartiles([a / b for a, b in zip(values, each[other])])
            for label, other in others.items()
            if other in each and other != name
        }
        table[name] = row
    return table


def _prepare_slices(parser: ConfigParser, cache: Path) -> tuple[SliceDataset, dict[str, dict]]:
    """The training slices, and the seconds that they took from the files and then from the cache."""
    parser["cache_dir"] = str(cache)
    rows = {}
    for name in ("from files", "from the cache"):
        start = time.process_time()
        dataset = parser.get_parsed_content("train::dataset", instantiate=True, lazy=False)
        rows[name] = {"seconds": time.process_time() - start}
    return dataset, rows


def _measure_batches(options: argparse.Namespace, dataset: SliceDataset, overrides: dict) -> dict[str, dict]:
    """Milliseconds a slice of the step alone at several sizes of batch, and relative to the first of them."""
    loops, sizes = {}, [size for size in options.batches if size <= len(dataset)]
    if not sizes:
        raise InputError(f"--batches: none is as small as the data set, which has {len(dataset)} slices.")
    for size in sizes:
        parser = read_config(options.network, options.device, **{**overrides, "batch_size": size})
        batch = next(iter(batch_loader(dataset, size)))
        loops[str(size)] = make_step_loop(parser, batch, max(options.slices // size, 1))
    time_rounds(loops, 1, options.device)
    seconds = time_rounds(loops, options.rounds, options.device)
    each = {
        size: [v / (int(size) * max(options.slices // int(size), 1)) for v in values]
        for size, values in seconds.items()
    }
    first = each[str(sizes[0])]
    return {
        size: {
            "milliseconds_a_slice": quartiles([1e3 * value for value in values]),
            f"to_batch_{sizes[0]}": quartiles([value / other for value, other in zip(values, first)]),
        }
        for size, values in each.items()
    }


def make_step_loop(parser: ConfigParser, batch: dict, steps: int) -> Loop:
    """The step of a configuration on one augmented batch that lies ready."""
    prepare = parser.get_parsed_content("train::trainer::prepare_batch")
    pair, _ = prepare(batch, torch.device(parser["device"]))
    parser["augmentation"] = None
    parser["train::trainer::prepare_batch"] = PreparePair()
    return as_loop(make_training(parser, [{"pair": pair}] * steps))


def _find_makers(
    options: argparse.Namespace,
    new: Callable[..., ConfigParser],
    dataset: SliceDataset,
    batch: int,
    steps: int,
    folder: Path,
) -> dict[str, Callable[[], Loop]]:
    """What makes each loop that the options ask for, by its name.

    Args:
        options: of the command line.
        new: makes a configuration, with overrides.
        dataset: slices that all loops take.
        batch: pairs of slices a step.
        steps: of a round.
        folder: for temporary files.
    """
    endless = lambda: Part(batch_loader(dataset, batch), steps)

    def make_augmentation_loop() -> Loop:
        prepare, batches = new().get_parsed_content("train::trainer::prepare_batch"), endless()
        device = torch.device(options.device)
        return lambda: [prepare(batch, device) for batch in batches]

    def make_loader_loop() -> Loop:
        batches = endless()
        return lambda: list(batches)

    make_step = lambda **more: make_step_loop(new(**more), next(iter(endless())), steps)
    makers: dict[str, Callable[[], Loop]] = {
        TRAINING: lambda: as_loop(make_training(new(), endless())),
        STEP: make_step,
        LOADER: make_loader_loop,
        AUGMENTATION: make_augmentation_loop,
    }
    if options.device.startswith("cuda"):
        makers[GRAPH] = lambda: as_loop(make_training(new(graph=True), endless()))
        makers[STEP_GRAPH] = lambda: make_step(graph=True)
        reduce = {"compile": True, "train::trainer::compile_kwargs": {"mode": "reduce-overhead"}}
        makers[STEP_COMPILED] = lambda: make_step(**reduce)
    if "torchjd" not in options.without:
        makers[TORCHJD] = lambda: _make_torchjd_loop(new(), endless())
    if options.reference:
        size = new().get_parsed_content("crop_size")
        low = [(old - crop) // 2 for old, crop in zip(dataset.pairs.shape[2:], size)]
        crops = dataset.pairs[..., low[0] : low[0] + size[0], low[1] : low[1] + size[1]]
        makers[REFERENCE] = lambda: make_reference_loop(options.reference, crops, folder, options.device)
    return makers


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset_dir", help="data set in ACDC's layout, whose train split is taken; default: phantoms"
    )
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--network", choices=list(NETWORKS), default="shipped")
    parser.add_argument(
        "--batch", type=positive, help="pairs of slices a step; default: that of train.yaml for the device"
    )
    parser.add_argument(
        "--batches", type=positive, nargs="*", default=[], help="sizes of batch whose steps are timed beside"
    )
    parser.add_argument(
        "--crop",
        type=positive,
        default=128,
        help="pixels along both axes; the slices that are cropped have a quarter more",
    )
    parser.add_argument("--slices", type=positive, help="slices of a round, in each loop; default: 32, on a GPU 512")
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--without", nargs="*", choices=("torchjd",), default=[], help="loops to leave out")
    parser.add_argument("--reference", help="checkout of the authors' repository, timed beside")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)
    options.slices = options.slices or (512 if options.device.startswith("cuda") else 32)
    return options


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the tables, write the JSON; returns what it writes."""
    options = _parse(argv)
    check_device(options.device)
    if options.device == "cpu":
        torch.set_num_threads(1)
    # As `initialize` of train.yaml.
    allow_tf32()
    set_determinism(seed=0)
    time_kernels()
    overrides = {"crop_size": [options.crop] * 2, "slice_size": [options.crop * 5 // 4] * 2}
    overrides |= {"batch_size": options.batch} if options.batch else {}
    new = lambda **more: read_config(options.network, options.device, **overrides, **more)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = options.dataset_dir or str(
            write_phantom_dataset(folder / "phantoms", subjects=6, size=overrides["slice_size"], slices=8, frames=4)
        )
        dataset, preparation = _prepare_slices(new(dataset_dir=source), folder / "cache")
        batch = new().get_parsed_content("batch_size")
        if batch > len(dataset):
            raise InputError(
                f"--batch {batch}: the data set has {len(dataset)} slices; give at most as many, or a larger data set."
            )
        steps = max(options.slices // batch, 1)
        makers = _find_makers(options, new, dataset, batch, steps, folder)
        loops, peaks, skipped = {}, {}, {}
        for name, make in makers.items():
            try:
                loops[name], peaks[name] = build(make, options.device)
            except Exception as failure:
                # What a compiler cannot do on this machine bars nothing else.
                if name != STEP_COMPILED:
                    raise
                skipped[name] = str(failure).strip().splitlines()[0]
                print(f"{name}: skipped, {skipped[name]}")
        time_rounds(loops, 1 + WARM_UP // steps, options.device)
        seconds = time_rounds(loops, options.rounds, options.device)
        slices = {name: REFERENCE_BATCH if name == REFERENCE else steps * batch for name in loops}
        table = _compare(seconds, slices, len(dataset))
        for name, peak in peaks.items():
            table[name]["peak_mb"] = peak
        counted, fastest = count(loops[STEP], steps), measure_peaks(options.device)
        counts = {}
        for name in (STEP, STEP_GRAPH, STEP_COMPILED):
            if name in loops:
                counts[name] = against_floors(*counted, fastest, float(np.median(seconds[name])) / steps)
                if options.device.startswith("cuda"):
                    counts[name]["idle_percent"] = measure_idle(loops[name], options.device)
        batches = _measure_batches(options, dataset, overrides) if options.batches else {}
    hardware = f"{processor(options.device)}, {'one thread, CPU time' if options.device == 'cpu' else 'clock'}"
    kind = "slices of the train split" if options.dataset_dir else "slices of phantoms"
    print(
        f"{options.network} network, batch {batch}, {len(dataset)} {kind} an epoch, {options.rounds} rounds; {hardware}"
    )
    print(f"{format_rows(table)}\n\n{format_rows(preparation)}\n\n{format_rows(counts)}")
    if batches:
        print(f"\n{format_rows(batches)}")
    others = () if "torchjd" in options.without else ("torchjd",)
    result = {
        **setting("benchmarks.training", sys.argv[1:] if argv is None else argv, options, hardware, others),
        "batch": batch,
        "epoch_slices": len(dataset),
        "loops": table,
        "preparation": preparation,
        "counts": counts,
        "batches": batches,
        "skipped": skipped,
        "seconds": seconds,
    }
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
