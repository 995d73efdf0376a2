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

"""Panels of a few slices: differences before and after registration, and the field.

matplotlib is imported where it is used, so that training does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.cardiac.registrations import Registration
from scripts.registration.fields import jacobian_determinant
from scripts.report.figures import color_wheel
from scripts.report.tiles import SCALE_BAR
from scripts.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _make_panels(view: View, titles: list[str]) -> tuple[Figure, NDArray]:
    """Axes (slices, titles) without ticks."""
    from matplotlib.figure import Figure

    height = len(view.slices) * (6.7 / len(titles) * view.extent[1] / view.extent[0] + 0.3) + 0.4
    figure = Figure(figsize=(8, min(height, 11)), layout="constrained")
    axes = figure.subplots(len(view.slices), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, (_, title) in zip(axes[:, 0], view.slices):
        axis.set_ylabel(title, fontsize=10)
    return figure, axes


def _draw_bar(axis: Axes, view: View) -> None:
    """A bar of `SCALE_BAR` with its length, at the lower left of a picture of a slice."""
    from matplotlib.patheffects import withStroke

    below = view.extent[1] - 5
    style = {"color": "white", "path_effects": [withStroke(linewidth=3, foreground="black")], "zorder": 5}
    axis.plot((4, 4 + SCALE_BAR), (below, below), linewidth=2, **style)
    axis.text(4, below - 2, f"{SCALE_BAR:.0f} mm", va="bottom", fontsize=9, **style)


def _show(axis: Axes, picture: NDArray, view: View, **options: Any) -> Any:
    """A cropped slice (X, Y) or (X, Y, 3) in mm, first axis to the right, second downwards."""
    width, height = view.extent
    return axis.imshow(picture.swapaxes(0, 1), extent=(0, width, height, 0), **options)


def draw_differences(registration: Registration, view: View) -> Figure:
    """Reference, the frame shown beside it, and their difference before and after registration on one scale."""
    r, (x, y), picks = registration, view.box, [z for z, _ in view.slices]
    fixed, moving, moved = (image[x, y] for image in (r.fixed, r.cine.image[..., view.frame], r.moved[..., view.frame]))
    spread = float(np.percentile(np.abs(moving - fixed)[..., picks], 99.5)) or 1.0
    names = (r.fixed_name, r.name_image(view.frame).partition(",")[0])
    figure, axes = _make_panels(view, [*names, "before: moving − fixed", "after: moved − fixed"])
    for row, z in zip(axes, picks):
        for axis, image in zip(row, (fixed, moving)):
            _show(axis, image[..., z], view, cmap="gray", vmin=view.window[0], vmax=view.window[1])
        for axis, image in zip(row[2:], (moving, moved)):
            difference = image[..., z] - fixed[..., z]
            shown = _show(axis, difference, view, cmap="RdBu_r", vmin=-spread, vmax=spread)
            axis.set_xlabel(f"rms {np.sqrt(np.mean(difference**2)):.3g}", fontsize=9)
    _draw_bar(axes[0, 0], view)
    figure.colorbar(shown, ax=axes[:, 3], shrink=0.8, label="intensity", extend="both")
    return figure


def draw_field(registration: Registration, view: View) -> Figure:
    """Deformed grid, displacement as colors, and the Jacobian determinant with folds marked, of the frame shown beside
    the reference; all of motion within slices alone."""
    r, picks = registration, [z for z, _ in view.slices]
    spacing = np.array(r.cine.spacing[:2])
    fields = r.fields[view.frame, :2][..., picks]
    crop = np.moveaxis(fields[(slice(None), *view.box)] * spacing[:, None, None, None], -1, 0)
    largest = float(np.hypot(crop[:, 0], crop[:, 1]).max())
    determinants = jacobian_determinant(torch.as_tensor(np.moveaxis(fields, -1, 0).copy()).double()).numpy()
    titles = [
        f"deformed grid, {r.name_image(view.frame).partition(',')[0]}",
        f"displacement, up to {largest:.1f} mm",
        "Jacobian determinant",
    ]
    figure, axes = _make_panels(view, titles)
    x = np.stack(np.meshgrid(*((np.arange(n) + 0.5) * s for n, s in zip(crop.shape[2:], spacing)), indexing="ij"))
    steps = [max(round(5 / s), 1) for s in spacing]
    low, high = view.window
    for row, z, field, determinant in zip(axes, picks, crop, determinants):
        _show(
            row[0], r.cine.image[(*view.box, z, view.frame)], view, cmap="gray", vmin=low, vmax=low + 1.4 * (high - low)
        )
        a, b = x + field
        row[0].plot(a[:: steps[0]].T, b[:: steps[0]].T, color="#4db8ff", linewidth=0.8)
        row[0].plot(a[:, :: steps[1]], b[:, :: steps[1]], color="#4db8ff", linewidth=0.8)
        row[0].set(xlim=(0, view.extent[0]), ylim=(view.extent[1], 0))
        _show(row[1], color_wheel(field, largest), view)
        determinant = determinant[view.box]
        shown = _show(row[2], determinant, view, cmap="PuOr", vmin=0, vmax=2)
        folds = np.argwhere(determinant <= 0)
        row[2].scatter(*(((folds + 0.5) * spacing).T), s=16, color="#e6007e", edgecolor="black", linewidth=0.5)
        words = f"folds in {len(folds)} voxels (pink)" if len(folds) else "no fold"
        row[2].set_xlabel(f"{determinant.min():.2f} to {determinant.max():.2f}, {words}", fontsize=9)
    _draw_bar(axes[0, 0], view)
    wheel = axes[0, 1].inset_axes((0.79, 0.02, 0.2, 0.2))
    u = np.stack(np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), indexing="ij"))
    wheel.imshow(np.dstack([color_wheel(u, 1.0), np.hypot(*u) <= 1]).swapaxes(0, 1))
    wheel.axis("off")
    figure.colorbar(shown, ax=axes[:, 2], shrink=0.8, label="area there / area in the reference", extend="both")
    return figure
