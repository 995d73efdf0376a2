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

"""Cases as a network gets them, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import STACK_SHAPE, write_nifti
from oblique import grid_affine
from phantom_cases import T, Z, prepare
from scipy.spatial.transform import Rotation
from scripts.data.cases import find_cases
from scripts.data.dicom import read_dicom_cine
from scripts.data.loading import LoadCase, LoadPaird, load_image, load_label, read_cine, set_reference
from scripts.data.nifti import open_nifti
from scripts.errors import InputError

from tests.dicom_files import make_stack
from tests.dicom_files import write as write_dicom


def scale(stack: np.ndarray, clip: float) -> np.ndarray:
    clipped = np.minimum(stack.astype(float), clip)
    low, high = (f(clipped, axis=(0, 1), keepdims=True) for f in (np.min, np.max))
    return (clipped - low) / (high - low)


def test_pairs_are_every_frame_and_the_reference_slice_by_slice(cine_path: Path, item: dict) -> None:
    cine = nib.load(cine_path).get_fdata()
    pair = item["pair"].numpy()
    assert pair.shape == (2, 48, 44, Z * T)
    assert item["pair"].dtype == torch.float32
    # Each frame is clipped as a stack of its own, as in training.
    moving = np.stack(
        [scale(cine[..., t], np.percentile(cine[..., t], 99, method="higher")) for t in range(T)], axis=-1
    )
    fixed = moving[..., 0]
    for z in range(Z):
        for t in range(T):
            np.testing.assert_allclose(pair[0, ..., z * T + t], moving[:, :, z, t], atol=1e-6)
            np.testing.assert_allclose(pair[1, ..., z * T + t], fixed[:, :, z], atol=1e-6)


def test_a_label_without_structures_or_a_frame_zero_is_refused(cine_path: Path, tmp_path: Path) -> None:
    label = nib.load(cine_path.with_name("label.nii.gz"))
    empty = write_nifti(tmp_path / "empty.nii.gz", np.zeros(label.shape, np.uint8), label.affine)
    with pytest.raises(InputError, match=r"empty\.nii\.gz: is 0 everywhere; give the label of frame 1"):
        LoadCase()({"cine": str(cine_path), "reference": 1, "reference_label": str(empty)})
    with pytest.raises(InputError, match=r"no reference frame 0"):
        LoadCase()({"cine": str(cine_path), "reference": 0})


def test_raw_and_8_bit_copies_give_the_network_the_same(cine_path: Path, item: dict, tmp_path: Path) -> None:
    cine = nib.load(cine_path)
    raw = cine.get_fdata()
    clip = np.percentile(raw, 99.5)
    for array in (np.round(255 * np.minimum(raw, clip) / clip).astype(np.uint8), (7 * raw).astype(np.int16)):
        path = write_nifti(tmp_path / "copy_4d.nii.gz", array, cine.affine)
        pair = prepare({"cine": str(path), "reference": 1, "case": "copy"})["pair"]
        torch.testing.assert_close(pair.as_tensor(), item["pair"].as_tensor(), rtol=0, atol=0.02)


def test_a_reference_frame_is_there_where_one_is_known(cine_path: Path) -> None:
    frames = np.moveaxis(nib.load(cine_path).get_fdata(), -1, 0)
    loaded = LoadCase()(find_cases(cine=str(cine_path))[0])
    assert not {"reference", "reference_basis", "fixed"} & loaded.keys()
    np.testing.assert_array_equal(loaded["moving"], frames)
    known = set_reference(loaded, 4, "why")
    assert (known["reference"], known["reference_basis"]) == (4, "why")
    for item in (known, LoadCase()(find_cases(cine=str(cine_path), reference_frame=4)[0])):
        np.testing.assert_array_equal(item["fixed"], frames[3:4])


def test_what_does_not_fit_the_cine_is_refused(cine_path: Path, tmp_path: Path) -> None:
    label = nib.load(cine_path.with_name("label.nii.gz"))
    small = write_nifti(tmp_path / "small.nii.gz", label.get_fdata()[:-1].astype(np.uint8), label.affine)
    moved = label.affine.copy()
    moved[0, 3] += 1
    shifted = write_nifti(tmp_path / "shifted.nii.gz", label.get_fdata().astype(np.uint8), moved)
    for options, words in (
        ({"reference": 6}, "has the frames 1 to 5, no reference frame 6"),
        ({"reference": 1, "reference_label": str(small)}, "small.nii.gz and frame 1 of .*different shapes"),
        ({"reference": 1, "reference_label": str(shifted)}, "shifted.nii.gz and frame 1 of .*1 mm apart"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            LoadCase()({"cine": str(cine_path), "case": "a", **options})
        assert str(cine_path) in str(caught.value)


@pytest.mark.parametrize(("off", "fits"), [(0.05, True), (-0.05, True), (0.15, False)])
def test_a_label_may_lie_as_far_off_dicom_as_a_converter_puts_it(tmp_path: Path, off: float, fits: bool) -> None:
    folder = write_dicom(tmp_path / "cine", make_stack())
    cine = read_dicom_cine(folder)
    affine = cine.affine.copy()
    affine[1, 3] += off
    values = np.zeros(cine.image.shape[:3], np.uint8)
    values[1:-1, 1:] = 2
    label = write_nifti(tmp_path / "label.nii.gz", values, affine)
    item = {"cine": str(folder), "reference": 1, "reference_label": str(label), "case": "cine"}
    if fits:
        np.testing.assert_array_equal(LoadCase()(item)["reference_label"][0], values)
    else:
        with pytest.raises(
            InputError, match=r"label\.nii\.gz and frame 1 of .*cine: have affines up to 0\.15 mm apart"
        ):
            LoadCase()(item)


def test_of_a_label_with_frames_that_of_the_reference_is_taken(cine_path: Path, tmp_path: Path) -> None:
    label = nib.load(cine_path.with_name("label.nii.gz"))
    values = np.zeros((*label.shape, 5), np.uint8)
    values[..., 2] = label.get_fdata()
    path = str(write_nifti(tmp_path / "labels.nii.gz", values, label.affine))
    item = LoadCase()({"cine": str(cine_path), "case": "a", "reference": 3, "reference_label": path})
    np.testing.assert_array_equal(item["reference_label"][0], values[..., 2])
    with pytest.raises(InputError, match=r"labels\.nii\.gz: is 0 everywhere"):
        LoadCase()({"cine": str(cine_path), "case": "a", "reference": 2, "reference_label": path})
    path = str(write_nifti(tmp_path / "labels.nii.gz", values[..., 1:], label.affine))
    with pytest.raises(InputError, match="pick one frame of a cine"):
        LoadCase()({"cine": str(cine_path), "case": "a", "reference": 3, "reference_label": path})


def test_a_label_of_1_alone_is_called_out(cine_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    label = nib.load(cine_path.with_name("label.nii.gz"))
    for name, values in (("rv", [0, 1, 0, 0]), ("lv", [0, 0, 0, 3])):
        caplog.clear()
        path = write_nifti(
            tmp_path / f"{name}.nii.gz", np.array(values, np.uint8)[label.get_fdata().astype(int)], label.affine
        )
        LoadCase()({"cine": str(cine_path), "case": "a", "reference": 1, "reference_label": str(path)})
        assert ("holds 1 alone, so that figures are the RV's" in caplog.text) == (name == "rv")


def test_a_moving_image_that_lies_apart_from_the_fixed_one_is_refused(tmp_path: Path) -> None:
    array, affine = np.random.default_rng(0).random((8, 8, 2), np.float32), np.diag([2.0, 2.0, 8.0, 1.0])
    paths = {
        "fixed": str(write_nifti(tmp_path / "fixed.nii.gz", array, affine)),
        "moving": str(tmp_path / "moving.nii.gz"),
    }
    for shift, apart in ((15.0, False), (17.0, True), (-500.0, True)):
        affine[0, 3] = shift
        write_nifti(tmp_path / "moving.nii.gz", array, affine)
        if not apart:
            assert LoadCase(resample_moving=True)(paths)["moving"].shape == (1, 8, 8, 2)
            continue
        with pytest.raises(
            InputError, match=r"moving\.nii\.gz: lies apart from .*fixed\.nii\.gz in space; give two images of one"
        ):
            LoadCase(resample_moving=True)(paths)


def test_slices_that_the_moving_stack_does_not_reach_are_blank(tmp_path: Path) -> None:
    array, affine = np.random.default_rng(0).random((8, 8, 4), np.float32), np.diag([2.0, 2.0, 8.0, 1.0])
    paths = {
        "fixed": str(write_nifti(tmp_path / "fixed.nii.gz", array, affine)),
        "moving": str(tmp_path / "moving.nii.gz"),
    }
    affine[2, 3] = 16.0
    write_nifti(tmp_path / "moving.nii.gz", array, affine)
    moving = LoadCase(resample_moving=True)(paths)["moving"]
    assert not moving[..., :2].any()
    np.testing.assert_allclose(moving[0, ..., 2:], array[..., :2], atol=1e-6)


@pytest.mark.parametrize("key", ["fixed", "moving", "moving_label"])
def test_a_pair_with_a_file_at_two_places_is_refused(pair_paths: dict[str, str], key: str) -> None:
    image = nib.load(pair_paths[key])
    place = image.affine.copy()
    place[2, 3] += 3
    image.set_qform(place, 1)
    nib.save(image, pair_paths[key])
    with pytest.raises(InputError, match=rf"{key}\.nii\.gz: its qform and its sform put it up to 3 mm apart"):
        LoadCase()(pair_paths)


def test_a_pair_whose_slices_lie_along_another_axis_is_refused(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((4, 9, 8), np.float32)
    path = str(write_nifti(tmp_path / "turned.nii.gz", array, np.diag([10, 1.37, 1.37, 1])))
    with pytest.raises(
        InputError, match=r"turned\.nii\.gz: its slices lie along axis 1 of its three \(voxels of 10 x 1\.37 x 1\.37 mm"
    ):
        LoadCase()({"moving": path, "fixed": path})


@pytest.mark.parametrize("shape", [(1, 16, 3, 2), (16, 1, 3, 2), (1, 16, 3)])
def test_slices_of_one_row_or_column_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "thin.nii.gz"
    write_nifti(path, np.random.default_rng(0).random(shape), np.diag([1.5, 1.5, 8.0, 1.0]))
    item = {"cine": str(path), "reference": 1} if len(shape) == 4 else {"moving": str(path), "fixed": str(path)}
    with pytest.raises(InputError, match=rf"thin.nii.gz: has slices of {shape[0]} x {shape[1]} pixels"):
        LoadCase()(item)


def test_a_pair_of_images_of_two_axes_is_a_pair_of_slices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths: dict = {"case": "pair"}
    for key in ("moving", "fixed"):
        image = nib.Nifti1Image(rng.normal(500, 90, (32, 28)).astype(np.float32), np.diag([1.5, 1.5, 8.0, 1.0]))
        image.set_qform(image.affine, 1)
        nib.save(image, tmp_path / f"{key}.nii.gz")
        paths[key] = str(tmp_path / f"{key}.nii.gz")
    assert prepare(paths)["pair"].shape == (2, 32, 28, 1)


def test_a_cine_keeps_values_affine_and_name(tmp_path: Path, array: np.ndarray) -> None:
    affine = grid_affine((20, -30, 40), (0.9, 1.2, 7.5))
    for name in ("one_4d.nii.gz", "one.nii"):
        cine = read_cine(write_nifti(tmp_path / name, array, affine))
        np.testing.assert_array_equal(cine.image, array)
        assert cine.image.dtype == np.float32
        np.testing.assert_allclose(cine.affine, affine, atol=1e-6)
        np.testing.assert_allclose(cine.spacing, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), rtol=1e-6)
        assert cine.frames == 5
        assert cine.name == "one"


@pytest.mark.parametrize(("axis", "order"), [(0, [2, 0, 1]), (1, [0, 2, 1])])
def test_slices_along_another_axis_are_refused_and_the_cure_is_one(
    tmp_path: Path, array: np.ndarray, axis: int, order: list[int]
) -> None:
    affine = grid_affine((4, -3, 91), (1.37, -1.37, 9.9))
    path = write_nifti(tmp_path / "turned.nii.gz", array.transpose(*order, 3), affine[:, [*order, 3]])
    with pytest.raises(
        InputError, match=rf"turned\.nii\.gz: its slices lie along axis {axis + 1} of its three \(voxels of "
    ) as caught:
        read_cine(path)
    cure = re.search(r"as_reoriented\((.*?)\)", str(caught.value))[1]
    nib.save(nib.load(path).as_reoriented(np.array(json.loads(cure))), tmp_path / "mended.nii.gz")
    cine = read_cine(tmp_path / "mended.nii.gz")
    np.testing.assert_array_equal(cine.image, array)
    np.testing.assert_allclose(cine.affine, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((7, 6, 3, 5), (1.4, 1.4, 1.4)),
        ((7, 6, 3, 5), (2, 1.4, 1.4)),
        ((7, 6, 3, 5), (1.8, 1.4, 1)),
        ((7, 6, 1, 5), (2.9, 1.4, 1)),
    ],
    ids=["isotropic", "nearly", "oblong", "one slice"],
)
def test_files_without_clearly_thick_slices_are_read(
    tmp_path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    assert read_cine(write_nifti(tmp_path / "a.nii.gz", np.ones(shape, np.float32), np.diag([*spacing, 1]))).frames == 5


def test_one_dicom_file_says_to_give_its_folder(tmp_path: Path) -> None:
    (tmp_path / "1.DCM").touch()
    with pytest.raises(InputError, match=r"1\.DCM: is one DICOM file; give --cine the folder"):
        read_cine(tmp_path / "1.DCM")


def test_a_cine_at_two_places_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0]))
    image.set_qform(np.diag([1.5, 1.5, 8.0, 1.0]) + np.eye(4, k=3) * 7, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: its qform and its sform put it up to 7 mm apart"):
        read_cine(tmp_path / "a.nii.gz")


def test_another_format_is_named(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(np.zeros((4, 4, 2, 3), np.float32), np.eye(4)), tmp_path / "a.mgz")
    with pytest.raises(InputError, match=r"a\.mgz: is MGH, no NIfTI; convert it to \.nii\.gz"):
        read_cine(tmp_path / "a.mgz")


def oblique_affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix() @ np.diag([1.4, 1.8, 8.0])
    affine[:3, 3] = [-50, 20, 7]
    return affine


def test_loading_keeps_values_and_the_oblique_affine(tmp_path: Path, stack: np.ndarray) -> None:
    paths = {key: str(write_nifti(tmp_path / f"{key}.nii.gz", stack, oblique_affine())) for key in ("moving", "fixed")}
    item = LoadPaird()(paths)
    for key in paths:
        np.testing.assert_array_equal(item[key][0].numpy(), stack)
        np.testing.assert_allclose(item[key].affine.numpy(), oblique_affine(), atol=1e-6)
        assert item[key].dtype == torch.float32


def test_loading_names_the_bad_file(tmp_path: Path, stack: np.ndarray) -> None:
    good = str(write_nifti(tmp_path / "good.nii.gz", stack))
    whole = Path(good).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii.gz").write_text("no image")
    with_nan = stack.astype(np.float32)
    with_nan[3, 4, 1] = np.nan
    turned = np.diag([1.5, 1.5, 8.0, 1.0])
    turned[0, 3] = 0.01
    cases = {
        "cut": ("cannot be read as NIfTI", {}),
        "text": ("cannot be read as NIfTI", {}),
        "nan": ("holds NaN or Inf", {"array": with_nan}),
        "inf": ("holds NaN or Inf", {"array": np.where(np.isnan(with_nan), np.inf, with_nan)}),
        "cine": ("pick one frame of a cine", {"array": np.stack([stack, stack], axis=-1)}),
        "small": ("different shapes", {"array": stack[:-1]}),
        "shifted": ("affines up to 0.01 mm apart", {"array": stack, "affine": turned}),
    }
    nib.save(nib.Nifti1Image(stack * np.complex64(1j), oblique_affine()), tmp_path / "complex.nii.gz")
    (tmp_path / "dicom.nii.gz").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "folder.nii.gz").mkdir()
    for name in ("dicom", "folder"):
        cases[name] = ("is a folder or DICOM, where a NIfTI file is needed; convert it", {})
    cases["complex"] = ("holds complex numbers; write their magnitude to a new file", {})
    for name, (words, content) in cases.items():
        path = tmp_path / f"{name}.nii.gz"
        if content:
            write_nifti(path, **content)
        with pytest.raises(InputError) as caught:
            LoadPaird()({"moving": good, "fixed": str(path)})
        assert str(path) in str(caught.value)
        assert words in str(caught.value)


def test_a_label_belongs_to_its_image_and_holds_integers(tmp_path: Path, stack: np.ndarray) -> None:
    image = str(write_nifti(tmp_path / "image.nii.gz", stack))
    for name, label, words in (
        ("fraction", np.full(STACK_SHAPE, 0.5, np.float32), "holds fractions"),
        ("shape", np.zeros((12, 10, 2), np.uint8), "different shapes"),
        (
            "structures",
            np.full(STACK_SHAPE, 257, np.int16),
            "holds 257, which are no structures; give the file's values of RV, myocardium and LV by --label_values",
        ),
    ):
        path = str(write_nifti(tmp_path / f"{name}.nii.gz", label))
        with pytest.raises(InputError, match=words) as caught:
            LoadPaird()({"moving": image, "fixed": image, "moving_label": path})
        assert path in str(caught.value)


def test_a_label_lies_on_the_grid_of_its_image_to_a_tolerance(tmp_path: Path, stack: np.ndarray) -> None:
    off = oblique_affine()
    off[0, 3] += 0.05
    image = str(write_nifti(tmp_path / "image.nii.gz", stack, oblique_affine()))
    values = np.zeros(STACK_SHAPE, np.uint8)
    values[2:-2] = 1
    label = str(write_nifti(tmp_path / "label.nii.gz", values, off))
    with pytest.raises(InputError, match=r"label\.nii\.gz and .*image\.nii\.gz: have affines up to 0\.05 mm apart"):
        LoadPaird()({"moving": image, "fixed": image, "fixed_label": label})
    loaded = load_image(open_nifti(image))
    with pytest.raises(InputError, match=r"have affines up to 0\.05 mm apart"):
        load_label(open_nifti(label), loaded, "image", tolerance=0.04)
    assert load_label(open_nifti(label), loaded, "image", tolerance=0.06).any()


@pytest.mark.parametrize(
    "order", [[[0, 1], [1, -1], [2, 1]], [[1, 1], [0, -1], [2, -1]]], ids=["rows turned over", "all else"]
)
def test_a_label_with_its_axes_in_another_order_is_turned(tmp_path: Path, stack: np.ndarray, order: list) -> None:
    """As dcm2niix turns the rows of DICOM over."""
    image = str(write_nifti(tmp_path / "image.nii.gz", stack, oblique_affine()))
    values = np.random.default_rng(0).integers(0, 4, STACK_SHAPE).astype(np.uint8)
    label = nib.Nifti1Image(values, oblique_affine()).as_reoriented(np.array(order))
    assert not np.allclose(label.affine, oblique_affine())
    nib.save(label, tmp_path / "label.nii.gz")
    item = LoadPaird()({"moving": image, "fixed": image, "fixed_label": str(tmp_path / "label.nii.gz")})
    np.testing.assert_array_equal(item["fixed_label"][0], values)
    np.testing.assert_allclose(item["fixed_label"].affine, oblique_affine(), atol=1e-5)


def test_affines_that_differ_by_rounding_are_one_grid(tmp_path: Path, stack: np.ndarray) -> None:
    affine = oblique_affine()
    first = write_nifti(tmp_path / "a.nii.gz", stack, affine)
    second = write_nifti(tmp_path / "b.nii.gz", stack, affine + 1e-6)
    assert not np.array_equal(nib.load(first).affine, nib.load(second).affine)
    LoadPaird()({"moving": str(first), "fixed": str(second)})


def test_training_takes_files_as_published_with_their_true_sizes_and_refuses_what_inference_refuses(
    tmp_path: Path, stack: np.ndarray
) -> None:
    image = nib.Nifti1Image(stack, None)
    image.header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), 2)
    image.header["pixdim"][1:4] = 1.5, 1.6, 10
    nib.save(image, tmp_path / "a.nii.gz")
    pair = dict.fromkeys(("moving", "fixed"), str(tmp_path / "a.nii.gz"))
    for load in (LoadPaird(), LoadCase()):
        np.testing.assert_allclose(load(dict(pair))["fixed"].affine, np.diag([-1.5, -1.6, 10, 1]), atol=1e-6)
    image.header.set_sform(np.diag([-2.0, -2.0, 10.0, 1.0]), 2)
    nib.save(image, tmp_path / "a.nii.gz")
    for load in (LoadPaird(), LoadCase()):
        with pytest.raises(
            InputError, match=r"a\.nii\.gz: its header gives voxels of 1\.5 x 1\.6 x 10 mm and its sform"
        ):
            load(dict(pair))


def test_a_label_and_an_image_that_lies_nowhere_belong_together_by_index(tmp_path: Path, stack: np.ndarray) -> None:
    image = nib.Nifti1Image(stack, None)
    image.header["pixdim"][1:4] = 1.5, 1.5, 8
    nib.save(image, tmp_path / "nowhere.nii.gz")
    values = np.random.default_rng(0).integers(0, 4, STACK_SHAPE).astype(np.uint8)
    # As who reads the image by nibabel writes it, which has its own idea where it lies.
    label = write_nifti(tmp_path / "label.nii.gz", values, nib.load(tmp_path / "nowhere.nii.gz").affine)
    path = str(tmp_path / "nowhere.nii.gz")
    item = LoadPaird()({"moving": path, "fixed": path, "fixed_label": str(label)})
    np.testing.assert_array_equal(item["fixed_label"][0], values)
    np.testing.assert_array_equal(item["fixed_label"].affine, item["fixed"].affine)


@pytest.mark.parametrize(
    ("turned", "given", "plane", "basis"),
    [
        (False, None, "", "unknown"),
        (True, None, "SAX", "read"),
        (True, "2CH", "2CH", "given"),
        (False, "SAX", "SAX", "given"),
    ],
)
def test_a_case_says_its_plane_and_how_it_is_known(
    tmp_path: Path, turned: bool, given: str | None, plane: str, basis: str
) -> None:
    """A cine and a pair alike; slices along the patient's own axes tell no plane."""
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    if turned:
        affine[:3, :3] = np.column_stack(
            [[-0.77038, -0.618446, 0.155046], [0.15161, -0.41389, -0.897613], [0.619, -0.668, 0.413]]
        )
        affine[:3, :3] *= [1.5, 1.5, 8.0]
    array = np.random.default_rng(0).random((20, 20, 3, 4))
    files = {"cine": array, "moving": array[..., 0], "fixed": array[..., 1]}
    paths = {key: write_nifti(tmp_path / f"{key}.nii.gz", values, affine) for key, values in files.items()}
    own = {} if given is None else {"plane": given}
    for item in ({"cine": paths["cine"], "reference": 1}, {key: paths[key] for key in ("moving", "fixed")}):
        loaded = LoadCase()({**item, **own})
        assert (loaded["plane"], loaded["plane_basis"]) == (plane, basis)


