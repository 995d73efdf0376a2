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

"""Strain of simulated DENSE images against the strain that they were simulated with.

    python -m benchmarks.dense --dataset_dir DIR [--checkpoint models/model.pt] [--json dense.json]

DIR holds `xcat_1.npz` and `phantom_1.npz` of DENSE-Sim (Barbaroux et al., JCMR 27:101866, 2025): `phase_x`, `phase_y` and
`magnitude` of T frames and the `mask` of the myocardium before them and in each, and `Ecc` and `Err` of the first mask's
voxels. Global strain is measured twice by `scripts.cardiac.strain`: from the displacement that the phases tell, and from
the magnitudes as the inference workflow registers them to their first and to their last frame.

A phase tells where the tissue that is in a voxel now came from, in mm: x - X = phase / (2 pi ke). So the displacement
refers to the frame's own voxels (Eulerian); strain refers to the first mask (Lagrangian), as the references do, which
are Green's strain E = (F'F - I) / 2: a fiber's engineering strain is sqrt(1 + 2 E) - 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import binary_dilation, binary_fill_holes
from scipy.spatial import cKDTree
from scripts.api import ROOT, register_cine
from scripts.cardiac.cines import LABELS
from scripts.cardiac.strain import measure_strain
from scripts.devices import check_device
from scripts.errors import InputError, one_line
from scripts.files import write_json

from benchmarks.options import writable
from benchmarks.setting import processor, setting

CASES = {"xcat": "xcat_1.npz", "annular": "phantom_1.npz"}
FIELD_OF_VIEW = 224.0  # mm, along both axes
# Of the thin-plate splines through noisy displacements. Mean differences of circumferential strain stay under 0.007 at
# any smoothing from 0 to 20.
NEIGHBORS, SMOOTHING = 30, 0.5
KEYS = ("phase_x", "phase_y", "magnitude", "mask", "Ecc", "Err", "ke")
STRAINS = {"circumferential": "Ecc", "radial": "Err"}


def read_case(path: Path) -> dict[str, NDArray]:
    """The arrays of a file, images as (T, X, Y), their first axis along the phase's x.

    Raises:
        InputError: naming a file that is not there or lacks an array.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a folder with {' and '.join(CASES.values())}.")
    with np.load(path) as file:
        if missing := set(KEYS) - set(file):
            raise InputError(f"{path}: lacks {', '.join(sorted(missing))}; give a file of DENSE-Sim.")
        return {key: file[key].swapaxes(1, 2) if file[key].ndim == 3 else file[key] for key in KEYS}


def tissue_fields(phases: NDArray, masks: NDArray, wavelength: float) -> NDArray:
    """Where the first mask's tissue lies in each frame, from the phases of that frame's voxels.

    A displacement is known but for whole wavelengths: of these, the nearest to the displacement of the frame before
    at the nearest voxel, which was none in the first mask.

    Args:
        phases: (T, 2, X, Y) in radians, wrapped; channel i is of the displacement along axis i.
        masks: (T + 1, X, Y) of the myocardium, the first before the first frame.
        wavelength: of a turn of the phase, in pixels.

    Returns:
        Fields (T, 2, X, Y, 1) in pixels, pull direction, on the first mask and its neighbors; 0 elsewhere.
    """
    near = binary_dilation(masks[0], np.ones((3, 3)))
    fields = np.zeros((*phases.shape, 1))
    before, known = np.argwhere(masks[0]), np.zeros((masks[0].sum(), 2))
    for field, phase, mask in zip(fields, phases, masks[1:]):
        places = np.argwhere(mask)
        u = phase[:, mask].T * wavelength / (2 * np.pi)
        expected = known[cKDTree(before).query(places)[1]]
        u += wavelength * np.round((expected - u) / wavelength)
        spline = RBFInterpolator(places - u, u, neighbors=NEIGHBORS, smoothing=SMOOTHING)
        field[:, near, 0] = spline(np.argwhere(near)).T
        before, known = places, u
    return fields


