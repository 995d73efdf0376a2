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
from collections.abc import Mapping
from pathlib import Path

import ignite.distributed as idist
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from scripts.cardiac.strain import summarize_strain
from scripts.data.datalists import FILE_KEYS
from scripts.data.results import DONE, check_place, check_writable, refused
from scripts.devices import gather_rows, is_first_of_node
from scripts.errors import InputError, first_cause
from scripts.files import clear_leftovers, parts_of, write_csv
from torch import nn
from tqdm import tqdm

SUMMARY = "summary.csv"
WORST = {"folding_percent": max, "jacobian_min": min, "inverse_error_mm_p95": max}
FUNCTION = ("lv_edv_ml", "lv_esv_ml", "lv_ef_percent", "rv_edv_ml", "rv_esv_ml", "rv_ef_percent", "lv_mass_g")
STRAIN = ("peak_radial", "peak_circumferential", "peak_longitudinal")
COLUMNS = ("case", "status", "trustworthy", "verdict", *WORST, *FUNCTION, *STRAIN, "reason")


def run_cases(
    evaluator: SupervisedEvaluator,
    dataset: Dataset,
    output_dir: str | Path,
    overwrite: bool = False,
    parameters: Mapping[str, object] | None = None,
) -> list[str]:
    """Run an evaluator on the cases of a data set, each for itself; several processes share them.

    Of more than one case, `<output_dir>/summary.csv` has a row each (`summarize_case`), in the order of the data set.

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
    # A failed case is reported by one line, not by the engine's traceback as well.
    evaluator.logger.setLevel(logging.CRITICAL)
    # Ignite would resume a run that failed, and so skip the next case; and it would keep the length of the first data
    # loader.
    evaluator.interrupt_resume_enabled = False
    evaluator.state.epoch_length = 1
    # A single case was asked for by its files and options: what lies there may come from others.
    single = len(dataset.data) == 1
    computed_by = {name: describe(getattr(evaluator, name)) for name in ("network", "inferer")}
    summary = Path(output_dir) / SUMMARY
    check_writable(Path(output_dir))
    clear_leftovers(Path(output_dir))
    if not single:
        check_summary(summary)
    done, reasons = [], {}
    # Shared before looking at what is done, which changes while the other processes work.
    share = dataset.data[idist.get_rank() :: idist.get_world_size()]
    bar = tqdm(share, desc="cases", unit="case", disable=idist.get_rank() > 0)
    for item in bar:
        name = str(item["case"])
        bar.set_postfix_str(name)
        try:
            item = {**item, "fingerprint": fingerprint(item, {**(parameters or {}), **computed_by})}
            if not (overwrite or single) and is_done(output_dir, item):
                continue
            # Before it is computed, not after.
            check_place(Path(output_dir) / name)
            evaluator.data_loader = DataLoader(Dataset([item], dataset.transform), batch_size=1)
            evaluator.run()
            done.append(name)
            tqdm.write(tell(Path(output_dir) / name))
        except Exception as error:
            if single:
                raise
            cause = first_cause(error)
            # Some errors have no words.
            reasons[name] = str(cause) or type(cause).__name__
            tqdm.write(f"{name}: failed, {reasons[name]}")
    # Of all processes, of which the first one speaks.
    skipped = idist.all_reduce(len(share) - len(done) - len(reasons))
    if skipped:
        logging.getLogger("inference").info(
            f"{skipped} of {len(dataset.data)} cases were done already with these files and options; "
            "--overwrite True runs them again"
        )
    own = [summarize_case(output_dir, item, reasons.get(str(item["case"]))) for item in share]
    rows = gather_rows(own, len(dataset.data))
    complaints = []
    if idist.get_rank() == 0 and not single:
        items = {str(item["case"]): item for item in dataset.data}
        try:
            with refused(summary, "free space and run the same command again."):
                write_csv(
                    summary, [row | {"reason": without_folders(row["reason"], items[row["case"]])} for row in rows]
                )
        except InputError as error:
            complaints.append(str(error))  # with the failures, which it must not hide
    idist.barrier()
    failed = {row["case"]: row["reason"] for row in rows if row["status"] == "failed"}
    if failed and is_first_of_node():
        first = next(iter(failed.values()))
        complaints.append(f"{len(failed)} of {len(rows)} cases failed: {', '.join(failed)}; the first one: {first}")
    if complaints:
        raise InputError(" ".join(complaints))
    return done


def check_summary(path: Path) -> None:
    """Stop where the summary would replace another file.

    Raises:
        InputError: naming the file.
    """
    if path.is_file() and not path.read_text(encoding="utf-8", errors="replace").startswith("case,"):
        raise InputError(f"{path}: exists and is not the summary of an earlier run; give another --output_dir.")


def tell(folder: Path) -> str:
    """One line on a case that was written to a folder: where to look, and whether to trust it."""
    report, path = folder / "report.html", folder / DONE
    place = report if report.is_file() else folder
    quality = json.loads(path.read_text()) if path.is_file() else {}
    word = "trustworthy" if quality.get("trustworthy") else "look closely"
    return f"{place}: {word}. {' '.join(quality.get('verdict', []))}".rstrip()


def without_folders(reason: str, item: Mapping) -> str:
    """A reason that names a case's files without the folders they are in, which may tell who the patient is."""
    paths = [Path(str(item[key])) for key in FILE_KEYS if key in item]
    for path in paths:
        # What lies between a folder and the file that is meant.
        reason = re.sub(rf"{re.escape(str(path))}/(?:[^/'\"\n]+/)+", f"{path}/", reason)
    for parent in sorted({str(path.parent) for path in paths} - {"."}, key=len, reverse=True):
        reason = reason.replace(f"{parent.rstrip('/')}/", "")
    return reason


