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

"""A picture of a registered heartbeat: carried contours, the field at end systole, the volume curve.

python -m benchmarks.heartbeat --case sample/SC-HF-I-2 --figure docs/figures/heartbeat.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray
from scipy import ndimage
from scripts.api import register_cine
from scripts.cardiac.registrations import CineRegistration
from scripts.data.acdc import read_info
from scripts.report.orientation import as_displayed, display_orientation
from scripts.report.tiles import OUTLINES, SCALE_BAR

from benchmarks.options import writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Phases in the upper row, the reference first.
SHOWN = 5
MARGIN = 14  # pixels around the labeled heart
ARROWS = 4  # pixels between two arrows
LV = 3  # label of the cavity


def _read_case(case: Path) -> tuple[CineRegistration, NDArray]:
    """The cine of a subject in ACDC's layout, registered to its end diastole with the label drawn there, and the label (X,
    Y, Z) that was drawn at end systole."""
    phases = read_info(case / "Info.cfg")
    ed, es = (case / f"{case.name}_frame{int(phases[phase]):02d}_gt.nii.gz" for phase in ("ED", "ES"))
    cine = case / f"{case.name}_4d.nii.gz"
    registration = register_cine(cine, reference_frame=int(phases["ED"]), reference_label=ed, segmentation="none")
    return registration.voxels, np.asarray(nib.load(es).dataobj)


def draw_heartbeat(registration: CineRegistration, by_hand: NDArray, path: Path) -> None:
    """Draw contours that are carried through a heartbeat, the field at end systole, and the volume curve.

    Args:
        registration: of a cine with frame times, to its labeled end diastole.
        by_hand: label of end systole (X, Y, Z), for comparison.
        path: PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    fraction = 100 * (1 - np.sum(by_hand == LV) / np.sum(registration.label == LV))
    r = as_displayed(registration)
    by_hand = apply_orientation(by_hand, display_orientation(registration.cine.affine))
    labeled = np.flatnonzero((r.label > 0).any(axis=(0, 1)))
    z = labeled[len(labeled) // 3]
    box = _box(r.label[..., z])
    ed, es = r.reference - 1, r.function["es_frame"] - 1
    times = r.cine.times.mean(axis=0)

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.08, 1.2))
    upper.suptitle(
        f"Contours drawn once, at end diastole, and carried through the heartbeat (slice {z + 1} of {len(r.label.T)})",
        fontsize=13,
    )
    row = upper.subplots(1, SHOWN)
    for axis, t in zip(row, _phases(ed, es, r.cine.frames)):
        _show(axis, r, (*box, z, t))
        _outline(axis, r.label[(*box, z)] if t == ed else r.labels[(*box, z, t)])
        if t == es:
            axis.contour(by_hand[(*box, z)].T == LV, [0.5], colors=["white"], linewidths=1.2, linestyles="dashed")
        name = {ed: "end diastole, frame", es: "end systole, frame"}.get(t, "frame")
        axis.set_title(f"{name} {t + 1}, {times[t]:.0f} ms", fontsize=9)
    _draw_scale(row[0], r.cine.spacing[0])
    lines = [Line2D([], [], color=color, label=name) for name, (_, color) in OUTLINES.items() if name != "RV"]
    lines.append(Line2D([], [], color="0.5", linestyle="dashed", label="cavity by hand, for comparison (white)"))
    upper.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    left, right = lower.subfigures(1, 2, width_ratios=(1, 1.6))
    axis = left.subplots()
    _draw_field(axis, r, (*box, z, es))
    _draw_scale(axis, r.cine.spacing[0])
    _draw_curve(right.subplots(), r, times, fraction)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _phases(ed: int, es: int, frames: int) -> list[int]:
    """`SHOWN` frames over one cycle from end diastole on, end systole among them."""
    order = [(ed + step) % frames for step in range(frames)]
    at = order.index(es)
    places = [0, at // 2, at, at + (frames - at) // 3, at + 2 * (frames - at) // 3]
    return [order[place] for place in places]


def _box(label: NDArray) -> tuple[slice, slice]:
    """The labeled heart of a slice with a margin; the left one wider, for the right ventricle, which is not labeled."""
    (x0, y0), (x1, y1) = (edge(np.argwhere(label > 0), axis=0) for edge in (np.min, np.max))
    x0, y0 = max(x0 - 2 * MARGIN, 0), max(y0 - MARGIN, 0)
    return slice(int(x0), int(x1 + MARGIN)), slice(int(y0), int(y1 + MARGIN))


def _show(axis: Axes, r: CineRegistration, part: tuple) -> None:
    low, high = np.percentile(r.cine.image[part[:3]], (1, 99.7))
    axis.imshow(r.cine.image[part].T, cmap="gray", vmin=low, vmax=high, interpolation="bicubic")
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_scale(axis: Axes, pixel: float) -> None:
    """A bar of `SCALE_BAR` at the lower left of a slice whose pixels have a width in mm."""
    height, start = axis.get_ylim()[0], 3
    axis.plot([start, start + SCALE_BAR / pixel], [height - 3] * 2, color="white", linewidth=3, solid_capstyle="butt")
    axis.text(start, height - 5, f"{SCALE_BAR:.0f} mm", color="white", fontsize=8, va="bottom")


def _outline(axis: Axes, label: NDArray) -> None:
    for values, color in OUTLINES.values():
        if (label == values[0]).any():
            # Smoothed a little: the steps between voxels are no anatomy.
            mask = ndimage.gaussian_filter(np.isin(label.T, values).astype(float), 0.7)
            axis.contour(mask, [0.5], colors=[color], linewidths=1.6)


def _draw_field(axis: Axes, r: CineRegistration, part: tuple) -> None:
    """Where the heart's points of end diastole are at end systole, as arrows in their true length."""
    x, y, z, t = part
    _show(axis, r, (x, y, z, r.reference - 1))
    u = r.fields[t][:, x, y, z]
    i, j = np.meshgrid(*(np.arange(0, n, ARROWS) for n in u.shape[1:]), indexing="ij")
    u = u[:, i, j]
    length = np.hypot(u[0] * r.cine.spacing[0], u[1] * r.cine.spacing[1])
    moving = length > 0.5
    arrows = axis.quiver(
        i[moving],
        j[moving],
        u[0][moving],
        u[1][moving],
        length[moving],
        cmap="plasma",
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.007,
        clim=(0, length.max()),
    )
    axis.figure.colorbar(arrows, ax=axis, label="displacement, mm", shrink=0.85)
    axis.set_title(f"Displacement, frame {r.reference} to {t + 1}", fontsize=11)


def _draw_curve(axis: Axes, r: CineRegistration, times: NDArray, by_hand: float) -> None:
    volume, es = r.function["lv_volume_ml"], r.function["es_frame"] - 1
    ed = r.reference - 1  # where it was drawn, as the other one was
    axis.plot(times, volume, "o-", color=OUTLINES["LV cavity"][1], markersize=4)
    for t, name, side in ((ed, "EDV", 1), (es, "ESV", -1)):
        axis.annotate(
            f"{name} {volume[t]:.0f} mL",
            (times[t], volume[t]),
            xytext=(0, 9 * side),
            textcoords="offset points",
            ha="center",
            va="bottom" if side > 0 else "top",
        )
    fraction = 100 * (1 - volume[es] / volume[ed])
    axis.set_title(f"LV volume: ejection fraction {fraction:.0f} % (by hand {by_hand:.0f} %)", fontsize=11)
    axis.set(xlabel="time after the trigger, ms", ylabel="volume, mL")
    axis.margins(x=0.06, y=0.2)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Command line of `draw_heartbeat`."""
    parser = argparse.ArgumentParser(description=draw_heartbeat.__doc__.splitlines()[0])
    parser.add_argument("--case", type=Path, required=True, help="subject in ACDC's layout, with a cine and a label")
    parser.add_argument("--figure", type=writable, required=True, help="PNG to write")
    options = parser.parse_args()
    draw_heartbeat(*_read_case(options.case), options.figure)


if __name__ == "__main__":
    main()
