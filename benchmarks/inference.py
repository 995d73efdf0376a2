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

"""Time to compute a field: our network against ITK's Demons and SyN, side by side in one process on the same slices.

    python -m benchmarks.inference [--dataset_dir DIR] [--rounds 5] [--slices 30] [--crop 128] [--json inference.json]
        [--variants contiguous channels_last bf16 torchscript onnxruntime openvino demons symmetric syn]
        [--cine C_4d.nii.gz --reference_label ED_gt.nii.gz | --no_cine]

Central crops of end-systolic slices are brought onto end diastole: those of a test split in ACDC's layout, else of
phantoms. Every method takes the same pairs of images in [0, 1] and returns displacements in pixels; reading, scaling,
warping and writing are not timed. All methods take turns in each round, in a random order, and are compared within it:
by the process's CPU time on one thread, or, with the network on a GPU, by the clock with the device waited for and ITK
on one thread. Before any timing, each method must at least halve the mean squared difference of a phantom's slices; one
that does not is left out.

Beside it a whole case is timed once from file to files, as a user runs it: a cine read, its fields, inverses, quality,
function, strain, everything written, the report too, but no frame segmented; a real one where it is given, else a
phantom of ten slices and twenty frames. And a phantom's pair of stacks of twelve slices: its field slice by slice, its
field with motion along the stack, and the contours of both images that the latter needs.

- ours: the network and settings of configs/inference.yaml, its velocities integrated, by 1, 5 or 10 slices a forward
  pass; in PyTorch (contiguous, channels_last, bf16), or exported (torchscript, onnxruntime, openvino)
- demons: DiffeomorphicDemonsRegistrationFilter, sigma 1, three levels by factors 4, 2, 1 in
  MultiResolutionPDEDeformableRegistration
- symmetric: SymmetricForcesDemonsRegistrationFilter, the same way (the Fast one is not wrapped for Python)
- syn: SyNImageRegistrationMethod on cross-correlation of radius 4, a level at a time; slow, on demand
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, ResizeWithPadOrCropd
from scripts.api import register_cine
from scripts.cardiac.cines import LABELS
from scripts.cardiac.phantom import Phantom, write_phantom_dataset
from scripts.cardiac.phases import find_contours
from scripts.data.datalists import select_pairs
from scripts.data.loading import LoadPaird
from scripts.data.preprocessing import ScaleSlicesd, scale_slices
from scripts.devices import check_bf16, check_device
from scripts.errors import one_line
from scripts.registration.fields import warp
from scripts.registration.inferers import FieldInferer
from scripts.registration.metrics import dice_percent, folding_percent, mse_hundredfold, nan_mean
from scripts.registration.networks import PaddedNetwork
from scripts.training.checkpoints import load_weights
from scripts.workflow.exports import ExportedNetwork, export_onnx, export_torchscript
from scripts.workflow.segmenters import load_segmenter
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.classical import METHODS, limit_itk_to_one_thread
from benchmarks.options import positive, writable
from benchmarks.setting import keep, processor, setting
from benchmarks.timing import format_rows, quartiles, time_rounds

# Pairs (S, 2, X, Y) of moving and fixed slices -> fields (S, 2, X, Y) in pixels, channel i along array axis i, pull
# convention.
Method = Callable[[Tensor], Tensor]

ROOT = Path(__file__).parent.parent
NETWORK = {"contiguous": {}, "channels_last": {"channels_last": True}, "bf16": {"channels_last": True, "bf16": True}}
EXPORTED = ("torchscript", "onnxruntime", "openvino")
ON_DEMAND = ("bf16", *EXPORTED, "syn")
BATCHES = (1, 5, 10)
OURS = "ours, channels_last, batch 5"  # what inference.yaml ships: the others are compared to it
STILL = "no registration"
GATE = 0.5
STACK = 12  # slices


def make_network_method(
    config: ConfigParser, network: nn.Module, batch: int, channels_last: bool = False, bf16: bool = False
) -> Method:
    """Fields by the network, a batch of slices at a time.

    Args:
        config: inference.yaml, for how the network's output becomes a field.
        network: in evaluation mode, on its device.
        batch: slices a forward pass.
        channels_last: memory format of network and input.
        bf16: autocast of the network.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout) if channels_last else network
    infer = FieldInferer(
        integration=config.get_parsed_content("integration", instantiate=True), passes=config["passes"], bf16=bf16
    )

    @torch.inference_mode()
    def method(pairs: Tensor) -> Tensor:
        return torch.cat([infer(chunk.contiguous(memory_format=layout), network) for chunk in pairs.split(batch)])

    return method


