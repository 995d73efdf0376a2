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

"""Fields back as a registration: against NumPy, SciPy and the phantom's exact motion."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from phantom_cases import PHANTOM, T, Z, prepare
from scipy.ndimage import gaussian_filter, map_coordinates
from scripts import files
from scripts.cardiac.cines import LABELS
from scripts.cardiac.phantom import Phantom, write_phantom
from scripts.cardiac.registrations import CineRegistration, PairRegistration
from scripts.data.loading import LoadCase, in_parts
from scripts.errors import InputError
from scripts.registration.fields import balance_inverse, invert
from scripts.workflow.assemble import AssembleRegistration, invert_stacks
from scripts.workflow.cohort import describe_case, summarize_case
from scripts.workflow.writers import write_case

LPS = np.diag([-1.0, -1.0, 1.0])


def assemble(item: Mapping, fields: np.ndarray, **options: object) -> CineRegistration:
    """A registration from fields (T, 2, X, Y, Z), handed over as the network's are: (2, X, Y, Z * T), frames
    fastest."""
    pred = np.moveaxis(fields, 0, -1).reshape(*fields.shape[1:4], -1)
    return AssembleRegistration(**options)({**item, "pred": torch.from_numpy(pred).float()})["registration"]


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return np.stack([PHANTOM.field(t, 1) for t in range(1, T + 1)])


@pytest.fixture(scope="module")
def registered(item: dict, exact: np.ndarray) -> CineRegistration:
    return assemble(item, exact)


def scipy_warp(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """A stack (X, Y, Z) pulled slice by slice through an in-plane field (2, X, Y, Z)."""
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape[:2]), indexing="ij"))
    slices = [
        map_coordinates(image[..., z], grid + field[..., z], order=1, mode="nearest") for z in range(image.shape[2])
    ]
    return np.stack(slices, axis=-1)


def scipy_warp_label(label: np.ndarray, field: np.ndarray) -> np.ndarray:
    """The value of 0 to 3 that weighs most."""
    return np.argmax([scipy_warp((label == value).astype(float), field) for value in range(4)], axis=0)


def test_parts_in_scratch_files_give_what_the_whole_gives_in_memory(
    item: dict, exact: np.ndarray, registered: CineRegistration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGE", 0)
    transform = AssembleRegistration(scratch_dir=tmp_path / "scratch")
    whole = {**item, "moving": item["moving_image"]}
    parts = list(in_parts(whole, voxels=2 * whole["moving"][0].numel()))
    assert [len(part["moving"]) for part in parts] == [2, 2, 1]
    for part in parts:
        assert "registration" not in part
        fields = exact[part["first_frame"] : part["first_frame"] + len(part["moving"])]
        pred = torch.from_numpy(np.moveaxis(fields, 0, -1).reshape(*fields.shape[1:4], -1)).float()
        made = transform({**part, "moving_image": part["moving"], "pred": pred})
    result: CineRegistration = made["registration"]
    for name in ("fields", "inverses", "moved", "labels", "label", "fixed"):
        np.testing.assert_array_equal(getattr(result, name), getattr(registered, name))
    np.testing.assert_array_equal(result.cine.image, registered.cine.image)
    assert (result.quality, result.function, result.strain) == (
        registered.quality,
        registered.function,
        registered.strain,
    )
    assert not list((tmp_path / "scratch").iterdir())


def test_console_quality_and_summary_say_of_a_negative_ejection_fraction_what_function_does(
    item: dict, exact: np.ndarray, tmp_path: Path
) -> None:
    drawn = np.stack([PHANTOM.label(t) for t in range(1, T + 1)])
    cut = drawn.copy()
    cut[0, :, :, 1:][cut[0, :, :, 1:] == LABELS["rv"]] = 0
    whole, odd = (assemble({**item, "segmented": torch.from_numpy(labels)}, exact) for labels in (drawn, cut))
    negative, _ = odd.function["remarks"]
    assert "RV's ejection fraction is negative" in negative
    assert negative not in whole.quality["verdict"]
    assert odd.quality["grade"] == whole.quality["grade"]
    folder = tmp_path / "heart"
    folder.mkdir()
    write_case(folder, odd, kept=())
    for sentence in odd.function["remarks"]:
        assert sentence in odd.quality["verdict"]
        assert sentence in summarize_case(tmp_path, {"case": "heart"})["verdict"]
        assert sentence in describe_case(folder)


@pytest.mark.parametrize("measured", [True, False])
def test_figures_of_another_segmentation_have_no_limits(item: dict, exact: np.ndarray, measured: bool) -> None:
    drawn = torch.from_numpy(np.stack([PHANTOM.label(t) for t in range(1, T + 1)]))
    function = assemble({**item, "segmented": drawn, "is_measured": measured}, exact).function
    assert ("lv_ef_limits_points" in function) == measured
    assert ("unmeasured" in function) != measured


def test_a_sector_origin_that_nothing_needs_is_called_out(
    item: dict, exact: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    assemble(item, exact, sector_origin=30.0)
    assert "--sector_origin" not in caplog.text
    assemble({key: value for key, value in item.items() if key != "reference_label"}, exact, sector_origin=30.0)
    assert "heart: has no strain to divide by --sector_origin; give --reference_label" in caplog.text


def test_fields_return_to_their_frame_and_slice(item: dict) -> None:
    # The value tells frame, slice and channel.
    value = np.array([[[0.1 * t + 0.01 * z + 0.003 * i for z in range(Z)] for i in range(2)] for t in range(T)])
    pred = torch.empty_like(item["pair"].as_tensor())
    for t in range(T):
        for z in range(Z):
            pred[0, ..., z * T + t], pred[1, ..., z * T + t] = value[t, 0, z], value[t, 1, z]
    for reference in (1, 4):
        result = AssembleRegistration()({**item, "reference": reference, "pred": pred})["registration"]
        assert not result.fields[reference - 1].any()
        assert not result.inverses[reference - 1].any()
        for t in set(range(T)) - {reference - 1}:
            expected = np.broadcast_to(value[t][:, None, None], (2, 48, 44, Z))
            np.testing.assert_allclose(result.fields[t], expected, atol=1e-6)
            np.testing.assert_allclose(result.inverses[t], -expected, atol=1e-5)


def test_a_registration_says_where_it_comes_from(registered: CineRegistration, cine_path: Path) -> None:
    cine = nib.load(cine_path)
    assert registered.cine.name == "heart"
    assert (registered.reference, registered.reference_basis) == (1, "given as --reference_frame")
    np.testing.assert_array_equal(registered.cine.image, cine.get_fdata())
    np.testing.assert_array_equal(registered.fixed, cine.get_fdata()[..., 0])
    np.testing.assert_allclose(registered.cine.affine, cine.affine, atol=1e-6)
    expected = np.tile(1000 * PHANTOM.cycle / T * np.arange(T), (Z, 1))
    np.testing.assert_allclose(registered.cine.times, expected, rtol=1e-5)
    assert len(registered.quality["frames"]) == T
    assert registered.function["reference_frame"] == 1
    assert {row["frame"] for row in registered.strain} == set(range(1, T + 1))


def test_moved_equals_scipy_through_the_field(registered: CineRegistration) -> None:
    for t in range(T):
        expected = scipy_warp(registered.cine.image[..., t].astype(float), registered.fields[t])
        np.testing.assert_allclose(registered.moved[..., t], expected, atol=1e-3 * np.ptp(registered.cine.image))
    # The exact motion brings the frames onto the reference, up to noise.
    frame, reference = PHANTOM.end_systole - 1, registered.fixed
    before, after = (np.square(x[..., frame] - reference).mean() for x in (registered.cine.image, registered.moved))
    assert after < 0.2 * before


def test_labels_go_through_the_inverse(registered: CineRegistration) -> None:
    assert registered.labels.dtype == np.uint8
    np.testing.assert_array_equal(registered.labels[..., 0], registered.label)
    for t in range(T):
        expected = scipy_warp_label(registered.label, registered.inverses[t])
        # Where two values weigh the same, either is taken.
        assert (registered.labels[..., t] != expected).mean() < 1e-3
        np.testing.assert_allclose(registered.inverses[t], PHANTOM.field(1, t + 1), atol=0.05)
        for value in (1, 2, 3):
            found, true = registered.labels[..., t] == value, PHANTOM.label(t + 1) == value
            assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.9


def test_label_and_points_carry_a_structure_to_the_same_place(item: dict, exact: np.ndarray, tmp_path: Path) -> None:
    affine = PHANTOM.affine
    center = np.argwhere(PHANTOM.label(1)[..., 1] == 2)[40]
    x, y = np.meshgrid(np.arange(48), np.arange(44), indexing="ij")
    disk = np.zeros((48, 44, Z), np.float32)
    disk[..., 1] = (x - center[0]) ** 2 + (y - center[1]) ** 2 <= 9.5
    middle = LPS @ (affine @ [*center, 1, 1])[:3]
    path = tmp_path / "points.csv"
    path.write_text("name,x,y,z\nspot," + ",".join(map(str, middle)) + "\n")
    marked = {**item, "reference_label": item["reference_label"].clone().copy_(torch.from_numpy(disk)[None])}
    result = assemble({**marked, "points": str(path)}, exact)
    assert [(row["frame"], row["name"]) for row in result.points] == [(t, "spot") for t in range(1, T + 1)]
    places = np.array([[row[axis] for axis in "xyz"] for row in result.points])
    for t, place in enumerate(places):
        centroid = np.argwhere(result.labels[..., t] == 1).mean(axis=0)
        assert np.linalg.norm(LPS @ (affine @ [*centroid, 1])[:3] - place) < 1.5  # mm, of voxels of 2.9 mm
        true = PHANTOM.to_frame(np.array([*center], float)[:, None, None] * np.ones((2, 1, Z)), t + 1)[:, 0, 1]
        np.testing.assert_allclose(LPS @ (affine @ [*true, 1, 1])[:3], place, atol=0.01)
    assert np.linalg.norm(places - places[0], axis=1).max() > 3


def test_a_cine_without_times_or_label_has_neither_function_nor_strain(
    cine_path: Path, exact: np.ndarray, tmp_path: Path
) -> None:
    path = write_nifti(tmp_path / "a_4d.nii.gz", np.asarray(nib.load(cine_path).dataobj), PHANTOM.affine)
    result = assemble(prepare({"cine": str(path), "reference": 1, "case": "a"}), exact)
    assert result.cine.times is None
    assert (result.label, result.labels, result.function, result.strain, result.points) == (None, None, {}, [], [])


def test_a_pair_is_moved_with_its_label_by_the_field(pair_paths: dict[str, str]) -> None:
    field = PHANTOM.field(3, 1)
    result = assemble(prepare({**pair_paths, "case": "pair"}), field[None])
    assert isinstance(result, PairRegistration)
    np.testing.assert_allclose(result.fields[0], field, atol=1e-5)
    np.testing.assert_allclose(result.fixed, PHANTOM.image(1), rtol=1e-5)
    np.testing.assert_allclose(result.cine.image[..., 0], PHANTOM.image(3), rtol=1e-5)
    np.testing.assert_array_equal(result.moving_label, PHANTOM.label(3))
    assert result.moved_label.shape == (48, 44, Z)
    assert (result.moved_label != scipy_warp_label(PHANTOM.label(3), field)).mean() < 1e-3
    assert (result.moved_label == PHANTOM.label(1)).mean() > 0.97
    np.testing.assert_allclose(
        result.moved[..., 0], scipy_warp(PHANTOM.image(3), field), atol=1e-3 * np.ptp(PHANTOM.image(3))
    )


def test_points_of_a_pair_are_those_of_the_fixed_image(pair_paths: dict[str, str], tmp_path: Path) -> None:
    rows = [LPS @ (PHANTOM.affine @ [x, y, 1, 1])[:3] for x, y in ((20, 21), (30, 18))]
    with (tmp_path / "points.csv").open("w") as file:
        csv.writer(file).writerows([("x", "y", "z"), *rows])
    field = PHANTOM.field(3, 1)
    result = assemble(prepare({**pair_paths, "case": "pair", "points": str(tmp_path / "points.csv")}), field[None])
    for row, (x, y) in zip(result.points, ((20, 21), (30, 18))):
        expected = LPS @ (PHANTOM.affine @ [x + field[0, x, y, 1], y + field[1, x, y, 1], 1, 1])[:3]
        np.testing.assert_allclose([row[axis] for axis in "xyz"], expected, atol=1e-3)


def test_a_moving_image_on_another_grid_is_brought_onto_the_fixed_one(tmp_path: Path) -> None:
    # Intensities that are linear in space are the same on any grid.
    def linear(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
        index = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)])
        return np.einsum("i,ijkl->jkl", np.array([3.0, -2.0, 5.0, 700.0]) @ affine, index).astype(np.float32)

    fixed, moving = np.diag([2.0, 2.0, 8.0, 1.0]), np.diag([1.5, 1.7, 4.0, 1.0])
    angle = np.deg2rad(10)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moving[:3, :3] = turn @ moving[:3, :3]
    moving[:3, 3] = [-10, -20, -5]
    # It covers the fixed image, and not all of its own slices, as no label does.
    label = np.pad(np.full((54, 54, 8), 2, np.uint8), ((3, 3), (3, 3), (0, 0)))
    paths = {
        "fixed": str(write_nifti(tmp_path / "fixed.nii.gz", linear((20, 20, 3), fixed), fixed)),
        "moving": str(write_nifti(tmp_path / "moving.nii.gz", linear((60, 60, 8), moving), moving)),
        "moving_label": str(write_nifti(tmp_path / "label.nii.gz", label, moving)),
        "case": "pair",
    }
    with pytest.raises(InputError, match=r"moving.nii.gz and .*fixed.nii.gz.*--resample_moving True"):
        LoadCase()(paths)
    result = assemble(prepare(paths, resample_moving=True), np.zeros((1, 2, 20, 20, 3)))
    np.testing.assert_allclose(result.cine.image[..., 0], linear((20, 20, 3), fixed), rtol=1e-4)
    np.testing.assert_allclose(result.cine.affine, fixed)
    np.testing.assert_array_equal(result.moved_label, np.full((20, 20, 3), 2))


def test_what_is_written_of_a_moving_image_on_another_grid_is_sampled_where_that_image_lies(tmp_path: Path) -> None:
    """Against SciPy on world coordinates: a cropped and shifted moving image and a label that differs from voxel to
    voxel."""
    rng = np.random.default_rng(3)
    fixed, moving = np.diag([2.0, 2.0, 8.0, 1.0]), np.diag([1.5, 1.7, 8.0, 1.0])
    moving[:3, 3] = [6.1, 4.3, -8.0]
    image = gaussian_filter(rng.normal(0, 900, (20, 18, 4)), (1.5, 1.5, 0)).astype(np.float32)
    label = (gaussian_filter(rng.normal(0, 9, image.shape), (2, 2, 0)) > 0).astype(np.uint8) * 3
    paths = {
        "fixed": str(write_nifti(tmp_path / "fixed.nii.gz", rng.normal(500, 9, (24, 22, 2)).astype(np.float32), fixed)),
        "moving": str(write_nifti(tmp_path / "moving.nii.gz", image, moving)),
        "moving_label": str(write_nifti(tmp_path / "label.nii.gz", label, moving)),
        "case": "pair",
    }
    field = gaussian_filter(rng.normal(0, 9, (2, 24, 22, 2)), (0, 4, 4, 0))
    result = assemble(prepare(paths, resample_moving=True), field[None])
    index = np.stack(np.meshgrid(*map(np.arange, (24, 22, 2)), indexing="ij")).astype(float)
    index[:2] += field
    where = (index * np.array([2.0, 2.0, 8.0]).reshape(3, 1, 1, 1) - moving[:3, 3].reshape(3, 1, 1, 1)) / np.array(
        [1.5, 1.7, 8.0]
    ).reshape(3, 1, 1, 1)
    inside = ((where >= 0) & (where <= np.array(image.shape).reshape(3, 1, 1, 1) - 1)).all(axis=0)
    assert 0.3 < inside.mean() < 0.9
    expected = map_coordinates(image, where, order=1, mode="nearest")
    np.testing.assert_allclose(result.moved[..., 0][inside], expected[inside], atol=1e-3 * np.ptp(image))
    weight = map_coordinates((label == 3).astype(float), where, order=1, mode="nearest")
    clear = inside & (np.abs(weight - 0.5) > 1e-3)
    np.testing.assert_array_equal(result.moved_label[clear], 3 * (weight > 0.5)[clear])


def test_what_comes_from_outside_the_view_is_zero(item: dict, exact: np.ndarray) -> None:
    fields = np.zeros_like(exact)
    fields[1:, 0] = -3.0
    found = assemble(item, fields)
    # Row 3 samples row 0 of the image; the label goes the other way.
    assert not found.moved[:3, ..., 1:].any()
    assert found.moved[3:, ..., 1:].any(axis=(1, 2, 3)).all()
    full = assemble({**item, "reference_label": torch.full_like(item["reference_label"], 2)}, fields)
    assert (full.labels[:-3, ..., 1:] == 2).all()
    assert not full.labels[-3:, ..., 1:].any()


def test_what_a_cropped_moving_image_does_not_show_is_no_misfit(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 8.0, 1.0])
    image = gaussian_filter(np.random.default_rng(0).normal(500, 900, (32, 28, 2)), (2, 2, 0)).astype(np.float32)
    paths = {"fixed": str(write_nifti(tmp_path / "fixed.nii.gz", image, affine)), "case": "pair"}
    paths["moving"] = str(write_nifti(tmp_path / "moving.nii.gz", image[:16], affine))
    found = assemble(prepare(paths, resample_moving=True), np.zeros((1, 2, *image.shape)))
    assert not found.moved[16:].any()
    assert found.quality["frames"][0]["mse_after"] == pytest.approx(0, abs=1e-9)


def test_a_field_that_is_not_finite_is_no_registration(item: dict, exact: np.ndarray) -> None:
    fields = exact.copy()
    fields[2, 0, 5, 5, 1] = np.nan
    with pytest.raises(InputError, match=r"heart: the network gives fields with NaN or Inf; check --checkpoint"):
        assemble(item, fields)


def test_stacks_are_inverted_slice_by_slice() -> None:
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(0, 40, (2, 2, 30, 28, 3)), (0, 0, 5, 5, 0))
    inverses, errors = invert_stacks(torch.from_numpy(smooth))
    grid = np.stack(np.meshgrid(np.arange(30.0), np.arange(28.0), indexing="ij"))
    for t in range(2):
        u = torch.from_numpy(smooth[t]).movedim(-1, 0)
        exact, _ = invert(u)
        torch.testing.assert_close(inverses[t].movedim(-1, 0), balance_inverse(u, exact), atol=1e-9, rtol=0)
        for z in range(3):
            v = exact[z].numpy()
            back = [map_coordinates(channel, grid + v, order=1, mode="nearest") for channel in smooth[t, ..., z]]
            left = np.linalg.norm(v + np.stack(back), axis=0)
            np.testing.assert_allclose(errors[t, ..., z], left, atol=1e-6)
            assert np.percentile(left, 95) < 0.011


@pytest.mark.parametrize("plane", ["", "SAX", "2CH", "LAX"])
def test_a_long_axis_view_has_no_volume_and_strain_along_its_wall(item: dict, exact: np.ndarray, plane: str) -> None:
    found = assemble({**item, "plane": plane, "plane_basis": "given"}, exact)
    assert (found.cine.plane, found.quality["plane"], found.quality["plane_basis"]) == (
        plane or None,
        plane or None,
        "given",
    )
    is_long = plane in ("2CH", "LAX")
    assert ("lv_ef_percent" in found.function) != is_long
    assert ("no volume" in found.function["caveat"]) == is_long
    assert found.function["es_frame"] > 1
    # The rings of a short-axis slice have no line from base to base.
    assert (found.strain == []) == is_long


def test_one_slice_has_no_volume(item: dict, exact: np.ndarray) -> None:
    single = {
        key: value[..., :1] if key in ("moving", "fixed", "moving_image", "fixed_image", "reference_label") else value
        for key, value in item.items()
    }
    single |= {"times": item["times"][:1]} if "times" in item else {}
    found = assemble({**single, "plane": "SAX"}, exact[..., :1])
    assert not [key for key in found.function if key.endswith(("_ml", "_percent", "_g"))]
    assert {"circumferential", "radial"} <= set(found.strain[0])


def test_no_image_is_compared_where_nothing_was_acquired(item: dict, exact: np.ndarray) -> None:
    """Padding that flickers spoils no figure."""
    valid = torch.ones(item["moving_image"].shape[1:], dtype=torch.bool)
    valid[:6] = False
    spoiled = item["moving_image"].clone()
    spoiled[1::2, :6] = 1e5
    plain = assemble({**item, "valid": valid}, 0 * exact).quality["frames"]
    found = assemble({**item, "moving_image": spoiled, "valid": valid}, 0 * exact).quality["frames"]
    assert [frame["mse_before"] for frame in found] == pytest.approx([frame["mse_before"] for frame in plain])


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Phantom, CineRegistration, CineRegistration]:
    """A heart whose base descends, registered by its exact fields, and by what of them is in-plane."""
    heart = Phantom.random(3, size=(36, 32), slices=9, frames=3, shortening=0.16)
    folder = tmp_path_factory.mktemp("deep")
    cine = np.stack([heart.image(t, noisy=False) for t in (1, 2, 3)], axis=-1).astype(np.float32)
    write_phantom(folder / "deep_4d.nii.gz", cine, heart)
    write_phantom(folder / "label.nii.gz", heart.label(1), heart)
    point = LPS @ (heart.affine @ [*np.argwhere(heart.label(1) == 2)[500], 1.0])[:3]
    (folder / "points.csv").write_text("name,x,y,z\nwall," + ",".join(map(str, point)) + "\n")
    item = prepare(
        {
            "cine": str(folder / "deep_4d.nii.gz"),
            "case": "deep",
            "reference": 1,
            "reference_label": str(folder / "label.nii.gz"),
            "points": str(folder / "points.csv"),
        }
    )
    fields = torch.from_numpy(np.stack([heart.field(t, 1) for t in (1, 2, 3)], axis=-1)).float()
    volumes, slices = (
        AssembleRegistration()({**item, "pred": pred})["registration"] for pred in (fields, fields[:2].flatten(-2))
    )
    return heart, volumes, slices


def test_volumes_are_moved_and_inverted_through_the_slices(
    deep: tuple[Phantom, CineRegistration, CineRegistration],
) -> None:
    heart, volumes, _ = deep
    es = heart.end_systole
    where = np.indices(volumes.fixed.shape) + volumes.fields[es - 1]
    inside = (where[2] >= -0.5) & (where[2] <= 8.5)
    expected = map_coordinates(volumes.cine.image[..., es - 1].astype(float), where, order=1, mode="nearest") * inside
    np.testing.assert_allclose(volumes.moved[..., es - 1], expected, atol=1e-3 * expected.max())
    # Away from the ends of the stack the inverse is the exact field of the way back.
    exact = heart.field(1, es)
    known = np.indices(volumes.fixed.shape)[2] + exact[2] > 0.5
    error = np.abs(volumes.inverses[es - 1] - exact)[:, known]
    assert np.percentile(error, 99) < 0.15
    assert np.abs(exact[2]).max() > 1.4
    (figures,) = [frame for frame in volumes.quality["frames"] if frame["frame"] == es]
    assert figures["folding_percent"] == 0
    assert figures["largest_displacement_mm"] > 11
    assert len(figures["slices"]) == 9
    moved = np.array([volumes.points[es - 1][axis] for axis in "xyz"]) - [volumes.points[0][axis] for axis in "xyz"]
    start = np.argwhere(heart.label(1) == 2)[500].reshape(3, 1, 1, 1).astype(float)
    true = heart.affine[:3, :3] @ (heart.to_frame(start, es) - start).ravel()
    np.testing.assert_allclose(LPS @ moved, true, atol=0.05)


def test_a_volume_is_inverted_exactly_where_labels_are_carried_and_its_way_back_is_told(
    deep: tuple[Phantom, CineRegistration, CineRegistration],
) -> None:
    heart, volumes, slices = deep
    voxels, spacing = np.indices(volumes.fixed.shape), np.reshape(heart.spacing, (3, 1, 1, 1))
    last = np.reshape(volumes.fixed.shape, (3, 1, 1, 1)) - 1

    def missed(one: np.ndarray, other: np.ndarray, axes: int = 3) -> float:
        """Millimeters by which `other` after `one` misses, for 95 % of what stays in view along so many axes."""
        where = voxels + one
        back = np.stack([map_coordinates(channel.astype(float), where, order=1, mode="nearest") for channel in other])
        inside = ((where >= 0) & (where <= last))[:axes].all(axis=0)
        return np.percentile(np.linalg.norm((one + back) * spacing, axis=0)[inside], 95)

    for t, frame in enumerate(volumes.quality["frames"]):
        u, v = volumes.fields[t], volumes.inverses[t]
        assert frame["inverse_error_mm_p95"] == pytest.approx(missed(v, u, axes=2), abs=1e-3)
        assert frame["back_between_slices_mm_p95"] == pytest.approx(missed(u, v), abs=1e-3)
        assert frame["inverse_error_mm_p95"] < 0.02
    es = volumes.quality["frames"][heart.end_systole - 1]
    assert es["back_between_slices_mm_p95"] > 5 * es["inverse_error_mm_p95"] > 0
    assert volumes.quality["grade"] == "passed"
    assert "back_between_slices_mm_p95" not in slices.quality["frames"][0]


def test_volumes_see_the_base_descend_and_slices_do_not(
    deep: tuple[Phantom, CineRegistration, CineRegistration],
) -> None:
    heart, volumes, slices = deep
    es = heart.end_systole
    true = heart.label(es)
    assert not volumes.labels[..., 0, es - 1].any()
    assert slices.labels[..., 0, es - 1].any()
    for value in (1, 2, 3):
        scores = []
        for registration in (volumes, slices):
            found = registration.labels[..., es - 1] == value
            scores.append(2 * (found & (true == value)).sum() / (found.sum() + (true == value).sum()))
        assert scores[0] > max(0.85, scores[1] + 0.02)
    volume = (true == 3).sum() * np.prod(heart.spacing) / 1000
    assert volumes.function["lv_volume_ml"][es - 1] == pytest.approx(volume, rel=0.04)
    assert slices.function["lv_volume_ml"][es - 1] > 1.1 * volume
    (row,) = [row for row in volumes.strain if row["frame"] == es and row["region"] == "global"]
    assert -0.17 < row["longitudinal"] < -0.12
    assert "longitudinal" not in slices.strain[0]


def test_files_hold_motion_through_the_slices_in_mm(
    deep: tuple[Phantom, CineRegistration, CineRegistration], tmp_path: Path
) -> None:
    heart, volumes, _ = deep
    write_case(tmp_path, volumes)
    for name, voxels in (("", volumes.fields), ("_inverse", volumes.inverses)):
        written = nib.load(tmp_path / "fields" / f"frame_{heart.end_systole:02d}{name}.nii.gz").get_fdata()[..., 0, :]
        expected = np.einsum("ij,jxyz->xyzi", LPS @ heart.affine[:3, :3], voxels[heart.end_systole - 1])
        np.testing.assert_allclose(written, expected, atol=2e-4)
    assert "longitudinal" in (tmp_path / "strain.csv").read_text().splitlines()[0]
