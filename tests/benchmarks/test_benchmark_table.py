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

"""The whole comparison on a phantom: every row, resumed, on another data set, and equal to what evaluate.yaml says."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import change_code, run_bundle, succeed
from scripts.surgery.rules import STRATEGIES

from benchmarks import rows, table
from benchmarks.classical import METHODS
from benchmarks.comparison import COLUMNS

itk = pytest.importorskip("itk")
SIZES = ["--slice_size", "32", "--crop_size", "32"]
SMOKE = [*SIZES, "--subset", "1", "--epochs", "1", "--jobs", "1"]


@pytest.fixture(scope="module", autouse=True)
def keep_threads() -> None:
    threads, itk_threads = torch.get_num_threads(), itk.MultiThreaderBase.GetGlobalMaximumNumberOfThreads()
    yield
    torch.set_num_threads(threads)
    itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(itk_threads)


def run(dataset: Path, output: Path, *words: str) -> tuple[dict[str, dict], str]:
    """The table's results and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = table.main(["--dataset_dir", str(dataset), "--output_dir", str(output), *words])
    return results, printed.getvalue()


@pytest.fixture(scope="module")
def smoke(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict], str]:
    """Folder, results and output of all rows, one subject and one epoch each."""
    output = tmp_path_factory.mktemp("table")
    return output, *run(phantoms, output, *SMOKE)


