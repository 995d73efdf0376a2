"""Registration from Python gives the objects that the workflow writes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import run_bundle, succeed
from monai.bundle import ConfigParser
from scripts import api
from scripts.api import register, register_cine
from scripts.cardiac.phantom import write_phantom_dataset
from scripts.data.itk_fields import read_field
from scripts.errors import InputError
from scripts.registration.networks import PaddedNetwork, PyramidNetwork


def paths(phantoms: Path) -> tuple[Path, Path, Path, Path]:
    folder = phantoms / "phantom001"
    ed, es = sorted(folder.glob("*_frame??.nii.gz"))
    return folder / "phantom001_4d.nii.gz", ed, es, ed.with_name(ed.name.replace(".nii", "_gt.nii"))


def test_a_cine_is_that_of_the_workflow(phantoms: Path, tmp_path: Path) -> None:
    cine, _, _, label = paths(phantoms)
    result = register_cine(cine, reference_label=label, device="cpu")
    options = {"cine": cine, "reference_label": label, "output_dir": tmp_path, "device": "cpu", "report": False}
    succeed(run_bundle(config_file="configs/inference.yaml", **options))
    assert result.reference == 1
    assert result.reference_basis == "end diastole by Info.cfg"
    written = nib.load(tmp_path / "phantom001" / "moved.nii.gz")
    np.testing.assert_allclose(result.moved, written.get_fdata(), rtol=1e-5, atol=0.1)
    for t in (1, 2):
        field, affine = read_field(tmp_path / "phantom001" / "fields" / f"frame_{t + 1:02d}.nii.gz")
        np.testing.assert_allclose(affine, result.cine.affine, atol=1e-4)
        np.testing.assert_allclose(field[:2], result.fields[t], atol=1e-3)
        np.testing.assert_allclose(field[2], 0, atol=1e-4)
    assert 5 < result.function["lv_ef_percent"] < 90
    assert not list(Path.cwd().glob("None*"))


def test_a_pair(phantoms: Path) -> None:
    _, ed, es, _ = paths(phantoms)
    result = register(es, ed, device="cpu")
    assert result.reference is None
    assert result.fields.shape == (1, 2, *nib.load(ed).shape)
    assert result.quality["frames"][0]["mse_after"] < result.quality["frames"][0]["mse_before"]


def test_errors_are_the_workflow_s(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ed, _, _ = paths(phantoms)
    with pytest.raises(InputError, match=r"a cine is \(X, Y, Z, T\)"):
        register_cine(ed, device="cpu")
    with pytest.raises(InputError, match=r"visit#2: holds #"):
        register(ed, ed, output_dir=Path("visit#2"))
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz: no such file"):
        register(ed, "nowhere.nii.gz", device="cpu")
    with pytest.raises(InputError, match=r"give exactly one of .* got --cine and --moving"):
        register_cine(ed, moving=ed)
    with pytest.raises(InputError, match=r"give exactly one of .* got --cine and --moving"):
        register_cine(ed, fixed="nowhere.nii.gz")
    with pytest.raises(InputError, match="referense_frame: no such option"):
        register_cine(ed, referense_frame=3)
    with pytest.raises(InputError, match="--points: takes the path of a file or folder, got list"):
        register(ed, ed, points=[[0.0, 0.0, 0.0]])
    for call in (lambda: register(np.zeros((4, 4, 4)), ed), lambda: register_cine(np.zeros((4, 4, 4, 2)))):
        with pytest.raises(InputError, match=r"--(moving|cine): takes the path of a file or folder, got ndarray"):
            call()
    with pytest.raises(InputError, match="--output_dir False: results need a folder"):
        register(ed, ed, output_dir=False)
    monkeypatch.setattr(api, "ROOT", Path("x#y"))
    with pytest.raises(InputError, match=r"--bundle_root x#y: holds #"):
        register(ed, ed)


def test_inverses_undo_fields_to_a_tenth_of_a_millimeter(tmp_path: Path) -> None:
    root = write_phantom_dataset(
        tmp_path, 3, seed=2, size=(88, 80), slices=3, frames=4, progress=False
    )  # pixels of 1.6 mm
    result = register_cine(*root.glob("phantom001/*_4d.nii.gz"), device="cpu")
    assert max(frame["inverse_error_mm_p95"] for frame in result.quality["frames"]) <= 0.1
    assert np.abs(result.fields).max() > 2


def test_a_batch_norm_is_folded_before_it_registers(tmp_path: Path) -> None:
    network = PaddedNetwork(PyramidNetwork(norm="batch", flow_std=0.1))
    network(torch.rand(2, 2, 32, 32))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    config = ConfigParser(ConfigParser.load_config_file("configs/inference.yaml"))
    config.update({"device": "cpu", "checkpoint": str(tmp_path / "model.pt")})
    config.update({"network_def::backbone::norm": "batch", "network_def::backbone::norm_window": None})
    folded = config.get_parsed_content("trained_network")
    assert torch.nn.BatchNorm2d not in {type(module) for module in folded.modules()}
    pair = torch.rand(3, 2, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(folded(pair), network.eval()(pair), atol=1e-5, rtol=1e-4)
