"""A case, cine or pair, as slice pairs for the network."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from phantom_cases import T, Z, prepare
from scripts.cases import find_cases
from scripts.dicom import read_dicom_cine
from scripts.errors import InputError
from scripts.frames import LoadCase
from test_dicom import make_stack
from test_dicom import write as write_dicom


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


def test_the_reference_frame_is_estimated_where_nobody_tells(cine_path: Path) -> None:
    loaded = LoadCase()(find_cases(cine=str(cine_path))[0])
    assert loaded["reference"] == 1
    assert "largest estimated cavity" in loaded["reference_basis"]
    np.testing.assert_array_equal(loaded["fixed"][0], nib.load(cine_path).get_fdata()[..., 0])


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
    label = write_nifti(tmp_path / "label.nii.gz", np.full(cine.image.shape[:3], 2, np.uint8), affine)
    item = {"cine": str(folder), "reference": 1, "reference_label": str(label), "case": "cine"}
    if fits:
        assert (LoadCase()(item)["reference_label"] == 2).all()
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