@pytest.fixture
def only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and searching fail."""
    for name in ("ConfigWorkflow", "search", "choose_weight"):
        monkeypatch.setattr(rows, name, lambda *_, **__: pytest.fail("was run again"))


def test_every_row_is_trained_scored_and_written(smoke: tuple[Path, dict[str, dict], str]) -> None:
    output, results, printed = smoke
    assert list(results) == list(rows.ROWS)
    text = (output / "table.md").read_text()
    assert text in printed
    with (output / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(rows.ROWS)
    for name, row in rows.ROWS.items():
        assert text.count(f"\n| {row.title} |") == 2
        assert f"] {row.title}: Dice %" in printed
        found = {r["direction"]: r for r in lines if r["method"] == name}
        assert set(found) == {"ES_to_ED", "ED_to_ES"}
        for scored in results[name]["rows"]:
            for key in COLUMNS:
                value = found[scored["direction"]][key]
                assert (np.nan if value == "" else float(value)) == pytest.approx(scored[key], nan_ok=True)
        trained = results[name]["training_seconds"]
        assert (trained is not None and trained > 0) == (row.kind == "learned")
        assert np.isfinite([r["seconds"] for r in results[name]["rows"]]).all() == (name != "initial")
    dice = {name: np.mean([row["dice"] for row in result["rows"]]) for name, result in results.items()}
    assert dice["demons"] > dice["initial"] + 5
    assert dice["syn"] > dice["initial"] + 5
    assert dice["shipped"] > dice["initial"] + 5
    assert dice["gsmorph_refined"] > dice["gsmorph"]
    assert "CPU hours are left: Demons" in printed
    assert (output / "table.png").stat().st_size > 10_000
    assert not list(output.rglob(".part*"))


def test_rows_differ_in_the_method_alone() -> None:
    assert {name for name, row in rows.ROWS.items() if row.kind == "classical"} == set(METHODS) == set(rows.SEARCHED)
    learned = {name for name, row in rows.ROWS.items() if row.kind == "learned"}
    folder = rows.ROOT / "benchmarks" / "methods"
    assert learned == {path.stem for path in folder.glob("*.yaml")}
    shared = rows.load_configs(*rows.SHARED)
    used = set()
    for name in learned:
        assert len((folder / f"{name}.yaml").read_text().splitlines()) <= 12
        config = rows.load_configs(*rows.SHARED, f"benchmarks/methods/{name}.yaml")
        used.add(config["strategy"])
        for key in (
            "augmentation",
            "optimizer",
            "lr_scheduler",
            "similarity",
            "batch_size",
            "learning_rate",
            "averaging",
            "seed",
        ):
            assert config[key] == shared[key], (name, key)
        assert config["network_def"]["backbone"]["features"] == shared["network_def"]["backbone"]["features"]
        assert (config["integration"] is None) == (name != "gsmorph_velocity")
    assert used == set(STRATEGIES)


def test_val_chooses_parameters_and_weight(smoke: tuple[Path, dict[str, dict], str]) -> None:
    output, results, _ = smoke
    for name in ("demons", "diffeomorphic_demons", "syn", "hypermorph"):
        choice = json.loads((output / "training" / name / "choice.json").read_text())
        best = max(choice["tried"], key=lambda tried: tried["dice"])
        assert choice["chosen"].items() <= best.items()
        assert results[name]["choice"] == choice["chosen"]
        assert len(choice["tried"]) == len(rows.SEARCHED.get(name, range(rows.WEIGHTS_TRIED)))
    weights = torch.load(output / "training" / "hypermorph" / "model.pt", weights_only=True)
    assert weights["weight"].item() == pytest.approx(results["hypermorph"]["choice"]["weight"])


@pytest.mark.parametrize("name", ["gsmorph", "shipped", "shipped_volume"])
def test_a_row_of_a_network_is_what_evaluation_says(
    smoke: tuple[Path, dict[str, dict], str], phantoms: Path, tmp_path: Path, name: str
) -> None:
    """What ships resamples these large pixels, the other rows do not."""
    output, results, _ = smoke
    configs = ["configs/train.yaml", "configs/evaluate.yaml"]
    checkpoint = rows.ROOT / "models" / "model.pt"
    if name == "gsmorph":
        configs += ["benchmarks/table.yaml", "benchmarks/methods/gsmorph.yaml"]
        checkpoint = output / "training" / "gsmorph" / "model.pt"
    elif name == "shipped_volume":
        configs += ["configs/depth.yaml"]
    succeed(
        run_bundle(
            config_file=str(configs),
            dataset_dir=phantoms,
            output_dir=tmp_path,
            checkpoint=checkpoint,
            device="cpu",
            crop_size=[32, 32],
        )
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    for row in results[name]["rows"]:
        expected = (summary if row["direction"] == "ES_to_ED" else summary["ED_to_ES"])["registered"]
        for key in set(COLUMNS) - {"seconds"}:
            assert row[key] == pytest.approx(expected[key]["mean"], abs=1e-4), key


@pytest.mark.usefixtures("only_reads")
def test_what_is_finished_is_not_run_again(
    smoke: tuple[Path, dict[str, dict], str], phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, results, _ = smoke
    monkeypatch.setattr(rows, "score", lambda *_: pytest.fail("was scored again"))
    again, printed = run(phantoms, output, *SMOKE)
    assert "about 0 CPU hours are left\n" in printed
    for name in results:
        np.testing.assert_equal(again[name], results[name])


@pytest.mark.usefixtures("only_reads")
def test_another_data_set_is_scored_without_training_again(
    smoke: tuple[Path, dict[str, dict], str], phantoms: Path, mms: Path
) -> None:
    output, results, _ = smoke
    before = (output / "table.md").read_text()
    names = ("initial", "demons", "hypermorph", "gsmorph", "shipped")
    other, printed = run(phantoms, output, *SMOKE, "--test_dataset_dir", str(mms), "--rows", *names)
    # Of what is left only ITK takes hours.
    assert re.search(r"CPU hours are left: Demons \S+\n", printed)
    # The same subject in the other layout.
    for name in names:
        for one, two in zip(other[name]["rows"], results[name]["rows"]):
            assert one["vendor"] == "B"
            for key in set(COLUMNS) - {"seconds"}:
                assert one[key] == pytest.approx(two[key], abs=1e-3), (name, key)
    assert (output / "table.md").read_text() == before
    assert "GSMorph" in (output / "on_mms" / "table.md").read_text()


def test_the_same_subjects_in_the_layout_of_mms_train_the_same_weights(
    smoke: tuple[Path, dict[str, dict], str], mms: Path, tmp_path: Path
) -> None:
    output, _, _ = smoke
    run(mms, tmp_path, *SMOKE, "--rows", "gsmorph")
    found, expected = (
        torch.load(folder / "training" / "gsmorph" / "model.pt", weights_only=True) for folder in (tmp_path, output)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def test_a_seed_changes_the_training_and_not_the_split(phantoms: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(phantoms, tmp_path / "data"))
    (root / "splits.json").unlink()
    weights, subjects = [], []
    for seed in ([], ["--seed", "0"], ["--seed", "1"]):
        output = tmp_path / "_".join(["out", *seed])
        results, _ = run(root, output, *SMOKE, "--rows", "voxelmorph_m", *seed)
        state = torch.load(output / "training" / "voxelmorph_m" / "model.pt", weights_only=True)
        weights.append(torch.cat([tensor.flatten() for tensor in state.values()]))
        subjects.append([row["subject"] for row in results["voxelmorph_m"]["rows"]])
    assert subjects[0] == subjects[1] == subjects[2]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_unfinished_training_goes_on_and_another_one_is_refused(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--rows", "initial", "gsmorph", *SIZES, "--epochs", "2", "--jobs", "1", "--subset"]
    run(phantoms, tmp_path / "straight", *words, "2")

    def cut_power(path: Path, content: dict) -> None:
        write_json(path, content)
        if path.name == "seconds.json":
            raise RuntimeError("power cut")

    write_json = rows.write_json
    monkeypatch.setattr(rows, "write_json", cut_power)
    with pytest.raises(table.InputError, match=r"1 of 2 rows failed: GSMorph;.*power cut"):
        run(phantoms, tmp_path / "resumed", *words, "2")
    monkeypatch.undo()
    folder = tmp_path / "resumed" / "training" / "gsmorph"
    assert rows.epochs_done(folder) == 1
    assert "GSMorph" not in (tmp_path / "resumed" / "table.csv").read_text()
    first = json.loads((folder / "seconds.json").read_text())["1"]
    results, _ = run(phantoms, tmp_path / "resumed", *words, "2")
    assert results["gsmorph"]["training_seconds"] > first > 0
    files = [
        tmp_path / output / "training" / "gsmorph" / "last_checkpoint_epoch=2.pt" for output in ("straight", "resumed")
    ]
    straight, resumed = (torch.load(file, weights_only=True) for file in files)
    for key in ("network", "averager"):
        assert all(torch.equal(value, resumed[key][name]) for name, value in straight[key].items())

    with pytest.raises(table.InputError, match=r"gsmorph: has 2 epochs, more than 1; remove that folder"):
        run(phantoms, tmp_path / "resumed", *words, "2", "--epochs", "1")
    with pytest.raises(
        table.InputError, match=r"gsmorph: was made with other settings \(train pairs\); remove that folder"
    ):
        run(phantoms, tmp_path / "resumed", *words, "1")


def test_another_data_set_of_the_same_names_is_not_taken_for_the_first(phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(phantoms, tmp_path / "data"))
    words = ["--rows", "initial", "gsmorph", *SMOKE]
    first, _ = run(copy, tmp_path / "out", *words)
    study = rows.Study(Namespace(dataset_dir=str(copy), test_dataset_dir=None, subset=1))
    # The label of a test subject changes: scores are made anew; an image of a training subject: the training is another
    # one.
    test, train = (study.items(split)[0] for split in ("test", "train"))
    label = nib.load(test["fixed_label"])
    nib.save(nib.Nifti1Image(np.roll(np.asarray(label.dataobj), 3, axis=0), label.affine), test["fixed_label"])
    second, _ = run(copy, tmp_path / "out", *words)
    assert first["initial"]["rows"][0]["dice"] != second["initial"]["rows"][0]["dice"]
    image = nib.load(train["moving"])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine), train["moving"])
    before = (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(table.InputError, match=r"gsmorph: was made with other settings \(train pairs\)"):
        run(copy, tmp_path / "out", *words)
    # Nothing was run, and the table is still the first one.
    assert (tmp_path / "out" / "table.md").read_text() == before


def test_what_other_code_has_trained_is_refused_and_what_it_has_searched_is_searched_anew(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--rows", "gsmorph", "diffeomorphic_demons", *SMOKE]
    run(phantoms, tmp_path, *words)
    monkeypatch.setattr(rows, "code_of", lambda modules: "another one")
    _, printed = run(phantoms, tmp_path, *words[:1], *words[2:])
    assert "CPU hours are left: diffeomorphic Demons" in printed
    with pytest.raises(table.InputError, match=r"gsmorph: was made with other settings \(code\); remove that folder"):
        run(phantoms, tmp_path, *words)


def test_the_code_of_a_training_is_that_of_its_modules_and_of_what_they_import(own_code: Path) -> None:
    for path, counts in (("registration/networks", True), ("registration/fields", True), ("report/page", False)):
        before = rows.code_of(rows.TRAINED_BY)
        change_code(own_code / f"{path}.py")
        assert (rows.code_of(rows.TRAINED_BY) != before) == counts, path


def test_without_labels_the_error_chooses_and_says_so(phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(phantoms, tmp_path / "data"))
    for path in copy.rglob("*_gt.nii.gz"):
        path.unlink()
    run(copy, tmp_path / "out", "--rows", "demons", *SMOKE)
    line = next(x for x in (tmp_path / "out" / "table.md").read_text().splitlines() if x.startswith("- Demons"))
    found = dict(re.findall(r"sigma ([\d.]+), iterations 50: ([\d.]+)", line))
    assert line.startswith(f"- Demons: sigma {min(found, key=found.get)}, iterations 50, by MSE ×10⁻² on `val`")
    assert len(found) == len(rows.SEARCHED["demons"])


def test_hours_of_weights_that_another_row_trains_are_counted_once(phantoms: Path, tmp_path: Path) -> None:
    study = lambda *words: rows.Study(
        table.parse(["--dataset_dir", str(phantoms), "--output_dir", str(tmp_path), *SMOKE, *words])
    )
    for names in (["gsmorph_refined"], ["gsmorph", "gsmorph_refined"]):
        hours = table.estimate_hours(study("--rows", *names), names)
        assert list(hours) == ["gsmorph"]
        assert hours["gsmorph"] > 0


def test_an_interrupted_search_goes_on(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--rows", "diffeomorphic_demons", *SMOKE, "--jobs", "1"]
    straight, _ = run(phantoms, tmp_path / "straight", *words)
    calls, score = [], rows.score

    def counted(*arguments: object) -> list[dict]:
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return score(*arguments)

    monkeypatch.setattr(rows, "score", counted)
    with pytest.raises(table.InputError, match="power cut"):
        run(phantoms, tmp_path / "resumed", *words)
    resumed, _ = run(phantoms, tmp_path / "resumed", *words)
    # Two of the candidates before and all others after the interruption, and the test pairs.
    assert len(calls) == 3 + len(rows.SEARCHED["diffeomorphic_demons"]) - 2 + 1
    name = "diffeomorphic_demons"
    assert resumed[name]["choice"] == straight[name]["choice"]
    assert [row["dice"] for row in resumed[name]["rows"]] == [row["dice"] for row in straight[name]["rows"]]


def test_test_sets_of_one_name_do_not_share_a_folder(phantoms: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(phantoms, tmp_path / name / "test")
    words = ["--rows", "initial", *SMOKE, "--test_dataset_dir"]
    run(phantoms, tmp_path / "out", *words, str(tmp_path / "a" / "test"))
    run(phantoms, tmp_path / "out", *words, str(tmp_path / "a" / "test"))
    with pytest.raises(table.InputError, match=r"on_test: was made with other settings \(test_dataset_dir\)"):
        run(phantoms, tmp_path / "out", *words, str(tmp_path / "b" / "test"))


def test_a_folder_without_a_split_scores_no_subject_that_it_trained_on(phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(phantoms, tmp_path / "data"))
    (copy / "splits.json").unlink(missing_ok=True)
    study = rows.Study(Namespace(dataset_dir=str(copy), test_dataset_dir=None, subset=None))
    subjects = {split: {item["subject"] for item in study.items(split)} for split in ("train", "val", "test")}
    assert not subjects["test"] & (subjects["train"] | subjects["val"])
    assert all(subjects.values())
