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

"""How often the verdict calls out what is wrong, and how seldom what is not; and the thresholds that it uses.

    python -m benchmarks.verdict --dataset_dir ACDC --cines_dir CINES --long_axis FILE [--cache DIR] [--json verdict.json]
    [--thresholds scripts/cardiac/thresholds.json]

Clean cases are stacks of end diastole and end systole of ACDC, registered as a cine of two frames, and about ten frames of
cines, `<subject>_4d.nii.gz` in CINES, that show the left ventricle whole. Those of `train` set the thresholds of
`evidence.FIGURES` by one rule (`set_limits`); those of `val` check them, clean, with the automatic and with the drawn
contour, and corrupted in each way of `corruptions.CORRUPTIONS`. FILE is a long-axis cine.

The cache keeps figures, by the content of images and weights; empty it where the code that measures them has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scripts.api import ROOT, register_cine
from scripts.cardiac.cines import LABELS
from scripts.cardiac.evidence import FIGURES, Evidence
from scripts.cardiac.verdict import GRADES, PASSED, THRESHOLDS, Finding, judge, worst
from scripts.data.acdc import read_info
from scripts.data.datalists import folder_splits
from scripts.data.nifti import open_nifti
from scripts.errors import InputError, one_line
from scripts.files import write_json
from tqdm import tqdm

from benchmarks.corruptions import CORRUPTIONS, Case
from benchmarks.options import writable
from benchmarks.report import markdown_table
from benchmarks.setting import keep, processor, setting

FRAMES = 10  # of a cine, at most
# A limit lies so many times as far from the median of clean cases as their 95th percentile on the bad side, which counts as
# at least one unit away: the least of `REACHES` with which this share of clean cases or less has a figure beyond its limit.
QUANTILE, LEAST, CALLED_OUT = 0.95, 1.0, 0.04
# Not less than fields slice by slice needed: hearts and scanners differ more than those of `train`.
REACHES = tuple(n / 4 for n in range(9, 21))
CLEAN = "clean"
# Levels (from 1) at which subjects of `val` are corrupted, as stacks and as cines; the crops show their hearts whole.
CORRUPTED = {"patient077": (1, 2, 3), "patient097": (1, 2, 3), "patient037": (3,), "patient054": (3,)}


def _broken_weights(amount: float) -> dict[str, torch.Tensor]:
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


def register_case(case: Case) -> dict:
    """The quality of a case, as inference comes to it; where inference refuses it, "refused", why."""
    affine = np.diag([*case.spacing, 1.0])
    options: dict[str, object] = {}
    if case.label is not None:
        label = (case.label, affine) if case.label.any() else "none"
        options = {"reference_label": label, "reference_frame": case.reference}
    with tempfile.TemporaryDirectory() as folder:
        if case.broken:
            options["checkpoint"] = str(Path(folder) / "broken.pt")
            torch.save(_broken_weights(case.broken), options["checkpoint"])
        try:
            quality = register_cine((case.image, affine), plane="SAX", **options).quality
        except InputError as error:
            return {"refused": str(error)}
    quality["contours"].pop("rows", None)
    return quality


class Measured:
    """`register_case`, kept in files.

    Args:
        cache: folder; None keeps nothing.
    """

    def __init__(self, cache: Path | None) -> None:
        self.cache = cache
        models = [ROOT / "models" / f"{name}.pt" for name in ("model", "depth", "segmentation")]
        self.weights = b"".join(path.read_bytes() for path in models)

    def __call__(self, case: Case) -> dict:
        if self.cache is None:
            return register_case(case)
        label = b"" if case.label is None else case.label.tobytes()
        rest = repr((case.image.shape, case.spacing, case.reference, case.broken)).encode()
        key = hashlib.sha256(b"".join([self.weights, case.image.tobytes(), label, rest])).hexdigest()
        path = self.cache / f"{key[:20]}.json"
        if not path.is_file():
            path.write_text(json.dumps(register_case(case), default=float))
        return json.loads(path.read_text())


def _evidence_of(quality: Mapping, limits: Mapping[str, float]) -> Evidence:
    """What the verdict on a cine rests on."""
    frames = [frame for frame in quality["frames"] if frame["frame"] != quality["reference_frame"]]
    limits = {**THRESHOLDS, **quality["thresholds"], **limits}
    return Evidence(frames, quality["cycle"], limits, quality["image"], quality["contours"])


def judge_case(quality: Mapping, limits: Mapping[str, float]) -> list[Finding]:
    """The findings of the verdict with other thresholds; a case that was refused is not to be used."""
    if "refused" in quality:
        return [Finding(GRADES[-1], quality["refused"])]
    e = _evidence_of(quality, limits)
    return judge(e.frames, e.cycle, e.limit, e.image, e.contours, doubts=quality["doubts"])


def set_limit(values: Sequence[float], is_least: bool, reach: float) -> dict[str, float]:
    """The limit of a figure by its worst values in clean cases, one a case, and what it rests on: "median", "percentile",
    the 95th on the bad side, and "worst".

    Args:
        values: NaN where a case has none; infinite ones count.
        is_least: as `evidence.Figure` has it.
        reach: how far the limit lies from the median, in units of the way from there to the percentile.

    Raises:
        InputError: where no case has a value, or too many have an infinite one.
    """
    sign = -1.0 if is_least else 1.0
    known = np.sort(sign * np.array([value for value in values if not np.isnan(value)]))
    if not len(known):
        raise InputError("no clean case has this figure.")
    typical, far = np.quantile(known, (0.5, QUANTILE), method="inverted_cdf")
    limit = typical + reach * max(far - typical, LEAST)
    if not np.isfinite(limit):
        raise InputError("it is infinite in more than one clean case of twenty.")
    found = {"limit": limit, "median": typical, "percentile": far, "worst": known[-1]}
    return {"cases": len(known), **{name: float(f"{sign * value:.3g}") for name, value in found.items()}}


def worst_values(qualities: Sequence[Mapping]) -> dict[str, list[float]]:
    """The worst value of each of `evidence.FIGURES` in each case, by the figure's name; NaN where a case has none."""
    cases = [_evidence_of(quality, {}) for quality in qualities if "refused" not in quality]
    return {name: [figure.worst(evidence) for evidence in cases] for name, figure in FIGURES.items()}


