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

"""A field from its file applied to images, labels and landmarks, from Python and by the command."""

from __future__ import annotations

import errno
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scripts.workflow.apply_field
from conftest import last_line, run_bundle, succeed, write_nifti
from scipy.spatial.transform import Rotation
from scripts.data.grids import pull
from scripts.data.itk_fields import write_field
from scripts.data.points import move_points, read_points
from scripts.errors import InputError
from scripts.workflow.apply_field import apply_field

SHAPE, OTHER_SHAPE = (14, 12, 3), (17, 15, 6)
AFFINE, OTHER = np.eye(4), np.eye(4)
AFFINE[:3] = np.c_[Rotation.from_euler("xyz", (20, -30, 40), degrees=True).as_matrix() * (1.3, 1.9, 8), (-31, 42, 7)]
OTHER[:3] = np.c_[Rotation.from_euler("xyz", (25, -25, 30), degrees=True).as_matrix() * (-1.2, 1.7, 5), (-12, 45, 0)]


def smooth_field() -> np.ndarray:
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij")
    return np.stack([1.5 * np.sin(0.4 * y + z), 1.2 * np.cos(0.3 * x)])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    write_field(tmp_path / "field.nii.gz", smooth_field(), AFFINE)
    points = tmp_path / "landmarks.csv"
    places = [",".join(map(str, (AFFINE @ [*index, 1])[:3] * [-1, -1, 1])) for index in ((4.5, 6, 1), (9, 3.25, 1.8))]
    points.write_text(f"name,x,y,z\napex,{places[0]}\n,{places[1]}\n")
    (tmp_path / "astray.csv").write_text("x,y,z\n0,0,900\n")
    return {
        "field": tmp_path / "field.nii.gz",
        "moving": write_nifti(tmp_path / "moving.nii.gz", rng.normal(300, 90, OTHER_SHAPE).astype(np.float32), OTHER),
        "moving_label": write_nifti(tmp_path / "label.nii.gz", rng.integers(0, 4, OTHER_SHAPE).astype(np.uint8), OTHER),
        "points": points,
    }


def test_a_place_that_cannot_be_written_is_named(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"field": files["field"], "points": files["points"]}
    with pytest.raises(InputError, match=r"label\.nii\.gz: cannot be made \(File exists\); give another --output_dir"):
        apply_field(**options, output_dir=files["moving_label"])

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scripts.workflow.apply_field, "write_csv", fill)
    with pytest.raises(InputError, match=r"out: cannot be written \(No space left on device\); free space"):
        apply_field(**options, output_dir=files["field"].parent / "out")


def expected(path: Path, is_label: bool = False) -> np.ndarray:
    image = nib.load(path)
    return pull(image.get_fdata(), image.affine, smooth_field(), AFFINE, is_label)


def check_outputs(files: dict[str, Path], folder: Path) -> None:
    moved, label = (nib.load(folder / f"{name}.nii.gz") for name in ("moved", "moved_label"))
    assert (moved.get_data_dtype(), label.get_data_dtype()) == (np.float32, np.uint8)
    np.testing.assert_allclose(moved.get_fdata(), expected(files["moving"]), atol=0.1)  # of 600
    # Where two values weigh nearly the same, either is taken.
    assert (label.get_fdata() != expected(files["moving_label"], is_label=True)).mean() < 0.01
    for image in (moved, label):
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
        assert image.header.get_xyzt_units()[0] == "mm"
    names, points = read_points(folder / "points.csv")
    assert names == ["apex", "2"]
    np.testing.assert_allclose(points, move_points(read_points(files["points"])[1], smooth_field(), AFFINE), atol=3e-4)


