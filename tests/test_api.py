"""Registration from Python gives the objects that the workflow writes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import run_bundle, succeed

from scripts.api import register, register_cine
from scripts.errors import InputError
from scripts.itk_fields import read_field


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


def test_errors_are_the_workflow_s(phantoms: Path) -> None:
    _, ed, _, _ = paths(phantoms)
    with pytest.raises(InputError, match=r"a cine is \(X, Y, Z, T\)"):
        register_cine(ed, device="cpu")
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz: no such file"):
        register(ed, "nowhere.nii.gz", device="cpu")
    with pytest.raises(InputError, match=r"give exactly one of .* got --cine and --moving"):
        register_cine(ed, moving=ed)
    with pytest.raises(InputError, match=r"give exactly one of .* got --cine and --moving"):
        register_cine(ed, fixed="nowhere.nii.gz")
    with pytest.raises(InputError, match="referense_frame: no such option"):
        register_cine(ed, referense_frame=3)