def set_limits(values: Mapping[str, Sequence[float]]) -> tuple[float, dict[str, dict[str, float]]]:
    """The reach that is used, one of `REACHES`, and `set_limit` of each figure with it, times the figure's slack.

    Args:
        values: of clean cases, as `worst_values` has them.

    Raises:
        InputError: as `set_limit`, naming the figure; where even the largest reach calls out too many clean cases.
    """
    for reach in REACHES:
        found = {}
        for name, figure in FIGURES.items():
            try:
                found[name] = set_limit(values[name], figure.is_least, reach * figure.slack)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
        beyond = [FIGURES[name].is_beyond(np.array(values[name]), found[name]["limit"]) for name in FIGURES]
        if np.any(beyond, axis=0).mean() <= CALLED_OUT:
            return reach, found
    raise InputError("the limits call out more clean cases than they may; look at their figures.")


def _read_stack(subject: str, dataset_dir: Path) -> Case:
    """End diastole and end systole of a subject as a cine of two frames, with the label that was drawn at the first."""
    folder = dataset_dir / subject
    info = read_info(folder / "Info.cfg")
    paths = [folder / f"{subject}_frame{int(info[phase]):02d}.nii.gz" for phase in ("ED", "ES")]
    files = [open_nifti(path) for path in paths]
    label = open_nifti(paths[0].with_name(paths[0].name.replace(".nii", "_gt.nii"))).voxels()
    image = np.stack([np.asarray(file.voxels(), np.float32) for file in files], axis=-1)
    spacing = tuple(map(float, voxel_sizes(files[0].affine)))
    return Case(image, spacing, 1, np.asarray(label).astype(np.uint8))


