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

"""How far strain and ejection fraction of registered phantoms are from the truth.

    python -m benchmarks.strain [--subjects 6] [--size 128] [--depth] [--native] [--checkpoint models/model.pt] [--json
    strain.json]

Each phantom's cine is registered by the inference workflow to its first frame. At end systole, strain by the exact field
and by the registered one are compared with the phantom's closed form, and the ejection fraction of the carried label
with that of the phantom's own. With `--depth` the base descends, frames are segmented, and stacks are registered along
their axis, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scripts.api import ROOT, register_cine
from scripts.cardiac.cines import LABELS
from scripts.cardiac.function import measure_function
from scripts.cardiac.phantom import Phantom, write_phantom_dataset
from scripts.cardiac.segments import sector_map
from scripts.cardiac.strain import measure_strain
from scripts.devices import check_device
from scripts.errors import one_line
from tqdm import tqdm

from benchmarks.options import positive, writable
from benchmarks.setting import keep, processor, setting

# Directions of strain; fields with motion along the stack have the last one, too.
AXES = ("radial", "circumferential", "longitudinal")
# Slices of a phantom and the share of its long axis by which its base descends, in-plane and with depth.
STACKS = {False: (3, 0.0), True: (10, 0.15)}
FIBER = 2e-3  # mm
FIELDS = ("exact", "registered")


def fiber_strain(phantom: Phantom, label: NDArray, frame: int) -> dict[str, NDArray]:
    """Engineering strain of the myocardium of frame 1 in another frame, by mapping a short fiber through the phantom's
    closed form: no tensor, and no difference of voxels.

    Args:
        phantom: what moves.
        label: of frame 1, (X, Y, Z).
        frame: counted from 1.

    Returns:
        By those of `AXES` along which the phantom moves, (X, Y, Z) each, NaN outside the myocardium.
    """
    axes = len(phantom.grid)
    spacing = np.array(phantom.spacing)
    strains = {name: np.full(label.shape, np.nan) for name in AXES[:axes]}
    for z in range(phantom.slices):
        wall = label[..., z] == LABELS["myo"]
        points = np.pad(np.argwhere(wall) * spacing[:2], ((0, 0), (0, 1)), constant_values=z * spacing[2])
        out = points[:, :2] - np.argwhere(label[..., z] == LABELS["lv"]).mean(axis=0) * spacing[:2]
        out = np.pad(out / np.linalg.norm(out, axis=1, keepdims=True), ((0, 0), (0, 1)))
        along = {"radial": out, "circumferential": out[:, [1, 0, 2]] * [-1, 1, 0], "longitudinal": [0.0, 0.0, 1.0]}
        for name, strain in strains.items():
            sides = (0.5 * FIBER * np.asarray(along[name]) * sign for sign in (1, -1))
            moved = [_carry(phantom, (points + side) / spacing, z, frame) * spacing[:axes] for side in sides]
            strain[wall, z] = np.linalg.norm(moved[0] - moved[1], axis=1) / FIBER - 1
    return strains


def _carry(phantom: Phantom, points: NDArray, z: int, frame: int) -> NDArray:
    """Where material points (N, 3) of slice z lie in a frame, (N, 2), or (N, 3) where the base descends; in voxels."""
    if phantom.shortening:
        return phantom.to_frame(points.T[:, :, None, None], frame)[:, :, 0, 0].T
    return phantom.to_frame(np.repeat(points.T[:2, :, None], phantom.slices, axis=2), frame)[..., z].T


def _compare(phantom: Phantom, cine: Path, label: Path, **options: object) -> dict[str, float]:
    """Figures of the closed form at end systole, and the errors by the exact and by the registered field."""
    found = register_cine(cine, reference_frame=1, reference_label=label, **options)
    es, reference = phantom.end_systole, phantom.label(1)
    fields = np.stack([phantom.field(frame, 1) for frame in range(1, phantom.frames + 1)])
    truth, sectors = fiber_strain(phantom, reference, es), sector_map(reference, found.cine.affine)
    measured = dict(zip(FIELDS, (measure_strain(fields, reference, found.cine.affine), found.strain)))
    row: dict[str, float] = {}
    for name in truth:
        row[f"{name}_global"] = float(np.nanmean(truth[name]))
        for kind, rows in measured.items():
            rows = [r for r in rows if r["frame"] == es]
            (whole,) = (r[name] for r in rows if r["sector"] is None)
            row[f"{name}_global_{kind}"] = abs(whole - row[f"{name}_global"])
            row[f"{name}_worst_sector_{kind}"] = max(
                abs(r[name] - truth[name][..., r["slice"] - 1][sectors[..., r["slice"] - 1] == r["sector"]].mean())
                for r in rows
                if r["sector"] is not None
            )
    labels = np.stack([phantom.label(frame) for frame in range(1, phantom.frames + 1)], axis=-1)
    ef, carried = (measure_function(each, found.cine.spacing)["lv_ef_percent"] for each in (labels, found.labels))
    return {**row, "lv_ef_percent": ef, "lv_ef_percent_registered": abs(ef - carried)}


def _print_table(rows: Sequence[Mapping[str, float]]) -> None:
    """Mean figure, and beside it mean and largest error by the exact and by the registered field."""
    print(f"{'end systole':<30}{'figure':>9}{'error by the exact':>22}{'by the registered field':>27}")
    print(f"{'':<30}{'mean':>9}{'mean':>14}{'worst':>8}{'mean':>19}{'worst':>8}")
    for name in AXES:
        for part in ("global", "worst_sector") if f"{name}_global" in rows[0] else ():
            _print_row(f"{name}_{part}", rows)
    _print_row("lv_ef_percent", rows)


def _print_row(name: str, rows: Sequence[Mapping[str, float]]) -> None:
    """A line of the table, a dash for what is not measured."""

    def cell(key: str, reduce: Callable[[NDArray], float]) -> str:
        return f"{reduce(np.array([row[key] for row in rows])):.4f}" if key in rows[0] else "–"

    exact, registered = (f"{name}_{kind}" for kind in FIELDS)
    print(
        f"{name.replace('_', ' '):<30}{cell(name, np.mean):>9}{cell(exact, np.mean):>14}{cell(exact, np.max):>8}"
        f"{cell(registered, np.mean):>19}{cell(registered, np.max):>8}"
    )


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, write the JSON; returns what it writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strain", description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=positive, default=6)
    parser.add_argument("--size", type=positive, default=128, help="pixels along both axes")
    parser.add_argument(
        "--native", action="store_true", help="leave the phantoms' pixels of 1 mm as they are for the network"
    )
    parser.add_argument(
        "--depth", action="store_true", help="ten slices, whose base descends by 15 %% of the axis, instead of three"
    )
    parser.add_argument("--frames", type=positive, default=6)
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)
    check_device(options.device)
    rows = []
    slices, shortening = STACKS[options.depth]
    with tempfile.TemporaryDirectory() as folder:
        size = (options.size, options.size)
        root = write_phantom_dataset(
            folder, max(options.subjects, 3), 1, size, slices, options.frames, shortening=shortening
        )
        for number in tqdm(range(1, options.subjects + 1), desc="phantoms", unit="phantom"):
            phantom = Phantom.random((1, number), size, slices, options.frames, shortening=shortening)
            stem = root / f"phantom{number:03d}" / f"phantom{number:03d}"
            cine, label = Path(f"{stem}_4d.nii.gz"), Path(f"{stem}_frame01_gt.nii.gz")
            settings = {"device": options.device, "checkpoint": options.checkpoint}
            settings |= {"working_spacing": False} if options.native else {}
            settings |= {} if options.depth else {"segmentation": "none"}
            rows.append(_compare(phantom, cine, label, **settings))
    _print_table(rows)
    words = sys.argv[1:] if argv is None else argv
    result = {**setting("benchmarks.strain", words, options, processor(options.device)), "rows": rows}
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
