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

"""The phantom's field is exact: labels and intensities are carried by it, and it has no fold, whoever computes that."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes
from scipy.ndimage import binary_erosion, map_coordinates
from scripts.cardiac import phantom as module
from scripts.cardiac.phantom import Phantom, main, write_phantom_dataset
from scripts.data.acdc import acdc_pairs, read_info
from scripts.data.datalists import folder_splits
from scripts.errors import InputError

SEEDS = range(4)
SMALL = {"subjects": 3, "size": (24, 20), "slices": 2, "frames": 4, "progress": False}


@pytest.fixture(scope="module")
def fine() -> Phantom:
    return Phantom.random(7, size=(192, 192), slices=3)


def pull(stack, field, order):
    """Each slice of (X, Y, Z) at x + u(x), by scipy alone."""
    grid = np.stack(np.meshgrid(*map(np.arange, stack.shape[:2]), indexing="ij"))
    return np.stack(
        [
            map_coordinates(stack[..., z], grid + field[..., z], order=order, mode="nearest")
            for z in range(stack.shape[2])
        ],
        axis=-1,
    )


def dice(a, b, value):
    return 2 * np.logical_and(a == value, b == value).sum() / ((a == value).sum() + (b == value).sum())


def determinant(field):
    (xx, xy), (yx, yy) = (np.gradient(channel, axis=(0, 1)) for channel in field)
    return (1 + xx) * (1 + yy) - xy * yx


@pytest.mark.parametrize(("moving", "fixed"), [(5, 1), (1, 5), (2, 4), (9, 5)])
def test_field_carries_labels(fine, moving, fixed):
    moved, target = pull(fine.label(moving), fine.field(moving, fixed), order=0), fine.label(fixed)
    assert all(dice(moved, target, value) > 0.97 for value in (1, 2, 3))
    if {moving, fixed} == {1, 5}:
        assert dice(fine.label(moving), target, 3) < 0.8


@pytest.mark.parametrize(("moving", "fixed"), [(5, 1), (1, 5), (2, 4)])
def test_field_carries_intensities(fine, moving, fixed):
    moved, target = (
        pull(fine.image(moving, noisy=False), fine.field(moving, fixed), order=3),
        fine.image(fixed, noisy=False),
    )
    error, before = np.abs(moved - target), np.abs(fine.image(moving, noisy=False) - target)
    assert error.mean() < min(0.05 * before.mean(), 1)
    # Away from borders nothing but the smooth texture is interpolated.
    label = fine.label(fixed)
    for value in (1, 2, 3):
        inside = binary_erosion(label == value, np.ones((5, 5, 1)))
        assert inside.sum() > 200
        assert np.median(error[inside]) < 0.1


def test_field_holds_on_other_grids():
    phantom = Phantom.random(3, size=(80, 112), slices=2, spacing=(1.6, 1.2, 8.0))
    field = phantom.field(5, 1)
    assert field.shape == (2, 80, 112, 2)
    moved = pull(phantom.label(5), field, order=0)
    assert all(dice(moved, phantom.label(1), value) > 0.95 for value in (1, 2, 3))


def test_subject_does_not_depend_on_the_grid():
    coarse = Phantom.random(3, size=(65, 65), spacing=(2.0, 2.0, 8.0))
    fine = Phantom.random(3, size=(129, 129), spacing=(1.0, 1.0, 8.0))
    np.testing.assert_array_equal(fine.label(4)[::2, ::2], coarse.label(4))
    np.testing.assert_allclose(fine.field(5, 2)[:, ::2, ::2], 2 * coarse.field(5, 2), atol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_motion_is_inverted(seed):
    phantom = Phantom.random(seed)
    for frame in range(1, phantom.frames + 1):
        there = phantom.to_frame(phantom.to_material(phantom.grid, frame), frame)
        back = phantom.to_material(phantom.to_frame(phantom.grid, frame), frame)
        assert np.abs(there - phantom.grid).max() < 1e-6
        assert np.abs(back - phantom.grid).max() < 1e-6


def test_center_is_inverted():
    phantom = replace(Phantom.random(0, size=(9, 9), slices=1), center=(0.0, 0.0), tilt=(0.0, 0.0))
    there = phantom.to_frame(phantom.grid, 5)
    assert np.isfinite(there).all()
    np.testing.assert_allclose(there[:, 4, 4, 0], (4, 4), atol=1e-9)
    np.testing.assert_allclose(phantom.to_material(there, 5), phantom.grid, atol=1e-6)


def test_fields_of_both_directions_undo_each_other(fine):
    for a, b in ((1, 5), (3, 7)):
        first, second = fine.field(a, b), fine.field(b, a)
        composed = second + np.stack([pull(channel, second, order=3) for channel in first])
        assert np.abs(composed[:, 3:-3, 3:-3]).max() < 1e-2


def test_field_of_a_frame_onto_itself_is_zero():
    phantom = Phantom.random(1)
    assert np.array_equal(phantom.field(1, 1), np.zeros((2, 64, 64, 4)))
    assert np.abs(phantom.field(6, 6)).max() < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_no_folds(seed):
    phantom = Phantom.random(seed, frames=5)
    for moving, fixed in permutations(range(1, 6), 2):
        assert determinant(phantom.field(moving, fixed)).min() > 0.1


def test_determinant_is_that_of_the_closed_form(fine):
    _, s, cosine = fine.polar(fine.grid)
    expected = 1 - fine.inward(s, cosine)[1]
    error = np.abs(determinant(fine.field(fine.end_systole, 1)) - expected)
    assert expected.min() > 0.1
    assert error.mean() < 1e-3
    assert error.max() < 0.06


def test_motion_fades():
    phantom = Phantom.random(2, size=(192, 192), spacing=(1.0, 1.0, 8.0))
    u = phantom.field(phantom.end_systole, 1)
    assert 4 < np.hypot(*u).max() < 12
    border = np.concatenate([u[:, :3].reshape(2, -1), u[:, -3:].reshape(2, -1), u[:, :, -3:].reshape(2, -1)], axis=1)
    assert np.hypot(*border).max() < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_ventricles_empty_and_the_wall_is_kept(seed):
    phantom = Phantom.random(seed, size=(128, 128))
    diastole, systole = phantom.label(1), phantom.label(phantom.end_systole)
    kept = [(systole == value).sum() / (diastole == value).sum() for value in (1, 2, 3)]
    assert 0.75 < kept[0] < 0.97
    assert 1.0 < kept[1] < 1.2
    assert 1 - kept[2] == pytest.approx(phantom.contraction, abs=0.02)
    assert 0.4 < phantom.contraction < 0.65
    sizes = [(diastole == 3)[..., z].sum() for z in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0


def test_cavity_follows_the_activation():
    phantom = Phantom.random(5, frames=20)
    activation = [phantom.activation(frame) for frame in range(1, 21)]
    es = phantom.end_systole
    assert activation[0] == 0
    assert activation[es - 1] == 1
    assert (es - 1) / 20 == pytest.approx(0.4)
    assert (np.diff(activation[:es]) > 0).all()
    assert (np.diff(activation[es - 1 :]) < 0).all()
    area = [(phantom.label(frame) == 3).sum() for frame in range(1, 21)]
    assert np.argmax(area) == 0
    assert np.argmin(area) == es - 1


@pytest.mark.parametrize("frames", [2, 3, 5, 8, 10, 30])
def test_end_systole_is_a_frame(frames):
    phantom = Phantom.random(0, frames=frames)
    assert 2 <= phantom.end_systole <= frames
    assert phantom.activation(phantom.end_systole) == 1
    for frame in (0, frames + 1):
        with pytest.raises(ValueError, match="frame is one of"):
            phantom.activation(frame)


@pytest.mark.parametrize("seed", SEEDS)
def test_wall_twists(seed):
    phantom = Phantom.random(seed)
    label, u = phantom.label(1), phantom.field(phantom.end_systole, 1)
    turned = []
    for z in range(phantom.slices):
        x = np.argwhere(label[..., z] == 2).astype(float)
        center = np.argwhere(label[..., z] >= 2).mean(axis=0)
        there = x + u[..., z][:, label[..., z] == 2].T
        before, after = (np.arctan2(*(p - center).T[::-1]) for p in (x, there))
        turned.append(np.rad2deg(np.angle(np.exp(1j * (after - before)))).mean())
    base, apex = phantom.twist
    assert turned == sorted(turned, reverse=True)
    assert 0.3 * base < turned[0] < base
    assert apex < turned[-1] < 0.3 * apex


def test_every_tissue_has_texture(fine):
    image, label = fine.image(1, noisy=False), fine.label(1)
    for value in (1, 2, 3):
        inside = binary_erosion(label == value, np.ones((5, 5, 1)))
        assert 0.05 < image[inside].std() / image[inside].mean() < 0.4
    away = binary_erosion(label == 0, np.ones((15, 15, 1))) & (image > 0)
    assert np.median(np.hypot(*np.gradient(image, axis=(0, 1)))[away]) > 1
    means = [image[label == value].mean() for value in (1, 2, 3)]
    assert means[0] > 2 * means[1]
    assert means[2] > 2 * means[1]


def test_texture_is_standardized():
    phantom = Phantom.random(0, size=(216, 216), slices=6, spacing=(1.0, 1.0, 8.0))
    texture = phantom.texture(phantom.grid)
    assert abs(texture.mean()) < 0.05
    assert texture.std() == pytest.approx(1, abs=0.05)


def test_noise_is_rician():
    phantom = Phantom.random(4, size=(160, 160), slices=6, spacing=(1.5, 1.5, 8.0))
    clean, noisy = phantom.image(1, noisy=False), phantom.image(1)
    air = noisy[clean == 0]
    assert air.size > 5000
    assert air.min() >= 0
    assert air.mean() == pytest.approx(phantom.noise * math.sqrt(math.pi / 2), rel=0.03)
    assert air.std() == pytest.approx(phantom.noise * math.sqrt(2 - math.pi / 2), rel=0.03)
    bright = clean > 20 * phantom.noise
    assert (noisy - clean)[bright].std() == pytest.approx(phantom.noise, rel=0.03)
    # Another frame, another noise.
    other = phantom.image(2)[clean == 0]
    assert abs(np.corrcoef(air, other)[0, 1]) < 0.1


def test_seed_decides():
    one, same, other = Phantom.random(1), Phantom.random(1), Phantom.random(2)
    assert one == same
    np.testing.assert_array_equal(one.image(3), same.image(3))
    assert not np.array_equal(one.image(3, noisy=False), other.image(3, noisy=False))
    for name in (
        "center",
        "cavity_radius",
        "wall",
        "rv_depth",
        "contraction",
        "twist",
        "intensities",
        "cycle",
        "noise",
    ):
        assert getattr(one, name) != getattr(other, name)
    assert Phantom.random((0, 1)) != Phantom.random((1, 1))
    assert Phantom.random(np.int64(1)) == one


@pytest.mark.parametrize(
    "wrong", [{"frames": 1}, {"slices": 0}, {"size": (0, 8)}, {"size": (8, 8, 8)}, {"spacing": (1.0, -1.0, 8.0)}]
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match="no phantom of size"):
        Phantom.random(0, **wrong)


def test_difficulty():
    scores = []
    for number in range(1, 41):
        phantom = Phantom.random((0, number))
        diastole, systole = phantom.label(1), phantom.label(phantom.end_systole)
        scores.append([dice(systole, diastole, value) for value in (1, 2, 3)])
    assert 0.66 < np.mean(scores) < 0.76
    assert np.std(np.mean(scores, axis=1)) > 0.02


def test_layout(tmp_path):
    root = write_phantom_dataset(tmp_path / "set", **{**SMALL, "subjects": 10})
    splits = folder_splits(root)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [7, 1, 2]
    assert len(set().union(*splits.values())) == 10
    expected = Phantom.random((0, 1), size=(24, 20), slices=2, frames=4)
    (pair,) = acdc_pairs(root, ["phantom001"])
    assert read_info(root / "phantom001" / "Info.cfg") == {"ED": "1", "ES": str(expected.end_systole), "NbFrame": "4"}

    cine = nib.load(root / "phantom001" / "phantom001_4d.nii.gz")
    assert cine.shape == (24, 20, 2, 4)
    assert cine.get_data_dtype() == np.int16
    assert cine.header.get_xyzt_units() == ("mm", "sec")
    assert cine.header.get_zooms() == pytest.approx((6.4, 6.4, 8.0, expected.cycle / 4))
    for frame, image_key, label_key in ((1, "fixed", "fixed_label"), (expected.end_systole, "moving", "moving_label")):
        image, label = nib.load(pair[image_key]), nib.load(pair[label_key])
        np.testing.assert_array_equal(image.get_fdata(), cine.get_fdata()[..., frame - 1])
        assert np.abs(image.get_fdata() - expected.image(frame)).max() <= 0.5
        np.testing.assert_array_equal(label.get_fdata(), expected.label(frame))
        assert label.get_data_dtype() == np.uint8
        for written in (image, label, cine):
            np.testing.assert_allclose(written.affine, expected.affine, atol=1e-4)
            np.testing.assert_allclose(written.get_qform(), expected.affine, atol=1e-3)


def test_affine_is_oblique_and_anisotropic():
    affine = Phantom.random(0, spacing=(1.5, 1.25, 8.0)).affine
    np.testing.assert_allclose(voxel_sizes(affine), (1.5, 1.25, 8.0))
    axes = affine[:3, :3] / voxel_sizes(affine)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert np.abs(axes).max(axis=0).max() < 0.98
    # Toward the apex is left, anterior and inferior.
    assert axes[0, 2] < 0
    assert axes[1, 2] > 0
    assert axes[2, 2] < 0
    straight = Phantom.random(0, spacing=(1.5, 1.25, 8.0), oblique=False).affine
    np.testing.assert_array_equal(straight[:3, :3], np.diag([1.5, 1.25, 8.0]))


def snapshot(root: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file()}


def test_second_write_touches_nothing(tmp_path):
    root = write_phantom_dataset(tmp_path / "set", **SMALL)
    before = snapshot(root)
    write_phantom_dataset(tmp_path / "set", **SMALL)
    assert snapshot(root) == before


def test_other_parameters_and_lost_files_have_it_rewritten(tmp_path):
    root = write_phantom_dataset(tmp_path / "set", **SMALL)
    first = snapshot(root)
    (root / "phantom002" / "phantom002_frame01.nii.gz").unlink()
    write_phantom_dataset(root, **SMALL)
    assert {path: content for path, (_, content) in snapshot(root).items()} == {
        p: content for p, (_, content) in first.items()
    }
    write_phantom_dataset(root, **{**SMALL, "seed": 1})
    assert json.loads((root / "phantom.json").read_text())["seed"] == 1
    image = root / "phantom001" / "phantom001_frame01.nii.gz"
    assert image.read_bytes() != first[image][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_interrupted_write_leaves_nothing_and_is_redone(tmp_path, monkeypatch):
    whole, write = module.write_subject, []

    def interrupted(root, subject, phantom):
        write.append(subject)
        if len(write) == 2:
            raise KeyboardInterrupt
        whole(root, subject, phantom)

    monkeypatch.setattr(module, "write_subject", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_phantom_dataset(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []
    write_phantom_dataset(tmp_path / "set", **SMALL)
    assert len(acdc_pairs(tmp_path / "set", ["phantom001", "phantom002", "phantom003"])) == 3


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        write_phantom_dataset(tmp_path, **SMALL)
    with pytest.raises(InputError, match="is a file"):
        write_phantom_dataset(tmp_path / "thesis.txt", **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="three subjects"):
        write_phantom_dataset(tmp_path / "set", **{**SMALL, "subjects": 2})


def test_command_line(tmp_path, capsys):
    argv = [
        "--root",
        str(tmp_path / "set"),
        "--subjects",
        "3",
        "--size",
        "16",
        "--slices",
        "1",
        "--frames",
        "3",
        "--seed",
        "5",
    ]
    main(argv)
    assert "3 subjects" in capsys.readouterr().out
    parameters = json.loads((tmp_path / "set" / "phantom.json").read_text())
    assert parameters["size"] == [16, 16]
    assert parameters["seed"] == 5
    main([*argv, "--size", "16", "12", "--straight"])
    affine = nib.load(tmp_path / "set" / "phantom001" / "phantom001_4d.nii.gz").affine
    np.testing.assert_allclose(affine[:3, :3], np.diag(voxel_sizes(affine)))
    with pytest.raises(SystemExit):
        main([*argv, "--subjects", "1"])


@pytest.fixture(scope="module")
def deep() -> Phantom:
    """A heart whose base descends by 15 % of its axis, in slices of 8 mm."""
    return Phantom.random(3, size=(36, 32), slices=9, frames=4, oblique=False, shortening=0.15)


def test_the_base_descends_by_a_known_amount(deep):
    es = deep.end_systole
    middle = [(n - 1) / 2 + c / s for n, c, s in zip(deep.size, deep.center, deep.spacing)]
    base, tip = (np.array([*middle, (level - 0.05) / 0.77 * 8]).reshape(3, 1, 1, 1) for level in (0.0, 1.0))
    # Eight steps of 8 mm are 77 % of the axis.
    moved = deep.to_frame(base, es) - base
    assert 8.0 * float(moved[2, 0, 0, 0]) == pytest.approx(0.15 * 64 / 0.77)
    assert float((deep.to_frame(tip, es) - tip)[2, 0, 0, 0]) == pytest.approx(0)
    assert deep.field(1, es)[2].max() <= 0 <= deep.field(es, 1)[2].min()
    labels = [deep.label(frame) for frame in (1, es)]
    assert all((labels[0][..., 0] == value).any() for value in (1, 2, 3))
    assert not labels[1][..., 0].any()
    assert (labels[1][..., -1] == 2).any()


def test_motion_in_three_dimensions_is_inverted(deep):
    points = deep.grid + np.random.default_rng(0).uniform(-0.5, 0.5, deep.grid.shape)
    for frame in range(1, 5):
        np.testing.assert_allclose(deep.to_material(deep.to_frame(points, frame), frame), points, atol=1e-6)


def test_determinant_in_three_dimensions_is_that_of_the_closed_form(deep):
    es, h = deep.end_systole, 1e-4
    points = deep.grid[:, 2:-2, 2:-2]
    steps = [h * np.eye(3)[axis].reshape(3, 1, 1, 1) for axis in range(3)]
    columns = [(deep.to_frame(points + d, es) - deep.to_frame(points - d, es)) / (2 * h) for d in steps]
    found = np.linalg.det(np.moveaxis(np.stack(columns, axis=1), (0, 1), (-2, -1)))
    there = deep.around(points)
    _, s, cosine = there.polar(points[:2])
    expected = (1 - deep.descent(deep.to_frame(points, es), 1.0)) * (1 - there.inward(s, cosine)[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.min() > 0.05


def test_the_field_in_three_dimensions_carries_labels_and_intensities(deep):
    es = deep.end_systole
    label, image = deep.label(es), deep.image(es, noisy=False)
    where = np.indices(label.shape) + deep.field(es, 1)
    inside = where[2] <= deep.slices - 1
    moved = map_coordinates(label, where, order=0, mode="nearest")
    for value in (1, 2, 3):
        scores = [dice(one[inside], deep.label(1)[inside], value) for one in (moved, label)]
        assert scores[0] > max(0.75, scores[1] + 0.05)
    pulled = map_coordinates(image, where, order=1, mode="nearest")
    errors = [np.square(one - deep.image(1, noisy=False))[inside].mean() for one in (pulled, image)]
    assert errors[0] < 0.2 * errors[1]


def test_without_shortening_slices_move_in_their_planes(fine):
    assert fine.field(fine.end_systole, 1).shape[0] == 2
    with pytest.raises(ValueError, match="no phantom"):
        Phantom.random(0, shortening=1.0)
