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

"""The report of a registered cine: one HTML page that opens offline, for a reader who has to decide whether to trust
the result.

matplotlib, Pillow and jinja2 are imported where they are used, so that training does without them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scripts.cardiac import function
from scripts.cardiac.cines import smooth_slices
from scripts.cardiac.registrations import CineRegistration, Registration
from scripts.cardiac.strain import summarize_strain
from scripts.files import let_go, one_by_one, write_text
from scripts.registration.fields import jacobian_determinant
from scripts.report.figures import color_wheel
from scripts.report.orientation import as_displayed, edge_letters
from scripts.report.subjects import CineSubject, PairSubject, subject_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
# Label values whose union is outlined where the first of them is there, and the color.
OUTLINES = {"LV cavity": ((3,), "#ff7a1a"), "myocardium": ((2, 3), "#ffe14d"), "RV": ((1,), "#4db8ff")}
# Color and marker of a curve.
STYLES = {
    "LV": ("#c2410c", "o"),
    "RV": ("#0b63b0", "s"),
    "circumferential": ("#7a1fa2", "v"),
    "longitudinal": ("#7a1fa2", "v"),
    "radial": ("#0f766e", "^"),
}
# What a ventricle's figures are called, by their keys behind "lv_" and "rv_".
MEASURES = {
    "edv_ml": "End-diastolic volume (EDV), mL",
    "esv_ml": "End-systolic volume (ESV), mL",
    "sv_ml": "Stroke volume (SV), mL",
    "ef_percent": "Ejection fraction (EF), %",
}
# Keys that do not explain themselves.
NAMES = {
    "inverse_error_mm_p95": "Inverse error (95 %), mm",
    "inverse_error_mm_max": "Inverse error (worst), mm",
    "unconverged_voxels": "Not inverted, voxels",
    "largest_displacement_mm": "Largest shift, mm",
    "mse_before": "Error before",
    "mse_after": "Error after",
    "step_mm_mean": "Step from frame to frame (mean), mm",
    "step_mm_max": "Step from frame to frame (largest), mm",
    "temporal_roughness_mm": "Step out of line (mean), mm",
    "jump_ratio": "Step out of line (largest), of the mean step",
    "jump_frame": "Where that is, frame",
    "closure_mm": "Step from the last frame to the first, mm",
    "closure_ratio": "Step from the last frame to the first, of the largest",
    "compressed_percent": "Compressed, %",
    "compressed_determinant": "Called compressed: Jacobian determinant under",
    "moved_mm": "Called still: largest shift under, mm",
    "mse_after_to_before": "Error after, of the error before",
    "mse_of_a_slice_to_median": "Error after in a slice, of the median slice",
    "share_of_the_largest_mse_before": "Called alike from the start: error before, of the largest",
    "unconverged_voxels_error": "Called not inverted: error over, voxels",
}
UNITS = {"ml": "mL", "g": "g", "percent": "%", "mm": "mm", "ms": "ms"}
ACRONYMS = ("lv", "rv", "ed", "es", "mse", "edv", "esv", "sv", "ef")
TILE = 320  # pixels, the side of a picture of the cine
TILES = 165  # of that size in a page; more are smaller
SHEET_TILE = 170  # pixels, the side of a picture where all slices are shown
MARGIN = 12.0  # mm around a labeled heart
HEART = 150.0  # mm, the side of what is shown without a label


@dataclass(frozen=True)
class View:
    """What is shown of a cine."""

    frame: int
    """End systole, or where there is none the frame with the largest mean displacement; counted from 0."""
    slices: list[tuple[int, str]]
    """Index and title, up to three."""
    box: tuple[slice, slice]
    """In-plane crop around the heart."""
    extent: tuple[float, float]
    """Of the crop, in mm."""
    window: tuple[float, float]
    """Intensities shown black and white."""
    letters: tuple[str, str, str, str]
    """Beyond the left, right, upper and lower edge, `orientation.edge_letters`."""


def write_report(path: str | Path, registration: Registration, parameters: Mapping[str, str]) -> Path:
    """Write the report as one self-contained HTML page; the whole file or none.

    What depends on a label (contours, volumes, function, strain) is left out where there is none.

    Args:
        path: HTML file to write; its folder is made.
        registration: what to draw.
        parameters: versions and options, shown as they are.

    Returns:
        `path`.
    """
    path = Path(path)
    page = render_page(registration, parameters)
    write_text(path, page)
    return path


def render_page(registration: Registration, parameters: Mapping[str, str]) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    r = as_displayed(registration)
    cine, view, subject = r.cine, choose_view(r), subject_of(r)
    labeled, many = r.labels is not None and bool(np.any(r.labels)), cine.frames > 1
    measured = labeled and many and cine.is_stack
    volumes = function.volumes(r.labels, cine.spacing) if measured else {}
    volumes = {name: volumes[name.lower()] for name in ("LV", "RV") if name.lower() in volumes}
    strains = strain_curves(subject.strain, cine.frames) if labeled and many else {}
    peaks = summarize_strain(subject.strain) if strains else {}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template(subject.template).render(
        cine=cine,
        registration=r,
        oriented=any(view.letters),
        verdict=r.quality.get("verdict") or [],
        grade=r.quality.get("grade"),
        **function_tables(subject.function if labeled else {}, peaks),
        **_make_players(subject, view),
        sheet=_make_sheet(subject, view),
        outlines={
            name: color for name, (values, color) in OUTLINES.items() if labeled and (r.labels == values[0]).any()
        },
        shown=r.name_image(view.frame),
        differences=_figure_uri(_draw_differences(r, view)) if subject.has_motion else None,
        field=_figure_uri(draw_field(r, view)) if subject.has_motion else None,
        volume_chart=_figure_uri(_draw_curves(r, volumes, "volume, mL")) if volumes else None,
        strain_chart=_figure_uri(_draw_curves(r, strains, "global strain, %")) if strains else None,
        has_peaks=bool(peaks),
        quality=_frame_table(r.quality.get("frames") or [], subject.numbered),
        cycle=_name_values(flatten(r.quality.get("cycle") or {})),
        thresholds=_name_values(flatten(r.quality.get("thresholds") or {})),
        parameters=parameters,
    )


def choose_view(registration: Registration) -> View:
    """Frame, slices and crop: around the label in all frames, otherwise around what beats."""
    r, cine = registration, registration.cine
    spacing = cine.spacing[:2]
    named = r.labels is not None and bool(np.any(r.labels))
    if named:
        heart = (r.label > 0) | (r.labels > 0).any(axis=-1)
    else:
        heart = np.zeros(cine.image.shape[:3], bool)
        heart[beating_box(cine.image, r.fixed, spacing)] = True
    z = np.flatnonzero(heart.any(axis=(0, 1)))
    picks = [int(z[i]) for i in sorted({int((2 * k + 1) * len(z) / 6) for k in range(3)})]
    area = heart.sum(axis=(0, 1))
    if area[picks[0]] < area[picks[-1]] and named:
        picks.reverse()
    places = ("basal, ", "mid, ", "apical, ") if named and len(picks) == 3 else ("",) * len(picks)
    bounds = []
    for axis, step in enumerate(spacing):
        inside = np.flatnonzero(heart.any(axis=(1 - axis, 2)))
        margin = math.ceil(MARGIN / step) if named else 0
        bounds.append(slice(int(max(inside[0] - margin, 0)), int(min(inside[-1] + margin + 1, heart.shape[axis]))))
    box = (bounds[0], bounds[1])
    window = np.percentile(r.fixed[(*box, picks)], (0.5, 99.5))
    motion = [np.hypot(u[0] * spacing[0], u[1] * spacing[1])[box].mean() for u in one_by_one(r.fields)]
    return View(
        frame=subject_of(r).frame_beside(motion),
        slices=[(i, f"{place}slice {i + 1} of {heart.shape[2]}") for i, place in zip(picks, places)],
        box=box,
        extent=tuple((b.stop - b.start) * step for b, step in zip(box, spacing)),
        window=(float(window[0]), float(max(window[1], window[0] + 1e-6))),
        letters=edge_letters(cine.affine),
    )


def beating_box(image: NDArray, fixed: NDArray, spacing: Sequence[float]) -> tuple[slice, slice]:
    """A window of `HEART` mm, or what the image has of it, around what varies most over time in the mean of all slices.

    Args:
        image: (X, Y, Z, T).
        fixed: (X, Y, Z), which counts as one frame more.
        spacing: pixel size in mm, (2,).
    """
    sigma = [HEART / 12 / s for s in spacing]  # that of a wall and its motion
    slices = zip(smooth_slices(image), smooth_slices(fixed[..., None]))
    varies = np.mean([np.concatenate(pair, axis=-1).std(axis=-1) for pair in slices], axis=0)
    spread = ndimage.gaussian_filter(varies, sigma)
    parts, count = ndimage.label(spread > 0.5 * spread.max())
    # A heart is larger than a vessel or a bowel that varies as much.
    largest = parts == 1 + np.bincount(parts.flat)[1:].argmax() if count else np.ones_like(parts)
    center, halves = ndimage.center_of_mass(spread * largest + 1e-9), [HEART / s / 2 for s in spacing]
    starts = [min(max(round(c - h), 0), max(n - round(2 * h), 0)) for c, h, n in zip(center, halves, parts.shape)]
    return slice(starts[0], starts[0] + round(2 * halves[0])), slice(starts[1], starts[1] + round(2 * halves[1]))


def _make_players(subject: CineSubject | PairSubject, view: View) -> dict[str, Any]:
    """Stacks of pictures to loop over, as acquired and registered, and what they are called."""
    r, names = subject.registration, subject.names
    label = None if r.label is None else r.label[..., None]
    rows = {"acquired": (subject.play(r.cine.image), r.labels), "registered": (subject.play(r.moved), label)}
    if len(names) == 1:
        del rows["registered"]

    side = TILE * min(math.sqrt(TILES / (len(names) * len(view.slices) * len(rows))), 1)

    def draw_stack(images: NDArray, labels: NDArray | None, z: int) -> list[str]:
        outlines = [None if labels is None else labels[(*view.box, z, t % labels.shape[-1])] for t in range(len(names))]
        tiles = [draw_tile(images[(*view.box, z, t)], outline, view, side, True) for t, outline in enumerate(outlines)]
        let_go(images)
        return tiles

    players = {kind: [(title, draw_stack(*row, z)) for z, title in view.slices] for kind, row in rows.items()}
    return {"players": players, "names": names, "start": subject.start, "interval": subject.interval}


def _make_sheet(subject: CineSubject | PairSubject, view: View) -> list[tuple[str, list[str]]]:
    """Every slice of the fixed image and of what is shown beside it, with outlines: titles and pictures."""
    sheet = []
    for title, image, label in subject.sheet(view.frame):
        tiles = [
            draw_tile(image[(*view.box, z)], None if label is None else label[(*view.box, z)], view, SHEET_TILE)
            for z in range(image.shape[2])
        ]
        sheet.append((title, tiles))
    return sheet


def draw_tile(image: NDArray, label: NDArray | None, view: View, side: float, letters: bool = False) -> str:
    """A cropped slice (X, Y), first axis to the right, with the outlines of its structures and the letters of its
    edges, as data URI.

    Its proportions are those in mm, its area that of a square whose side is given in pixels.
    """
    from contourpy import contour_generator
    from PIL import Image, ImageDraw, ImageFont

    low, high = view.window
    gray = (255 * np.clip((image.T - low) / (high - low), 0, 1)).astype(np.uint8)
    size = [max(round(side * length / math.sqrt(math.prod(view.extent))), 1) for length in view.extent]
    # Drawn twice as large, so that lines are smooth.
    tile = Image.fromarray(gray).resize((2 * size[0], 2 * size[1]), Image.Resampling.BICUBIC).convert("RGB")
    if label is not None:
        draw, scale = ImageDraw.Draw(tile), np.array(tile.size) / image.shape
        for values, color in OUTLINES.values():
            if not (label == values[0]).any():
                continue
            # Smoothed a little: the steps between voxels are no anatomy.
            mask = ndimage.gaussian_filter(np.pad(np.isin(label.T, values), 1).astype(float), 0.7)
            for line in contour_generator(z=mask).lines(0.5):
                draw.line([tuple(point) for point in (line - 0.5) * scale], fill=color, width=4, joint="curve")
    if letters:
        style = {"fill": "white", "stroke_fill": "black", "stroke_width": 2, "font": ImageFont.load_default(26)}
        (width, height), near = tile.size, 6
        places = {"lm": (near, height / 2), "rm": (width - near, height / 2)}
        places |= {"mt": (width / 2, near), "mb": (width / 2, height - near)}
        for (anchor, place), text in zip(places.items(), view.letters):
            ImageDraw.Draw(tile).text(place, text, anchor=anchor, **style)
    buffer = io.BytesIO()
    tile.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=75, subsampling=0, optimize=True)
    return _data_uri("jpeg", buffer)


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    """A picture to put into a page."""
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure_uri(figure: Figure) -> str:
    """A figure as PNG in a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return _data_uri("png", buffer)


