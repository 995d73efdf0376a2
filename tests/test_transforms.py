"""Loading, scaling, resampling and augmenting pairs, against NumPy and SciPy."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from monai.data import MetaTensor
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from scripts.errors import InputError
from scripts.transforms import (
    FieldToNatived,
    LoadCased,
    PreparePair,
    RandomPairAugmentation,
    ResizeToSpacingd,
    ScaleSlicesd,
    check_order,
    check_same_grid,
    crop_each,
    sample_slices,
    sampling_grid,
    scale_slices,
    smooth_noise,
    turn_to,
)
from torch.nn import functional as F

SHAPE = (12, 10, 3)


@pytest.fixture
def stack() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.int16)


def oblique_affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix() @ np.diag([1.4, 1.8, 8.0])
    affine[:3, 3] = [-50, 20, 7]
    return affine


def test_loading_keeps_values_and_the_oblique_affine(tmp_path: Path, stack: np.ndarray) -> None:
    paths = {key: str(write_nifti(tmp_path / f"{key}.nii.gz", stack, oblique_affine())) for key in ("moving", "fixed")}
    item = LoadCased()(paths)
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
            LoadCased()({"moving": good, "fixed": str(path)})
        assert str(path) in str(caught.value)
        assert words in str(caught.value)


def test_a_label_belongs_to_its_image_and_holds_integers(tmp_path: Path, stack: np.ndarray) -> None:
    image = str(write_nifti(tmp_path / "image.nii.gz", stack))
    for name, label, words in (
        ("fraction", np.full(SHAPE, 0.5, np.float32), "holds fractions"),
        ("shape", np.zeros((12, 10, 2), np.uint8), "different shapes"),
        ("structures", np.full(SHAPE, 257, np.int16), "holds 257 to 257; give them these values: 1 RV, 2 MYO, 3 LV"),
    ):
        path = str(write_nifti(tmp_path / f"{name}.nii.gz", label))
        with pytest.raises(InputError, match=words) as caught:
            LoadCased()({"moving": image, "fixed": image, "moving_label": path})
        assert path in str(caught.value)


def test_a_label_lies_on_the_grid_of_its_image_to_a_tolerance(tmp_path: Path, stack: np.ndarray) -> None:
    off = oblique_affine()
    off[0, 3] += 0.05
    image = str(write_nifti(tmp_path / "image.nii.gz", stack, oblique_affine()))
    label = str(write_nifti(tmp_path / "label.nii.gz", np.ones(SHAPE, np.uint8), off))
    with pytest.raises(InputError, match=r"label\.nii\.gz and .*image\.nii\.gz: have affines up to 0\.05 mm apart"):
        LoadCased()({"moving": image, "fixed": image, "fixed_label": label})
    with pytest.raises(InputError, match=r"have affines up to 0\.05 mm apart"):
        LoadCased().load_label(label, LoadCased().load(image), "image", tolerance=0.04)
    assert LoadCased().load_label(label, LoadCased().load(image), "image", tolerance=0.06).any()


@pytest.mark.parametrize(
    "order", [[[0, 1], [1, -1], [2, 1]], [[1, 1], [0, -1], [2, -1]]], ids=["rows turned over", "all else"]
)
def test_a_label_with_its_axes_in_another_order_is_turned(tmp_path: Path, stack: np.ndarray, order: list) -> None:
    """As dcm2niix turns the rows of DICOM over."""
    image = str(write_nifti(tmp_path / "image.nii.gz", stack, oblique_affine()))
    values = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    label = nib.Nifti1Image(values, oblique_affine()).as_reoriented(np.array(order))
    assert not np.allclose(label.affine, oblique_affine())
    nib.save(label, tmp_path / "label.nii.gz")
    item = LoadCased()({"moving": image, "fixed": image, "fixed_label": str(tmp_path / "label.nii.gz")})
    np.testing.assert_array_equal(item["fixed_label"][0], values)
    np.testing.assert_allclose(item["fixed_label"].affine, oblique_affine(), atol=1e-5)


def test_a_label_on_its_image_s_grid_stays_there_at_45_degrees() -> None:
    rng = np.random.default_rng(0)
    for angle in (45, -45, 135):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("z", angle, degrees=True).as_matrix() * [1.5, 1.5, 8]
        for _ in range(50):
            affines = [turn + rng.normal(0, 1e-7, (4, 4)) * (turn != 0) for _ in range(2)]
            label, image = (MetaTensor(torch.arange(24.0).reshape(1, 4, 3, 2), affine=affine) for affine in affines)
            assert torch.equal(turn_to(label, image), label)


def test_an_affine_of_nan_is_no_grid() -> None:
    image, label = (
        MetaTensor(torch.zeros(1, 4, 3, 2), affine=affine) for affine in (np.eye(4), np.diag([1, np.nan, 1, 1]))
    )
    with pytest.raises(InputError, match="affines up to nan mm apart"):
        check_same_grid(turn_to(label, image), "a", image, "b")


def test_affines_that_differ_by_rounding_are_one_grid(tmp_path: Path, stack: np.ndarray) -> None:
    affine = oblique_affine()
    first = write_nifti(tmp_path / "a.nii.gz", stack, affine)
    second = write_nifti(tmp_path / "b.nii.gz", stack, affine + 1e-6)
    assert not np.array_equal(nib.load(first).affine, nib.load(second).affine)
    LoadCased()({"moving": str(first), "fixed": str(second)})


def test_slices_are_scaled_as_by_hand(stack: np.ndarray) -> None:
    found = scale_slices(torch.from_numpy(stack)[None].float(), 90.0)[0].numpy()
    clipped = np.minimum(stack, np.percentile(stack, 90, method="higher")).astype(np.float64)
    for z in range(SHAPE[2]):
        s = clipped[..., z]
        np.testing.assert_allclose(found[..., z], (s - s.min()) / (s.max() - s.min()), atol=1e-6)


def test_scanner_units_and_a_clipped_8_bit_copy_give_the_same_input() -> None:
    raw = np.random.default_rng(1).gamma(2.0, 300.0, (64, 64, 4)).astype(np.int16)
    clipped = np.minimum(raw, np.percentile(raw, 99, method="higher")).astype(np.float64)
    eight_bit = np.round(255 * (clipped - clipped.min()) / (clipped.max() - clipped.min()))
    both = [scale_slices(torch.from_numpy(x.astype(np.float32))[None], 99.0) for x in (raw, eight_bit)]
    torch.testing.assert_close(*both, rtol=0, atol=1.01 / 255)


def test_a_constant_slice_is_0_and_an_image_of_nothing_else_is_named(stack: np.ndarray) -> None:
    stack[..., 1] = 7
    image = MetaTensor(torch.from_numpy(stack)[None].float(), meta={"filename_or_obj": "somewhere/es.nii.gz"})
    scaled = ScaleSlicesd(["moving"])({"moving": image})["moving"]
    assert not scaled[..., 1].any()
    assert all(scaled[..., z].max() == 1 for z in range(stack.shape[-1]) if z != 1)
    with pytest.raises(InputError, match=r"somewhere/es\.nii\.gz: the moving image is constant in every slice"):
        ScaleSlicesd(["moving"])({"moving": torch.zeros_like(image)})


def test_resampling_to_a_spacing_and_the_field_back(stack: np.ndarray) -> None:
    affine = torch.diag(torch.tensor([1.5, 2.0, 8.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(stack)[None].float(), affine=affine)
    resized = ResizeToSpacingd(["fixed"], spacing=1.0)({"fixed": image})["fixed"]
    assert resized.shape == (1, 18, 20, 3)
    for nothing in (None, False):
        assert ResizeToSpacingd(["fixed"], spacing=nothing)({"fixed": image})["fixed"] is image
    # A constant displacement of 3 mm and -2 mm.
    field = torch.tensor([3.0, -2.0]).view(2, 1, 1, 1).expand(2, *resized.shape[1:])
    native = FieldToNatived()({"pred": field, "fixed_image": image})["pred"]
    assert native.shape == (2, *SHAPE)
    torch.testing.assert_close(native, torch.tensor([2.0, -1.0]).view(2, 1, 1, 1).expand_as(native))


@pytest.mark.parametrize(
    ("pixels", "left"), [((1.5, 1.5), True), ((1.31, 1.72), True), ((1.5, 1.28), False), ((1.76, 1.5), False)]
)
def test_pixels_near_the_spacing_stay_as_they_are(stack: np.ndarray, pixels: tuple[float, float], left: bool) -> None:
    affine = torch.diag(torch.tensor([*pixels, 8.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(stack)[None].float(), affine=affine)
    resized = ResizeToSpacingd(["fixed"], spacing=1.5)({"fixed": image})["fixed"]
    assert (resized is image) == left
    if not left:
        assert resized.shape[1:3] == tuple(round(n * s / 1.5) for n, s in zip(SHAPE, pixels))


@pytest.mark.parametrize("pixels", [(1.25, 1.250001), (1.7249998, 1.7250003)])
def test_images_whose_affines_differ_in_the_last_digits_stay_on_one_grid(pixels: tuple[float, float]) -> None:
    images = {
        key: MetaTensor(
            torch.rand(1, 51, 51, 2), affine=torch.diag(torch.tensor([s, s, 8.0, 1.0], dtype=torch.float64))
        )
        for key, s in zip(("moving", "fixed"), pixels)
    }
    resized = ResizeToSpacingd(["moving", "fixed"], spacing=1.5)(images)
    assert resized["moving"].shape == resized["fixed"].shape


def test_resampling_keeps_a_ramp_where_it_is_and_blank_slices_blank() -> None:
    affine = torch.diag(torch.tensor([0.6, 2.4, 8.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-20.0, 5.0, 3.0])
    image = MetaTensor(torch.zeros(1, 60, 20, 2), affine=affine)
    x, y = (affine[a, 3] + affine[a, a] * torch.arange(n) for a, n in ((0, 60), (1, 20)))
    image[0, ..., 0] = x[:, None] + 0.5 * y
    resized = ResizeToSpacingd(["fixed"], spacing=1.5)({"fixed": image})["fixed"]
    assert resized.shape == (1, 24, 32, 2)
    x, y = (resized.affine[a, 3] + resized.affine[a, a] * torch.arange(n) for a, n in ((0, 24), (1, 32)))
    # One axis shrinks, the other grows.
    torch.testing.assert_close(
        resized[0, 2:-2, 2:-2, 0].as_tensor().double(), (x[:, None] + 0.5 * y)[2:-2, 2:-2], rtol=0, atol=0.02
    )
    assert not resized[..., 1].any()


def test_refuses_a_spacing_that_leaves_nothing() -> None:
    image = MetaTensor(
        torch.rand(1, 40, 36, 2), affine=torch.diag(torch.tensor([1.5, 1.5, 8.0, 1.0], dtype=torch.float64))
    )
    with pytest.raises(InputError, match=r"--working_spacing 15: leaves 4 x 4 pixels"):
        ResizeToSpacingd(["fixed"], spacing=15)({"fixed": image})


@pytest.mark.parametrize("spacing", [True, -1.5, "wide", float("nan")])
def test_refuses_what_is_no_pixel_size(spacing: object) -> None:
    with pytest.raises(InputError, match=f"--working_spacing {spacing}: must be a pixel size"):
        ResizeToSpacingd(["fixed"], spacing=spacing)


def test_augmentation_treats_both_images_alike() -> None:
    moving = torch.rand(16, 1, 20, 20)
    pair = torch.cat([moving, moving], dim=1)
    torch.manual_seed(0)
    for options in ({}, {"rotation": 30.0, "zoom": 0.2}):
        augmented = RandomPairAugmentation([16, 16], **options)(pair)
        assert augmented.shape == (16, 2, 16, 16)
        torch.testing.assert_close(augmented[:, 0], augmented[:, 1])
        assert not torch.equal(augmented, pair[..., 2:18, 2:18])


def test_swap_exchanges_the_images_of_some_pairs() -> None:
    pair = torch.stack([torch.zeros(64, 8, 8), torch.ones(64, 8, 8)], dim=1)
    torch.manual_seed(0)
    swapped = RandomPairAugmentation(None, swap=True, flip=False, gamma=0)(pair)[:, 0, 0, 0]
    assert 16 < swapped.sum() < 48
    assert torch.equal(RandomPairAugmentation(None, swap=False, flip=False, gamma=0)(pair), pair)


def test_augmentation_takes_three_dimensions() -> None:
    assert RandomPairAugmentation([8, 8, 4])(torch.rand(2, 2, 10, 10, 6)).shape == (2, 2, 8, 8, 4)


def test_crops_are_pieces_of_their_own_pair() -> None:
    pair = torch.arange(3 * 2 * 9 * 7).view(3, 2, 9, 7).float()
    starts = [torch.randint(6, (3, 1)), torch.randint(3, (3, 1))]
    crops = crop_each(pair, starts, (4, 5))
    for whole, crop in zip(pair, crops):
        x, y = divmod(int(crop[0, 0, 0] - whole[0, 0, 0]), 7)
        assert torch.equal(crop, whole[:, x : x + 4, y : y + 5])


def test_rotation_and_zoom_equal_scipy() -> None:
    image = np.random.default_rng(0).random((15, 21))
    angle, zoom = 0.4, 1.3
    pair = torch.from_numpy(image).expand(1, 2, 15, 21)
    grid = sampling_grid(pair, torch.tensor([angle], dtype=torch.float64), torch.tensor([zoom], dtype=torch.float64))
    found = sample_slices(pair, grid)[0, 0].numpy()
    center = (np.array(image.shape) - 1) / 2
    x, y = np.meshgrid(*map(np.arange, image.shape), indexing="ij")
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    where = [
        s * (y - center[1]) + c * (x - center[0]) + center[0],
        c * (y - center[1]) - s * (x - center[0]) + center[1],
    ]
    np.testing.assert_allclose(found, map_coordinates(image, where, order=1, mode="nearest"), atol=1e-9)


def test_elastic_deformation_equals_scipy_and_is_smooth() -> None:
    torch.manual_seed(0)
    pair = torch.rand(64, 2, 48, 64, dtype=torch.float64)
    noise = smooth_noise(pair, deviation=1.5, spacing=16)
    # In pixels, along the array axes: grid_sample has y first and an axis of length 2.
    shift = torch.stack([noise[..., 1] * 48 / 2, noise[..., 0] * 64 / 2], dim=1)
    assert shift[:, :, ::47, ::63].std() == pytest.approx(1.5, rel=0.15)
    assert shift.diff(dim=2).abs().max() < 1
    assert shift.diff(dim=3).diff(dim=3).abs().max() < 0.2
    still = sampling_grid(pair, torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64))
    found = sample_slices(pair, still + noise)[5, 1]
    where = np.stack(np.meshgrid(np.arange(48), np.arange(64), indexing="ij")) + shift[5].numpy()
    np.testing.assert_allclose(found, map_coordinates(pair[5, 1].numpy(), where, order=1, mode="nearest"), atol=1e-9)


def test_labels_follow_their_images() -> None:
    """Images that are their labels: what is done to one is done to the other, intensities apart."""
    torch.manual_seed(0)
    label = F.interpolate(torch.randint(4, (16, 2, 4, 4)).float(), size=(48, 48), mode="nearest").to(torch.int8)
    label[3] = -1
    everything = {"rotation": 40.0, "zoom": 0.2, "elastic": 3.0, "elastic_spacing": 20.0}
    for options, exact in (({}, True), (everything, False)):
        pair, augmented = RandomPairAugmentation([40, 40], gamma=0.0, **options)(label.float(), label)
        assert augmented.dtype == torch.int8
        assert augmented.shape == pair.shape == (16, 2, 40, 40)
        assert augmented.unique().tolist() == [-1, 0, 1, 2, 3]
        # Away from borders between labels, where linear interpolation mixes them; a few slivers are left.
        widest, narrowest = (F.max_pool2d(sign * augmented.float(), 5, 1, 2) * sign for sign in (1, -1))
        inside = torch.ones_like(pair, dtype=torch.bool) if exact else widest == narrowest
        assert inside.float().mean() > 0.5
        assert ((pair - augmented)[inside].abs() > 1e-4).float().mean() <= (0 if exact else 0.004)
        assert (augmented[3] == -1).all()
    pairs = []
    for labels in ([], [label]):
        torch.manual_seed(1)
        random.seed(1)
        pairs.append(RandomPairAugmentation([32, 32])(label.clamp(min=0) / 3, *labels))
    assert torch.equal(pairs[0], pairs[1][0])


def test_prepare_batch_hands_plain_tensors_in_the_wanted_format() -> None:
    batch = {"pair": MetaTensor(torch.rand(2, 2, 8, 8))}
    image, target = PreparePair(channels_last=True)(batch, torch.device("cpu"))
    assert type(image) is torch.Tensor
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert target is image


def test_prepare_batch_hands_labels_on_with_the_pair() -> None:
    batch = {"pair": torch.rand(2, 2, 8, 8), "label": torch.ones(2, 2, 8, 8, dtype=torch.int8)}
    for augment in (None, RandomPairAugmentation([4, 4])):
        image, (pair, label) = PreparePair(augment)(batch, torch.device("cpu"))
        assert image is pair
        assert label.dtype == torch.int8
        assert label.shape == pair.shape


@pytest.mark.parametrize("percentile", [0, -5, 101, "99", True])
def test_a_percentile_that_is_none_is_refused(percentile: object) -> None:
    with pytest.raises(InputError, match=f"--clip_percentile {percentile}: must be a percentage"):
        ScaleSlicesd(["moving"], percentile)


def test_the_affine_is_the_header_s_whatever_its_voxel_sizes_say(tmp_path: Path) -> None:
    affine = np.array([[0, 1.5, 0, 3], [-1.5, 0, 0, 40], [0, 0, 8, -7], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(np.random.default_rng(0).random((8, 9, 2), np.float32), affine)
    image.header["pixdim"][1:4] = 1
    path = tmp_path / "a.nii.gz"
    nib.save(image, path)
    # nibabel mends the sizes when it saves; a scanner's software may not.
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[80:92] = np.ones(3, "<f4").tobytes()
    raw[252:254] = np.zeros(1, "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))
    item = LoadCased()({"moving": str(path), "fixed": str(path)})
    np.testing.assert_allclose(item["moving"].affine.numpy(), affine, atol=1e-5)
    assert item["moving"].shape == (1, 8, 9, 2)


def test_a_label_in_the_order_of_m_and_ms_is_refused() -> None:
    x, y = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    radius = np.hypot(x - 20, y - 24)
    label = np.where(radius < 5, 3, np.where(radius < 8, 2, np.where(np.hypot(x - 20, y - 10) < 6, 1, 0)))[
        None, ..., None
    ]
    check_order(torch.from_numpy(label), "gt.nii.gz")
    with pytest.raises(
        InputError, match=r"gt\.nii\.gz: has the myocardium \(2\) around 1 and not around 3, as M&Ms has"
    ):
        check_order(torch.from_numpy(np.array([0, 3, 2, 1])[label]), "gt.nii.gz")
    # Nor one that lacks the RV.
    with pytest.raises(InputError, match="around 1 and not around 3"):
        check_order(torch.from_numpy(np.array([0, 0, 2, 1])[label]), "gt.nii.gz")
    with pytest.raises(
        InputError, match=r"gt\.nii\.gz: has 1 around 2; make the myocardium 2 and the cavity of the LV 3"
    ):
        check_order(torch.from_numpy(np.array([0, 0, 1, 2])[label]), "gt.nii.gz")
    # A label that lacks a structure says nothing else about the order.
    for missing in (1, 2, 3):
        check_order(torch.from_numpy(np.where(label == missing, 0, label)), "gt.nii.gz")
