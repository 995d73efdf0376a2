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

"""Every row of the published comparison on the same pairs: trained, searched and chosen on one data set, tested on it
or another.

    python -m benchmarks.table --dataset_dir DIR [--test_dataset_dir DIR] [--subset N] [--epochs N]
        [--rows NAME ...] [--jobs N] [--seed N] [--output_dir output/table]

A data set is a folder in ACDC's layout or in that of M&Ms. Networks train on its `train` split by train.yaml,
table.yaml and a method of benchmarks/methods/, so that only the method differs; `val` chooses their best weights, the
weight that a hypernetwork is evaluated at, and the parameters of Demons and SyN; `test` (of the other data set, where
one is given) is scored in both directions as evaluate.yaml does: networks see whole slices, Demons and SyN the central
`slice_size`, and the central `crop_size` is scored. Seconds are CPU seconds on a CPU, where torch and ITK have one
thread each, else seconds of the clock.

A finished row is not run again; an unfinished one goes on from its last epoch. OUT/training/<row>/ holds weights,
search and settings; OUT/ (OUT/on_<folder>/ for another test set) the scores, table.md, table.csv (a line a subject,
method and direction) and table.png.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context

import nibabel as nib
import torch
from scripts.devices import check_device
from scripts.errors import InputError, first_cause, one_line
from scripts.files import write_csv, write_text
from tqdm import tqdm

from benchmarks.classical import limit_itk_to_one_thread
from benchmarks.comparison import COLUMNS, draw, format_table
from benchmarks.options import command, positive
from benchmarks.rows import (
    ROWS,
    SEARCHED,
    SHARED,
    Study,
    check_study,
    classical_method,
    clock,
    epochs_done,
    judged_by,
    mean_of,
    prepare,
    read_json,
    run_row,
    scored_before,
    tried_before,
    with_nan,
)
from benchmarks.setting import commit, processor

OURS = "gsmorph"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of the engines; progress bars stay."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _processes(jobs: int, names: Sequence[str]) -> Iterator[Executor | None]:
    """Processes for ITK, started when the first slice needs one; None for a single job, or where no row needs ITK."""
    classical = any(ROWS[name].kind == "classical" for name in names)
    if jobs == 1 or not classical:
        if classical:
            limit_itk_to_one_thread()
        yield None
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=limit_itk_to_one_thread) as executor:
        yield executor


# --- before and after


def count_slices(items: Sequence[dict]) -> int:
    """Of all pairs, by the headers."""
    return sum(nib.load(item["moving"]).shape[2] for item in items)


def estimate_hours(study: Study, names: Sequence[str]) -> dict[str, float]:
    """CPU hours that each row's training or search, and scoring by ITK, still needs, from a few steps and slices timed
    here.

    Scoring by networks comes on top.
    """
    slices = {split: count_slices(study.items(split)) for split in ("train", "val", "test")}
    steps = max(slices["train"] // study.settings["batch_size"], 1)
    hours: dict[str, float] = {}
    for name in names:
        trained = ROWS[name].trained_as or name
        if ROWS[name].kind == "classical":
            left = slices["val"] * (len(SEARCHED[name]) - len(tried_before(study, name)))
            if left or scored_before(study, name, prepare(study, name, None)) is None:
                left += slices["test"]
            hours[name] = left and left * _slice_seconds(study, name) / 3600
        elif ROWS[name].kind == "learned" and trained not in hours:
            left = steps * max(study.epochs - epochs_done(study.training_dir(trained)), 0)
            hours[trained] = left and left * step_seconds(study, trained) / 3600
    return hours


def _slice_seconds(study: Study, name: str) -> float:
    """Of a classical row, for one slice of `val`."""
    slices = 3 if ROWS[name].volumes else 1
    pair = next(study.cases("val"))["pair"][..., :slices]
    return classical_method(study, name, SEARCHED[name][-1], None)(pair)[1] / slices


def step_seconds(study: Study, name: str, repetitions: int = 2) -> float:
    """Seconds of the forward pass and both gradients of a batch of noise, after one that warms up."""
    parser, device = study.parser(*SHARED, f"benchmarks/methods/{name}.yaml"), study.options.device
    keys = ("network", "train::inferer", "train::loss", "smoothness")
    network, infer, similarity, smoothness = (parser.get_parsed_content(key) for key in keys)
    parameters = list(network.parameters())
    pair = torch.rand(study.settings["batch_size"], 2, *study.sizes["crop_size"], device=device)
    pair = pair.contiguous(memory_format=torch.channels_last)
    for repetition in range(1 + repetitions):
        if repetition == 1:
            start = clock(device)
        field = infer(pair, network)
        torch.autograd.grad(similarity(field, pair), parameters, retain_graph=True)
        torch.autograd.grad(smoothness(field), parameters)
    return (clock(device) - start) / repetitions


def _write(study: Study, results: dict[str, dict]) -> str:
    """Write table.md and table.csv of the rows so far; returns the text of the first."""
    scores, titles = _named(results)
    training = {name: r["training_seconds"] for name, r in results.items() if r["training_seconds"] is not None}
    counts = {split: len({item["subject"] for item in study.items(split)}) for split in ("train", "val", "test")}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if any(ROWS[name].kind == "classical" for name in results):
        versions |= {package: version(package) for package in ("itk", "SimpleITK")}
    device = study.options.device
    text = [
        "# The published comparison: all columns, both directions\n",
        f"- command: `{command('benchmarks.table', study.options.words)}`, commit {commit()}",
        f"- hardware: {processor(device)}; seconds are {'CPU seconds, one thread' if device == 'cpu' else 'of the clock'}",
        f"- versions: {', '.join(f'{name} {number}' for name, number in versions.items())}",
        f"- subjects: {', '.join(f'{count} {split}' for split, count in counts.items())}; learned rows: {study.epochs} epochs",
        "- mean ± population standard deviation over subjects; p: Wilcoxon's signed-rank test of Dice against GSMorph, two-sided, "
        "adjusted by Holm over the rows",
        *(_describe_choice(study, name) for name, result in results.items() if result["choice"]),
        "\n" + format_table(scores, titles, training, OURS),
    ]
    study.output_dir.mkdir(parents=True, exist_ok=True)
    write_text(study.output_dir / "table.md", "\n".join(text))
    write_csv(
        study.output_dir / "table.csv", [{"method": name, **row} for name, rows in scores.items() for row in rows]
    )
    return "\n".join(text)


def _describe_choice(study: Study, name: str) -> str:
    """What was tried for a row and what `val` chose."""
    choice = read_json(study.training_dir(name) / "choice.json")
    choice["tried"] = with_nan(choice["tried"])
    key = judged_by(choice["tried"])
    heading, digits = COLUMNS[key]
    words = lambda row: ", ".join(
        f"{key} {row[key]:.2g}" if isinstance(row[key], float) else f"{key} {row[key]}" for key in choice["chosen"]
    )
    tried = "; ".join(f"{words(row)}: {row[key]:.{digits + 1}f}" for row in choice["tried"])
    return f"- {ROWS[name].title}: {words(choice['chosen'])}, by {heading} on `val` ({tried})"


def _named(results: dict[str, dict]) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """Scored pairs and titles of the rows, as `comparison` takes them."""
    return {name: result["rows"] for name, result in results.items()}, {name: ROWS[name].title for name in results}


def _describe(result: dict) -> str:
    """A finished row in short, ES to ED."""
    figures = mean_of([row for row in result["rows"] if row["direction"] == "ES_to_ED"])
    cells = [
        f"{COLUMNS[key][0]} {figures[key]:.3g}" for key in ("dice", "hd95_voxel", "mse", "folding_percent", "seconds")
    ]
    return ", ".join(
        cells + ([] if result["training_seconds"] is None else [f"trained {result['training_seconds']:.0f} s"])
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; `words` are they as typed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset_dir", required=True, help="folder in the layout of ACDC or M&Ms: train, val and test"
    )
    parser.add_argument(
        "--test_dataset_dir", help="another data set whose test split (or all, without one) is scored instead"
    )
    parser.add_argument("--subset", type=positive, help="subjects of each split; all by default")
    parser.add_argument("--epochs", type=positive, help="of each training; table.yaml's by default")
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="those alone are in the tables then"
    )
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="processes for Demons and SyN")
    parser.add_argument("--device", default="cpu", help="of the networks")
    parser.add_argument("--seed", type=int, help="of trainings, not of the split; train.yaml's by default")
    parser.add_argument("--slice_size", type=positive, help="pixels, of training slices; train.yaml's by default")
    parser.add_argument(
        "--crop_size",
        type=positive,
        help="pixels, of training crops and of what is scored of images; train.yaml's by default",
    )
    parser.add_argument("--output_dir", default="output/table")
    options = parser.parse_args(argv)
    options.words = list(argv)
    return options


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Run the rows that are left, write and print the tables; returns the results by row.

    Raises:
        InputError: where a folder is of other data or options; at the end, with the rows that failed and the first
            one's reason.
    """
    study = Study(parse(sys.argv[1:] if argv is None else argv))
    check_device(study.options.device)
    if study.options.device == "cpu":
        torch.set_num_threads(1)
    names, results, failed = study.options.rows, {}, {}
    check_study(study, names)
    with quiet(), _processes(study.options.jobs, names) as executor:
        hours = estimate_hours(study, names)
        parts = ", ".join(f"{ROWS[name].title} {value:.2g}" for name, value in hours.items() if value)
        print(f"about {sum(hours.values()):.2g} CPU hours are left{': ' * bool(parts)}{parts}", flush=True)
        for number, name in enumerate(names, 1):
            try:
                results[name] = run_row(study, name, executor)
            except Exception as error:
                failed[ROWS[name].title] = first_cause(error)
                line = f"failed, {first_cause(error)}"
            else:
                line = _describe(results[name])
                text = _write(study, results)
            tqdm.write(f"[{number:2}/{len(names)}] {ROWS[name].title}: {line}")
    if results:
        draw(*_named(results), study.output_dir / "table.png")
        print(text)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(names)} rows failed: {', '.join(failed)}; the first one: {next(iter(failed.values()))}"
        )
    return results


if __name__ == "__main__":
    with one_line():
        main()