def test_writes_what_pull_and_move_points_give(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    written = apply_field(**files, output_dir=folder, resample_moving=True)
    assert written == [folder / name for name in ("moved.nii.gz", "moved_label.nii.gz", "points.csv")]
    assert sorted(folder.iterdir()) == sorted(written)
    check_outputs(files, folder)


@pytest.mark.parametrize(
    ("option", "name"), [("moving", "moved.nii.gz"), ("moving_label", "moved_label.nii.gz"), ("points", "points.csv")]
)
def test_writes_only_what_is_asked(option: str, name: str, files: dict[str, Path], tmp_path: Path) -> None:
    apply_field(files["field"], **{option: files[option]}, output_dir=tmp_path / "out", resample_moving=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_labels_of_any_size_keep_their_numbers(files: dict[str, Path], tmp_path: Path) -> None:
    label = np.where(np.random.default_rng(1).random(OTHER_SHAPE) > 0.5, 300, -2).astype(np.int16)
    path = write_nifti(tmp_path / "many.nii.gz", label, OTHER)
    apply_field(files["field"], moving_label=path, output_dir=tmp_path / "out", resample_moving=True)
    moved = nib.load(tmp_path / "out" / "moved_label.nii.gz")
    assert set(np.unique(moved.get_fdata())) == {300, -2, 0}  # beyond the image's edge


def test_a_single_slice_stays_one(tmp_path: Path) -> None:
    image = np.random.default_rng(2).normal(300, 90, (*SHAPE[:2], 1)).astype(np.float32)
    write_field(tmp_path / "field.nii.gz", smooth_field()[..., :1], AFFINE)
    moving = write_nifti(tmp_path / "slice.nii.gz", image, AFFINE)
    apply_field(tmp_path / "field.nii.gz", moving, output_dir=tmp_path)
    np.testing.assert_allclose(
        nib.load(tmp_path / "moved.nii.gz").get_fdata(), pull(image, AFFINE, smooth_field()[..., :1], AFFINE), atol=0.1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moving": None, "moving_label": None, "points": None}, "--field: needs something to move"),
        ({"field": "moving.nii.gz"}, "moving.nii.gz: has the shape"),
        ({"field": "landmarks.csv"}, "landmarks.csv: cannot be read as NIfTI"),
        ({"field": "absent.nii.gz"}, "absent.nii.gz: no such file"),
        ({"moving": "absent.nii.gz"}, "absent.nii.gz: no such file"),
        ({"moving": "field.nii.gz"}, "field.nii.gz: has the shape"),
        ({"moving_label": "moving.nii.gz"}, "moving.nii.gz: holds fractions"),
        ({"points": "absent.csv"}, "absent.csv: no such file"),
        ({"points": "label.nii.gz"}, "label.nii.gz: cannot be read as CSV"),
        ({"points": "astray.csv"}, "astray.csv: the point 1 lies outside the image"),
    ],
)
def test_bad_input_writes_nothing(change: dict, message: str, files: dict[str, Path], tmp_path: Path) -> None:
    given = {**files, **{key: name and tmp_path / name for key, name in change.items()}}
    with pytest.raises(InputError, match=message):
        apply_field(**given, output_dir=tmp_path / "out", resample_moving=True)
    assert not (tmp_path / "out").exists()


def test_a_moving_image_at_two_places_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    image = nib.load(files["moving"])
    shifted = image.affine.copy()
    shifted[0, 3] += 5
    image.set_sform(image.affine, 1)
    image.set_qform(shifted, 1)
    nib.save(image, tmp_path / "two.nii.gz")
    with pytest.raises(InputError, match=r"two\.nii\.gz: its qform and its sform put it up to"):
        apply_field(**{**files, "moving": tmp_path / "two.nii.gz"}, output_dir=tmp_path / "out", resample_moving=True)
    assert not (tmp_path / "out").exists()


def test_the_command(files: dict[str, Path], tmp_path: Path) -> None:
    result = succeed(
        run_bundle(config_file="configs/apply_field.yaml", **files, output_dir=tmp_path / "out", resample_moving=True)
    )
    assert f"wrote {tmp_path / 'out' / 'moved.nii.gz'}" in result.stdout
    check_outputs(files, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_an_option_of_cines_is_refused_before_anything_is_written(files: dict[str, Path], tmp_path: Path) -> None:
    result = run_bundle(config_file="configs/apply_field.yaml", **files, output_dir=tmp_path / "out", reference_frame=1)
    assert result.returncode
    assert "--reference_frame: no such option" in last_line(result)
    assert not (tmp_path / "out").exists()


def test_an_image_on_another_grid_is_refused_unless_asked_for(tmp_path: Path) -> None:
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    write_field(tmp_path / "field.nii.gz", np.zeros((2, 8, 8, 3)), affine)
    for distance, meets in ((0.0, True), (0.01, True), (9.0, True), (5000.0, False), (-14.0, False)):
        shifted = affine.copy()
        shifted[0, 3] = distance
        path = write_nifti(tmp_path / "image.nii.gz", np.ones((8, 8, 3), np.float32), shifted)
        if distance:
            with pytest.raises(
                InputError, match=r"image\.nii\.gz and .*field\.nii\.gz: have affines .*--resample_moving True"
            ):
                apply_field(tmp_path / "field.nii.gz", path, output_dir=tmp_path / "never")
        else:
            apply_field(tmp_path / "field.nii.gz", path, output_dir=tmp_path / "out")
        if meets:
            apply_field(tmp_path / "field.nii.gz", path, output_dir=tmp_path / "out", resample_moving=True)
        else:
            with pytest.raises(InputError, match=r"image\.nii\.gz: lies apart from .*field\.nii\.gz in space"):
                apply_field(tmp_path / "field.nii.gz", path, output_dir=tmp_path / "never", resample_moving=True)
    small = write_nifti(tmp_path / "small.nii.gz", np.ones((8, 7, 3), np.float32), affine)
    with pytest.raises(InputError, match=r"small\.nii\.gz and .*different shapes, \(8, 7, 3\) and \(8, 8, 3\)"):
        apply_field(tmp_path / "field.nii.gz", small, output_dir=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_what_is_given_is_never_overwritten(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    given = files["moving"].rename(folder / "moved.nii.gz")
    before = given.read_bytes()
    with pytest.raises(
        InputError, match=r"moved\.nii\.gz: would be overwritten by what is made of it; give --output_dir another"
    ):
        apply_field(files["field"], moving=given, output_dir=folder, resample_moving=True)
    assert given.read_bytes() == before


def test_results_of_a_registration_are_not_mixed_with_others(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "quality.json").write_text("{}")
    with pytest.raises(InputError, match="case: holds the results of a registration, which would be mixed with others"):
        apply_field(files["field"], moving=files["moving"], output_dir=folder, resample_moving=True)
    assert [path.name for path in folder.iterdir()] == ["quality.json"]


def test_what_an_earlier_call_left_is_not_mixed_with_others(files: dict[str, Path], tmp_path: Path) -> None:
    apply_field(files["field"], moving=files["moving"], output_dir=tmp_path / "out", resample_moving=True)
    apply_field(files["field"], moving=files["moving"], output_dir=tmp_path / "out", resample_moving=True)
    with pytest.raises(
        InputError, match=r"out: holds moved\.nii\.gz of an earlier call, which may be of another field"
    ):
        apply_field(
            files["field"], moving_label=files["moving_label"], output_dir=tmp_path / "out", resample_moving=True
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["moved.nii.gz"]
