"""Reading cines: intensities, frame times as headers tell them, and the frame that is taken for end diastole."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, write_nifti

from scripts.cines import Cine, CineRegistration, largest_cavity, otsu_threshold, read_cine, read_nifti_cine
from scripts.datalists import read_info
from scripts.errors import InputError
from scripts.phantom import Phantom

SHAPE = (7, 6, 3, 5)


def write_cine(path: Path, array: np.ndarray, step: float | None = None, unit: str | None = None) -> Path:
    image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0]))
    if step is not None:
        image.header.set_xyzt_units("mm", unit)
        image.header.set_zooms((1.5, 1.5, 8.0, step))
    nib.save(image, path)
    return path


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, SHAPE).astype(np.int16)


@pytest.mark.parametrize(
    ("step", "unit", "milliseconds"),
    [(37.5, "msec", 37.5), (0.0375, "sec", 37.5), (37500, "usec", 37.5), (1.0, "sec", None), (0.0, "msec", None)]
    + [(37.5, None, None), (None, None, None), (30.0, "hz", None)],
)
def test_frame_times_are_the_headers(
    tmp_path: Path, array: np.ndarray, step: float | None, unit: str | None, milliseconds: float | None
) -> None:
    cine = read_nifti_cine(write_cine(tmp_path / "some_4d.nii.gz", array, step, unit))
    if milliseconds is None:
        assert cine.times is None
        assert cine.frame_time is None
    else:
        np.testing.assert_allclose(cine.times, np.tile(milliseconds * np.arange(5), (3, 1)), rtol=1e-6)
        assert cine.frame_time == pytest.approx(milliseconds)


def test_a_cine_keeps_values_affine_and_name(tmp_path: Path, array: np.ndarray) -> None:
    affine = np.array([[0.9, -0.4, 1.0, -30], [0.5, 1.2, -2.0, 40], [0.1, 0.6, 7.5, 5], [0, 0, 0, 1.0]])
    for name in ("one_4d.nii.gz", "one.nii"):
        (cine,) = read_cine(write_nifti(tmp_path / name, array, affine))
        np.testing.assert_array_equal(cine.image, array)
        assert cine.image.dtype == np.float32
        np.testing.assert_allclose(cine.affine, affine, atol=1e-6)
        np.testing.assert_allclose(cine.spacing, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), rtol=1e-6)
        assert cine.frames == 5
        assert cine.name == "one"


def test_a_scaled_file_is_read_in_its_unit(tmp_path: Path, array: np.ndarray) -> None:
    image = nib.Nifti1Image(array / 3000 - 0.5, np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").dataobj.slope < 0.01
    np.testing.assert_allclose(read_nifti_cine(tmp_path / "a.nii").image, array / 3000 - 0.5, atol=1e-4)


def test_uneven_times_of_slices_give_their_mean_step() -> None:
    times = np.array([[10.0, 50, 100], [20, 55, 120]])
    assert Cine("a", np.zeros((2, 2, 2, 3)), np.eye(4), times).frame_time == pytest.approx((90 + 100) / 4)
    assert Cine("a", np.zeros((2, 2, 2, 1)), np.eye(4), times[:, :1]).frame_time is None


def test_the_reference_counts_from_one(array: np.ndarray) -> None:
    still = np.zeros((5, 2, *SHAPE[:3]))
    registration = CineRegistration(Cine("a", array, np.eye(4)), 2, "given", still, still, array)
    np.testing.assert_array_equal(registration.fixed, array[..., 1])


def test_what_is_no_cine_is_named_with_its_cure(tmp_path: Path, array: np.ndarray) -> None:
    whole = write_nifti(tmp_path / "whole.nii.gz", array).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("no image")
    write_nifti(tmp_path / "stack.nii.gz", array[..., 0])
    write_nifti(tmp_path / "one.nii.gz", array[..., :1])
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        bad = array.astype(np.float32)
        bad[2, 3, 1, 4] = value
        write_nifti(tmp_path / f"{name}.nii.gz", bad)
    for name, words in {
        "missing.nii.gz": "no such file",
        "cut.nii.gz": "is the file complete?",
        "text.nii": "cannot be read as NIfTI",
        "stack.nii.gz": "--moving and --fixed",
        "one.nii.gz": "two frames or more",
        "nan.nii.gz": "NaN or Inf",
        "inf.nii.gz": "replace those voxels",
    }.items():
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            read_nifti_cine(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


def plain_otsu(values: list[float], edges: list[float]) -> float:
    """The edge with the least sum of squares of bin centers about their class's mean, by a double loop."""
    centers = [(a + b) / 2 for a, b in pairwise(edges)]
    bins = [next((n for n, high in enumerate(edges[1:-1]) if v < high), len(centers) - 1) for v in values]
    best, threshold = float("inf"), float("nan")
    for split in range(1, len(centers)):
        error = 0.0
        for side in ([b for b in bins if b < split], [b for b in bins if b >= split]):
            mean = sum(centers[b] for b in side) / max(len(side), 1)
            error += sum((centers[b] - mean) ** 2 for b in side)
        if error < best - 1e-9:
            best, threshold = error, edges[split]
    return threshold


@pytest.mark.parametrize("seed", range(3))
def test_otsu_equals_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(100, 20, 60), rng.normal(300, 60, 40 + 30 * seed)])
    edges = np.histogram_bin_edges(values, bins=256)
    assert otsu_threshold(values) == pytest.approx(plain_otsu(values.tolist(), edges.tolist()))


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_cavity_of_phantoms_is_at_end_diastole(seed: int) -> None:
    phantom = Phantom.random(seed, size=(64, 64), slices=3, frames=8)
    cine = np.stack([phantom.image(frame) for frame in range(1, 9)], axis=-1)
    assert largest_cavity(cine) == 1
    # A cine that starts elsewhere, and one in other units.
    assert largest_cavity(np.roll(cine, 3, axis=-1)) == 4
    assert largest_cavity(0.1 * cine + 50) == 1


def test_a_still_or_constant_cine_has_some_reference() -> None:
    assert largest_cavity(np.ones((8, 8, 2, 3))) == 1
    assert largest_cavity(np.repeat(np.random.default_rng(0).random((8, 8, 2, 1)), 3, axis=-1)) in (1, 2, 3)


@pytest.mark.parametrize("subject", ["SC-HF-I-1", "SC-HF-I-2"])
def test_the_largest_cavity_of_real_cines_is_near_end_diastole(subject: str) -> None:
    folder = ROOT.parent / "shared" / "data" / "scd" / subject
    if not folder.is_dir():
        pytest.skip(f"no Sunnybrook cines in {folder.parent}")
    (cine,) = read_cine(folder / f"{subject}_4d.nii.gz")
    gap = abs(largest_cavity(cine.image) - int(read_info(folder / "Info.cfg")["ED"]))
    assert min(gap, cine.frames - gap) <= 2