def test_a_cine_with_a_frame_of_nothing_is_refused(tmp_path: Path) -> None:
    """No heart would be there, so that it would be end systole, with an ejection fraction of 100 %."""
    array = np.random.default_rng(0).random((20, 20, 3, 5), np.float32)
    array[:, :, 1, 3] = 0  # a slice of a frame is the verdict's
    item = {"cine": str(write_nifti(tmp_path / "cine.nii.gz", array)), "reference": 1}
    assert LoadCase()(item)["moving"].shape == (5, 20, 20, 3)
    array[..., [1, 4]] = 0
    write_nifti(tmp_path / "cine.nii.gz", array)
    with pytest.raises(InputError, match=r"cine\.nii\.gz: holds nothing \(one value all over\) in frame 2, 5; "):
        LoadCase()(item)


def test_padding_of_dicom_is_handed_on(tmp_path: Path) -> None:
    stack = make_stack()
    for image in (image for phases in stack for image in phases):
        image.PixelPaddingValue = -2000
        pixels = np.frombuffer(image.PixelData, np.int16).reshape(image.Rows, image.Columns).copy()
        pixels[:, 0] = -2000
        image.PixelData = pixels.tobytes()
    loaded = LoadCase()({"cine": str(write_dicom(tmp_path, stack)), "reference": 1})
    assert loaded["moving"].min() > -2000
    assert not loaded["valid"][0].any()
    assert loaded["valid"][1:].all()


