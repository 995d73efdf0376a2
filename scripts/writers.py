"""What inference leaves on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from scripts.evaluation import warp_stack


class WriteMovedd(Transform):
    """Writes a registered case to `<output_dir>/<case>/`: `moved.nii.gz` and, where a label is there, `moved_label.nii.gz`.

    `moved` is the native moving image (fp32, linear), `moved_label` its label (nearest neighbor), both pulled through the field once
    and on the fixed image's grid, with its affine.

    Args:
        output_dir: folder of the cases.
        field: key of the in-plane field (2, X, Y, Z), voxels of the fixed grid.
    """

    def __init__(self, output_dir: str | Path, field: str = "pred") -> None:
        self.output_dir = Path(output_dir)
        self.field = field

    def __call__(self, data: Mapping) -> dict:
        folder, fixed = self.output_dir / data["case"], data["fixed_image"]
        folder.mkdir(parents=True, exist_ok=True)
        moved = warp_stack(data["moving_image"].cpu(), data[self.field])
        write_nifti(folder / "moved.nii.gz", moved[0].numpy().astype(np.float32), fixed)
        if "moving_label" in data:
            moved = warp_stack(data["moving_label"].cpu(), data[self.field], mode="nearest")
            write_nifti(folder / "moved_label.nii.gz", moved[0].round().numpy().astype(np.uint8), fixed)
        return dict(data)


def write_nifti(path: Path, array: np.ndarray, reference: MetaTensor) -> None:
    """Write an array (X, Y, Z) with the affine of `reference`, in mm; the whole file or none."""
    image = nib.Nifti1Image(array, torch.as_tensor(reference.affine).cpu().double().numpy())
    image.header.set_xyzt_units("mm")
    temporary = path.with_name(f".part_{path.name}")
    nib.save(image, temporary)
    os.replace(temporary, path)
