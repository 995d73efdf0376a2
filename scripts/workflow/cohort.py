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

"""Many cases, one after the other and shared by processes: skips what is done, goes on past a bad one, and sums all up
in one table."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import ignite.distributed as idist
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from scripts.cardiac.answers import BY_SEGMENTATION, CARRIED, SEGMENTED, WORDS
from scripts.cardiac.strain import summarize_strain
from scripts.data.datalists import FILE_KEYS
from scripts.data.loading import in_parts
from scripts.data.results import DONE, WEIGHTS, check_place, check_writable, explain_write_errors
from scripts.devices import gather_rows, is_first_of_node
from scripts.errors import InputError, first_cause
from scripts.files import clear_leftovers, parts_of, write_csv
from scripts.help import bundle_version
from scripts.options import names_of
from scripts.progress import stage
from scripts.report.cohort_page import PAGE, is_cohort, write_cohort
from torch import nn
from tqdm import tqdm

SUMMARY = "summary.csv"
DIGITS = 4  # of a number in it, which are more than any of them is sure of
WORST = {"folding_percent": max, "jacobian_min": min, "inverse_error_mm_p95": max}
FUNCTION = ("lv_edv_ml", "lv_esv_ml", "lv_ef_percent", "rv_edv_ml", "rv_esv_ml", "rv_ef_percent", "lv_mass_g")
# Figures of a ventricle by each answer.
ANSWERS = {
    f"{ventricle}_{name}_{by}_{unit}": (by, f"{ventricle}_{name}_{unit}")
    for ventricle in ("lv", "rv")
    for name, unit in (("edv", "ml"), ("esv", "ml"), ("ef", "percent"))
    for by in (CARRIED, SEGMENTED)
}
# Peak global strain, and its key in `summarize_strain`, whose ratios become percents.
STRAIN = {f"peak_{name}_strain_percent": f"peak_{name}" for name in ("radial", "circumferential", "longitudinal")}
COLUMNS = ("case", "status", "grade", "verdict", *WORST, "label_basis", *FUNCTION, *ANSWERS, *STRAIN, "reason")


def run_cases(
    evaluator: SupervisedEvaluator,
    dataset: Dataset,
    output_dir: str | Path,
    overwrite: bool = False,
    parameters: Mapping[str, object] | None = None,
) -> list[str]:
    """Run an evaluator on the cases of a data set, each for itself; several processes share them.

    Of more than one case, `<output_dir>/summary.csv` has a row each (`summarize_case`), in the order of the data set, and
    `cohort.html` shows these and links the reports.

    Args:
        evaluator: its postprocessing writes a case to `<output_dir>/<case>/`.
        dataset: of a data list, each item with a "case"; the same in all processes.
        output_dir: folder of the cases.
        overwrite: whether to run a case again that is there already; a single one always is.
        parameters: on what the results depend beside the cases' files, the network and the inferer; where any of these
            has changed, a case is run again.

    Returns:
        The names of the cases that this process ran.

    Raises:
        InputError: at the end, in one process of each node, with the names of the cases that failed and the first one's
            reason.
    """
    if not len(dataset.data):
        return []
    # A single case was asked for by its files and options: what lies there may come from others.
    folder, single = Path(output_dir), len(dataset.data) == 1
    check_writable(folder)
    clear_leftovers(folder)
    if not single:
        _check_summary(folder)
    _let_cases_fail_alone(evaluator)
    settings = {**(parameters or {}), "bundle": bundle_version(), **_describe_settings(evaluator)}
    # Shared before looking at what is done, which changes while the other processes work.
    share = dataset.data[idist.get_rank() :: idist.get_world_size()]
    run = partial(_run_case, evaluator, dataset, folder=folder, settings=settings, anew=overwrite or single)
    done, reasons = _run_share(share, run, folder, single)
    _count_skipped(len(share) - len(done) - len(reasons), len(dataset.data))
    own = [summarize_case(folder, item, reasons.get(str(item["case"]))) for item in share]
    rows = gather_rows(own, len(dataset.data))
    complaints = [] if single or idist.get_rank() > 0 else _write_summary(folder / SUMMARY, rows, dataset.data)
    idist.barrier()
    complaints += _list_failures(rows) if is_first_of_node() else []
    if complaints:
        raise InputError(" ".join(complaints))
    return done


def _run_share(
    share: Sequence[Mapping], run: Callable[[Mapping], bool], folder: Path, single: bool
) -> tuple[list[str], dict[str, str]]:
    """The names of the cases that were run, and for each one that failed why; a single case's error goes on.

    Args:
        share: items of a data list.
        run: of an item; says whether there was anything to do.
        folder: of the cases' results.
        single: whether there is one case in all.
    """
    done, reasons = [], {}
    for item in tqdm(share, desc="cases", unit="case", disable=single or idist.get_rank() > 0):
        name = str(item["case"])
        try:
            if run(item):
                done.append(name)
                tqdm.write(describe_case(folder / name))
        except Exception as error:
            if single:
                raise
            cause = first_cause(error)
            # Some errors have no words.
            reasons[name] = str(cause) or type(cause).__name__
            tqdm.write(f"{name}: failed, {reasons[name]}")
    return done, reasons


def _run_case(
    evaluator: SupervisedEvaluator, dataset: Dataset, item: dict, folder: Path, settings: Mapping, anew: bool
) -> bool:
    """Run an evaluator on one case of a data set, unless it is done already.

    Args:
        evaluator: see `run_cases`.
        dataset: whose transform prepares the case.
        item: of its data list.
        folder: of the cases.
        settings: on what the results depend beside the case's files.
        anew: whether to run a case that is done.

    Returns:
        Whether it was run.
    """
    name = str(item["case"])
    with stage(f"{name}: reading", shown=idist.get_rank() == 0) as bar:
        item = {**item, "fingerprint": fingerprint(item, settings)}
        if not anew and _is_done(folder, item, names_of(settings.get("kept", "fields,moved"))):
            return False
        check_place(folder / name)  # before it is computed, not after
        load, *prepare = dataset.transform.transforms
        for part in in_parts(Dataset([item], load)[0]):
            bar.set_description_str(f"{name}: registering")
            # Or the part before would stay in memory beside this one.
            evaluator.state.batch = evaluator.state.output = None
            evaluator.data_loader = DataLoader(Dataset([part], Compose(prepare)), batch_size=1)
            evaluator.run()
    return True


def _let_cases_fail_alone(evaluator: SupervisedEvaluator) -> None:
    """Have an engine run any number of data loaders, one after the other, whatever became of those before."""
    # A failed case is reported by one line, not by the engine's traceback as well.
    evaluator.logger.setLevel(logging.CRITICAL)
    # Ignite would resume a run that failed, and so skip the next case; and it would keep the length of the first data
    # loader.
    evaluator.interrupt_resume_enabled = False
    evaluator.state.epoch_length = 1


def _count_skipped(own: int, cases: int) -> None:
    """Log how many cases all processes together left as they were."""
    if skipped := idist.all_reduce(own):
        logging.getLogger("inference").info(
            f"{skipped} of {cases} cases were done already with these files and options; --overwrite True runs them again"
        )


def _write_summary(path: Path, rows: Sequence[dict], items: Sequence[dict]) -> list[str]:
    """Write the table of all cases and their page; returns complaints where they cannot be written, which must not hide
    failures."""
    known = {str(item["case"]): item for item in items}
    rows = [row | {"reason": without_folders(row["reason"], known[row["case"]])} for row in rows]
    complaints = []
    for file, write in ((path, write_csv), (path.with_name(PAGE), write_cohort)):
        try:
            with explain_write_errors(file, "free space and run the same command again."):
                write(file, rows)
        except InputError as error:
            complaints.append(str(error))
    return complaints


def _list_failures(rows: Sequence[dict]) -> list[str]:
    """One sentence on all cases that failed, if any did."""
    failed = {row["case"]: row["reason"] for row in rows if row["status"] == "failed"}
    if not failed:
        return []
    first = next(iter(failed.values()))
    return [f"{len(failed)} of {len(rows)} cases failed: {', '.join(failed)}; the first one: {first}"]


def _check_summary(folder: Path) -> None:
    """Stop where the summary or the page of the cohort would replace another file.

    Raises:
        InputError: naming the file.
    """
    checks = {
        SUMMARY: lambda path: path.read_text(encoding="utf-8", errors="replace").startswith("case,"),
        PAGE: is_cohort,
    }
    for name, is_own in checks.items():
        path = folder / name
        if path.is_file() and not is_own(path):
            raise InputError(f"{path}: exists and is not the summary of an earlier run; give another --output_dir.")


def describe_case(folder: Path) -> str:
    """The lines that the console shows of a case that was written to a folder: volumes and ejection fraction where
    there are labels, the verdict, and where to look."""
    quality, function = (_read_json(folder / name) for name in (DONE, "function.json"))
    report = folder / "report.html"
    of_frame = f", of frame {frame}" if (frame := quality.get("reference_frame")) else ""
    lines = [
        *([f"contours are automatic{of_frame}"] if quality.get("label_basis") == BY_SEGMENTATION else []),
        *_describe_ventricles(function),
        *([function["unmeasured"]] if "unmeasured" in function else []),
        f"{quality.get('grade', 'not assessed')}. {' '.join(quality.get('verdict', []))}".rstrip(),
        str(report if report.is_file() else folder),
    ]
    return "\n".join(f"{folder.name}: {line}" for line in lines)


def _describe_ventricles(function: Mapping) -> Iterator[str]:
    """A line on each ventricle that has an ejection fraction: by the better answer, and by the other one."""
    for ventricle in ("lv", "rv"):
        fraction = function.get(f"{ventricle}_ef_percent")
        if fraction is None:
            continue
        by = function[f"{ventricle}_measured_by"]
        line = (
            f"{ventricle.upper()} EDV {function[f'{ventricle}_edv_ml']:.0f} mL, ESV "
            f"{function[f'{ventricle}_esv_ml']:.0f} mL, EF {fraction:.0f} % {WORDS[by]}"
        )
        for other in (CARRIED, SEGMENTED):
            second = function.get(other, {}).get(f"{ventricle}_ef_percent")
            if other != by and second is not None:
                line += f", {second:.0f} % {WORDS[other]}"
        yield line


def _read_json(path: Path) -> dict:
    """The content of a JSON file; empty where it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def without_folders(reason: str, item: Mapping) -> str:
    """A reason that names a case's files without the folders they are in, which may tell who the patient is."""
    paths = [Path(str(item[key])) for key in FILE_KEYS if key in item]
    for path in paths:
        # What lies between a folder and the file that is meant.
        reason = re.sub(rf"{re.escape(str(path))}/(?:[^/'\"\n]+/)+", f"{path}/", reason)
    for parent in sorted({str(path.parent) for path in paths} - {"."}, key=len, reverse=True):
        reason = reason.replace(f"{parent.rstrip('/')}/", "")
    return reason


