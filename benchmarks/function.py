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

"""How well ejection fraction is measured, with end diastole and end systole given, against contours that a person drew.

    python -m benchmarks.function --dataset_dir ACDC [--choose_on val] [--split test] [--json function.json]

Both frames of a subject are registered as a cine, as a user does it. Its ejection fraction comes by each of two answers
(`cardiac.answers`): *carried* from end diastole to end systole by the motion, from the label of end diastole that is
given or automatic, and *segmented* in each frame. Of each ventricle and kind of label, the answer with the smaller root
of the mean squared difference on one split is the better one; its bias and limits of agreement (1.96 standard
deviations) are those on the other. They stand in `cardiac.answers.BETTER`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.api import ROOT, register_cine
from scripts.cardiac.answers import BY_SEGMENTATION, CARRIED, GIVEN, SEGMENTED
from scripts.cardiac.cines import LABELS
from scripts.data.datalists import SPLITS, select_pairs
from scripts.data.nifti import open_nifti
from scripts.errors import one_line
from scripts.workflow.assemble import carry_label
from tqdm import tqdm

from benchmarks.options import writable
from benchmarks.setting import keep, processor, setting

VENTRICLES = ("lv", "rv")


def _measure_subject(item: Mapping, **options: object) -> dict:
    """Ejection fractions in percent, of a pair of `datalists.select_pairs` from end systole to end diastole: as drawn,
    carried from each kind of label, and segmented.

    Args:
        item: of a data list.
        options: of `register_cine`.
    """
    images, labels = ([open_nifti(item[f"{role}{end}"]) for role in ("fixed", "moving")] for end in ("", "_label"))
    affine, drawn = images[0].affine, np.stack([label.voxels() for label in labels], axis=-1)
    cine = np.stack([image.voxels() for image in images], axis=-1)
    given = (drawn[..., 0], affine)
    found = register_cine((cine, affine), reference_frame=1, reference_label=given, **options).voxels
    row = {"subject": item["subject"], **ejection_fractions("drawn", drawn)}
    row |= ejection_fractions(f"{CARRIED}_{GIVEN}", found.labels)
    if found.segmented is None:
        return row
    # Fields do not depend on labels, so that one registration carries both.
    label = torch.from_numpy(np.ascontiguousarray(found.segmented[..., 0]))[None]
    carried = carry_label({}, label, torch.from_numpy(found.inverses)).numpy()
    row |= ejection_fractions(f"{CARRIED}_{BY_SEGMENTATION}", carried)
    return row | ejection_fractions(SEGMENTED, found.segmented)


def ejection_fractions(name: str, labels: NDArray) -> dict[str, float]:
    """Of each ventricle in percent, from labels (X, Y, Z, 2) of end diastole and end systole."""
    counts = {ventricle: (labels == LABELS[ventricle]).sum((0, 1, 2)) for ventricle in VENTRICLES}
    return {f"{key}_{name}": 100 * float(1 - es / ed) if ed else float("nan") for key, (ed, es) in counts.items()}


def agreement(rows: Sequence[Mapping], ventricle: str, name: str) -> dict[str, float]:
    """How far ejection fractions lie from those drawn, in points: bias, limits of agreement (1.96 standard deviations),
    root of the mean squared difference and median of the absolute one; subjects that lack either are left out."""
    pairs = [(row.get(f"{ventricle}_{name}", np.nan), row[f"{ventricle}_drawn"]) for row in rows]
    values = np.array([found - drawn for found, drawn in pairs if np.isfinite(found) and np.isfinite(drawn)])
    return {
        "subjects": len(values),
        "bias": float(values.mean()),
        "limits": float(1.96 * values.std(ddof=1)),
        "root_mean_square": float(np.sqrt((values**2).mean())),
        "median_absolute": float(np.median(np.abs(values))),
    }


def compare(rows: Mapping[str, Sequence[Mapping]]) -> dict:
    """By ventricle and answer, the `agreement` on each split."""
    names = (f"{CARRIED}_{GIVEN}", f"{CARRIED}_{BY_SEGMENTATION}", SEGMENTED)
    return {
        ventricle: {name: {split: agreement(rows[split], ventricle, name) for split in rows} for name in names}
        for ventricle in VENTRICLES
    }


def choose(compared: Mapping, choose_on: str, split: str) -> dict:
    """By kind of label and ventricle, the better answer, and its bias and limits on the other split."""
    better: dict = {basis: {} for basis in (GIVEN, BY_SEGMENTATION)}
    for basis, of_ventricle in better.items():
        for ventricle, answers in compared.items():
            names = {CARRIED: f"{CARRIED}_{basis}", SEGMENTED: SEGMENTED}
            by = min(names, key=lambda by: answers[names[by]][choose_on]["root_mean_square"])
            on = answers[names[by]][split]
            of_ventricle[ventricle] = {"by": by, "bias": on["bias"], "limits": on["limits"]}
    return better


def _print_table(compared: Mapping, better: Mapping) -> None:
    """Both as text."""
    for ventricle, answers in compared.items():
        for name, splits in answers.items():
            cells = "; ".join(
                f"{split} ({found['subjects']}): bias {found['bias']:+.1f}, 1.96 SD {found['limits']:.1f}, "
                f"median {found['median_absolute']:.1f}"
                for split, found in splits.items()
            )
            print(f"{ventricle.upper()} EF, {name:<18} {cells}")
    for basis, of_ventricle in better.items():
        words = ", ".join(f"{key.upper()} {found['by']}" for key, found in of_ventricle.items())
        print(f"label {basis}: {words}")


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, write the JSON; returns what it writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.function", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True, help="folder in ACDC's layout, with labels")
    parser.add_argument(
        "--choose_on", choices=SPLITS, default="val", help="the split that the better answer is chosen on"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="the split that it is measured on")
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--segmentation", default=str(ROOT / "models" / "segmentation.pt"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)
    ways = {"checkpoint": options.checkpoint, "segmentation": options.segmentation, "device": options.device}
    rows = {}
    for split in (options.choose_on, options.split):
        items = select_pairs(options.dataset_dir, None, split)
        rows[split] = [_measure_subject(item, **ways) for item in tqdm(items, desc=split, unit="subject")]
    compared = compare(rows)
    better = choose(compared, options.choose_on, options.split)
    _print_table(compared, better)
    words = sys.argv[1:] if argv is None else argv
    options.segmentation = Path(options.segmentation).name  # a path says where it lay, and no more
    result = {
        **setting("benchmarks.function", words, options, processor(options.device)),
        "better": better,
        "agreement": compared,
        "rows": rows,
    }
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
