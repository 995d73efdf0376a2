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

"""Registration from Python gives what the workflow writes, of paths, images in memory and arrays alike."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, WARM, run_bundle, succeed
from monai.bundle import ConfigParser
from scripts import api
from scripts.api import Registration, register, register_cine
from scripts.cardiac.cines import AUTOMATIC, ESTIMATED
from scripts.cardiac.phantom import write_phantom_dataset
from scripts.errors import InputError
from scripts.registration.networks import PaddedNetwork, PyramidNetwork
from scripts.training import checkpoints

AFFINE = np.diag([-1.5, -1.5, 8.0, 1.0])


def paths(phantoms: Path) -> tuple[Path, Path, Path, Path]:
    folder = phantoms / "phantom001"
    ed, es = sorted(folder.glob("*_frame??.nii.gz"))
    return folder / "phantom001_4d.nii.gz", ed, es, ed.with_name(ed.name.replace(".nii", "_gt.nii"))


@pytest.fixture(scope="module")
def registered(phantoms: Path) -> Registration:
    """A cine with the label of its first frame."""
    cine, _, _, label = paths(phantoms)
    return register_cine(cine, reference_label=label, device="cpu")


def test_a_cine_is_that_of_the_workflow(phantoms: Path, registered: Registration, tmp_path: Path) -> None:
    cine, _, _, label = paths(phantoms)
    options = {
        "cine": cine,
        "reference_label": label,
        "output_dir": tmp_path,
        "device": "cpu",
        "write": "moved,fields,inverse",
    }
    succeed(run_bundle(config_file="configs/inference.yaml", **options))
    assert registered.reference == 1
    assert registered.reference_basis == "end diastole by Info.cfg"
    written = nib.load(tmp_path / "phantom001" / "moved.nii.gz")
    np.testing.assert_allclose(registered.moved, written.get_fdata(), rtol=1e-5, atol=0.1)
    assert registered.fields.shape == registered.inverses.shape == (4, *registered.fixed.shape, 3)
    for t in (1, 2):
        for fields, suffix in ((registered.fields, ""), (registered.inverses, "_inverse")):
            file = nib.load(tmp_path / "phantom001" / "fields" / f"frame_{t + 1:02d}{suffix}.nii.gz")
            np.testing.assert_allclose(fields[t], file.get_fdata()[..., 0, :], atol=1e-3)
            np.testing.assert_allclose(registered.cine.affine, file.affine, atol=1e-4)
    assert 5 < registered.function["lv_ef_percent"] < 90
    assert not list(Path.cwd().glob("None*"))


def test_without_a_label_contours_are_automatic_and_volumes_come_both_ways(
    phantoms: Path, registered: Registration
) -> None:
    cine = nib.load(paths(phantoms)[0])
    found = register_cine(cine, device="cpu")
    assert (found.reference_basis, found.label_basis) == (AUTOMATIC, "automatic")
    assert found.quality["label_basis"] == "automatic"
    assert found.segmented.shape == found.labels.shape == cine.shape
    np.testing.assert_array_equal(found.label, found.segmented[..., found.reference - 1])
    by_hand = registered.function["carried"]["lv_ef_percent"]
    for by in ("carried", "segmented"):
        assert found.function[by]["lv_ef_percent"] == pytest.approx(by_hand, abs=12)
    assert registered.label_basis == "given"
    np.testing.assert_array_equal(registered.segmented, found.segmented)


@pytest.mark.parametrize("options", [{"segmentation": "none"}, {"reference_label": "none"}])
def test_nothing_is_segmented_where_it_is_turned_off(phantoms: Path, options: dict) -> None:
    found = register_cine(nib.load(paths(phantoms)[0]).slicer[..., :2], device="cpu", **options)
    assert (found.reference_basis, found.label_basis) == (ESTIMATED, None)
    assert found.label is None
    assert found.segmented is None
    assert found.function == {}


def test_of_a_pair_the_fixed_stack_is_segmented_and_carried(phantoms: Path) -> None:
    _, ed, es, _ = paths(phantoms)
    found = register(es, ed, device="cpu")
    assert found.label_basis == "automatic"
    assert found.moving_label is None
    assert found.moved_label is None
    moving = nib.load(str(es).replace(".nii", "_gt.nii")).get_fdata()
    carried, segmented = found.carried_label == 3, found.segmented[..., 0] == 3
    assert found.fixed_label.any()
    assert found.quality["contours"]["ejection_percent"].keys() == {"carried", "segmented"}
    for lv in (carried, segmented):
        assert 2 * (lv & (moving == 3)).sum() / (lv.sum() + (moving == 3).sum()) > 0.7


def test_fields_in_mm_are_those_in_voxels_through_the_affine(registered: Registration) -> None:
    voxels, affine = registered.voxels.fields, registered.cine.affine
    x, t = (20, 15, 1), 2
    point = np.array([*x, 1.0])
    moved = point + [*voxels[(t, slice(None), *x)], 0]
    np.testing.assert_allclose(registered.fields[(t, *x)], ((affine @ (moved - point))[:3]) * [-1, -1, 1], atol=1e-4)
    assert np.abs(registered.fields).max() > 1


def test_what_is_not_in_mm_is_the_registration_s_own(registered: Registration) -> None:
    for result in (registered, copy.copy(registered), pickle.loads(pickle.dumps(registered))):
        assert isinstance(result, api.CineResult)
        assert result.function["lv_ef_percent"] == registered.voxels.function["lv_ef_percent"]
        assert result.quality is result.voxels.quality
        assert {"fields", "function", "moved"} <= set(dir(result))
        with pytest.raises(AttributeError, match="strane"):
            result.strane  # noqa: B018


def test_images_in_memory_and_arrays_give_what_their_files_give(phantoms: Path, registered: Registration) -> None:
    cine, _, _, label = (nib.load(path) for path in paths(phantoms))
    before = cine.get_filename()
    array, labels = np.asarray(cine.dataobj), np.asarray(label.dataobj)
    for image, drawn in ((cine, label), ((array, cine.affine), (labels.tolist(), cine.affine))):
        result = register_cine(image, reference_label=drawn, reference_frame=1, device="cpu")
        np.testing.assert_array_equal(result.fields, registered.fields)
        np.testing.assert_array_equal(result.labels, registered.labels)
        # An array has no header that would tell the time between frames.
        assert result.cine.frame_time == (registered.cine.frame_time if image is cine else None)
    assert cine.get_filename() == before


def test_a_pair(phantoms: Path) -> None:
    _, ed, es, label = paths(phantoms)
    result = register(es, ed, device="cpu")
    assert result.moved_label is None
    assert result.fields.shape == (1, *nib.load(ed).shape, 3)
    assert result.quality["frames"][0]["mse_after"] < result.quality["frames"][0]["mse_before"]
    fixed = nib.load(ed)
    array = torch.from_numpy(np.asarray(fixed.dataobj))
    again = register(nib.load(es), (array, fixed.affine), moving_label=label, device="cpu")
    np.testing.assert_array_equal(again.fields, result.fields)
    assert again.moving_label.shape == again.moved_label.shape == fixed.shape


def test_landmarks_are_a_table_or_an_array(phantoms: Path, tmp_path: Path) -> None:
    _, ed, es, _ = paths(phantoms)
    center = nib.load(ed).affine @ [20.3, 17.1, 0.0, 1.0]
    points = center[None, :3] * [-1, -1, 1]
    (tmp_path / "points.csv").write_text("x,y,z\n" + ",".join(map(str, points[0])))
    rows = [register(es, ed, points=given, device="cpu").points for given in (points, tmp_path / "points.csv")]
    assert rows[0] == rows[1]
    assert [row["frame"] for row in rows[0]] == [1]


def test_the_network_is_kept_until_its_weights_change(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ed, es, _ = paths(phantoms)
    read, load = [], checkpoints.load_weights
    monkeypatch.setattr(
        checkpoints,
        "load_weights",
        lambda network, path, device="cpu": read.append(path) or load(network, path, device),
    )
    file = tmp_path / "model.pt"
    weights = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    torch.save(weights, file)
    first, second = (register(es, ed, checkpoint=file, device="cpu") for _ in range(2))
    assert read.count(str(file)) == 1
    np.testing.assert_array_equal(first.fields, second.fields)
    torch.save({name: value * 0 for name, value in weights.items()}, file)
    os.utime(file, ns=(1, 1))
    assert not register(es, ed, checkpoint=file, device="cpu").voxels.fields[:, :2].any()
    assert read.count(str(file)) == 2


def test_the_network_of_slices_is_not_taken_for_that_of_volumes() -> None:
    parser = ConfigParser(ConfigParser.load_config_files([ROOT / "configs" / "inference.yaml"]))
    parser.update({"bundle_root": str(ROOT), "device": "cpu"})
    backbones = []
    for axes in (2, 3, 2):
        parser["axes"] = axes
        parser.parse(True)
        backbones.append(api._trained_network(parser).backbone)
    assert [backbone.axes for backbone in backbones] == [2, 3, 2]


def test_it_works_from_any_folder(phantoms: Path, tmp_path: Path) -> None:
    _, ed, es, _ = paths(phantoms)
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom scripts.api import register\n"
        f"print(register({str(es)!r}, {str(ed)!r}, device='cpu').fields.shape)"
    )
    ran = succeed(WARM.run("program", [], tmp_path, timeout=300))
    assert ran.stdout.strip().splitlines()[-1] == str((1, *nib.load(ed).shape, 3)), ran.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"program.py", "__pycache__"}


def test_errors_are_the_workflow_s(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cine, ed, _, _ = paths(phantoms)
    with pytest.raises(InputError, match=r"a cine is \(X, Y, Z, T\)"):
        register_cine(ed, device="cpu")
    with pytest.raises(InputError, match=r"visit#2: holds #"):
        register(ed, ed, output_dir=Path("visit#2"))
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz: no such file"):
        register(ed, "nowhere.nii.gz", device="cpu")
    with pytest.raises(InputError, match=r"give exactly one of .* got --cine and --moving"):
        register_cine(cine, moving=ed)
    with pytest.raises(InputError, match="give both or neither"):
        register_cine(cine, fixed="nowhere.nii.gz")
    with pytest.raises(InputError, match="referense_frame: no such option"):
        register_cine(ed, referense_frame=3)
    with pytest.raises(InputError, match="--output_dir False: results need a folder"):
        register(ed, ed, output_dir=False)
    monkeypatch.setattr(api, "ROOT", Path("x#y"))
    with pytest.raises(InputError, match=r"--bundle_root x#y: holds #"):
        register(ed, ed)


RAMP = np.linspace(0, 100, 16 * 16 * 2 * 3).reshape(16, 16, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cine": RAMP}, r"^cine: takes a path, a nibabel image or \(array, affine\), .* got ndarray"),
        ({"cine": (RAMP, np.eye(3))}, "^cine: its affine is invalid"),
        ({"cine": (RAMP, "here")}, "^cine's affine: is not an array of real numbers"),
        ({"cine": ([[1, 2], [3]], AFFINE)}, "^cine: is not an array of real numbers"),
        ({"cine": (RAMP * 1j, AFFINE)}, "^cine: is not an array of real numbers"),
        ({"cine": (RAMP[..., 0], AFFINE)}, r"^cine: has the shape \(16, 16, 2\); a cine is"),
        ({"cine": (RAMP * np.nan, AFFINE)}, "^cine: holds NaN or Inf"),
        ({"cine": (RAMP, 0 * AFFINE)}, "^cine: its affine is invalid"),
        ({"cine": (RAMP, AFFINE), "points": [[0, 0]], "reference_frame": 1}, r"^points: have the shape \(1, 2\)"),
        ({"cine": (RAMP, AFFINE), "points": [[999, 0, 0]], "reference_frame": 1}, "^points: the point 1 lies outside"),
        (
            {"cine": (RAMP, AFFINE), "reference_label": (RAMP[..., 0] + 0.5, AFFINE), "reference_frame": 1},
            "^reference_label: holds fractions",
        ),
        (
            {"moving": (RAMP[..., 0], AFFINE), "fixed": (RAMP[1:, ..., 0], AFFINE)},
            "^moving and fixed: have different shapes",
        ),
    ],
)
def test_bad_input_in_memory_is_named_by_its_option(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        api._register_one(**options, device="cpu")


def test_inverses_undo_fields_to_a_tenth_of_a_millimeter(tmp_path: Path) -> None:
    root = write_phantom_dataset(
        tmp_path, 3, seed=2, size=(88, 80), slices=3, frames=4, progress=False
    )  # pixels of 1.6 mm
    result = register_cine(*root.glob("phantom001/*_4d.nii.gz"), device="cpu")
    assert max(frame["inverse_error_mm_p95"] for frame in result.quality["frames"]) <= 0.1
    assert np.abs(result.voxels.fields).max() > 2


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
