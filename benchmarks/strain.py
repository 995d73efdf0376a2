"""How far strain and ejection fraction of registered phantoms are from the truth.

    python -m benchmarks.strain [--subjects 6] [--size 128] [--native] [--checkpoint models/model.pt] [--json
    strain.json]

Each phantom's cine is registered by the inference workflow to its first frame. Its strain is compared with that of the
exact field, which only discretization parts from the closed form (tests/test_strain.py has that part), at end systole.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scripts.api import ROOT, register_cine
from scripts.devices import check_device
from scripts.errors import one_line
from scripts.function import measure_function
from scripts.phantom import Phantom, write_phantom_dataset
from scripts.strain import measure_strain
from tqdm import tqdm

from benchmarks.options import positive, shown, writable

FIGURES = ("radial", "circumferential")


def compare(phantom: Phantom, cine: Path, label: Path, **options: object) -> dict[str, float]:
    """Exact figures at end systole, and the errors of the registered ones."""
    found = register_cine(cine, reference_frame=1, reference_label=label, **options)
    es = phantom.end_systole
    exact_fields = np.stack([phantom.field(frame, 1) for frame in range(1, phantom.frames + 1)])
    exact = measure_strain(exact_fields, phantom.label(1), found.cine.affine)
    row: dict[str, float] = {}
    for name in FIGURES:
        one, other = (
            {(r["slice"], r["sector"]): r[name] for r in rows if r["frame"] == es} for rows in (exact, found.strain)
        )
        errors = {key: abs(one[key] - other[key]) for key in one}
        row[name] = one[None, None]
        row[f"{name}_error_global"] = errors.pop((None, None))
        row[f"{name}_error_worst_sector"] = max(errors.values())
    labels = np.stack([phantom.label(frame) for frame in range(1, phantom.frames + 1)], axis=-1)
    truth = measure_function(labels, found.cine.spacing)["lv_ef_percent"]
    return {**row, "lv_ef_percent": truth, "lv_ef_error": abs(truth - found.function["lv_ef_percent"])}


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, write the JSON; returns what it writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strain", description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=positive, default=6)
    parser.add_argument("--size", type=positive, default=128, help="pixels along both axes")
    parser.add_argument(
        "--native", action="store_true", help="leave the phantoms' pixels of 1 mm as they are for the network"
    )
    parser.add_argument("--frames", type=positive, default=6)
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)
    check_device(options.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        size = (options.size, options.size)
        root = write_phantom_dataset(
            folder, max(options.subjects, 3), seed=1, size=size, slices=3, frames=options.frames
        )
        for number in tqdm(range(1, options.subjects + 1), desc="phantoms", unit="phantom"):
            phantom = Phantom.random((1, number), size, 3, options.frames)
            stem = root / f"phantom{number:03d}" / f"phantom{number:03d}"
            cine, label = Path(f"{stem}_4d.nii.gz"), Path(f"{stem}_frame01_gt.nii.gz")
            settings = {"device": options.device, "checkpoint": options.checkpoint}
            rows.append(
                compare(phantom, cine, label, **settings, **({"working_spacing": False} if options.native else {}))
            )
    print(f"{'end systole':<34}{'mean':>9}{'worst':>9}")
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        print(f"{name:<34}{values.mean():>9.4f}{np.abs(values).max():>9.4f}")
    result = {"options": shown(options), "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    with one_line():
        main()