def _slice_by_slice(register: Callable[..., np.ndarray], iterations: int) -> Method:
    """A method from one of `benchmarks.classical`."""

    def method(pairs: Tensor) -> Tensor:
        fields = [register(moving, fixed, iterations=iterations) for moving, fixed in pairs.cpu().numpy()]
        return torch.from_numpy(np.stack(fields))

    return method


ITK = {
    "demons": lambda iterations: _slice_by_slice(METHODS["diffeomorphic_demons"], iterations),
    "symmetric": lambda iterations: _slice_by_slice(METHODS["demons"], iterations),
    "syn": lambda iterations: _slice_by_slice(METHODS["syn"], iterations),
}


def make_methods(variants: Sequence[str], checkpoint: str, device: str, iterations: int) -> dict[str, Method]:
    """The methods to compare by name, the shipped setting of ours always among them; torch and ITK are set to one
    thread on a CPU.

    Raises:
        InputError: for a checkpoint that cannot be read, or where ITK is needed and not installed.
    """
    config = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "inference.yaml")))
    methods = {}
    forms = {}
    for form in NETWORK:
        if form in variants or form == OURS.split(", ")[1]:
            # Each has a network of its own, since the memory format is a property of the weights.
            network = load_weights(config.get_parsed_content("network_def", instantiate=True, lazy=False), checkpoint)
            forms[form] = network.to(device).eval()
    forms |= _export_and_load(config, checkpoint, [form for form in EXPORTED if form in variants])
    for form, network in forms.items():
        how = NETWORK.get(form, {})
        if form in variants:
            methods |= {
                f"ours, {form}, batch {batch}": make_network_method(config, network, batch, **how) for batch in BATCHES
            }
        else:
            methods[OURS] = make_network_method(config, network, 5, **how)
    chosen = [name for name in ITK if name in variants]
    if chosen:
        limit_itk_to_one_thread()
    return methods | {name: ITK[name](iterations) for name in chosen}


def _export_and_load(config: ConfigParser, checkpoint: str, forms: Sequence[str]) -> dict[str, nn.Module]:
    """The network as `make export` writes it, in each of the forms of `EXPORTED`.

    Raises:
        InputError: where a runtime is not installed.
    """
    if not forms:
        return {}
    network = load_weights(config.get_parsed_content("network_def", instantiate=True, lazy=False), checkpoint)
    loaded = {}
    with tempfile.TemporaryDirectory() as folder:
        if "torchscript" in forms:
            loaded["torchscript"] = torch.jit.load(export_torchscript(network, Path(folder) / "model.ts"))
        runtimes = [form for form in forms if form != "torchscript"]
        if runtimes:
            path = export_onnx(network, Path(folder) / "model.onnx", checkpoint=checkpoint)
            loaded |= {
                name: PaddedNetwork(ExportedNetwork(path, name, checkpoint), network.stride) for name in runtimes
            }
    return loaded


