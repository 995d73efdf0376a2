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

"""The workflows as users run them, proved by what they leave on disk."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import ENVIRONMENT, ROOT, SMALL, bundle_command, count, last_line, run_bundle, succeed, write_nifti
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism
from scripts.cardiac.phantom import Phantom
from scripts.data.grids import pull
from scripts.data.itk_fields import read_field
from scripts.training.evaluation import FIGURES

TRAIN, EVALUATE, INFERENCE, APPLY = (
    f"configs/{name}.yaml" for name in ("train", "evaluate", "inference", "apply_field")
)
STEPS = 6  # of SMALL: 2 epochs of 3 batches


def read_state(folder: Path, epoch: int = 2) -> dict:
    return torch.load(folder / f"last_checkpoint_epoch={epoch}.pt", weights_only=True)


def assert_trained_once(folder: Path, result: subprocess.CompletedProcess) -> None:
    assert {path.name for path in folder.iterdir()} == {"model.pt", "last_checkpoint_epoch=2.pt", "tensorboard"}
    state = read_state(folder)
    assert state["trainer"]["iteration"] == STEPS
    assert state["lr_scheduler"]["last_epoch"] == STEPS
    assert int(next(iter(state["optimizer"]["state"].values()))["step"]) == STEPS
    assert count(r"Trainer - INFO - Epoch\[1\] Complete", result.stdout + result.stderr) == 1
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert {f"module.{name}" for name in weights} == state["averager"].keys() - {"n_averaged"}
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_run_trains_once(trained: tuple[Path, subprocess.CompletedProcess]) -> None:
    assert_trained_once(*trained)
    printed = trained[1].stdout + trained[1].stderr
    for word in ("similarity=", "conflicts=", "val_dice", "val_hd95_voxel", "val_folding_percent", "conflict_ratio"):
        assert word in printed


def test_run_train_trains_once_and_alike(trained: tuple, phantoms: Path, tmp_path: Path) -> None:
    """From the slices that the first run prepared: this one reads them and writes none."""
    kept = lambda: {path: path.stat().st_mtime_ns for path in Path(SMALL["cache_dir"]).iterdir()}
    before = kept()
    result = succeed(run_bundle("train", config_file=TRAIN, dataset_dir=phantoms, output_dir=tmp_path, **SMALL))
    assert_trained_once(tmp_path, result)
    assert len(before) >= 3
    assert kept() == before
    for one, other in zip(read_state(tmp_path)["network"].values(), read_state(trained[0])["network"].values()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("workflow", ["train", "inference"])
def test_workflows_run_from_another_folder(workflow: str, phantoms: Path, tmp_path: Path) -> None:
    """Where `scripts` is not; the user's own paths are relative to that folder."""
    (tmp_path / "data").symlink_to(phantoms)
    options: dict[str, object] = {"bundle_root": ROOT, "config_file": ROOT / "configs" / f"{workflow}.yaml"}
    if workflow == "train":
        options |= {"dataset_dir": "data", **SMALL, "max_epochs": 1}
    else:
        options |= {"cine": "data/phantom001/phantom001_4d.nii.gz", "device": "cpu", "write": "moved"}
        options["segmentation"] = "none"
    succeed(run_bundle(cwd=tmp_path, output_dir="out", **options))
    left = {"train": ["model.pt"], "inference": ["phantom001/moved.nii.gz", "phantom001/quality.json"]}[workflow]
    assert all((tmp_path / "out" / name).is_file() for name in left)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_help_and_version_come_from_the_config_file(tmp_path: Path) -> None:
    for word, known in (("--help", "--reference_frame"), ("--version", "GSMorph")):
        result = succeed(run_bundle(word, cwd=tmp_path, bundle_root=ROOT, config_file=ROOT / INFERENCE))
        assert known in result.stdout
        assert "Traceback" not in result.stderr