def test_a_label_of_another_frame_is_a_doubt_with_the_frame_that_fits_better(cine_path: Path) -> None:
    """The phantom's label of frame 1 given for frame 3, and a pair whose labels are exchanged."""
    label = str(cine_path.with_name("label.nii.gz"))
    item = {"cine": str(cine_path), "case": "a", "reference_label": label}
    assert "doubts" not in LoadCase()({**item, "reference": 1})
    doubts = LoadCase()({**item, "reference": 3})["doubts"]
    assert doubts == "The label fits frame 1 better than the reference frame 3: is it of that frame?"


def test_a_cine_of_one_slice_in_three_axes_is_read_where_its_frames_are_known(
    tmp_path: Path, array: np.ndarray
) -> None:
    path = write_nifti(tmp_path / "a_4d.nii.gz", array[:, :, 1])
    with pytest.raises(InputError, match=r"Where its third axis is time, write .*img\.dataobj\[:, :, None\]"):
        read_cine(find_cases(cine=str(path))[0]["cine"])
    (tmp_path / "Info.cfg").write_text("ED: 2\nNbFrame: 5\n")
    (item,) = find_cases(cine=str(path))
    assert item["reference"] == 2
    loaded = LoadCase()(item)
    np.testing.assert_array_equal(loaded["moving"][..., 0], array[:, :, 1].transpose(2, 0, 1))


