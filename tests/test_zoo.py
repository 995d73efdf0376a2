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

"""What the model zoo asks of a bundle: metadata, the network's format, exports, download."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, SMALL, WARM, run_bundle, succeed
from monai.bundle import (
    ConfigParser,
    ConfigWorkflow,
    ckpt_export,
    load,
    onnx_export,
    verify_metadata,
    verify_net_in_out,
)
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism
from scripts.cardiac.phantom import Phantom
from scripts.package import build_zip

NAME = "gsmorph_cardiac_registration"
# What the zoo's unit tests import, in its `ci/unit_tests/utils.py`, does this with a workflow.
CHECK_WORKFLOW = """
def check_workflow(workflow, check_properties=False):
    workflow.initialize()
    missing = workflow.check_properties() if check_properties else None
    if missing:
        raise ValueError(missing)
    workflow.run()
    workflow.finalize()
"""
CONFIG = {"config_file": "configs/inference.yaml", "meta_file": "configs/metadata.json"}
SCHEMA = ROOT.parent / "shared" / "data" / "meta_schema_20240725.json"
FORMAT = {"type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list}
REQUIRED = {
    "schema": str,
    "version": str,
    "changelog": dict,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "name": str,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "data_source": str,
    "data_type": str,
    "intended_use": str,
    "references": list,
    "network_data_format": dict,
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def assert_types(values: dict, types: dict[str, type]) -> None:
    for key, kind in types.items():
        assert isinstance(values[key], kind), key


def test_inference_is_parsed_without_metadata_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(shutil.copy(ROOT / "configs" / "inference.yaml", tmp_path))
    monkeypatch.chdir(tmp_path)
    workflow = ConfigWorkflow(str(path), workflow_type="infer", bundle_root=str(ROOT), device="cpu")
    workflow.initialize()
    assert isinstance(workflow.network_def, torch.nn.Module)
    assert [entry.name for entry in tmp_path.iterdir()] == ["inference.yaml"]


def test_metadata_has_the_required_keys() -> None:
    metadata = json.loads(Path("metadata.json").read_text())
    assert_types(metadata, REQUIRED)
    assert metadata["version"] in metadata["changelog"]
    for part, keys in (("inputs", ("image",)), ("outputs", ("pred",))):
        assert tuple(metadata["network_data_format"][part]) == keys
        for entry in metadata["network_data_format"][part].values():
            assert_types(entry, FORMAT | {"is_patch_data": bool, "channel_def": dict})
            assert len(entry["channel_def"]) == entry["num_channels"]
    pinned = dict(
        line.strip().split("==") for line in Path("requirements.txt").read_text().splitlines() if "==" in line
    )
    pinned = {name.lower(): version for name, version in pinned.items()}
    for name in ("monai", "numpy"):
        assert metadata[f"{name}_version"] == pinned[name]
    assert metadata["pytorch_version"] == pinned["torch"]
    tested = Path("requirements-dev.txt").read_text().splitlines()
    # As MONAI reads it, which renames what it calls deprecated: another list of packages would take this one's place.
    parser = ConfigParser()
    parser.read_meta("configs/metadata.json")
    required = parser["_meta_"]["required_packages_version"]
    assert pinned.keys() - required.keys() == {"monai", "numpy", "torch"}
    for name, version in required.items():
        assert pinned.get(name) == version or f"{name}=={version}" in tested


def test_metadata_follows_the_schema(tmp_path: Path) -> None:
    if not SCHEMA.is_file():
        pytest.skip(f"no schema at {SCHEMA}")
    shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file="configs/metadata.json", filepath=tmp_path / "schema.json")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("train", ["train"]),
        ("train", ["train", "evaluate"]),
        ("train", ["train", "finetune"]),
        ("train", ["train", "labeled"]),
        ("infer", ["inference"]),
    ],
)
def test_workflows_have_the_properties_of_their_kind(kind: str, names: list[str]) -> None:
    files = [f"configs/{name}.yaml" for name in names]
    workflow = ConfigWorkflow(
        config_file=files, meta_file="configs/metadata.json", logging_file=False, workflow_type=kind
    )
    workflow.initialize()
    try:
        assert workflow.check_properties() == []
    finally:
        workflow.finalize()


def test_network_takes_and_gives_what_the_metadata_says() -> None:
    verify_net_in_out(net_id="network_def", device="cpu", **CONFIG)


@pytest.fixture(scope="module")
def pair() -> torch.Tensor:
    phantom = Phantom.random((0, 1), size=(128, 128), slices=1, frames=6)
    images = [phantom.image(frame)[..., 0] for frame in (phantom.end_systole, 1)]
    return torch.from_numpy(np.stack([image / image.max() for image in images])[None]).float()


@pytest.fixture(scope="module")
def expected(pair: torch.Tensor) -> torch.Tensor:
    parser = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "inference.yaml")))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(ROOT / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        return network.eval()(pair)


def test_shipped_weights_move_hearts(expected: torch.Tensor) -> None:
    assert expected.shape == (1, 2, 128, 128)
    assert expected.abs().max() > 1


def test_torchscript_gives_the_same_field(pair: torch.Tensor, expected: torch.Tensor, tmp_path: Path) -> None:
    ckpt_export(net_id="network_def", filepath=str(tmp_path / "model.ts"), ckpt_file="models/model.pt", **CONFIG)
    exported = torch.jit.load(tmp_path / "model.ts")
    with torch.no_grad():
        torch.testing.assert_close(exported(pair), expected, rtol=0, atol=1e-4)
        # Sizes that the stride does not divide, too.
        assert exported(pair[..., :100, :75]).shape == (1, 2, 100, 75)


def test_onnx_gives_the_same_field(pair: torch.Tensor, expected: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx_export(
        net_id="network_def", filepath=str(path), ckpt_file="models/model.pt", input_shape=[1, 2, 128, 128], **CONFIG
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pair.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model zoo's folders, with the bundle as its zip has it and the bundle's unit tests."""
    root = tmp_path_factory.mktemp("zoo")
    with zipfile.ZipFile(build_zip(root / "bundle.zip", NAME)) as archive:
        archive.extractall(root / "models")
    shutil.copytree(ROOT / "ci", root / "ci")
    (root / "ci" / "unit_tests" / "utils.py").write_text(CHECK_WORKFLOW)
    return root