def wall_label(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The label (X, Y, 1) of a mask of the myocardium: what it encloses is the LV cavity."""
    label = np.where(binary_fill_holes(mask), LABELS["lv"], 0)
    return np.where(mask, LABELS["myo"], label).astype(np.uint8)[..., None]


def engineering(green: NDArray) -> NDArray:
    """Engineering strain of a fiber from Green's strain along it, both ratios."""
    return np.sqrt(np.maximum(1 + 2 * green.astype(float), 0)) - 1


def compare(rows: Sequence[Mapping], references: Mapping[str, NDArray], frame: int | None = None) -> dict[str, dict]:
    """Global strain against the reference's.

    Args:
        rows: of `measure_strain`.
        references: engineering strain of each voxel by the names of strain, (T, N).
        frame: to which the rows' strain is relative, counted from 0; None is the first mask.

    Returns:
        By the names of strain: mean and largest absolute difference over frames, both peaks, and both curves.
    """
    found = {}
    for name, reference in references.items():
        ratios = 1 + reference if frame is None else (1 + reference) / (1 + reference[frame])
        expected = ratios.mean(axis=1) - 1
        curve = np.array([row[name] for row in rows if row["region"] == "global"])
        peak = np.argmin if name == "circumferential" else np.argmax
        found[name] = {
            "mean_difference": float(np.abs(curve - expected).mean()),
            "largest_difference": float(np.abs(curve - expected).max()),
            "peak": float(curve[peak(curve)]),
            "reference_peak": float(expected[peak(expected)]),
            "curve": [round(float(v), 4) for v in curve],
            "reference_curve": [round(float(v), 4) for v in expected],
        }
    return found


def _measure(case: Mapping[str, NDArray], **options: object) -> dict[str, dict]:
    """`compare` of a case by its displacement and by its registered magnitudes; `options` are those of inference."""
    pixel = FIELD_OF_VIEW / case["mask"].shape[-1]
    affine = np.diag([pixel, pixel, 8.0, 1.0])
    first, frames = case["mask"][0], len(case["magnitude"])
    references = {name: engineering(case[key][:, first]) for name, key in STRAINS.items()}
    fields = tissue_fields(
        np.stack([case["phase_x"], case["phase_y"]], axis=1), case["mask"], 1 / float(case["ke"]) / pixel
    )
    found = {"displacement": compare(measure_strain(fields, wall_label(first), affine), references)}
    cine = np.moveaxis(case["magnitude"], 0, -1)[:, :, None] * (1000 / case["magnitude"].max())
    for name, frame in (("registered_to_first", 0), ("registered_to_last", frames - 1)):
        label = (wall_label(case["mask"][frame + 1]), affine)
        registration = register_cine((cine, affine), reference_frame=frame + 1, reference_label=label, **options)
        found[name] = compare(registration.strain, references, frame)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Print each case's differences, and return all figures with how they were measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help=f"holds {' and '.join(CASES.values())}")
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)
    check_device(options.device)
    cases = {name: read_case(options.dataset_dir / file) for name, file in CASES.items()}
    found = {name: _measure(case, checkpoint=options.checkpoint, device=options.device) for name, case in cases.items()}
    print(f"{'':<32}{'strain':<18}{'peak':>8}{'reference':>11}{'difference: mean':>18}{'largest':>9}")
    for name, ways in found.items():
        for way, strains in ways.items():
            for strain, row in strains.items():
                cells = f"{row['peak']:>8.3f}{row['reference_peak']:>11.3f}{row['mean_difference']:>18.4f}"
                print(f"{name + ', ' + way:<32}{strain:<18}{cells}{row['largest_difference']:>9.4f}")
    words = sys.argv[1:] if argv is None else argv
    result = {**setting("benchmarks.dense", words, options, processor(options.device)), "cases": found}
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    with one_line():
        main()
