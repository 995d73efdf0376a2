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

"""How often the verdict calls out what is wrong, and how seldom what is not.

    python -m benchmarks.verdict --dataset_dir ACDC --cines_dir CINES --long_axis FILE [--segmentations A.pt B.pt] [--cache
    DIR] [--json verdict.json]

CINES holds `<subject>_4d.nii.gz` of subjects of ACDC; FILE is a long-axis cine. About ten frames of each cine are registered
to end diastole, with the automatic contour and with the drawn one, and some cines are corrupted in each way of
`corruptions.CORRUPTIONS`. Thresholds (`scripts/cardiac/verdict.py`) were set on `train`, whose subjects are segmented by
networks that have not seen them: the first of `--segmentations` was trained on every other subject of `train` from the first
one on, and segments those between; the second one the other way round. `val` is a check.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.api import ROOT, register_cine
from scripts.cardiac.answers import CARRIED, SEGMENTED
from scripts.cardiac.appearance import measure_image
from scripts.cardiac.phases import find_phases, shows_short_axis
from scripts.cardiac.quality import compare_contours
from scripts.cardiac.verdict import GRADES, PASSED, THRESHOLDS, Finding, judge, worst
from scripts.data.acdc import read_info
from scripts.data.datalists import folder_splits
from scripts.data.nifti import open_nifti
from scripts.errors import InputError, one_line
from scripts.files import plain
from scripts.workflow.contours import NO_RING
from scripts.workflow.segmenters import Segment, load_segmenter
from tqdm import tqdm

from benchmarks.corruptions import CORRUPTIONS, Case
from benchmarks.options import writable
from benchmarks.setting import keep, processor, setting

FRAMES = 10  # of a cine, at most
CLEAN = "clean"
# Cines that the published crop leaves whole, one in five of `train`; and those that are corrupted, at the severities
# (counted from 1) that are tried.
TRAIN = tuple(f"patient{n:03d}" for n in (3, 9, 21, 26, 31, 41, 48, 53, 63, 69, 80, 86, 99))
NO_HEART = ("patient057",)  # the crop shows none of it
CORRUPTED = {
    "train": {"patient009": (3,), "patient026": (3,)},
    "val": {"patient077": (1, 2, 3), "patient097": (1, 2, 3), "patient017": (3,)},
}


def broken_weights(amount: float) -> dict[str, torch.Tensor]:
    """The shipped registration weights with noise, its standard deviation a share of each tensor's."""
    weights = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.std() if values.numel() > 1 else values.abs().mean()

    return {
        name: (
            values + amount * spread(values) * torch.randn(values.shape, generator=generator)
            if values.is_floating_point()
            else values
        )
        for name, values in weights.items()
    }


def register_case(case: Case, segment: Segment) -> dict[str, object]:
    """Carried and segmented labels of a case (X, Y, Z, T), and "quality", that of its fields as JSON.

    Raises:
        InputError: where inference refuses it.
    """
    affine = np.diag([*case.spacing, 1.0])
    segmented = segment(case.image, case.spacing)
    label = segmented[..., case.reference - 1] if case.label is None else case.label
    options: dict[str, object] = {"reference_label": (label, affine) if label.any() else "none"}
    with tempfile.TemporaryDirectory() as folder:
        if case.broken:
            options["checkpoint"] = str(Path(folder) / "broken.pt")
            torch.save(broken_weights(case.broken), options["checkpoint"])
        found = register_cine(
            (case.image, affine), reference_frame=case.reference, segmentation="none", plane="SAX", **options
        )
    carried = np.zeros_like(segmented) if found.labels is None else found.labels
    return {"carried": carried, "segmented": segmented, "quality": json.dumps(plain(found.quality))}


def kept(name: str, case: Case, segment: Segment, cache: Path | None) -> dict[str, object] | str:
    """`register_case`, or why it was refused; once computed, both are read from files."""
    path = None if cache is None else cache / f"{name}.npz"
    if path is not None and path.is_file():
        return dict(np.load(path))
    if path is not None and path.with_suffix(".err").is_file():
        return path.with_suffix(".err").read_text()
    try:
        found = register_case(case, segment)
    except InputError as error:
        if path is not None:
            path.with_suffix(".err").write_text(str(error))
        return str(error)
    if path is not None:
        np.savez_compressed(path, **found)
    return found