def test_tensorboard_holds_losses_conflicts_and_validation(trained: tuple) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = {}
    for path in (trained[0] / "tensorboard").iterdir():
        events = EventAccumulator(str(path)).Reload()
        steps |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["similarity_of_step"] == list(range(1, STEPS + 1))
    for tag in (
        "conflict_ratio",
        "cosine",
        "similarity",
        "smoothness",
        "val_dice",
        "val_hd95_voxel",
        "val_folding_percent",
    ):
        assert steps[tag] == [1, 2], tag


def test_resuming_is_bit_for_bit(trained: tuple, phantoms: Path, tmp_path: Path) -> None:
    options = {**SMALL, "config_file": TRAIN, "dataset_dir": phantoms, "output_dir": tmp_path}
    succeed(run_bundle(**options | {"max_epochs": 1}))
    succeed(run_bundle(**options, resume=tmp_path / "last_checkpoint_epoch=1.pt"))
    whole, resumed = read_state(trained[0]), read_state(tmp_path)
    assert resumed["trainer"]["iteration"] == STEPS
    for key in ("network", "averager"):
        for name, value in whole[key].items():
            assert torch.equal(value, resumed[key][name]), (key, name)
    assert whole["lr_scheduler"] == resumed["lr_scheduler"]
    assert torch.equal(whole["random_state"]["torch"], resumed["random_state"]["torch"])
    assert whole["random_state"]["python"] == resumed["random_state"]["python"]
    # The best weights so far stay the best: the first epoch's, or the second's in both.
    assert whole["best_weights"] == resumed["best_weights"]
    one, other = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained[0], tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_not_finite_stops_and_spares_the_checkpoints(
    trained: tuple, phantoms: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
    options = {"config_file": TRAIN, "dataset_dir": phantoms, "output_dir": folder, **SMALL | {"learning_rate": 1e30}}
    assert "last_checkpoint_epoch=2.pt: is of an earlier training" in last_line(run_bundle(**options))
    result = run_bundle(**options, overwrite=True)
    assert "not finite at step 2 (epoch 1); no epoch is complete" in last_line(result)
    assert "--learning_rate" in last_line(result)
    assert "Traceback" not in result.stderr
    assert {path.name: path.read_bytes() for path in folder.glob("*.pt")} == before


@pytest.fixture(scope="module")
def evaluated(trained: tuple, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    options = {**SMALL, "dataset_dir": phantoms, "output_dir": folder, "checkpoint": trained[0] / "model.pt"}
    result = succeed(run_bundle(config_file=f"['{TRAIN}','{EVALUATE}']", **options))
    for words in ("ES_to_ED, 1 subjects", "ED_to_ES, 1 subjects", "initial", "registered", "hd95_voxel"):
        assert words in result.stdout
    return folder


def test_evaluation_scores_the_test_split_in_both_directions(evaluated: Path, phantoms: Path) -> None:
    summary = json.loads((evaluated / "summary.json").read_text())
    for part in (summary, summary["ED_to_ES"]):
        for stage in ("initial", "registered"):
            assert set(part[stage]) == set(FIGURES)
            for name, figure in part[stage].items():
                assert set(figure) == {"mean", "std"} | ({"mean_absolute"} if "volume_error" in name else set())
            assert part[stage]["volume_error_lv"]["mean_absolute"] >= abs(part[stage]["volume_error_lv"]["mean"])
    assert 40 < summary["initial"]["dice"]["mean"] < 95
    assert summary["initial"] != summary["registered"]
    with (evaluated / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == json.loads((phantoms / "splits.json").read_text())["test"]
    assert float(rows[0]["registered_dice"]) == pytest.approx(summary["registered"]["dice"]["mean"])
    assert (evaluated / "registration.png").stat().st_size > 50_000


def infer(*words: str, trained: tuple, output_dir: Path, **options: object) -> subprocess.CompletedProcess:
    checkpoint = trained[0] / "model.pt"
    return run_bundle(
        *words, config_file=INFERENCE, checkpoint=checkpoint, output_dir=output_dir, device="cpu", **options
    )


def frames(phantoms: Path, subject: str = "phantom001") -> dict[str, Path]:
    ed, es = sorted(path for path in (phantoms / subject).glob("*_frame??.nii.gz"))
    return {"moving": es, "fixed": ed, "moving_label": es.with_name(es.name.replace(".nii", "_gt.nii"))}


PAIR_FILES = {"moved.nii.gz", "field.nii.gz", "field_inverse.nii.gz", "quality.json", "report.html"}
CINE_FILES = {"moved.nii.gz", "times.csv", "quality.json"} | {
    f"fields/frame_{t:02d}{end}.nii.gz" for t in range(1, 5) for end in ("", "_inverse")
}
LABEL_FILES = {"labels.nii.gz", "segmented.nii.gz", "function.json", "volumes.csv", "strain.csv"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_field_makes(path: Path, image: np.ndarray, moved: np.ndarray) -> None:
    """A moved image is what SciPy makes of an image, sampled once through the field as it was written."""
    field, affine = read_field(path)
    expected = pull(image, affine, field, affine)
    np.testing.assert_allclose(moved, expected, atol=1e-3 * np.ptp(image))


def test_run_infers_a_pair_on_the_fixed_grid(trained: tuple, phantoms: Path, tmp_path: Path) -> None:
    pair = frames(phantoms)
    succeed(infer(trained=trained, output_dir=tmp_path, **pair))
    (folder,) = tmp_path.iterdir()
    assert folder.name == "phantom001_frame03_to_phantom001_frame01"
    assert files(folder) == PAIR_FILES | {"moved_label.nii.gz", "segmented.nii.gz"}
    fixed, moving = nib.load(pair["fixed"]), nib.load(pair["moving"]).get_fdata()
    moved, label = (nib.load(folder / name) for name in ("moved.nii.gz", "moved_label.nii.gz"))
    for image in (moved, label):
        assert image.shape == fixed.shape
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
    assert abs(np.linalg.det(fixed.affine[:3, :3] / fixed.header.get_zooms()) ** 2 - 1) < 1e-3
    assert np.abs(fixed.affine[:3, :3] / fixed.header.get_zooms()).max() < 0.99, "the phantom's axes are oblique"
    assert_field_makes(folder / "field.nii.gz", moving, moved.get_fdata())
    # In the scanner's unit: linear interpolation stays in the moving image's range.
    assert not np.array_equal(moved.get_fdata(), moving)
    assert moving.min() <= moved.get_fdata().min() < moved.get_fdata().max() <= moving.max()
    assert set(np.unique(label.get_fdata())) == {0, 1, 2, 3}


def test_run_infers_a_cine_with_its_label_and_landmarks(phantoms: Path, tmp_path: Path) -> None:
    """By the shipped weights."""
    subject = phantoms / "phantom001"
    path, label = subject / "phantom001_4d.nii.gz", subject / "phantom001_frame01_gt.nii.gz"
    points = tmp_path / "points.csv"
    places = [(nib.load(path).affine @ [*index, 1])[:3] * [-1, -1, 1] for index in ((20, 18, 0.4), (9.5, 30, 1))]
    points.write_text(
        "name,x,y,z\n" + "".join(f"{name},{x},{y},{z}\n" for name, (x, y, z) in zip(("apex", "base"), places))
    )
    options = {"config_file": INFERENCE, "cine": path, "reference_label": label, "points": points, "device": "cpu"}
    result = succeed(run_bundle(**options, output_dir=tmp_path / "out"))
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["phantom001"]
    assert f"phantom001: {tmp_path / 'out' / 'phantom001' / 'report.html'}" in result.stdout
    folder = tmp_path / "out" / "phantom001"
    assert files(folder) == CINE_FILES | LABEL_FILES | {"points.csv", "report.html"}
    cine, moved, labels = nib.load(path), nib.load(folder / "moved.nii.gz"), nib.load(folder / "labels.nii.gz")
    for image in (moved, labels):
        assert image.shape == cine.shape
        np.testing.assert_allclose(image.affine, cine.affine, atol=1e-5)
        assert image.header.get_xyzt_units() == ("mm", "msec")
        assert image.header.get_zooms()[3] == pytest.approx(1000 * cine.header.get_zooms()[3], rel=1e-5)
    assert moved.get_data_dtype() == np.float32
    for t in range(4):
        field = folder / "fields" / f"frame_{t + 1:02d}.nii.gz"
        assert_field_makes(field, cine.get_fdata()[..., t], moved.get_fdata()[..., t])
        assert np.any(nib.load(field).get_fdata()) == (t > 0)
    np.testing.assert_array_equal(labels.get_fdata()[..., 0], nib.load(label).get_fdata())
    with (folder / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["name"]) for row in rows] == [
        (str(t), name) for t in range(1, 5) for name in ("apex", "base")
    ]
    np.testing.assert_allclose([[float(row[axis]) for axis in "xyz"] for row in rows[:2]], places, atol=1e-4)
    quality = json.loads((folder / "quality.json").read_text())
    assert (quality["reference_frame"], quality["reference_basis"]) == (1, "end diastole by Info.cfg")
    assert [frame["frame"] for frame in quality["frames"]] == [1, 2, 3, 4]
    # Of the phantoms' large pixels; tests/test_sunnybrook.py asks for 0.1 mm.
    assert all(frame["inverse_error_mm_p95"] <= 0.035 * cine.header.get_zooms()[0] for frame in quality["frames"])
    function = json.loads((folder / "function.json").read_text())
    assert (function["ed_frame"], function["es_frame"]) == (1, 3)
    for name in ("quality.json", "function.json", "report.html"):
        assert str(subject) not in (folder / name).read_text()


def kill(process: int) -> None:
    """Kill a process and all that it started, these first."""
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        kill(int(child))
    os.kill(process, signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's, unpacked."""
    packed = {name: (folder / name).read_bytes() for name in files(folder)}
    return {name: gzip.decompress(data) if name.endswith(".gz") else data for name, data in packed.items()}


def test_run_inference_in_processes_that_are_killed_and_resumed(trained: tuple, phantoms: Path, tmp_path: Path) -> None:
    """Two processes share five cases, one of them bad, are killed, and run again; then one process does all of them
    anew."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    names = [shutil.copytree(phantoms / f"phantom{n:03d}", data / f"phantom{n:03d}").name for n in range(1, 6)]
    bad = data / "phantom001" / "phantom001_4d.nii.gz"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:2000])
    options = {
        "checkpoint": trained[0] / "model.pt",
        "output_dir": out,
        "dataset_dir": data,
        "device": "cpu",
        "write": "moved,fields,inverse,labels",
        "segmentation": "none",
    }
    options["refine_iterations"] = 5  # time to be killed in
    job = subprocess.Popen(
        bundle_command("inference", processes=2, config_file=INFERENCE, **options), cwd=ROOT, stderr=subprocess.DEVNULL
    )

    def written() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("phantom*/moved.nii.gz")}

    while not written():
        assert job.poll() is None
        time.sleep(0.01)
    kill(job.pid)
    job.wait()
    first = written()
    assert len(first) < 4
    assert not (out / "summary.csv").exists()

    command = bundle_command("inference", processes=2, config_file=INFERENCE, **options)
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    # Once where it happens and once in torchrun's own report.
    reason = f"1 of 5 cases failed: phantom001; the first one: {bad}: cannot be read as NIfTI"
    assert count(f"error: {reason}", result.stderr) == count(f"InputError: {reason}", result.stderr) == 1
    assert sorted(path.name for path in out.iterdir()) == ["cohort.html", *names[1:], "summary.csv"]
    assert all(files(out / name) == CINE_FILES | LABEL_FILES - {"segmented.nii.gz"} for name in names[1:])
    second, before, rows = written(), contents(out), (out / "summary.csv").read_text().splitlines()
    assert {name: second[name] for name in first} == first
    assert [row.split(",")[:2] for row in rows[1:]] == [
        [name, "done" if n else "failed"] for n, name in enumerate(names)
    ]
    assert f"{bad.name}: cannot be read as NIfTI" in rows[1]
    assert str(bad.parent) not in rows[1]

    bad.write_bytes(whole)
    succeed(run_bundle("inference", config_file=INFERENCE, overwrite=True, **options))
    assert all(moment > second.get(name, 0) for name, moment in written().items())
    assert sorted(written()) == names
    after = contents(out)
    of_all = ("summary.csv", "cohort.html")
    assert {name: after[name] for name in before if name not in of_all} == {
        n: d for n, d in before.items() if n not in of_all
    }
    assert (out / "summary.csv").read_text().splitlines()[2:] == rows[2:]


@pytest.mark.parametrize(("kind", "config"), [("train", TRAIN), ("infer", INFERENCE)])
def test_properties_are_all_there_without_input(kind: str, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    workflow = ConfigWorkflow(
        config_file=config, meta_file="configs/metadata.json", logging_file="configs/logging.conf", workflow_type=kind
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_hearts_off_the_center_are_registered(tmp_path: Path) -> None:
    """The heart of one phantom at the center and near a corner of a wide field of view: the shipped weights see the
    whole slice."""
    phantom = Phantom.random((0, 1), size=(112, 112), slices=2, frames=6)
    es, ed = (phantom.image(frame) for frame in (phantom.end_systole, 1))
    # The whole phantom lies in one corner, on a textured ground: a crop of 128 pixels about the center holds a part of
    # it.
    ground = np.random.default_rng(0).normal(120, 15, (256, 256, 2))
    paths = {}
    for name, image in (("es", es), ("ed", ed)):
        wide = ground.copy()
        wide[:112, 144:] = image
        paths[name] = write_nifti(tmp_path / f"{name}.nii.gz", wide.astype(np.float32))
    options = {"config_file": INFERENCE, "moving": paths["es"], "fixed": paths["ed"], "device": "cpu"}
    options |= {"write": "moved", "segmentation": "none"}
    succeed(run_bundle(**options, output_dir=tmp_path / "out"))
    moved = nib.load(next((tmp_path / "out").rglob("moved.nii.gz"))).get_fdata()[:112, 144:]
    before, after = ((x - ed) ** 2 for x in (es, moved))
    assert after.mean() < 0.5 * before.mean()
    # Nor is there a seam where the central crop would end: columns beyond it are registered as well as those within.
    beyond = 192 - 144
    assert after[:, beyond:].mean() < 0.6 * before[:, beyond:].mean()


def test_options_of_the_method(phantoms: Path, tmp_path: Path) -> None:
    """The published network, displacements, LNCC and l2, agreement on modules: an override of a dozen lines."""
    override = {
        "strategy": "agreement",
        "granularity": "module",
        "network_def#backbone": {
            "_target_": "scripts.registration.networks.RegistrationUNet",
            "features": [4, 8, 8, 8, 8],
            "conv_bias": True,
        },
        "integration": None,
        "similarity": {"_target_": "LocalNormalizedCrossCorrelationLoss", "spatial_dims": 2, "kernel_size": 9},
        "smoothness::norm": "l2",
        "augmentation": None,
        "lr_scheduler": {
            "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
            "optimizer": "@optimizer",
            "T_max": "$@max_epochs * len(@train::dataloader)",
        },
    }
    (tmp_path / "method.yaml").write_text(yaml.safe_dump(override))
    options = {"dataset_dir": phantoms, "output_dir": tmp_path / "out", **SMALL, "max_epochs": 1}
    succeed(run_bundle(config_file=f"['{TRAIN}','{tmp_path / 'method.yaml'}']", **options))
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert weights["backbone.down.0.0.conv.weight"].shape == (4, 2, 3, 3)
    assert "backbone.down.0.0.conv.bias" in weights


def test_training_with_labels_as_the_shipped_weights_had_it(phantoms: Path, tmp_path: Path) -> None:
    configs = [TRAIN, "configs/labeled.yaml"]
    settings = ConfigParser.load_config_files([str(ROOT / name) for name in configs])
    assert settings["labels"]
    options = {"dataset_dir": phantoms, "output_dir": tmp_path / "out", **SMALL, "max_epochs": 1}
    result = succeed(run_bundle(config_file=str(configs), **options))
    assert "gradient surgery: projection, 1 groups of" in result.stdout + result.stderr
    shipped, trained = (
        torch.load(path, weights_only=True) for path in (ROOT / "models" / "model.pt", tmp_path / "out" / "model.pt")
    )
    assert {name: value.shape for name, value in trained.items()} == {
        name: value.shape for name, value in shipped.items()
    }


def test_a_monai_backbone_and_a_data_list(phantoms: Path, tmp_path: Path) -> None:
    override = {
        "network_def#backbone": {
            "_target_": "VoxelMorphUNet",
            "spatial_dims": 2,
            "in_channels": 2,
            "unet_out_channels": 2,
        }
        | {"channels": [4, 4, 6, 6, 4, 4], "final_conv_channels": [4]}
    }
    (tmp_path / "backbone.yaml").write_text(yaml.safe_dump(override))
    pairs = {
        name: {k: str(v) for k, v in frames(phantoms, name).items() if k != "moving_label"}
        for name in ("phantom001", "phantom004")
    }
    (tmp_path / "list.json").write_text(
        json.dumps({"training": [pairs["phantom001"]], "validation": [pairs["phantom004"]]})
    )
    options = {"data_list": tmp_path / "list.json", "output_dir": tmp_path / "out", **SMALL, "max_epochs": 1}
    result = succeed(run_bundle(config_file=f"['{TRAIN}','{tmp_path / 'backbone.yaml'}']", **options))
    # Without labels the weights are chosen by the error.
    assert count(r"val_score: -\d", result.stdout + result.stderr) >= 1
    assert (tmp_path / "out" / "model.pt").is_file()


def test_two_processes_train_and_validate_as_one(phantoms: Path, tmp_path: Path) -> None:
    """All six slices in one batch, whatever the order, and one case to validate; steps of SGD, which rounding does not
    turn around."""
    override = {
        "augmentation": None,
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1},
    }
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(override))
    options = {**SMALL, "dataset_dir": phantoms, "batch_size": 6}
    for name, processes, more in (("one", 1, ""), ("two", 2, "'configs/multi_gpu_train.yaml',")):
        configs = f"['{TRAIN}',{more}'{tmp_path / 'plain.yaml'}']"
        result = succeed(run_bundle(config_file=configs, processes=processes, output_dir=tmp_path / name, **options))
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "model.pt",
        "last_checkpoint_epoch=2.pt",
        "tensorboard",
    }
    assert count(r"Trainer - INFO - Epoch\[1\] Complete", result.stdout + result.stderr) == 1
    one, two = (read_state(tmp_path / name) for name in ("one", "two"))
    assert two["trainer"]["iteration"] == one["trainer"]["iteration"] == 2
    assert two["best_weights"]["score"] == pytest.approx(one["best_weights"]["score"], rel=1e-4)
    for key in ("network", "averager"):
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)


def test_two_processes_evaluate_as_one(evaluated: Path, trained: tuple, phantoms: Path, tmp_path: Path) -> None:
    options = {**SMALL, "dataset_dir": phantoms, "output_dir": tmp_path, "checkpoint": trained[0] / "model.pt"}
    configs = f"['{TRAIN}','{EVALUATE}','configs/multi_gpu_train.yaml']"
    result = succeed(run_bundle(config_file=configs, processes=2, **options))
    assert count("ES_to_ED, 1 subjects", result.stdout) == 1
    for name in ("summary.json", "metrics.csv"):
        assert (tmp_path / name).read_text() == (evaluated / name).read_text()


def test_each_process_draws_its_own_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for rank in (0, 1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        parser = ConfigParser({"seed": 0})
        parser["rank"] = ConfigParser.load_config_file("configs/multi_gpu_train.yaml")["rank"]
        initialize = ConfigParser.load_config_file("configs/train.yaml")["initialize"]
        (parser["start"],) = [line for line in initialize if "seed" in line]
        parser.get_parsed_content("start")
        draws.append((float(torch.rand(())), random.random()))
    set_determinism(None)
    assert draws[0] == draws[2]
    assert all(a != b for a, b in zip(draws[0], draws[1]))


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (INFERENCE, {"referense_frame": 3}, ("--referense_frame: no such option",)),
        (TRAIN, {"dataset_dir": "2024_01"}, ("--dataset_dir 2024_01", "write it as --dataset_dir ./2024_01")),
        (TRAIN, {}, ("give exactly one of --dataset_dir, --data_list; got none",)),
        (INFERENCE, {"moving": "MISSING", "fixed": "FIXED"}, ("nowhere.nii.gz: no such file",)),
        (INFERENCE, {"moving": "CUT", "fixed": "FIXED"}, ("cut.nii.gz: cannot be read as NIfTI",)),
        (
            INFERENCE,
            {"moving": "CONSTANT", "fixed": "FIXED"},
            ("constant.nii.gz: the moving image is constant in every slice",),
        ),
        (
            INFERENCE,
            {"moving": "MOVING", "fixed": "FIXED", "checkpoint": "OTHER"},
            ("other.pt: holds the weights of another network",),
        ),
        (
            INFERENCE,
            {"moving": "MOVING", "fixed": "FIXED", "device": "cuda:7"},
            ("--device cuda:7: no such device here",),
        ),
        (INFERENCE, {}, ("give exactly one of --cine, --moving with --fixed, --dataset_dir, --data_list; got none",)),
        (INFERENCE, {"cine": "CINE", "moving": "FIXED", "fixed": "FIXED"}, ("got --cine and --moving",)),
        (APPLY, {"field": "FIXED"}, ("--field: needs something to move",)),
        (INFERENCE, {"cine": "FIXED"}, ("has the shape (40, 36, 2)", "--moving and --fixed")),
        (
            INFERENCE,
            {"cine": "CINE", "reference_label": "LABEL"},
            ("label.nii.gz: it is not known which frame", "--reference_frame"),
        ),
        (
            INFERENCE,
            {"cine": "CINE", "reference_frame": 1, "reference_label": "SMALL"},
            ("small.nii.gz and frame 1 of", "cine_4d.nii.gz: have different shapes, (40, 35, 2) and (40, 36, 2)"),
        ),
        (
            INFERENCE,
            {"moving": "SMALL", "fixed": "FIXED"},
            ("small.nii.gz and", "have different shapes", "--resample_moving True"),
        ),
        (
            INFERENCE,
            {"moving": "SHIFTED", "fixed": "FIXED"},
            ("shifted.nii.gz and", "have affines up to", "--resample_moving True"),
        ),
        (INFERENCE, {"moving": "NAN", "fixed": "FIXED"}, ("nan.nii.gz: holds NaN or Inf",)),
        (INFERENCE, {"moving": "MOVING", "fixed": "FIXED", "moving_label": "FIXED"}, ("--label_values",)),
        (TRAIN, {"dataset_dir": "EMPTY", "graph": True}, ("--graph True: needs a CUDA device, not cpu",)),
        (TRAIN, {"dataset_dir": "EMPTY"}, ("split 'train' is empty; add subjects to it",)),
        (
            INFERENCE,
            {"cine": "CINE", "reference_frame": 5},
            ("cine_4d.nii.gz: has the frames 1 to 4, no reference frame 5",),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_ends_with_the_cure(
    phantoms: Path, tmp_path: Path, config: str, options: dict, words: tuple[str, ...]
) -> None:
    fixed = frames(phantoms)["fixed"]
    files = {name: tmp_path / f"{name.lower()}.nii.gz" for name in ("CUT", "CONSTANT")}
    files |= {
        "FIXED": fixed,
        "MOVING": frames(phantoms)["moving"],
        "MISSING": tmp_path / "nowhere.nii.gz",
        "OTHER": tmp_path / "other.pt",
    }
    files["CUT"].write_bytes(fixed.read_bytes()[:2000])
    constant = nib.load(fixed)
    array = constant.get_fdata()
    array[..., 1] = 3
    write_nifti(files["CONSTANT"], np.full_like(array, 3), constant.affine)
    torch.save({"weight": torch.zeros(2)}, files["OTHER"])
    # Where no Info.cfg tells the reference frame.
    files |= {name: tmp_path / f"{name.lower()}.nii.gz" for name in ("LABEL", "SMALL")} | {
        "CINE": tmp_path / "cine_4d.nii.gz"
    }
    shutil.copy(fixed.with_name("phantom001_4d.nii.gz"), files["CINE"])
    label = nib.load(shutil.copy(fixed.with_name("phantom001_frame01_gt.nii.gz"), files["LABEL"]))
    files |= {name: tmp_path / f"{name.lower()}.nii.gz" for name in ("SHIFTED", "NAN")} | {"EMPTY": tmp_path / "empty"}
    shift = np.eye(4)
    shift[0, 3] = 1.0
    write_nifti(files["SHIFTED"], constant.get_fdata(), constant.affine @ shift)
    write_nifti(files["NAN"], np.where(array == 3, np.nan, array), constant.affine)
    shutil.copytree(phantoms, files["EMPTY"])
    (files["EMPTY"] / "splits.json").write_text('{"train": [], "val": ["phantom001"], "test": []}')
    write_nifti(files["SMALL"], label.get_fdata()[:, 1:].astype(np.uint8), label.affine)
    options = {key: files.get(value, value) for key, value in options.items()}
    device = {} if config == APPLY else {"device": "cpu"}
    result = run_bundle(config_file=config, output_dir=tmp_path / "out", **{**device, **options})
    line = last_line(result)
    for word in words:
        assert word in line
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "tensorboard" not in path.parts]


def test_inference_config_has_the_network_of_training() -> None:
    train, inference = (ConfigParser.load_config_file(str(ROOT / name)) for name in (TRAIN, INFERENCE))
    for key in ("network_def", "integration", "clip_percentile", "working_spacing"):
        assert train[key] == inference[key]


def test_another_working_spacing_still_writes_the_native_grid(phantoms: Path, tmp_path: Path) -> None:
    pair = frames(phantoms)
    options = {
        "moving": pair["moving"],
        "fixed": pair["fixed"],
        "output_dir": tmp_path,
        "working_spacing": 2.5,
        "write": "moved,fields",
        "segmentation": "none",
    }
    succeed(run_bundle(config_file=INFERENCE, device="cpu", **options))
    (folder,) = tmp_path.iterdir()
    fixed, moving = (nib.load(pair[name]) for name in ("fixed", "moving"))
    moved = nib.load(folder / "moved.nii.gz")
    assert moved.shape == fixed.shape
    assert fixed.header.get_zooms()[0] > 3, "the native pixels are not those that the network sees"
    assert_field_makes(folder / "field.nii.gz", moving.get_fdata(), moved.get_fdata())
    before, after = (np.mean((image.get_fdata() - fixed.get_fdata()) ** 2) for image in (moving, moved))
    assert after < 0.8 * before