def phantom_slices(count: int, size: int, seed: int = 0) -> dict[str, Tensor]:
    """Slices of random phantoms, four each: "pairs" (S, 2, X, Y) in [0, 1] and "labels" (S, 2, X, Y), end systole then
    end diastole."""
    stacks = []
    for subject in range(-(-count // 4)):
        phantom = Phantom.random((seed, subject), size=(size, size))
        frames = (phantom.end_systole, 1)
        images = torch.stack([scale_slices(torch.from_numpy(phantom.image(frame)).float()) for frame in frames])
        labels = torch.stack([torch.from_numpy(phantom.label(frame)).float() for frame in frames])
        stacks.append({"pairs": images.movedim(-1, 0), "labels": labels.movedim(-1, 0)})
    return {key: torch.cat([stack[key] for stack in stacks])[:count] for key in ("pairs", "labels")}


def acdc_slices(dataset_dir: str, count: int, size: int) -> dict[str, Tensor]:
    """Slices of the test split in ACDC's layout, evenly spaced over all: as `phantom_slices`; without "labels" where
    one is missing.

    Raises:
        InputError: for a data set that cannot be read.
    """
    images, labels = ["moving", "fixed"], ["moving_label", "fixed_label"]
    load = Compose(
        [
            LoadPaird(),
            ScaleSlicesd(images),
            ResizeWithPadOrCropd([*images, *labels], (size, size, -1), mode="edge", allow_missing_keys=True),
            ScaleSlicesd(images, clip_percentile=100.0),
        ]
    )
    cases = [load(item) for item in tqdm(select_pairs(dataset_dir, None, "test"), desc="reading", unit="case")]
    stack = lambda keys: torch.cat(
        [torch.cat([case[key].as_tensor() for key in keys]).movedim(-1, 0) for case in cases]
    )
    slices = {"pairs": stack(images)}
    if all(key in case for case in cases for key in labels):
        slices["labels"] = stack(labels)
    total = len(slices["pairs"])
    chosen = torch.linspace(0, total - 1, min(count, total)).round().long()
    return {key: value[chosen].contiguous() for key, value in slices.items()}


def score(fields: Tensor, slices: dict[str, Tensor]) -> dict[str, float]:
    """Mean squared difference (x 100), folding (%) and, with labels, Dice (%): over all slices as one stack, Dice then
    over structures."""
    moved, fixed = (slices["pairs"][:, [channel]] for channel in (0, 1))
    row = {
        "mse": mse_hundredfold(warp(moved, fields), fixed),
        "folding_percent": folding_percent(fields.movedim(0, -1)),
    }
    if "labels" in slices:
        label = warp(slices["labels"][:, :1], fields, mode="nearest").round()
        masks = [[(x == value).numpy() for x in (label, slices["labels"][:, 1:])] for value in LABELS.values()]
        row["dice"] = nan_mean([dice_percent(*pair) for pair in masks])
    return row


def _passes_gate(name: str, method: Method, slices: dict[str, Tensor], device: str) -> bool:
    """Whether a method at least halves the mean squared difference of phantom slices; prints by how much."""
    pairs = slices["pairs"]
    before = score(torch.zeros_like(pairs), slices)["mse"]
    after = score(method(pairs.to(device)).cpu(), slices)["mse"]
    passed = after <= GATE * before
    print(
        f"{name}: {after / before:.3f} of a phantom's mean squared difference is left{'' if passed else '; not timed'}"
    )
    return passed


def time_case(
    device: str, checkpoint: str, size: int, cine: str | None = None, label: str | None = None
) -> dict[str, float]:
    """Seconds of a whole case from file to files, by the clock and of the process's CPU time, with its size.

    Args:
        device, checkpoint: as inference.yaml takes them.
        size: in-plane voxels of a phantom, where no cine is given.
        cine: a 4-D NIfTI file or a DICOM folder whose reference frame is known where it has a label.
        label: of the reference frame.
    """
    with tempfile.TemporaryDirectory() as folder:
        if cine is None:
            write_phantom_dataset(Path(folder) / "data", 3, 0, (size, size), 10, 20)
            cine, label = (str(sorted(Path(folder).rglob(name))[0]) for name in ("*_4d.nii.gz", "*_frame01_gt.nii.gz"))
        clock, work = time.perf_counter(), time.process_time()
        result = register_cine(
            cine,
            reference_label=label,
            segmentation="none",
            device=device,
            checkpoint=checkpoint,
            output_dir=f"{folder}/out",
        )
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - work
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "shape": list(result.cine.image.shape)}


def time_stack(device: str, checkpoint: str, size: int, rounds: int, slices: int = STACK) -> dict[str, dict]:
    """Seconds of a pair of stacks by inference.yaml, as quartiles over the rounds: of its field "slice by slice", of that "with
    motion along the stack" where the contours are known, and of the "contours of both images".

    Args:
        device, checkpoint: as inference.yaml takes them.
        size: in-plane voxels of the phantom.
        rounds: of all three, which take turns.
        slices: of the stack.
    """
    config = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "inference.yaml")))
    config["bundle_root"], config["device"], config["checkpoint"] = str(ROOT), device, checkpoint
    both = config.get_parsed_content("stack_network").eval()
    phantom = Phantom.random(0, (size, size), slices, spacing=(1.5, 1.5, 8.0), shortening=0.15)
    frames = (phantom.end_systole, 1)
    images = [torch.from_numpy(phantom.image(frame)).float() for frame in frames]
    labels = [torch.from_numpy(phantom.label(frame)) for frame in frames]
    parts = [
        torch.stack([scale_slices(image), *((label == value).float() for value in LABELS.values())])
        for image, label in zip(images, labels)
    ]
    pair = torch.cat(parts)[None].to(device)
    in_plane = make_network_method(config, both.backbone.in_plane, 5, channels_last=True)
    plain = pair[0, [0, len(LABELS) + 1]].movedim(-1, 0)
    segment = load_segmenter(config.get_parsed_content("segmentation"), device)
    cine = torch.stack(images, dim=-1).numpy()
    steps = {
        "slice by slice": lambda: in_plane(plain),
        "with motion along the stack": torch.inference_mode()(lambda: both(pair)),
        "contours of both images": lambda: find_contours(cine, phantom.spacing, segment),
    }
    for step in steps.values():
        step()
    seconds = time_rounds(steps, rounds, device)
    return {name: {"seconds": quartiles(values)} for name, values in seconds.items()}