def _make_panels(view: View, titles: list[str]) -> tuple[Figure, NDArray]:
    """Axes (slices, titles) without ticks."""
    from matplotlib.figure import Figure

    height = len(view.slices) * (9.6 / len(titles) * view.extent[1] / view.extent[0] + 0.3) + 0.4
    figure = Figure(figsize=(11, min(height, 14)), layout="constrained")
    axes = figure.subplots(len(view.slices), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=12)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, (_, title) in zip(axes[:, 0], view.slices):
        axis.set_ylabel(title, fontsize=11)
    return figure, axes


def show(axis: Axes, picture: NDArray, view: View, **options: Any) -> Any:
    """A cropped slice (X, Y) or (X, Y, 3) in mm, first axis to the right, second downwards."""
    width, height = view.extent
    return axis.imshow(picture.swapaxes(0, 1), extent=(0, width, height, 0), **options)


def _draw_differences(registration: Registration, view: View) -> Figure:
    """Reference, the frame shown beside it, and their difference before and after registration on one scale."""
    r, (x, y), picks = registration, view.box, [z for z, _ in view.slices]
    fixed, moving, moved = (image[x, y] for image in (r.fixed, r.cine.image[..., view.frame], r.moved[..., view.frame]))
    spread = float(np.percentile(np.abs(moving - fixed)[..., picks], 99.5)) or 1.0
    names = (r.fixed_name, r.name_image(view.frame).partition(",")[0])
    figure, axes = _make_panels(view, [*names, "before: moving − fixed", "after: moved − fixed"])
    for row, z in zip(axes, picks):
        for axis, image in zip(row, (fixed, moving)):
            show(axis, image[..., z], view, cmap="gray", vmin=view.window[0], vmax=view.window[1])
        for axis, image in zip(row[2:], (moving, moved)):
            difference = image[..., z] - fixed[..., z]
            shown = show(axis, difference, view, cmap="RdBu_r", vmin=-spread, vmax=spread)
            axis.set_xlabel(f"rms {np.sqrt(np.mean(difference**2)):.3g}", fontsize=10)
    figure.colorbar(shown, ax=axes[:, 3], shrink=0.8, label="intensity")
    return figure


