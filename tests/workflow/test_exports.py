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

"""The network elsewhere: what is written gives the same fields in other runtimes, in any size, and says so where it
cannot."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, WARM, last_line, run_bundle, succeed, write_options
from monai.bundle import ConfigParser
from scripts.errors import InputError
from scripts.registration.depth import DepthFirst, ThroughPlane
from scripts.registration.fields import Integration
from scripts.registration.networks import CentralGroupNorm, PaddedNetwork
from scripts.workflow import exports
from scripts.workflow.exports import ElementwiseGroupNorm, ExportedNetwork
from torch import nn

ONNX = "configs/inference_onnx.yaml"
# A small one of the shipped kind, whose export takes seconds, and whose random weights make fields of some pixels.
NETWORK = {
    "network_def": {
        "_target_": "scripts.registration.networks.PaddedNetwork",
        "stride": 16,
        "backbone": {
            "_target_": "scripts.registration.networks.PyramidNetwork",
            "features": [8, 8],
            "hidden": 8,
            "corrections": 1,
            "integration_steps": 2,
            "norm_window": 48,
            "flow_std": 0.12,
        },
    }
}

# What registers stacks with it, along their axis by the shipped weights.
STACKS = {
    "stack_network": {
        "_target_": "scripts.registration.networks.PaddedNetwork",
        "stride": [16, 16, 1],
        "backbone": {
            "_target_": "scripts.registration.depth.DepthFirst",
            "in_plane": {
                "_target_": "scripts.training.checkpoints.load_weights",
                "network": "@network_def",
                "path": "@checkpoint",
            },
            "through_plane": {
                "_target_": "scripts.training.checkpoints.load_weights",
                "network": {"_target_": "scripts.registration.depth.ThroughPlane"},
                "path": "@depth_checkpoint",
            },
            "integration": {"_target_": "scripts.registration.fields.Integration"},
            "slices_at_once": 2,
        },
    }
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small network's config and weights."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.json").write_text(json.dumps(NETWORK))
    (folder / "stacks.json").write_text(json.dumps(STACKS))
    torch.manual_seed(0)
    network = ConfigParser(NETWORK).get_parsed_content("network_def", instantiate=True)
    torch.save(network.state_dict(), folder / "small.pt")
    return folder


@pytest.fixture(scope="module")
def network(small: Path) -> nn.Module:
    made = ConfigParser(NETWORK).get_parsed_content("network_def", instantiate=True)
    made.load_state_dict(torch.load(small / "small.pt", weights_only=True))
    return made.eval()


@pytest.fixture(scope="module")
def exported(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    configs = f"{small / 'small.json'},{small / 'stacks.json'}"
    options = {"config_file": configs, "checkpoint": small / "small.pt", "output_dir": folder}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        differences = exports.main(write_options(options))
    starts = [line.partition(f" {folder}/") for line in printed.getvalue().splitlines() if line.startswith("writing")]
    assert [name for _, _, name in starts] == ["model.ts …", "model.onnx …", "stack.ts …"]
    assert {path.name for path in folder.iterdir()} == set(differences) == {"model.ts", "model.onnx", "stack.ts"}
    return folder


def infer(small: Path, phantoms: Path, *configs: str, **options: object) -> subprocess.CompletedProcess:
    ed, es = sorted((phantoms / "phantom001").glob("*_frame??.nii.gz"))
    files = ["configs/inference.yaml", str(small / "small.json"), *configs]
    return run_bundle(
        config_file=str(files),
        moving=es,
        fixed=ed,
        checkpoint=small / "small.pt",
        device="cpu",
        write="moved,fields",
        segmentation="none",
        **options,
    )


@pytest.mark.parametrize("runtime", ["torchscript", "onnxruntime", "openvino"])
def test_every_form_gives_the_same_field_in_any_size(
    runtime: str, exported: Path, small: Path, network: nn.Module
) -> None:
    if runtime == "torchscript":
        other = torch.jit.load(exported / "model.ts")
    else:
        pytest.importorskip(runtime)
        other = PaddedNetwork(ExportedNetwork(exported / "model.onnx", runtime, small / "small.pt"), network.stride)
    for batch, size in ((1, (64, 64)), (10, (45, 51)), (3, (80, 33))):
        pair = torch.rand(batch, 2, 6, 5)
        pair = nn.functional.interpolate(pair, size=size, mode="bilinear")
        with torch.inference_mode():
            expected = network(pair)
            assert expected.abs().max() > 0.5
            torch.testing.assert_close(other(pair), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "shape", [(1, 8, 48, 64, 7), (2, 8, 45, 51, 3), (1, 8, 40, 33, 1)], ids=["even", "odd", "one slice"]
)
def test_stacks_move_along_their_axis_in_torchscript_too(
    shape: tuple[int, ...], exported: Path, network: nn.Module
) -> None:
    through_plane = ThroughPlane()
    through_plane.load_state_dict(torch.load(ROOT / "models" / "depth.pt", weights_only=True))
    expected = PaddedNetwork(DepthFirst(network, through_plane, Integration()), [16, 16, 1]).eval()
    pair = nn.functional.interpolate(torch.rand(*shape[:2], 3, 3, shape[-1]), size=shape[2:], mode="trilinear")
    with torch.inference_mode():
        field = expected(pair)
        torch.testing.assert_close(torch.jit.load(exported / "stack.ts")(pair), field, atol=1e-3, rtol=0)
    assert field[:, :2].abs().max() > 0.5
    assert (field[:, 2].abs().max() > 0.1) == (shape[-1] > 1)


@pytest.mark.parametrize("runtime", [{}, {"runtime": "onnxruntime"}], ids=["the fastest", "onnxruntime"])
def test_the_workflow_writes_the_same_field(
    runtime: dict[str, str], small: Path, exported: Path, phantoms: Path, tmp_path: Path
) -> None:
    succeed(infer(small, phantoms, output_dir=tmp_path / "torch"))
    succeed(infer(small, phantoms, ONNX, onnx=exported / "model.onnx", output_dir=tmp_path / "onnx", **runtime))
    one, other = (nib.load(next((tmp_path / form).rglob("field.nii.gz"))) for form in ("torch", "onnx"))
    assert np.abs(one.get_fdata()).max() > 1
    np.testing.assert_allclose(other.get_fdata(), one.get_fdata(), atol=1e-3 * one.header.get_zooms()[0])


def test_a_missing_file_is_named_with_its_cure(small: Path, phantoms: Path, tmp_path: Path) -> None:
    result = infer(small, phantoms, ONNX, onnx="absent.onnx", output_dir=tmp_path)
    assert last_line(result).startswith("error: absent.onnx: no such file; python -m scripts.workflow.exports")
    assert not list(tmp_path.iterdir())


def test_files_and_runtimes_that_do_not_do_are_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported / "model.onnx"
    other = tmp_path / "other.pt"
    torch.save({}, other)
    with pytest.raises(
        InputError, match=r"exported from other weights than .*other\.pt; python -m scripts.workflow.exports"
    ):
        ExportedNetwork(path, checkpoint=other)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(
        InputError, match=r"broken\.onnx: is not an ONNX file that onnxruntime can read .*scripts.workflow.exports"
    ):
        ExportedNetwork(broken)
    with pytest.raises(InputError, match="--runtime tensorrt: give one of onnxruntime, openvino"):
        ExportedNetwork(path, "tensorrt")
    with pytest.raises(InputError, match="ONNX Runtime has no bfloat16 on a CPU"):
        ExportedNetwork(path, bf16=True)
    with pytest.raises(InputError, match=r"\(16, 64\) pixels: exported networks take 32 or more"):
        ExportedNetwork(path)(torch.rand(1, 2, 16, 64))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="--runtime onnxruntime: is not installed; pip install onnxruntime"):
        ExportedNetwork(path)


def test_an_export_that_differs_is_removed(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = write_options(
        {"config_file": small / "small.json", "checkpoint": small / "small.pt", "output_dir": tmp_path}
    )
    monkeypatch.setattr(exports, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(InputError, match=r"model\.ts: removed"):
        exports.main(words)
    assert not list(tmp_path.iterdir())

    def fail(*_: object) -> float:
        raise InputError("--runtime onnxruntime: is not installed")

    # Nor one that nobody could compare.
    monkeypatch.setattr(exports, "largest_difference", fail)
    with pytest.raises(InputError, match="is not installed"):
        exports.main(words)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="--opset 11: give one of 18, 19, 20"):
        exports.export_onnx(nn.Identity(), tmp_path / "model.onnx", opset=11)
    with pytest.raises(InputError, match=r"absent\.pt: no such checkpoint"):
        exports.main(["--checkpoint", "absent.pt", "--output_dir", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="onnx: is not installed; pip install onnx onnxscript"):
        exports.export_onnx(nn.Identity(), tmp_path / "model.onnx")


def test_the_file_says_what_it_takes(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    (pair,), (velocity,) = model.graph.input, model.graph.output
    for value in (pair, velocity):
        batch, channels, *spatial = value.type.tensor_type.shape.dim
        assert batch.dim_param
        assert channels.dim_value == 2
        assert all(dim.dim_param for dim in spatial)
    assert (pair.name, velocity.name) == ("pair", "velocity")


def test_elementwise_group_norm_is_group_norm() -> None:
    norm = nn.GroupNorm(4, 12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    for shape in ((3, 12, 9, 7), (2, 12, 4, 5, 3)):
        x = 2 * torch.randn(shape) + 1
        torch.testing.assert_close(ElementwiseGroupNorm(norm)(x), norm(x), atol=1e-5, rtol=1e-5)
        central = CentralGroupNorm(4, 12, window=4)
        torch.testing.assert_close(ElementwiseGroupNorm(central)(x), central(x), atol=1e-5, rtol=1e-5)


def test_openvino_tells_nobody(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "program.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from scripts.workflow.exports import _run_openvino\n"
        "assert not {'openvino', 'openvino_telemetry'} & set(sys.modules)\n"
        "try: _run_openvino('none.onnx', 1)\n"
        "except Exception: pass\n"
        "assert 'openvino' in sys.modules and sys.modules['openvino_telemetry'] is None"
    )
    succeed(WARM.run("program", [], tmp_path, timeout=300))


@pytest.mark.parametrize(("there", "expected"), [(True, "openvino"), (False, "onnxruntime")])
def test_the_faster_runtime_is_taken_where_it_is_installed(
    there: bool, expected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if there and name == "openvino" else None)
    with caplog.at_level("INFO", logger="inference"):
        assert exports.fastest_runtime() == expected
    assert f"run by {expected}" in caplog.text


def test_a_network_that_sees_maps_is_exported_by_merged_configs(small: Path, tmp_path: Path) -> None:
    changes = {"in_channels": 3, "features": [8]}
    (tmp_path / "maps.json").write_text(
        json.dumps({f"network_def::backbone::{key}": value for key, value in changes.items()})
    )
    torch.manual_seed(0)
    backbone = {**NETWORK["network_def"]["backbone"], **changes}
    made = ConfigParser({"network_def": {**NETWORK["network_def"], "backbone": backbone}})
    torch.save(made.get_parsed_content("network_def", instantiate=True).state_dict(), tmp_path / "maps.pt")
    differences = exports.main(
        [f"--config_file={small / 'small.json'},{tmp_path / 'maps.json'}"]
        + [f"--checkpoint={tmp_path / 'maps.pt'}", f"--output_dir={tmp_path}"]
    )
    assert set(differences) == {"model.ts", "model.onnx"}
    assert max(differences.values()) < exports.TOLERANCE
    assert torch.jit.load(tmp_path / "model.ts")(torch.rand(1, 6, 40, 36)).abs().max() > 0.1