def test_a_plane_that_is_unknown_or_unlikely_has_a_line(cine_path: Path, tmp_path: Path, caplog) -> None:
    cine = nib.load(cine_path).get_fdata().astype(np.float32)
    for name, axes in (("placed", np.diag([-1.5, -1.5, 8, 1])), ("mirrored", np.eye(4))):
        if name == "mirrored":  # a four-chamber view's directions, of three slices
            axes[:3, :3] = np.column_stack([[-0.9954, 0, 0.0958], [-0.0788, 0.5693, -0.8183], [0, 0, 0]])
            axes[:3, 2] = np.cross(axes[:3, 0], axes[:3, 1])
            axes[:3, :3] = np.linalg.qr(axes[:3, :3])[0] @ np.diag([1.5, 1.5, 8])
        write_nifti(tmp_path / f"{name}.nii.gz", cine, axes)
    item = {"reference": 1, "case": "a"}
    for _ in range(2):
        LoadCase()(item | {"cine": str(tmp_path / "placed.nii.gz")})
    assert caplog.text.count("placed.nii.gz: its header tells no plane, so it is taken for short-axis slices") == 1
    LoadCase()(item | {"cine": str(tmp_path / "mirrored.nii.gz")})
    assert "mirrored.nii.gz: by its header its 3 slices are long-axis ones (4CH)" in caplog.text
    assert "give --plane SAX" in caplog.text
    caplog.clear()
    for name in ("placed", "mirrored"):
        LoadCase()(item | {"cine": str(tmp_path / f"{name}.nii.gz"), "plane": "SAX"})
    assert not caplog.text