def draw_field(registration: Registration, view: View) -> Figure:
    """Deformed grid, displacement as colors, and the Jacobian determinant with folds marked, of the frame shown beside
    the reference."""
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
        show(
            row[0], r.cine.image[(*view.box, z, view.frame)], view, cmap="gray", vmin=low, vmax=low + 1.4 * (high - low)
        )
        a, b = x + field
        row[0].plot(a[:: steps[0]].T, b[:: steps[0]].T, color="#4db8ff", linewidth=0.8)
        row[0].plot(a[:, :: steps[1]], b[:, :: steps[1]], color="#4db8ff", linewidth=0.8)
        row[0].set(xlim=(0, view.extent[0]), ylim=(view.extent[1], 0))
        show(row[1], color_wheel(field, largest), view)
        determinant = determinant[view.box]
        shown = show(row[2], determinant, view, cmap="PuOr", vmin=0, vmax=2)
        folds = np.argwhere(determinant <= 0)
        row[2].scatter(*(((folds + 0.5) * spacing).T), s=16, color="#e6007e", edgecolor="black", linewidth=0.5)
        words = f"folds in {len(folds)} voxels (pink)" if len(folds) else "no fold"
        row[2].set_xlabel(f"{determinant.min():.2f} to {determinant.max():.2f}, {words}", fontsize=10)
    wheel = axes[0, 1].inset_axes((0.79, 0.02, 0.2, 0.2))
    u = np.stack(np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), indexing="ij"))
    wheel.imshow(np.dstack([color_wheel(u, 1.0), np.hypot(*u) <= 1]).swapaxes(0, 1))
    wheel.axis("off")
    figure.colorbar(shown, ax=axes[:, 2], shrink=0.8, label="area there / area in the reference")
    return figure


