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

"""The network for other runtimes: exported to TorchScript and ONNX with a parity check, and an ONNX file run in the
network's place.

    python -m scripts.workflow.exports [--checkpoint models/model.pt] [--depth_checkpoint models/depth.pt] [--output_dir dist]
        [--config_file configs/inference.yaml]

Of the network of slices, TorchScript (model.ts) holds the whole, for any image size. ONNX (model.onnx) holds the backbone,
for batches and sizes of any multiple of the stride: `networks.PaddedNetwork` pads around it, as around the backbone itself.
Where the config has a `stack_network` of its own, stack.ts holds that in TorchScript: both images of a stack, the moving one
first, each followed by the maps of its contours, (B, 8, X, Y, Z), to the displacement along the stack, then in-plane,
(B, 3, X, Y, Z) in voxels.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from scripts.errors import InputError, one_line
from scripts.files import whole_file
from scripts.registration.networks import PaddedNetwork, fold_batch_norm, replace_group_norms, scale_and_shift
from scripts.training.checkpoints import hash_checkpoint, load_weights
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
# From where `GridSample` and `Resize` are what PyTorch's are, to what the pinned runtimes read.
OPSETS = (18, 19, 20)
TOLERANCE = 1e-3  # pixels
MAKE = "python -m scripts.workflow.exports writes it"


class ElementwiseGroupNorm(nn.Module):
    """`nn.GroupNorm`, or a `CentralGroupNorm`, by means along the spatial axes and one scale and shift a channel.

    The usual form cuts channels into groups by a reshape, for which runtimes leave their convolutions' memory format
    and come back.

    Args:
        norm: the one to imitate, with an affine part.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.window = getattr(norm, "window", None)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        spatial = list(range(2, x.ndim))
        central = x
        if self.window is not None:
            for axis in spatial:
                margin = torch.sym_max((x.shape[axis] - self.window) // 2, 0)
                central = central[(slice(None),) * axis + (slice(margin, margin + self.window),)]
        count = central[0, 0].numel()
        # Unlike a mean of squares, runtimes compute a norm without writing the squares down.
        length = torch.linalg.vector_norm(central, dim=spatial)
        mean, square = central.mean(spatial), length * length / count
        scale, shift = scale_and_shift(mean, square, self.groups, self.weight, self.bias, self.eps, len(spatial))
        return x * scale + shift


def export_torchscript(network: nn.Module, path: str | Path) -> Path:
    """Write a network, (B, 2 C, *spatial) -> (B, d, *spatial), as frozen TorchScript; the whole file or none."""
    with whole_file(path) as part:
        torch.jit.freeze(torch.jit.script(fold_batch_norm(network))).save(str(part))
    return Path(path)


def export_onnx(
    network: nn.Module, path: str | Path, opset: int = OPSETS[-1], checkpoint: str | Path | None = None
) -> Path:
    """Write a network's backbone as ONNX with free batch and spatial sizes; the whole file or none.

    Args:
        network: of two spatial axes; a `PaddedNetwork`, or one that takes any size.
        path: file to write.
        opset: version of ONNX's operators.
        checkpoint: file of the weights, whose hash is written beside them.

    Raises:
        InputError: for an opset that is not supported, and where onnx or onnxscript is not installed.
    """
    if opset not in OPSETS:
        raise InputError(f"--opset {opset}: give one of {', '.join(map(str, OPSETS))}.")
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError("onnx: is not installed; pip install onnx onnxscript") from error

    stride = getattr(network, "stride", 1)
    backbone = fold_batch_norm(getattr(network, "backbone", network)).cpu()
    replace_group_norms(backbone, ElementwiseGroupNorm)
    sizes = [stride * torch.export.Dim(name, min=2, max=4096 // stride) for name in ("rows", "columns")]
    example = torch.rand(3, _channels_of(network), 4 * stride, 6 * stride)
    with whole_file(path) as part:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                backbone,
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch", max=4096), 2: sizes[0], 3: sizes[1]},),
                input_names=["pair"],
                output_names=["velocity"],
                optimize=False,  # the runtimes do that themselves, and it takes longer than all the rest
                verbose=False,
            )
        model = program.model_proto
        onnx.helper.set_model_props(model, {"weights": hash_checkpoint(checkpoint), "smallest": str(2 * stride)})
        onnx.save(model, part)
    return Path(path)


def _channels_of(network: nn.Module) -> int:
    """Channels of a network's input, 2 for the intensities of both images."""
    return 2 * getattr(getattr(network, "backbone", network), "in_channels", 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and its notes on packages that are not needed."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class ExportedNetwork(nn.Module):
    """An ONNX file in a network's place: ONNX Runtime or OpenVINO computes its forward pass, on the CPU and on torch's
    number of threads.

    Args:
        path: ONNX file of `export_onnx`.
        runtime: "onnxruntime" or "openvino".
        checkpoint: weights that the file must have been exported from; None does not ask.
        bf16: whether OpenVINO computes in bfloat16.

    Raises:
        InputError: for a file or a checkpoint that is not there, a file of other weights or not readable, a runtime
            that is not installed, or bfloat16 with the other one.
    """

    def __init__(
        self, path: str | Path, runtime: str = "onnxruntime", checkpoint: str | Path | None = None, bf16: bool = False
    ) -> None:
        super().__init__()
        runtimes = {"onnxruntime": _run_onnxruntime, "openvino": _run_openvino}
        if runtime not in runtimes:
            raise InputError(f"--runtime {runtime}: give one of {', '.join(runtimes)}.")
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; {MAKE}.")
        try:
            self.run, properties = runtimes[runtime](path, torch.get_num_threads(), bf16)
        except ImportError as error:
            raise InputError(f"--runtime {runtime}: is not installed; pip install {runtime}") from error
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{path}: is not an ONNX file that {runtime} can read ({type(error).__name__}); {MAKE}."
            ) from error
        if checkpoint is not None and properties.get("weights") != hash_checkpoint(checkpoint):
            raise InputError(f"{path}: was exported from other weights than {checkpoint}; {MAKE} again.")
        self.smallest = int(properties.get("smallest", 1))

    def forward(self, pair: Tensor) -> Tensor:
        """(B, 2 C, X, Y) -> (B, 2, X, Y), voxels; on the input's device.

        Raises:
            InputError: for an image that is smaller than the file was exported for.
        """
        if min(pair.shape[2:]) < self.smallest:
            raise InputError(
                f"an image of {tuple(pair.shape[2:])} pixels: exported networks take {self.smallest} or more along an axis."
            )
        field = self.run(np.ascontiguousarray(pair.detach().cpu().float().numpy()))
        return torch.from_numpy(field).to(pair.device)


# An ONNX file's function, and its properties.
Runtime = tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]


def fastest_runtime() -> str:
    """ "openvino" where it is installed, else "onnxruntime"; told in the log."""
    found = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
    logging.getLogger("inference").info("the exported network is run by %s", found)
    return found


def _run_onnxruntime(path: str | Path, threads: int, bf16: bool = False) -> Runtime:
    """Through ONNX Runtime.

    Raises:
        InputError: for bfloat16, which its CPU kernels lack.
    """
    import onnxruntime

    if bf16:
        raise InputError("--bf16 True: ONNX Runtime has no bfloat16 on a CPU; leave it False, or --runtime openvino.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pair: session.run(None, {"pair": pair})[0], session.get_modelmeta().custom_metadata_map


def _run_openvino(path: str | Path, threads: int, bf16: bool = False) -> Runtime:
    """Through OpenVINO, compiled for each shape that comes: it is faster than with free sizes."""
    # Its telemetry would report each import to its makers, from a forked process; without that module it reports nothing.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    properties = {key: str(value) for key, value in model.get_rt_info("framework").value.items()}
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}

    @functools.lru_cache(maxsize=4)
    def compiled(shape: tuple[int, ...]) -> object:
        fixed = model.clone()
        fixed.reshape(list(shape))
        return core.compile_model(fixed, "CPU", settings).create_infer_request()

    return lambda pair: compiled(pair.shape).infer({0: pair})[0].copy(), properties


def pairs_of_slices(network: nn.Module, stride: int) -> list[Tensor]:
    """Random smooth pairs of images, one and ten, of odd and even sizes."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, (12 * stride, 11 * stride)), (10, (5 * stride - 7, 4 * stride + 3)))
    coarse = [torch.rand(batch, _channels_of(network), 8, 8, generator=generator) for batch, _ in shapes]
    return [F.interpolate(c, size=size, mode="bicubic").clamp(0, 1) for c, (_, size) in zip(coarse, shapes)]


def pairs_of_stacks(stride: int) -> list[Tensor]:
    """Random smooth pairs of stacks with three maps each, of several slices and of one, of odd and even sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = (6 * stride, 5 * stride, 7), (5 * stride - 7, 4 * stride + 3, 1)
    coarse = [torch.rand(1, 8, 4, 4, size[2], generator=generator) for size in sizes]
    return [F.interpolate(c, size=size, mode="trilinear") for c, size in zip(coarse, sizes)]


def largest_difference(one: nn.Module, other: nn.Module, pairs: Sequence[Tensor]) -> float:
    """Largest difference of what two networks make of some pairs, in pixels."""
    with torch.inference_mode():
        return max(float((one(pair) - other(pair)).abs().max()) for pair in pairs)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Export the networks of a config, print how far each form is from its network in pixels, and keep none that is
    further than `TOLERANCE`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.workflow.exports", description=main.__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--config_file",
        default=str(ROOT / "configs" / "inference.yaml"),
        help="its network_def is exported, and its stack_network if it has one of its own; several with commas are merged",
    )
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--depth_checkpoint", default=str(ROOT / "models" / "depth.pt"))
    parser.add_argument("--output_dir", default=str(ROOT / "dist"))
    parser.add_argument(
        "--opset", type=int, default=OPSETS[-1], help=f"version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]}"
    )
    options = parser.parse_args(argv)
    files = options.config_file.split(",")
    if missing := [path for path in files if not Path(path).is_file()]:
        raise InputError(f"--config_file {missing[0]}: no such file; give a config with a network_def.")
    config = ConfigParser(ConfigParser.load_config_files(files))
    network = load_weights(config.get_parsed_content("network_def", instantiate=True), options.checkpoint).eval()
    stride = getattr(network, "stride", 1)
    folder = Path(options.output_dir)

    def wrap(path):
        return PaddedNetwork(ExportedNetwork(path, checkpoint=options.checkpoint), stride)

    def onnx(n, path):
        return export_onnx(n, path, options.opset, options.checkpoint)

    pairs = pairs_of_slices(network, stride)
    forms = {
        "model.ts": (network, export_torchscript, torch.jit.load, pairs),
        "model.onnx": (network, onnx, wrap, pairs),
    }
    if isinstance(config.get("stack_network"), dict):  # not the network of slices, or of volumes, again
        paths = {"checkpoint": options.checkpoint, "depth_checkpoint": options.depth_checkpoint}
        config.update({**paths, "device": "cpu"})
        stacks = config.get_parsed_content("stack_network", instantiate=True).eval()
        forms["stack.ts"] = (stacks, export_torchscript, torch.jit.load, pairs_of_stacks(stride))
    differences = {}
    for name, (original, export, load, examples) in forms.items():
        print(f"writing {folder / name} …", flush=True)
        path = export(original, folder / name)
        try:
            differences[name] = largest_difference(original, load(path), examples)
            print(f"{path}: at most {differences[name]:.1e} px from the network in PyTorch")
            if not differences[name] < TOLERANCE:
                raise InputError(f"{path}: removed, since that is more than {TOLERANCE} px.")
        except BaseException:
            path.unlink()  # No export stays that was not compared.
            raise
    return differences


if __name__ == "__main__":
    with one_line():
        main()