def judge_case(case: Case, found: dict[str, object] | str) -> list[Finding]:
    """The findings of the verdict on a case, as inference comes to them."""
    if isinstance(found, str):
        return [Finding(GRADES[-1], "Refused.")]
    quality = json.loads(str(found["quality"]))
    frames = [unknown_as_nan(frame) for frame in quality["frames"] if frame["frame"] != case.reference]
    phases = find_phases(found[SEGMENTED], case.spacing)
    is_seen = phases is not None and shows_short_axis(found[SEGMENTED][..., phases[0] - 1])
    answers = {by: found[by] for by in (CARRIED, SEGMENTED)} if is_seen else {}
    image = measure_image(case.image[..., case.reference - 1], case.spacing)
    contours = compare_contours(answers, case.spacing, case.reference)
    return judge(frames, quality["cycle"], THRESHOLDS, image, contours, doubts=[] if is_seen else [NO_RING])


def unknown_as_nan(frame: dict) -> dict:
    """Figures from JSON, where an unknown one is null."""
    slices = [{key: np.nan if value is None else value for key, value in row.items()} for row in frame["slices"]]
    return {**{key: np.nan if value is None else value for key, value in frame.items()}, "slices": slices}


def read_case(subject: str, dataset_dir: Path, cines_dir: Path) -> Case:
    """Some frames of a subject's cine, with end diastole among them and the label that was drawn there.

    The cine may be cropped, and lack every other phase.

    Raises:
        InputError: where end diastole is not among its phases.
    """
    file = open_nifti(cines_dir / f"{subject}_4d.nii.gz")
    image, info = np.asarray(file.voxels(), np.float32), read_info(dataset_dir / subject / "Info.cfg")
    ed, total = int(info["ED"]) - 1, image.shape[-1]
    place = ed * total / int(info["NbFrame"])
    if abs(place - round(place)) > 1e-6:
        raise InputError(f"{subject}: end diastole is not among the phases of its cine; choose another one.")
    frames = np.sort((round(place) + np.arange(0, total, -(-total // FRAMES))) % total)
    drawn = open_nifti(dataset_dir / subject / f"{subject}_frame{ed + 1:02d}_gt.nii.gz")
    corner = np.round(np.linalg.inv(drawn.affine) @ file.affine[:, 3])[:3].astype(int)
    label = np.asarray(drawn.voxels())[tuple(slice(a, a + n) for a, n in zip(corner, image.shape))]
    spacing = tuple(float(length) for length in np.linalg.norm(file.affine[:3, :3], axis=0))
    reference = int(np.flatnonzero(frames == round(place))[0]) + 1
    return Case(image[..., frames], spacing, reference, label.astype(np.uint8))


def measure(
    split: str, subjects: Sequence[str], read: Callable[[str], Case], segment: Segment, long_axis: NDArray, cache: Path
) -> list[dict]:
    """Rows of all cases of subjects of a split: subject, label, kind, severity and what the verdict says."""
    rows, cases = [], {}
    for subject in subjects:
        drawn = read(subject)
        reference = kept_reference(subject, drawn, segment, cache)
        cases[subject] = {"drawn": drawn, "auto": replace(drawn, reference=reference, label=None)}

    def add(subject: str, label: str, kind: str, level: int, severity: float | None, case: Case) -> None:
        name = f"{subject}-{label}-{kind.replace(' ', '_')}-{level}"
        findings = judge_case(case, kept(name, case, segment, cache))
        sentences = [finding.sentence for finding in findings if finding.grade != PASSED]
        where = {"split": split, "subject": subject, "label": label, "kind": kind, "level": level}
        rows.append({**where, "severity": severity, "grade": worst(findings), "findings": sentences})

    tried = list(CORRUPTED[split])
    for subject in tqdm(subjects, desc=split, unit="subject"):
        for label, case in cases[subject].items():
            add(subject, label, CLEAN, 0, None, case)
        for level in CORRUPTED[split].get(subject, ()):
            other = cases[tried[(tried.index(subject) + 1) % len(tried)]]["auto"]
            for kind, corruption in CORRUPTIONS.items():
                label, severity = "drawn" if corruption.of_label else "auto", corruption.severities[level - 1]
                case = corruption.apply(cases[subject][label], severity, other, long_axis)
                add(subject, label, kind, level, severity, case)
    return rows


def kept_reference(subject: str, case: Case, segment: Segment, cache: Path | None) -> int:
    """End diastole by the segmentation of all frames; that of the case where it finds none."""
    path = None if cache is None else cache / f"{subject}-ref.json"
    if path is not None and path.is_file():
        return int(json.loads(path.read_text()))
    phases = find_phases(segment(case.image, case.spacing), case.spacing)
    reference = case.reference if phases is None else phases[0]
    if path is not None:
        path.write_text(json.dumps(reference))
    return reference


def summarize(rows: Sequence[dict]) -> dict[str, dict]:
    """By split: how many clean cines have each grade, by label; and of each kind and level how many cines were called out,
    of how many."""
    found: dict[str, dict] = {}
    for row in rows:
        part = found.setdefault(row["split"], {"clean": {}, "called out": {}})
        if row["kind"] == CLEAN:
            counts = part["clean"].setdefault(row["label"], dict.fromkeys(GRADES, 0))
            counts[row["grade"]] += 1
        else:
            levels = part["called out"].setdefault(row["kind"], {})
            level = levels.setdefault(str(row["level"]), {"called_out": 0, "of": 0})
            level["called_out"] += row["grade"] != PASSED
            level["of"] += 1
    return found


def print_table(summary: dict) -> None:
    """The summary as text, a Markdown table a split."""
    for split, part in summary.items():
        for label, counts in part["clean"].items():
            print(f"{split}, clean, {label}: " + ", ".join(f"{count} {grade}" for grade, count in counts.items()))
        levels = sorted({level for row in part["called out"].values() for level in row})
        print("| kind | " + " | ".join(f"severity {level}" for level in levels) + " |")
        print("|---" * (len(levels) + 1) + "|")
        for kind, row in part["called out"].items():
            cells = [f"{row[level]['called_out']} of {row[level]['of']}" if level in row else "" for level in levels]
            print(f"| {kind} | " + " | ".join(cells) + " |")


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the tables, write the JSON; returns what it writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder in ACDC's layout")
    parser.add_argument("--cines_dir", type=Path, required=True, help="folder of <subject>_4d.nii.gz")
    parser.add_argument("--long_axis", type=Path, required=True, help="cine of a long-axis view (X, Y, 1, T)")
    shipped = str(ROOT / "models" / "segmentation.pt")
    parser.add_argument("--segmentations", nargs=2, default=[shipped] * 2, help="weights for train, see above")
    parser.add_argument("--cache", type=Path, help="folder that keeps what was registered and segmented")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
    splits = folder_splits(options.dataset_dir)
    train, val = sorted(splits["train"]), [name for name in splits["val"] if name not in NO_HEART]
    networks = [load_segmenter(path) for path in options.segmentations]
    view = np.asarray(open_nifti(options.long_axis).voxels(), np.float32)[:, :, 0]

    def read(subject: str) -> Case:
        return read_case(subject, options.dataset_dir, options.cines_dir)

    rows = []
    for half in (0, 1):
        # Subjects that the other half of train has not been shown.
        own = [name for name in TRAIN if train.index(name) % 2 != half]
        rows += measure("train", own, read, networks[half], view, options.cache)
    rows += measure("val", val, read, load_segmenter(shipped), view, options.cache)
    summary = summarize(rows)
    print_table(summary)
    words = [Path(word).name if word.endswith(".pt") else word for word in (sys.argv[1:] if argv is None else argv)]
    options.segmentations = [Path(path).name for path in options.segmentations]
    kinds = {kind: {"severities": list(c.severities), "meaning": c.meaning} for kind, c in CORRUPTIONS.items()}
    result = setting("benchmarks.verdict", words, options, processor("cpu"))
    result |= {"thresholds": THRESHOLDS, "kinds": kinds, "summary": summary, "rows": rows}
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
