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

"""All that wants a GPU, in one command of a few minutes.

    python -m benchmarks.gpu --prepare DIR --data PREPARED            # where the data set is; no GPU
    python -m benchmarks.gpu --data PREPARED [--budget 480] [--output_dir gpu] [--reference PATH]    # where the GPU is
    python -m benchmarks.gpu --rehearse [--data PREPARED]             # two steps of each part on a CPU

In this order, as far as the budget in seconds goes: versions and device; float64 parity; fp32, TF32, bf16 and fp16
against the CPU; host synchronizations; the step, eager and as a CUDA graph, against its floors; the published trainings
(500 epochs, batch 32, the published U-Net) of GSMorph, VoxelMorph-m, GS-PCGrad, VoxelMorph-s and -l, and the recipe of
the shipped weights, each scored on the test split; torch.compile; volumes. OUT/results.json is written after each part,
and the weights of each training beside it: at most seven files, none over 16 MiB.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from monai.utils import set_determinism
from scripts.cardiac.phantom import write_phantom_dataset
from scripts.devices import allow_tf32, check_device, time_kernels
from scripts.errors import InputError, one_line
from scripts.files import write_json

from benchmarks.gpu import checks
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import FAILED, SKIPPED, Part, Results, run_parts
from benchmarks.gpu.prepared import prepare, read
from benchmarks.gpu.trainings import TRAININGS, one_thread, seconds_needed, train
from benchmarks.options import positive, writable
from benchmarks.setting import processor, setting

REHEARSAL = {"batch": 2, "size": 32, "steps": 2, "rounds": 1, "most_steps": 2}
PHANTOMS = {"subjects": 4, "size": (40, 40), "slices": 2, "frames": 4}


def make_parts(bench: Bench) -> list[Part]:
    """The parts in their order. Those of fixed length have a generous guess, since none has run on a GPU."""
    fixed = lambda name, run, seconds, *needs: Part(name, partial(run, bench), lambda _: seconds, needs)
    trainings = [
        Part(name, partial(train, bench, name), partial(seconds_needed, bench, name), ("parity", "steps"))
        for name in TRAININGS
    ]
    return [
        fixed("versions", checks.versions, 1),
        fixed("parity", checks.parity, 10),
        fixed("precision", checks.precision, 20),
        fixed("synchronizations", checks.synchronizations, 10),
        fixed("steps", checks.steps, 40, "parity"),
        *trainings,
        fixed("compiled", checks.compiled, 90, "parity"),
        fixed("volumes", checks.volumes, 20),
    ]


@contextmanager
def _processes(jobs: int) -> Iterator[Executor | None]:
    """Processes that score cases; None for a single one."""
    if jobs < 2:
        yield None
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=one_thread) as executor:
        # They start, and import, beside the first parts, which time nothing.
        for _ in range(jobs):
            executor.submit(int)
        yield executor


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="file that --prepare wrote; --rehearse does without")
    parser.add_argument("--prepare", metavar="DIR", help="data set to make --data of, in the layout of ACDC or M&Ms")
    parser.add_argument("--rehearse", action="store_true", help="run each part on the CPU, with two steps")
    parser.add_argument("--device", default="cuda:0", help="with --rehearse cpu")
    parser.add_argument("--budget", type=positive, help="seconds for all parts; default: 480, no end of a rehearsal")
    parser.add_argument("--output_dir", default="gpu", help="folder of results.json and the weights")
    parser.add_argument("--jobs", type=positive, default=min(os.cpu_count() or 1, 14), help="processes that score")
    parser.add_argument("--reference", help="checkout of the authors' repository, measured beside")
    options = parser.parse_args(argv)
    if not options.data and (options.prepare or not options.rehearse):
        parser.error("--data FILE is needed: what --prepare writes and a GPU reads")
    if options.prepare:
        try:
            writable(options.data)
        except argparse.ArgumentTypeError as error:
            parser.error(f"--data {error}")
    if options.rehearse:
        options.device, options.jobs = "cpu", 1
    options.budget = options.budget or (float("inf") if options.rehearse else 480)
    return options


def main(argv: Sequence[str] | None = None) -> Results:
    """Prepare, rehearse or measure; returns what each part found.

    Raises:
        InputError: at the end, naming the parts that failed; in a rehearsal those that were skipped as well.
    """
    options = _parse(argv)
    if options.prepare:
        print(f"{options.data}: {prepare(options.prepare, options.data) / 2**20:.1f} MiB")
        return {}
    check_device(options.device)
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    logging.getLogger().setLevel(logging.WARNING)
    # As `initialize` of train.yaml.
    allow_tf32()
    set_determinism(seed=0)
    time_kernels()
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, _processes(options.jobs) as executor:
        data = options.data or _rehearsed_data(Path(folder))
        sizes = REHEARSAL if options.rehearse else {}
        bench = Bench(options.device, read(data), output_dir, options.reference, executor=executor, **sizes)
        words = sys.argv[1:] if argv is None else argv
        header = setting("benchmarks.gpu", words, options, processor(options.device))
        header |= {"rehearsal": options.rehearse, "budget": options.budget}
        keep = lambda results: write_json(output_dir / "results.json", {**header, "parts": results})
        results = run_parts(make_parts(bench), options.budget, keep)
    if options.rehearse:
        print("A rehearsal: every part ran on a CPU with two steps, so its figures say nothing.")
    bad = (FAILED, SKIPPED) if options.rehearse else (FAILED,)
    if wrong := {name: found[key] for name, found in results.items() for key in bad if key in found}:
        raise InputError("; ".join(f"{name}: {reason}" for name, reason in wrong.items()))
    return results


def _rehearsed_data(folder: Path) -> Path:
    """The prepared file of a few small phantoms."""
    path = folder / "phantoms.npz"
    prepare(write_phantom_dataset(folder / "phantoms", progress=False, **PHANTOMS), path, size=PHANTOMS["size"][0])
    return path


if __name__ == "__main__":
    with one_line():
        main()