def _draw_curves(registration: CineRegistration, curves: Mapping[str, NDArray], label: str) -> Figure:
    """Curves over the cycle in ms, or over frames where the time is not known; end diastole and end systole marked."""
    from matplotlib.figure import Figure

    r = registration
    known = r.cine.times is not None
    time = r.cine.times.mean(axis=0) if known else np.arange(1, r.cine.frames + 1)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(time, values, color=STYLES[name][0], marker=STYLES[name][1], markersize=4, linewidth=2, label=name)
    for key, name in (("ed_frame", "ED"), ("es_frame", "ES")):
        number = r.function.get(key)
        if isinstance(number, (int, np.integer)) and 1 <= number <= r.cine.frames:
            axis.axvline(time[number - 1], color="#6b7280", linewidth=1, linestyle="--", zorder=0)
            axis.annotate(name, (time[number - 1], 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    axis.set(xlabel="time after the trigger, ms" if known else "frame", ylabel=label)
    axis.axhline(0, color="#6b7280", linewidth=1, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e7eb")
    axis.legend(frameon=False)
    return figure


def strain_curves(rows: Iterable[Mapping[str, Any]], frames: int) -> dict[str, NDArray]:
    """Global strain in percent of every frame (T,), NaN where a frame has none, from ratios in rows of
    `strain.measure_strain`."""
    curves = {}
    rows = [row for row in rows if row["region"] == "global"]
    for name in ("circumferential", "longitudinal", "radial"):
        found = {row["frame"]: row[name] for row in rows if row.get(name) is not None}
        if found:
            curves[name] = 100 * np.array([found.get(t, np.nan) for t in range(1, frames + 1)], float)
    return curves


def function_tables(values: Mapping[str, Any], peaks: Mapping[str, Any]) -> dict[str, Any]:
    """The ventricles side by side, what is not of one ventricle, what the figures mean, and what to beware of."""
    figures = flatten({key: value for key, value in values.items() if key not in ("definitions", "caveat")})
    sides = [side for side in ("lv", "rv") if any(f"{side}_{key}" in figures for key in MEASURES)]
    rows = [[figures.pop(f"{side}_{key}", None) for side in sides] for key in MEASURES]
    for name in ("circumferential", "longitudinal", "radial"):
        if f"peak_{name}" in peaks:
            figures[f"peak_global_{name}_strain_percent"] = 100 * peaks[f"peak_{name}"]
    return {
        "ventricles": [side.upper() for side in sides],
        "measures": [
            (name, [format_value(v) for v in row]) for name, row in zip(MEASURES.values(), rows) if set(row) - {None}
        ],
        "others": _name_values(figures),
        "definitions": _name_values(values.get("definitions") or {}),
        "caveat": values.get("caveat"),
    }


def _frame_table(rows: list[Mapping[str, Any]], numbered: bool = True) -> dict[str, Any]:
    """Columns and cells of the quality of each frame; a cell is its text and whether to look at it. A pair's one row has
    no number."""
    suspect = {
        "folding_percent": lambda value, row: value > 0,
        "jacobian_min": lambda value, row: value <= 0,
        "mse_after": lambda value, row: value > row.get("mse_before", math.inf) + 1e-6,
    }
    rows = [{key: value for key, value in flatten(row).items() if numbered or key != "frame"} for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for row in rows:
        row["cells"] = [
            (format_value(row.get(k)), row.get(k) is not None and k in suspect and suspect[k](row[k], row))
            for k in keys
        ]
    return {"columns": [describe(key) for key in keys], "rows": [row["cells"] for row in rows]}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by "_"; lists, which are curves, left out."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}_")
        elif not isinstance(value, (list, tuple, np.ndarray)):
            flat[f"{prefix}{key}"] = value
    return flat


def _name_values(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys in words and values as text."""
    return [(describe(key), format_value(value)) for key, value in values.items()]


def describe(key: str) -> str:
    """A key in words, its unit behind a comma."""
    words = key.split("_")
    name = " ".join(word.upper() if word in ACRONYMS else word for word in words if word not in UNITS)
    return NAMES.get(key) or ", ".join([name[:1].upper() + name[1:], *(UNITS[word] for word in words if word in UNITS)])


def format_value(value: Any) -> str:
    """A number with two or three significant digits, other values as they are."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if value is None or value != value:
        return "–"
    if not isinstance(value, (float, np.floating)) or math.isinf(value):
        return str(value)
    digits = 0 if abs(value) >= 1000 or value == 0 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", "−")
