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

"""Pictures of a registered pair. Matplotlib is imported where it is used, so that training does without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from scripts.registration.fields import jacobian_determinant, warp_stack


class PairFigure:
    """Draws the middle slice of an evaluator's first case to `<output_dir>/registration.png`.

    Args:
        output_dir: folder of the picture.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.path = Path(output_dir) / "registration.png"

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        batch, output = engine.state.batch[0], engine.state.output[0]
        field = torch.as_tensor(output["pred"]).cpu().float()
        moving, fixed = (torch.as_tensor(batch[key]).cpu().float() for key in ("moving_image", "fixed_image"))
        moved, z = warp_stack(moving, field), field.shape[-1] // 2
        images = [image[0, ..., z].numpy() for image in (moving, fixed, moved)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draw_pair(*images, field[:2, ..., z].numpy(), self.path, title=str(batch["case"]))


def color_wheel(field: np.ndarray, largest: float) -> np.ndarray:
    """RGB (X, Y, 3) of a field (2, X, Y): direction as hue, length as saturation, white where nothing moves."""
    from matplotlib.colors import hsv_to_rgb

    hue = (np.arctan2(field[1], field[0]) / (2 * np.pi)) % 1.0
    length = np.clip(np.hypot(*field) / max(largest, 1e-6), 0, 1)
    return hsv_to_rgb(np.stack([hue, length, np.ones_like(hue)], axis=-1))


def draw_pair(
    moving: np.ndarray, fixed: np.ndarray, moved: np.ndarray, field: np.ndarray, path: str | Path, title: str = ""
) -> None:
    """Eight panels: moving, fixed, moved, differences before and after, the field as a deformed grid and as colors, its
    Jacobian map.

    Args:
        moving: slice (X, Y).
        fixed: slice (X, Y).
        moved: slice (X, Y), the moving one pulled through the field.
        field: in-plane displacement (2, X, Y), pixels of the fixed slice, channel i along array axis i.
        path: PNG to write.
        title: of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.4), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    bright = float(np.percentile(fixed, 99.5))
    spread = float(np.percentile(np.abs(moving - fixed), 99.5)) or 1.0
    # First array axis to the right, second downwards.
    for axis, image, name in zip(axes, (moving, fixed, moved), ("moving", "fixed", "moved")):
        axis.imshow(image.T, cmap="gray", vmin=0, vmax=bright)
        axis.set_title(name)
    for axis, image, name in ((axes[4], moving, "moving"), (axes[5], moved, "moved")):
        shown = axis.imshow((image - fixed).T, cmap="RdBu_r", vmin=-spread, vmax=spread)
        axis.set_title(f"{name} - fixed, rms {np.sqrt(np.mean((image - fixed) ** 2)):.3g}")
    figure.colorbar(shown, ax=axes[5], shrink=0.8, label="intensity")

    step = max(min(fixed.shape) // 32, 1)
    x, y = np.meshgrid(*(np.arange(n) for n in fixed.shape), indexing="ij")
    x, y = x + field[0], y + field[1]
    axes[3].plot(x[::step].T, y[::step].T, color="tab:blue", linewidth=0.6)
    axes[3].plot(x[:, ::step], y[:, ::step], color="tab:blue", linewidth=0.6)
    axes[3].set(
        title="grid of the fixed slice at x + u(x)", aspect="equal", xlim=(0, x.shape[0] - 1), ylim=(y.shape[1] - 1, 0)
    )

    largest = float(np.hypot(*field).max())
    axes[6].imshow(color_wheel(field, largest).transpose(1, 0, 2))
    axes[6].set_title(f"displacement, up to {largest:.1f} pixels")
    wheel = axes[6].inset_axes((0.78, 0.02, 0.2, 0.2))
    u, v = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    disk = color_wheel(np.stack([u, v]), 1.0)
    disk[np.hypot(u, v) > 1] = 1.0
    wheel.imshow(disk.transpose(1, 0, 2))

    determinant = jacobian_determinant(torch.as_tensor(field)[None].double())[0].numpy()
    shown = axes[7].imshow(determinant.T, cmap="PuOr", vmin=0, vmax=2)
    axes[7].set_title(f"det(I + grad u), {determinant.min():.2f} to {determinant.max():.2f}")
    figure.colorbar(shown, ax=axes[7], shrink=0.8)
    for axis in (*axes, wheel):
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