def _read_cine(subject: str, dataset_dir: Path, cines_dir: Path) -> Case | None:
    """Some frames of a subject's cine, with end diastole among them and the label that was drawn there; None where end
    diastole is not among its phases.

    The cine may be cropped, and lack every other phase.
    """
    file = open_nifti(cines_dir / f"{subject}_4d.nii.gz")
    image, info = np.asarray(file.voxels(), np.float32), read_info(dataset_dir / subject / "Info.cfg")
    ed, total = int(info["ED"]) - 1, image.shape[-1]
    place = ed * total / int(info["NbFrame"])
    if abs(place - round(place)) > 1e-6:
        return None
    frames = np.sort((round(place) + np.arange(0, total, -(-total // FRAMES))) % total)
    drawn = open_nifti(dataset_dir / subject / f"{subject}_frame{ed + 1:02d}_gt.nii.gz")
    corner = np.round(np.linalg.inv(drawn.affine) @ file.affine[:, 3])[:3].astype(int)
    label = np.asarray(drawn.voxels())[tuple(slice(a, a + n) for a, n in zip(corner, image.shape))]
    spacing = tuple(float(length) for length in np.linalg.norm(file.affine[:3, :3], axis=0))
    reference = int(np.flatnonzero(frames == round(place))[0]) + 1
    return Case(image[..., frames], spacing, reference, label.astype(np.uint8))


def _is_whole(case: Case) -> bool:
    """Whether the drawn left ventricle is there and does not reach the border of the image."""
    ventricle = np.isin(case.label, (LABELS["myo"], LABELS["lv"]))
    return bool(ventricle.any()) and ventricle.sum() == ventricle[1:-1, 1:-1].sum()


def _corrupt(cases: Mapping[str, Case], kind: str, level: int, long_axis: NDArray) -> dict[str, Case]:
    """Each case corrupted at a level (from 1), with the next one as the other subject; with its drawn label where the kind
    is one of labels."""
    corruption, subjects = CORRUPTIONS[kind], list(cases)
    severity = corruption.severities[level - 1]
    found = {}
    for subject, other in zip(subjects, subjects[1:] + subjects[:1]):
        case = corruption.apply(cases[subject], severity, cases[other], long_axis)
        found[subject] = case if corruption.of_label else replace(case, label=None)
    return found


def _rows_of(cases: Mapping[str, Case], measure: Callable, limits: Mapping, **where: object) -> list[dict]:
    """What the verdict says of cases, a row each."""
    rows = []
    for subject, case in tqdm(cases.items(), desc=" ".join(map(str, where.values())), unit="case"):
        findings = judge_case(measure(case), limits)
        sentences = [finding.sentence for finding in findings if finding.grade != PASSED]
        rows.append({"subject": subject, **where, "grade": worst(findings), "findings": sentences})
    return rows


def _clean_rows(cases: Mapping[str, Case], of: str, measure: Callable, limits: Mapping) -> list[dict]:
    """Those of cases as they are, with the drawn and with the automatic contour."""
    automatic = {name: replace(case, label=None) for name, case in cases.items()}
    drawn = _rows_of(cases, measure, limits, kind=CLEAN, of=of, label="drawn")
    return drawn + _rows_of(automatic, measure, limits, kind=CLEAN, of=of, label="automatic")


def _corrupted_rows(
    cases: Mapping[str, Case],
    levels: Mapping[str, Sequence[int]],
    of_cycle: bool,
    long_axis: NDArray,
    measure: Callable,
    limits: Mapping,
) -> list[dict]:
    """Those of some subjects, each at its levels, corrupted in each way that takes a cycle, or in each other one."""
    chosen, rows = {name: cases[name] for name in levels}, []
    for kind in [kind for kind, corruption in CORRUPTIONS.items() if corruption.of_cycle == of_cycle]:
        for level in (1, 2, 3):
            corrupted = _corrupt(chosen, kind, level, long_axis)
            tried = {name: case for name, case in corrupted.items() if level in levels[name]}
            rows += _rows_of(tried, measure, limits, kind=kind, level=level)
    return rows


def summarize(rows: Sequence[dict]) -> dict[str, dict]:
    """Clean cases of each kind and label by grade; and of each kind of corruption, how many were called out of how many at
    each level."""
    found: dict[str, dict] = {"clean": {}, "called out": {}}
    for row in rows:
        if row["kind"] == CLEAN:
            counts = found["clean"].setdefault(f"{row['of']}, {row['label']}", dict.fromkeys(GRADES, 0))
            counts[row["grade"]] += 1
        else:
            level = found["called out"].setdefault(row["kind"], {}).setdefault(str(row["level"]), [0, 0])
            level[0] += row["grade"] != PASSED
            level[1] += 1
    return found


def tabulate(summary: Mapping) -> dict[str, dict[str, str]]:
    """The summary as tables of cells in words, "clean" and "kinds"."""
    kinds = {
        kind: {
            "severities": f"{', '.join(map(str, CORRUPTIONS[kind].severities))} ({CORRUPTIONS[kind].meaning})",
            **{f"at {number}": f"{found} of {of}" for number, (found, of) in levels.items()},
        }
        for kind, levels in summary["called out"].items()
    }
    return {"clean": summary["clean"], "kinds": kinds}


def main(argv: Sequence[str] | None = None) -> dict:
    """Set the thresholds, measure, print the tables, write the files; returns what the JSON holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder in ACDC's layout")
    parser.add_argument("--cines_dir", type=Path, required=True, help="folder of <subject>_4d.nii.gz")
    parser.add_argument("--long_axis", type=Path, required=True, help="cine of a long-axis view (X, Y, 1, T)")
    parser.add_argument("--cache", type=Path, help="folder that keeps what was measured")
    parser.add_argument("--trial", action="store_true", help="corrupt one subject alone, at the top severity")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    parser.add_argument("--thresholds", type=writable, help="file to write the thresholds to")
    options = parser.parse_args(argv)
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
    view = np.asarray(open_nifti(options.long_axis).voxels(), np.float32)[:, :, 0]
    splits, measure = folder_splits(options.dataset_dir), Measured(options.cache)

    def stacks(subjects: Sequence[str]) -> dict[str, Case]:
        return {name: _read_stack(name, options.dataset_dir) for name in sorted(subjects)}

    def cines(subjects: Sequence[str]) -> dict[str, Case]:
        found = {name: _read_cine(name, options.dataset_dir, options.cines_dir) for name in sorted(subjects)}
        return {name: case for name, case in found.items() if case is not None and _is_whole(case)}

    qualities = {}
    for split in ("train", "val"):
        cases = [*stacks(splits[split]).values(), *cines(splits[split]).values()]
        qualities[split] = [measure(case) for case in tqdm(cases, desc=split, unit="case")]
    reach, found = set_limits(worst_values(qualities["train"]))
    limits = {name: figure["limit"] for name, figure in found.items()}
    for name, values in worst_values(qualities["val"]).items():
        found[name]["median on val"] = float(f"{np.nanmedian(values):.3g}")
    levels = dict.fromkeys(CORRUPTED, ()) | {next(iter(CORRUPTED)): (3,)} if options.trial else CORRUPTED
    rows = []
    for of, val in {"stacks": stacks(splits["val"]), "cines": cines(splits["val"])}.items():
        rows += _clean_rows(val, of, measure, limits)
        rows += _corrupted_rows(val, levels, of == "cines", view, measure, limits)
    result = setting("benchmarks.verdict", sys.argv[1:] if argv is None else argv, options, processor("cpu"))
    rule = {"quantile": QUANTILE, "least": LEAST, "called out": CALLED_OUT, "reach": reach}
    result |= {"rule": rule, "limits": found}
    result |= {**tabulate(summarize(rows)), "rows": rows}
    for table in ("limits", "clean", "kinds"):
        print(markdown_table(result, table))
    if options.thresholds:
        write_json(options.thresholds, limits)
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