def _is_done(output_dir: str | Path, item: Mapping, kept: Sequence[str] = ("fields", "moved")) -> bool:
    """Whether a case's folder is there with quality of the same fingerprint, and with the images and fields that are
    kept."""
    folder = Path(output_dir) / str(item["case"])
    names = {
        "moved": ("moved.nii.gz",),
        "fields": ("fields", "field.nii.gz"),
        "inverse": ("fields", "field_inverse.nii.gz"),
    }
    if not all(any((folder / name).exists() for name in names.get(kind, (DONE,))) for kind in kept):
        return False
    try:
        return json.loads((folder / DONE).read_text())["fingerprint"] == item["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not there, or cut off as on a full disk


def fingerprint(item: Mapping, parameters: Mapping[str, object]) -> str:
    """A hash (16 hexadecimal digits) of a case and of parameters; files and folders count by their contents."""
    total = hashlib.sha256()
    for key, value in sorted({**item, **parameters}.items()):
        total.update(f"{key}:".encode())
        if value is None or key not in (*FILE_KEYS, *WEIGHTS):
            total.update(str(value).encode())
            continue
        path = Path(str(value))
        # An image in two files is both; a missing file is the loader's to report.
        for file in (part for part in parts_of(path) if part.is_file()):
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def _describe_settings(evaluator: SupervisedEvaluator) -> dict[str, str]:
    """What decides the fields that an evaluator makes, beside weights: the settings of its network and inferer."""
    return {name: describe_object(getattr(evaluator, name)) for name in ("network", "inferer")}


def describe_object(value: object) -> str:
    """The kind and the settings of a network or an inferer, and of those in it, as one text; weights have their file's
    hash."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe_object, value))}]"
    own = type(value).__module__.startswith("scripts.")
    settings = {name: setting for name, setting in vars(value).items() if own and not name.startswith("_")}
    if isinstance(value, nn.Module):
        settings |= dict(value.named_children())
    # A progress bar and the training mode change no result.
    parts = (
        f"{name}={describe_object(setting)}"
        for name, setting in sorted(settings.items())
        if name not in ("progress", "training")
    )
    return f"{getattr(value, '__qualname__', type(value).__qualname__)}({', '.join(parts)})"


def summarize_case(output_dir: str | Path, item: dict, reason: str | None = None) -> dict:
    """A case's row of the summary: `COLUMNS`, empty where there is no such figure; folding and inverse error of its
    worst frame.

    Args:
        output_dir: folder of the cases.
        item: of a data list, with a "case".
        reason: why the case failed, None where it did not.
    """
    name = str(item["case"])
    row = dict.fromkeys(COLUMNS, "") | {"case": name, "status": "failed" if reason else "done", "reason": reason or ""}
    if reason:
        return row
    folder = Path(output_dir) / name
    quality, function = (_read_json(folder / name) for name in (DONE, "function.json"))
    row |= {"grade": quality.get("grade", ""), "verdict": " ".join(quality.get("verdict", []))}

    def known(key):
        return [frame[key] for frame in quality.get("frames", []) if frame[key] is not None]

    row |= {key: worst(known(key), default="") for key, worst in WORST.items()}
    row |= {"label_basis": quality.get("label_basis") or ""}
    row |= {key: function.get(key, "") for key in FUNCTION}
    row |= {key: function.get(by, {}).get(name, "") for key, (by, name) in ANSWERS.items()}
    peaks = summarize_strain(_read_strain(folder / "strain.csv"))
    row |= {key: 100 * peaks[name] if name in peaks else "" for key, name in STRAIN.items()}
    return {key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for key, value in row.items()}


def _read_strain(path: Path) -> list[dict]:
    """The global rows of a `strain.csv`; none without a file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["region"] == "global"]
    names = ("radial", "circumferential", "longitudinal")
    return [row | {key: float(row[key]) for key in names if row.get(key)} for row in rows]
