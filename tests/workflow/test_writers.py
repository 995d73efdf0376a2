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

"""Folders that inference leaves: whole or not at all, on the fixed grid, in the units that their headers say."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.cardiac.cines import Cine
from scripts.cardiac.function import measure_function
from scripts.cardiac.phantom import Phantom
from scripts.cardiac.quality import assess
from scripts.cardiac.registrations import CineRegistration, PairRegistration, Registration
from scripts.cardiac.strain import measure_strain
from scripts.data.itk_fields import read_field
from scripts.data.results import DONE, check_place
from scripts.errors import InputError
from scripts.files import own_name, plain
from scripts.options import KEPT
from scripts.workflow import writers
from scripts.workflow.writers import WriteRegistration, describe_parameters, write_nifti

PHANTOM = Phantom.random((0, 1), size=(24, 22), slices=2, frames=3)
TIMES = np.array([[10.0, 50, 100], [20, 55, 120]])
CINE_FILES = {"moved.nii.gz", "times.csv", "quality.json"} | {
    f"fields/frame_{t:02d}{end}.nii.gz" for t in (1, 2, 3) for end in ("", "_inverse")
}
LABEL_FILES = {"labels.nii.gz", "function.json", "volumes.csv", "strain.csv"}
IMAGES = [kind for kind in KEPT if kind != "report"]
PAIR_FILES = {"moved.nii.gz", "field.nii.gz", "field_inverse.nii.gz", "quality.json"}


def register(
    label: bool = True, pair: bool = False, times: np.ndarray | None = TIMES, name: str = "heart"
) -> Registration:
    frames = (2,) if pair else (1, 2, 3)
    images = np.stack([PHANTOM.image(t) for t in frames], axis=-1)
    fields, inverses = (np.stack([PHANTOM.field(*(t, 1)[::way]) for t in frames]).astype(np.float32) for way in (1, -1))
    moved = images + np.arange(len(frames)) + 0.25
    parts = {"fields": fields, "inverses": inverses, "moved": moved}
    if pair:
        cine, drawn = Cine(name, images, PHANTOM.affine), PHANTOM.label(2) if label else None
        registration = PairRegistration(cine=cine, **parts, fixed=images[..., 0], moving_label=drawn, moved_label=drawn)
    else:
        cine = Cine(name, images, PHANTOM.affine, times)
        registration = CineRegistration(cine=cine, **parts, reference=1, reference_basis="given")
    if label and not pair:
        registration.label = PHANTOM.label(1)
        registration.labels = np.stack([PHANTOM.label(t) for t in frames], axis=-1)
        registration.function = measure_function(registration.labels, cine.spacing, times, 1)
        registration.strain = measure_strain(fields, registration.label, PHANTOM.affine, times=times)
    registration.quality = assess(registration)
    return registration


def write(folder: Path, registration: CineRegistration, **options: object) -> Path:
    WriteRegistration(folder, **{"write": IMAGES, **options})({"registration": registration})
    return folder / registration.cine.name


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def cine() -> CineRegistration:
    return register()


def test_a_cine_leaves_all_its_files(cine: CineRegistration, tmp_path: Path) -> None:
    folder = write(tmp_path, cine)
    assert files(folder) == CINE_FILES | LABEL_FILES
    moved, labels = nib.load(folder / "moved.nii.gz"), nib.load(folder / "labels.nii.gz")
    np.testing.assert_array_equal(moved.get_fdata(), cine.moved.astype(np.float32))
    np.testing.assert_array_equal(labels.get_fdata(), cine.labels)
    assert (moved.get_data_dtype(), labels.get_data_dtype()) == (np.float32, np.uint8)
    for image in (moved, labels):
        np.testing.assert_allclose(image.affine, PHANTOM.affine, atol=1e-5)
        assert image.header.get_xyzt_units() == ("mm", "msec")
        np.testing.assert_allclose(image.header.get_zooms(), (*PHANTOM.spacing, (90 + 100) / 4), rtol=1e-6)
    for t in range(3):
        for name, expected in (("", cine.fields), ("_inverse", cine.inverses)):
            field, affine = read_field(folder / "fields" / f"frame_{t + 1:02d}{name}.nii.gz")
            np.testing.assert_allclose(field[:2], expected[t], atol=3e-4)
            np.testing.assert_allclose(field[2], 0, atol=3e-4)
            np.testing.assert_allclose(affine, PHANTOM.affine, atol=1e-5)
    assert json.loads((folder / "function.json").read_text())["lv_edv_ml"] == pytest.approx(cine.function["lv_edv_ml"])
    assert json.loads((folder / "quality.json").read_text()) == plain(cine.quality)
    for name, expected in (("volumes", 3), ("strain", len(cine.strain))):
        with (folder / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == expected


def test_the_place_of_a_label_is_not_shown() -> None:
    shown = describe_parameters({"reference label": "/data/DOE_JANE/gt.nii.gz", "segmentation": "none"}, "cpu")
    assert shown == {"segmentation": "none", "device": "cpu"}


def test_weights_are_shown_by_name_and_hash(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    shown = describe_parameters({"weights": str(tmp_path / "model.pt")}, "cpu")
    assert shown["weights"] == f"model.pt, SHA-256 {hashlib.sha256(b'weights').hexdigest()[:16]}"


def test_segmented_frames_lie_beside_the_carried_labels(tmp_path: Path) -> None:
    one = register(name="one")
    one.segmented = np.where(one.labels == 2, 0, one.labels)
    folder = write(tmp_path, one)
    assert files(folder) == CINE_FILES | LABEL_FILES | {"segmented.nii.gz"}
    np.testing.assert_array_equal(nib.load(folder / "segmented.nii.gz").get_fdata(), one.segmented)
    with (folder / "volumes.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["rv_segmented_ml"]) == float(row["rv_carried_ml"])
    assert "myo_segmented_ml" not in row
    assert "segmented.nii.gz" not in files(write(tmp_path / "other", one, write="moved"))
    check_place(folder)  # the next run may replace it


def test_automatic_labels_of_a_pair_are_written_on_both_images(tmp_path: Path) -> None:
    pair = register(label=False, pair=True, name="pair")
    pair.fixed_label, pair.carried_label, pair.segmented = PHANTOM.label(1), PHANTOM.label(2), pair.cine.image > 0
    pair.segmented = pair.segmented.astype(np.uint8)
    folder = write(tmp_path, pair)
    check_place(folder)
    assert files(folder) == PAIR_FILES | {"fixed_label.nii.gz", "carried_label.nii.gz", "segmented.nii.gz"}


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("kept", [["report"], ["fields"], ["inverse", "moved"], ["labels"]])
def test_what_is_kept_is_chosen_and_figures_stay(kept: list[str], pair: bool, tmp_path: Path) -> None:
    names = {"fields": "field", "inverse": "inverse", "moved": "moved.nii.gz", "labels": "label", "report": "report"}
    all_files = files(write(tmp_path / "all", register(pair=pair), write=KEPT))
    images = {name for name in all_files if name.endswith((".nii.gz", ".html"))}
    found = files(write(tmp_path / "some", register(pair=pair), write=",".join(kept)))
    assert found >= all_files - images
    assert found & images == {
        name
        for name in images
        if any(names[kind] in name and ("inverse" in name) == (kind == "inverse") for kind in kept)
    }


def test_without_label_there_is_neither_function_nor_strain(tmp_path: Path) -> None:
    assert files(write(tmp_path, register(label=False))) == CINE_FILES


def test_an_unknown_frame_time_stays_unknown(tmp_path: Path) -> None:
    header = nib.load(write(tmp_path, register(times=None)) / "moved.nii.gz").header
    assert header.get_zooms()[3] == 0


def test_a_pair_leaves_one_field_and_its_moved_label(tmp_path: Path) -> None:
    pair = register(pair=True)
    folder = write(tmp_path, pair)
    assert files(folder) == PAIR_FILES | {"moved_label.nii.gz"}
    moved = nib.load(folder / "moved.nii.gz")
    assert moved.shape == (24, 22, 2)
    np.testing.assert_array_equal(moved.get_fdata(), pair.moved[..., 0].astype(np.float32))
    np.testing.assert_array_equal(nib.load(folder / "moved_label.nii.gz").get_fdata(), pair.moved_label)
    np.testing.assert_allclose(read_field(folder / "field.nii.gz")[0][:2], pair.fields[0], atol=3e-4)
    np.testing.assert_allclose(read_field(folder / "field_inverse.nii.gz")[0][:2], pair.inverses[0], atol=3e-4)
    assert files(write(tmp_path / "other", register(label=False, pair=True))) == PAIR_FILES


def test_landmarks_and_the_report_are_written_where_there_are_some(cine: CineRegistration, tmp_path: Path) -> None:
    rows = [{"frame": 1, "name": 'apex, "tip"', "x": 1.5, "y": -2.0, "z": 3.25}]
    cine.points = rows
    try:
        folder = write(tmp_path / "a" / "b", cine, write=KEPT, parameters={"working spacing": 1.5})
    finally:
        cine.points = []
    with (folder / "points.csv").open() as file:
        assert [{key: row[key] for key in row} for row in csv.DictReader(file)] == [
            {k: str(v) for k, v in rows[0].items()}
        ]
    assert "1.5" in (folder / "report.html").read_text()
    assert files(folder) == CINE_FILES | LABEL_FILES | {"points.csv", "report.html"}


def test_neither_patient_nor_paths_are_in_the_figures(cine: CineRegistration, tmp_path: Path) -> None:
    folder = write(tmp_path, cine)
    for name in ("quality.json", "function.json", "volumes.csv", "strain.csv"):
        text = (folder / name).read_text()
        assert str(tmp_path) not in text
        assert "heart" not in text
    for path in folder.rglob("*.nii.gz"):
        header = nib.load(path).header
        assert not any(header[key].item().strip(b"\0") for key in ("db_name", "aux_file", "intent_name", "data_type"))


def test_a_full_disk_is_told_by_the_case_s_folder(
    cine: CineRegistration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by that of a part file, which is gone."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers.nib.openers.Opener, "write", full)
    with pytest.raises(
        InputError, match=r"heart: cannot be written \(its disk is full\); free space, or give another"
    ) as caught:
        write(tmp_path, cine, write=KEPT)
    assert ".part_" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_failing_report_leaves_no_folder(
    cine: CineRegistration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *args: object) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(writers, "write_report", fail)
    with pytest.raises(
        InputError, match=r"heart: cannot be written \(disk full\); free space, or give another --output_dir"
    ):
        write(tmp_path, cine, write=KEPT)
    assert not list(tmp_path.iterdir())
    # Nor does it touch what was there.
    before = {path: path.read_bytes() for path in write(tmp_path, cine).rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match=r"heart: cannot be written \(disk full\); free space, or give another --output_dir"
    ):
        write(tmp_path, cine, write=KEPT)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_rewriting_replaces_the_whole_folder(
    cine: CineRegistration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, cine)
    (folder / ".DS_Store").touch()  # as Finder leaves one where it has looked
    removed, rmtree = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: (removed.append(path), rmtree(path, **options)))
    assert files(write(tmp_path, register(label=False))) == CINE_FILES
    # A folder is renamed, not emptied, so that an interruption leaves no half.
    assert set(removed) == {own_name(folder, "part"), own_name(folder, "old")}
    assert [path.name for path in tmp_path.iterdir()] == ["heart"]


def write_often(folder: str, times: int) -> None:
    for _ in range(times):
        write(Path(folder), register(label=False))


def test_processes_that_write_one_case_leave_one_whole_folder(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as executor:
        list(executor.map(write_often, [str(tmp_path)] * 3, [15] * 3))
    assert files(tmp_path / "heart") == CINE_FILES
    assert [path.name for path in tmp_path.iterdir()] == ["heart"]


def test_a_folder_that_holds_no_results_is_never_replaced(cine: CineRegistration, tmp_path: Path) -> None:
    """As where a folder of DICOM folders is the output folder as well."""
    (tmp_path / "heart").mkdir()
    (tmp_path / "heart" / "IM1.dcm").write_text("the only copy")
    with pytest.raises(
        InputError, match=r"heart: is there and holds no results of an earlier run; give --output_dir another"
    ):
        write(tmp_path, cine)
    assert files(tmp_path) == {"heart/IM1.dcm"}
    (tmp_path / "heart" / "IM1.dcm").unlink()
    assert files(write(tmp_path, register(label=False))) == CINE_FILES
    # Results that lack some of their files are results.
    for missing in (DONE, "moved.nii.gz"):
        (tmp_path / "heart" / missing).unlink()
        assert files(write(tmp_path, register(label=False))) == CINE_FILES


@pytest.mark.parametrize("beside", ["moved.nii.gz", DONE])
def test_what_lies_beside_results_is_never_deleted(cine: CineRegistration, tmp_path: Path, beside: str) -> None:
    """`--field` writes a moved.nii.gz beside whatever is there."""
    (tmp_path / "heart").mkdir()
    for name in (beside, "heart_4d.nii.gz"):
        (tmp_path / "heart" / name).write_text("the only copy")
    with pytest.raises(
        InputError, match=r"heart: (is there and holds no results|holds heart_4d\.nii\.gz beside the results)"
    ):
        write(tmp_path, cine)
    assert files(tmp_path) == {f"heart/{beside}", "heart/heart_4d.nii.gz"}


def test_a_file_among_fields_is_never_deleted_and_a_link_is_followed(cine: CineRegistration, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "heart").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        write(tmp_path / "out", cine)
    assert (tmp_path / "out" / "heart").is_symlink()
    assert (tmp_path / "elsewhere" / DONE).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]
    (tmp_path / "elsewhere" / "fields" / "notes.txt").write_text("the only copy")
    with pytest.raises(InputError, match=r"holds fields/notes\.txt beside the results"):
        write(tmp_path / "out", cine)


def test_no_output_folder_writes_nothing(
    cine: CineRegistration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"registration": cine, "case": "heart"}
    assert WriteRegistration(None)(data) == data
    assert not list(tmp_path.iterdir())


def test_a_stack_is_written_in_mm_without_time(cine: CineRegistration, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.ones((24, 22, 2), np.uint8), cine.cine)
    assert nib.load(tmp_path / "a.nii.gz").header.get_xyzt_units() == ("mm", "unknown")


def test_the_times_of_slices_and_frames_are_kept(tmp_path: Path) -> None:
    WriteRegistration(tmp_path, IMAGES)({"registration": register(label=False)})
    with (tmp_path / "heart" / "times.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slice", "frame", "time_ms"]
    assert {(int(row["slice"]), int(row["frame"])): float(row["time_ms"]) for row in rows} == {
        (z + 1, t + 1): time for (z, t), time in np.ndenumerate(TIMES)
    }
    WriteRegistration(tmp_path, IMAGES)({"registration": register(label=False, times=None)})
    assert not (tmp_path / "heart" / "times.csv").exists()