def test_unit_tests_of_the_zoo_pass(zoo: Path) -> None:
    result = subprocess.run(
        [sys.executable, f"ci/unit_tests/test_{NAME}.py"],
        cwd=zoo,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Ran 3 tests" in result.stderr


def test_load_gives_the_network_with_its_weights(
    zoo: Path, pair: torch.Tensor, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(zoo)
    try:
        network = load(NAME, bundle_dir=str(zoo / "models"), device="cpu")
    finally:
        set_determinism(None)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(pair), expected)


def test_federated_learning_trains_two_rounds(zoo: Path, phantoms: Path, tmp_path: Path) -> None:
    """A client with its default file names; the server's weights of the second round are far from those of the first."""
    options = {**SMALL, "dataset_dir": str(phantoms), "output_dir": str(tmp_path), "cache_dir": False}
    algorithm = MonaiAlgo(
        bundle_root=str(zoo / "models" / NAME),
        local_epochs=1,
        train_kwargs={**options, "learning_rate": 1e-6},
        eval_kwargs={**options, "output_dir": str(tmp_path / "scores")},
    )
    algorithm.initialize(extra={ExtraItems.CLIENT_NAME: "client"})
    try:
        first = torch.load(ROOT / "models" / "model.pt", weights_only=True)
        for weights in (first, {name: value + 1 for name, value in first.items()}):
            algorithm.train(ExchangeObject(weights=weights))
            sent = algorithm.get_weights()
            assert sent.weight_type == WeightType.WEIGHT_DIFF
            assert any(torch.as_tensor(value).any() for value in sent.weights.values())
            # The mean, which is validated and saved, follows the server.
            mean = algorithm.train_workflow.parser.get_parsed_content("averager").module.state_dict()
            for name, value in weights.items():
                torch.testing.assert_close(mean[name], value, atol=1e-3, rtol=0)
        metrics = algorithm.evaluate(ExchangeObject(weights=first)).metrics
        assert 60 < metrics["val_dice"] < 100
    finally:
        algorithm.finalize()
        set_determinism(None)


def test_a_downloaded_bundle_registers(phantoms: Path, tmp_path: Path) -> None:
    build_zip(tmp_path / "served" / "gsmorph_v1.zip", "gsmorph")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "downloads").mkdir()
    try:
        url = f"http://127.0.0.1:{server.server_port}/gsmorph_v1.zip"
        words = ["download", "--name", "gsmorph", "--url", url, "--bundle_dir", str(tmp_path / "downloads")]
        succeed(WARM.run("monai.bundle", words, tmp_path, timeout=300))
    finally:
        server.shutdown()
    bundle = tmp_path / "downloads" / "gsmorph"
    assert not bundle.is_symlink()
    assert json.loads((bundle / "metadata.json").read_text())["version"]
    ed, es = sorted((phantoms / "phantom001").glob("*_frame??.nii.gz"))
    options = {
        "config_file": "configs/inference.yaml",
        "moving": es,
        "fixed": ed,
        "output_dir": tmp_path / "out",
        "device": "cpu",
        "write": "moved",
    }
    succeed(run_bundle(cwd=bundle, **options))
    moved = nib.load(next((tmp_path / "out").rglob("moved.nii.gz"))).get_fdata()
    moving, fixed = (nib.load(path).get_fdata() for path in (es, ed))
    assert np.mean((moved - fixed) ** 2) < 0.8 * np.mean((moving - fixed) ** 2)
