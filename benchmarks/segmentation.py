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

"""How well the segmentation network labels frames whose labels a person drew, per subject over the stack.

    python -m benchmarks.segmentation --dataset_dir ACDC [--split test] [--checkpoint models/segmentation.pt] [--alone]
    [--json segmentation.json]

Both frames of a subject are labeled as a cine of two, or with --alone each by itself, as a single stack is.
Dice in percent and MONAI's 95 % Hausdorff distance in mm, on each image's own grid; a structure that the manual label lacks is
left out, one that the network misses has a Dice of 0 and no distance. Where a subject has both phases, ejection fractions by
both labels are compared, too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.api import ROOT
from scripts.cardiac.cines import LABELS
from scripts.cardiac.phases import find_contours
from scripts.cardiac.segmentation import Segmenter
from scripts.data.datalists import SPLITS
from scripts.errors import one_line
from scripts.registration.metrics import dice_percent, hd95_mm, summarize
from scripts.training.labeled_slices import load_stack, select_frames
from scripts.workflow.segmenters import load_segmenter
from tqdm import tqdm

from benchmarks.options import writable
from benchmarks.setting import keep, processor, setting

NAMES = {"rv": "RV", "myo": "Myo", "lv": "LV"}


def score_subject(segmenter: Segmenter, items: Sequence[Mapping], alone: bool = False) -> list[dict]:
    """`_score_frame` of the items of `labeled_frames` of one subject, segmented together or each alone; the seconds are
    those of a frame."""
    stacks = [load_stack(item) for item in items]
    images, spacing = [stack["image"][0].numpy() for stack in stacks], stacks[0]["spacing"].tolist()
    together = not alone and len({image.shape for image in images}) == 1
    start = time.perf_counter()
    contours = find_contours(np.stack(images, axis=-1), spacing, segmenter) if together else None
    if contours is None:
        found = [segmenter(image, stack["spacing"].tolist()) for image, stack in zip(images, stacks)]
    else:
        found = list(np.moveaxis(contours.labels, -1, 0))
    seconds = (time.perf_counter() - start) / len(items)
    return [_score_frame(*one) | {"seconds": seconds} for one in zip(found, stacks)]


def _score_frame(found: NDArray, stack: Mapping) -> dict:
    """Dice, HD95 and both volumes in mL of each structure, of a label map for a stack of `load_stack`."""
    spacing = stack["spacing"].tolist()
    row = {name: stack[name] for name in ("subject", "phase")} | {"slices": found.shape[2]}
    drawn, voxel = stack["label"][0].numpy(), float(np.prod(spacing)) / 1000
    for name, value in LABELS.items():
        masks = found == value, drawn == value
        there = masks[1].any()
        row[f"dice_{name}"] = dice_percent(*masks) if there else float("nan")
        row[f"hd95_mm_{name}"] = hd95_mm(*masks, spacing) if there else float("nan")
        row |= {f"{name}_ml": masks[0].sum() * voxel, f"{name}_ml_drawn": masks[1].sum() * voxel}
    return row


def ejection_fractions(rows: Sequence[Mapping]) -> list[dict]:
    """By subject with both phases, the ejection fraction of each ventricle in percent, and as drawn."""
    by_subject: dict[str, dict[str, Mapping]] = {}
    for row in rows:
        by_subject.setdefault(row["subject"], {})[row["phase"]] = row
    found = []
    for subject, phases in by_subject.items():
        if {"ED", "ES"} <= phases.keys():
            ed, es = phases["ED"], phases["ES"]
            columns = [f"{name}_ml{end}" for name in ("lv", "rv") for end in ("", "_drawn")]
            fractions = {
                key.replace("_ml", "_ef"): 100 * (1 - es[key] / ed[key]) if ed[key] else float("nan") for key in columns
            }
            found.append({"subject": subject, **fractions})
    return found


def agreement(differences: Sequence[float]) -> dict[str, float]:
    """Bias and limits of agreement (1.96 standard deviations) of differences, NaN left out."""
    values = np.array([value for value in differences if not np.isnan(value)])
    if len(values) < 2:
        return {"bias": float("nan"), "limits": float("nan"), "median_absolute": float("nan")}
    return {
        "bias": float(values.mean()),
        "limits": float(1.96 * values.std(ddof=1)),
        "median_absolute": float(np.median(np.abs(values))),
    }


def _summarize_all(rows: Sequence[dict]) -> dict:
    """Mean and standard deviation of Dice and HD95 in each phase, and the agreement of ejection fractions."""
    figures = [f"{figure}_{name}" for figure in ("dice", "hd95_mm") for name in LABELS]
    phases = {}
    for phase in sorted({row["phase"] for row in rows}):
        chosen = [{figure: row[figure] for figure in figures} for row in rows if row["phase"] == phase]
        phases[phase] = {"frames": len(chosen), **summarize(chosen)}
    fractions = ejection_fractions(rows)
    agreements = {
        name: agreement([row[f"{name}_ef"] - row[f"{name}_ef_drawn"] for row in fractions]) for name in ("lv", "rv")
    }
    per_slice = sum(row["seconds"] for row in rows) / sum(row["slices"] for row in rows)
    return {"phases": phases, "ejection_fraction": agreements, "seconds_per_slice": per_slice}


def _print_table(summary: Mapping) -> None:
    """The summary as text."""
    print(f"{'':<12}" + "".join(f"{'Dice ' + name:>16}" for name in NAMES.values()), end="")
    print("".join(f"{'HD95 mm ' + name:>16}" for name in NAMES.values()))
    for phase, figures in summary["phases"].items():
        cells = [
            f"{figures[f'{figure}_{name}']['mean']:.1f} ± {figures[f'{figure}_{name}']['std']:.1f}"
            for figure in ("dice", "hd95_mm")
            for name in NAMES
        ]
        print(f"{phase:<4}{figures['frames']:>4}    " + "".join(f"{cell:>16}" for cell in cells))
    for name, figures in summary["ejection_fraction"].items():
        print(
            f"{name.upper()} EF: bias {figures['bias']:+.1f}, 1.96 SD {figures['limits']:.1f}, "
            f"median difference {figures['median_absolute']:.1f} points"
        )
    print(f"{12 * summary['seconds_per_slice']:.2f} s for 12 slices on {torch.get_num_threads()} thread(s)")


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, write the JSON; returns what it writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segmentation", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True, help="folder in ACDC's layout or in that of M&Ms")
    parser.add_argument("--split", choices=(*SPLITS, "test_or_all"), default="test")
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "segmentation.pt"))
    parser.add_argument(
        "--alone", action="store_true", help="show the network each frame without the subject's other one"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)
    segmenter = load_segmenter(options.checkpoint, options.device)
    frames = select_frames(options.dataset_dir, None, options.split)
    subjects: dict[str, list[Mapping]] = {}
    for item in frames:
        subjects.setdefault(item["subject"], []).append(item)
    bar = tqdm(subjects.values(), desc="subjects", unit="subject")
    rows = [row for items in bar for row in score_subject(segmenter, items, options.alone)]
    summary = _summarize_all(rows)
    _print_table(summary)
    words = sys.argv[1:] if argv is None else argv
    hardware = f"{processor(options.device)}, {torch.get_num_threads()} thread(s)"
    result = {**setting("benchmarks.segmentation", words, options, hardware), "summary": summary, "rows": rows}
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
