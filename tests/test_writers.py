"""Files that inference leaves: on the fixed grid, with its affine, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import map_coordinates

from scripts.writers import WriteMovedd, write_nifti

AFFINE = np.array([[0.9, -0.4, 1.0, -30], [0.5, 1.2, -2.0, 40], [0.1, 0.6, 7.5, 5], [0, 0, 0, 1.0]])


def test_moved_image_and_label_equal_scipy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.normal(500, 200, (14, 11, 2)), rng.integers(0, 4, (14, 11, 2))
    field = rng.normal(0, 2, (2, 14, 11, 2))
    meta = lambda array: MetaTensor(torch.from_numpy(array)[None].float(), affine=torch.from_numpy(AFFINE))
    item = {"case": "a/b", "moving_image": meta(image), "fixed_image": meta(image), "moving_label": meta(label)}
    WriteMovedd(tmp_path)({**item, "pred": torch.from_numpy(field).float()})
    moved, moved_label = (nib.load(tmp_path / "a" / "b" / f"{name}.nii.gz") for name in ("moved", "moved_label"))
    assert moved.get_data_dtype() == np.float32
    assert moved_label.get_data_dtype() == np.uint8
    x, y = np.meshgrid(np.arange(14.0), np.arange(11.0), indexing="ij")
    for z in range(2):
        where = np.stack([x, y]) + field[..., z]
        expected = map_coordinates(image[..., z], where, order=1, mode="nearest")
        np.testing.assert_allclose(moved.get_fdata()[..., z], expected, atol=0.05)
        nearest = [np.clip(np.round(w), 0, n - 1).astype(int) for w, n in zip(where, (14, 11))]
        np.testing.assert_array_equal(moved_label.get_fdata()[..., z], label[..., z][tuple(nearest)])
    for file in (moved, moved_label):
        np.testing.assert_allclose(file.affine, AFFINE, atol=1e-6)
        assert file.header.get_xyzt_units()[0] == "mm"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reference = tmp_path / "moved.nii.gz", MetaTensor(torch.zeros(1, 2, 2, 2))
    write_nifti(path, np.zeros((2, 2, 2), np.float32), reference)
    before = path.read_bytes()

    def fail(image: nib.Nifti1Image, to: Path) -> None:
        Path(to).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_nifti(path, np.ones((2, 2, 2), np.float32), reference)
    assert path.read_bytes() == before