def _compare(seconds: dict[str, list[float]], slices: int) -> dict[str, dict]:
    """Milliseconds a slice pair, and time relative to ours, round by round."""
    return {
        name: {
            "milliseconds": quartiles([1e3 * value / slices for value in values]),
            "times_ours": quartiles([value / ours for value, ours in zip(values, seconds[OURS])]),
        }
        | (
            {"times_as_fast_as_demons": quartiles([d / v for d, v in zip(seconds["demons"], values)])}
            if "demons" in seconds
            else {}
        )
        for name, values in seconds.items()
    }


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, write the JSON; returns what it writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", help="data set in ACDC's layout, whose test split is taken; default: phantoms")
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--device", default="cpu", help="of the network; ITK runs on the CPU")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--slices", type=positive, default=30, help="pairs of slices a round")
    parser.add_argument("--crop", type=positive, default=128, help="pixels along both axes")
    parser.add_argument("--iterations", type=positive, default=50, help="of Demons and SyN, at each of three levels")
    variants = [*NETWORK, *EXPORTED, *ITK]
    parser.add_argument("--variants", nargs="+", choices=variants, default=[v for v in variants if v not in ON_DEMAND])
    parser.add_argument("--cine", help="4-D NIfTI file or DICOM folder to time from file to files; default: a phantom")
    parser.add_argument("--reference_label", help="of the cine's reference frame")
    parser.add_argument("--no_cine", action="store_true", help="time fields of slices alone")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)

    check_device(options.device)
    check_bf16(options.device, "bf16" in options.variants)
    torch.set_num_threads(1)
    methods = make_methods(options.variants, options.checkpoint, options.device, options.iterations)
    phantom = phantom_slices(2, options.crop, seed=1)
    failed = [name for name, method in methods.items() if not _passes_gate(name, method, phantom, options.device)]
    if OURS in failed:
        raise SystemExit(f"error: {OURS} does not halve a phantom's mean squared difference; nothing was timed.")
    if options.dataset_dir:
        slices = acdc_slices(options.dataset_dir, options.slices, options.crop)
    else:
        slices = phantom_slices(options.slices, options.crop)
    pairs = slices["pairs"].to(options.device)
    table, steps = {STILL: score(torch.zeros_like(slices["pairs"]), slices)}, {}
    for name, method in methods.items():
        if name not in failed:
            table[name] = score(method(pairs).cpu(), slices)  # and warms it up
            steps[name] = lambda method=method: method(pairs)
    seconds = time_rounds(steps, options.rounds, options.device)
    for name, row in _compare(seconds, len(pairs)).items():
        table[name] |= row
    clock = "one thread, CPU time" if options.device == "cpu" else f"clock; ITK on one thread of {processor('cpu')}"
    hardware = f"{processor(options.device)}, {clock}"
    source = "slices of the test split" if options.dataset_dir else "slices of phantoms"
    print(
        f"{len(pairs)} {source}, {options.crop} x {options.crop}, {options.rounds} rounds; {hardware}; times_ours: {OURS} is 1"
    )
    print(format_rows(table))
    case = stack = None
    if not options.no_cine:
        stack = time_stack(options.device, options.checkpoint, options.crop, options.rounds)
        print(f"a pair of stacks of {options.crop} x {options.crop} x {STACK} voxels")
        print(format_rows(stack))
    others = [name for name in ("itk", "onnxruntime", "openvino") if name in sys.modules]
    result = {
        **setting("benchmarks.inference", sys.argv[1:] if argv is None else argv, options, hardware, others),
        "data": source,
        "slices": len(pairs),
        "baseline": OURS,
        "not_timed": failed,
        "methods": table,
        "seconds": seconds,
        "whole_case": case,
        "stack": stack,
    }
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