def test_images_that_are_equal_are_a_doubt(
    pair_paths: dict[str, str], cine_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "doubts" not in LoadCase()(pair_paths)
    copy = Path(shutil.copy(pair_paths["fixed"], tmp_path / "copy.nii.gz"))
    assert "are equal: is one of them the wrong file?" in LoadCase()(pair_paths | {"moving": str(copy)})["doubts"]
    cine = nib.load(cine_path)
    still = np.repeat(np.asarray(cine.dataobj)[..., :1], 3, axis=-1)
    path = write_nifti(tmp_path / "still_4d.nii.gz", still, cine.affine)
    assert "All frames are equal" in LoadCase()({"cine": str(path), "reference": 1})["doubts"]
    assert "still_4d.nii.gz: All frames are equal" in caplog.text


def test_what_no_scanner_would_choose_is_a_doubt(cine_path: Path, tmp_path: Path) -> None:
    cine = nib.load(cine_path)
    array = np.asarray(cine.dataobj)

    def doubts(values: np.ndarray, sizes: tuple[float, ...] = (1.5, 1.5, 8.0)) -> str:
        path = write_nifti(tmp_path / "a_4d.nii.gz", values, np.diag([*sizes, 1.0]))
        return LoadCase()({"cine": str(path), "reference": 1}).get("doubts", "")

    assert not doubts(array)
    assert doubts((array > array.mean()).astype(np.uint8)).startswith("A slice has 2 different values in all")
    for gap in (0.5, 40.0):
        assert doubts(array, (1.5, 1.5, gap)).startswith(f"Slices are {gap:g} mm apart, on which volumes rest")
    assert doubts(array, (1.5, 6.0, 8.0)).startswith("Pixels are 1.5 x 6 mm")
    assert not doubts(array[:, :, :1], (1.5, 1.5, 40.0))


def test_a_label_that_is_turned_is_a_doubt(cine_path: Path, pair_paths: dict[str, str], tmp_path: Path) -> None:
    label = nib.load(cine_path.with_name("label.nii.gz"))
    turned = str(write_nifti(tmp_path / "a.nii.gz", np.asarray(label.dataobj)[:, ::-1], label.affine))
    item = {"cine": str(cine_path), "reference": 1, "reference_label": turned}
    assert LoadCase()(item)["doubts"].startswith("The label fits the reference frame better with axis 2 reversed")
    moving = nib.load(pair_paths["moving_label"])
    nib.save(nib.Nifti1Image(np.asarray(moving.dataobj)[::-1], moving.affine), pair_paths["moving_label"])
    assert LoadCase()(pair_paths)["doubts"].startswith("The moving label fits its image better with axis 1 reversed")
