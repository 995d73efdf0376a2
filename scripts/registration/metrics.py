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

"""Figures of one registered subject: overlap, surface distance, intensity error and folding, over its whole stack of
slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scripts.registration.fields import jacobian_determinant, restack, unstack
from torch import Tensor

DEFINITIONS = {
    "protocol": "per subject over the stack, structures on whole slices, mse and folding on the central crop; mean "
    "and population standard deviation over subjects; of volume errors also the mean of their absolute values",
    "dice": "mean over the structures that both labels hold, in percent; one that either lacks is left out",
    "dice_rv": "Dice of the right ventricle, label 1, in percent",
    "dice_myo": "Dice of the left ventricular myocardium, label 2, in percent",
    "dice_lv": "Dice of the left ventricular cavity, label 3, in percent",
    "hd95_mm": "mean over structures of MONAI's 95th percentile Hausdorff distance (larger of both directions), true "
    "spacing; a structure of which the warp leaves nothing has a Dice of 0 and no distance",
    "hd95_voxel": "mean over structures of the 95th percentile of both directed surface distances pooled, unit spacing, as hd95_mm",
    "volume_error_rv": "RV volume of the moved label less the fixed one's, in percent of the larger of the moving and "
    "fixed one's: from ED to ES, by how many points the ejection fraction of the moved label is too small "
    "(unregistered: that fraction itself)",
    "volume_error_lv": "the same of the LV cavity",
    "mse": "mean squared difference of moved and fixed image, each slice scaled min-max to [0, 1] over the crop, times 100",
    "folding_percent": "share of pixels with det(I + grad u) <= 0, central differences, in percent",
    "labels": "moved with nearest-neighbor interpolation",
}


def dice_percent(moved: np.ndarray, fixed: np.ndarray) -> float:
    """Dice overlap of two masks in percent; NaN where both are empty."""
    total = moved.sum() + fixed.sum()
    return 200.0 * np.logical_and(moved, fixed).sum() / total if total else float("nan")


def hd95_voxel(moved: np.ndarray, fixed: np.ndarray) -> float:
    """95th percentile of the directed surface distances of both masks pooled, in voxels (unit spacing); NaN where one
    is empty."""
    if not moved.any() or not fixed.any():
        return float("nan")
    a, b = get_mask_edges(moved, fixed)
    return float(np.percentile(np.concatenate([get_surface_distance(a, b), get_surface_distance(b, a)]), 95))


def hd95_mm(moved: np.ndarray, fixed: np.ndarray, spacing: Sequence[float]) -> float:
    """MONAI's 95 % Hausdorff distance of two masks (the larger direction), in the unit of `spacing`; NaN where one is
    empty."""
    if not moved.any() or not fixed.any():
        return float("nan")
    masks = (torch.from_numpy(mask)[None, None] for mask in (moved, fixed))
    return float(compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=list(spacing)))


def overlap(moved: np.ndarray, fixed: np.ndarray, labels: dict[str, int], spacing: Sequence[float]) -> dict[str, float]:
    """Dice and HD95 of two label maps (X, Y, Z), as `DEFINITIONS` has them.

    Args:
        moved: label map of integers.
        fixed: label map of the same shape.
        labels: name and value of each structure.
        spacing: voxel size in mm.
    """
    if moved.shape[-1] == 1:
        # In three dimensions all of a lone slice would be surface.
        moved, fixed, spacing = moved[..., 0], fixed[..., 0], spacing[:2]
    masks = {name: (moved == value, fixed == value) for name, value in labels.items()}
    scores = {f"dice_{name}": dice_percent(*pair) for name, pair in masks.items()}
    scores["dice"] = nan_mean(scores.values())
    scores["hd95_mm"] = nan_mean(hd95_mm(*pair, spacing) for pair in masks.values())
    scores["hd95_voxel"] = nan_mean(hd95_voxel(*pair) for pair in masks.values())
    return scores


def volume_error(moved: np.ndarray, fixed: np.ndarray, moving: np.ndarray) -> float:
    """Volume of a moved mask less the fixed one's, in percent of the larger of the moving and the fixed one's; NaN
    where both are empty."""
    largest = max(int(moving.sum()), int(fixed.sum()))
    return 100.0 * (int(moved.sum()) - int(fixed.sum())) / largest if largest else float("nan")


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN where there are none."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")


def mse_hundredfold(moved: Tensor, fixed: Tensor) -> float:
    """Mean squared difference of two images, times 100."""
    return 100.0 * (moved.double() - fixed.double()).square().mean().item()


def folding_percent(field: Tensor, region: tuple[slice, ...] = ()) -> float:
    """Share of voxels where a field (d, X, Y, Z), in voxels, has det(I + grad u) <= 0, in percent.

    Args:
        field: voxels, channel i along array axis i; where d = 2, derivatives are in-plane, slice by slice.
        region: slices of the two in-plane axes that are counted; derivatives are taken before the cut.
    """
    axes = len(field)
    determinant = restack(jacobian_determinant(unstack(field, axes)), axes)[region]
    return 100.0 * (determinant <= 0).double().mean().item()


def summarize(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and population standard deviation of each figure over subjects, of volume errors "mean_absolute", too; NaN left
    out (NaN where nothing is left)."""
    summary = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows], dtype=float)
        values = values[~np.isnan(values)]
        mean, std = (float(values.mean()), float(values.std())) if len(values) else (float("nan"), float("nan"))
        summary[key] = {"mean": mean, "std": std}
        if key.startswith("volume_error"):
            summary[key]["mean_absolute"] = float(np.abs(values).mean()) if len(values) else float("nan")
    return summary