def is_done(output_dir: str | Path, item: Mapping) -> bool:
    """Whether a case's folder is there with images, fields and quality, of the same fingerprint."""
    folder = Path(output_dir) / str(item["case"])
    if not (folder / "moved.nii.gz").is_file() or not any(
        (folder / name).exists() for name in ("fields", "field.nii.gz")
    ):
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
        if value is None or key not in (*FILE_KEYS, "weights"):
            total.update(str(value).encode())
            continue
        path = Path(str(value))
        # An image in two files is both; a missing file is the loader's to report.
        for file in (part for part in parts_of(path) if part.is_file()):
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def describe(value: object) -> str:
    """The kind and the settings of a network or an inferer, and of those in it, as one text; weights have their file's
    hash."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    own = type(value).__module__.startswith("scripts.")
    settings = {name: setting for name, setting in vars(value).items() if own and not name.startswith("_")}
    if isinstance(value, nn.Module):
        settings |= dict(value.named_children())
    # Where and how loudly something is computed changes nothing.
    parts = (
        f"{name}={describe(setting)}"
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
    quality, function = (
        json.loads(path.read_text()) if path.is_file() else {} for path in (folder / DONE, folder / "function.json")
    )
    row |= {"trustworthy": quality.get("trustworthy", ""), "verdict": " ".join(quality.get("verdict", []))}

    def known(key):
        return [frame[key] for frame in quality.get("frames", []) if frame[key] is not None]

    row |= {key: worst(known(key), default="") for key, worst in WORST.items()}
    row |= {key: function.get(key, "") for key in FUNCTION}
    peaks = summarize_strain(read_strain(folder / "strain.csv"))
    return row | {key: peaks.get(key, "") for key in STRAIN}


def read_strain(path: Path) -> list[dict]:
    """The global rows of a `strain.csv`; none without a file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["region"] == "global"]
    names = ("radial", "circumferential", "longitudinal")
    return [row | {key: float(row[key]) for key in names if row.get(key)} for row in rows]
