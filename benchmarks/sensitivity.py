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

"""What a user chooses where there is no weight: Dice and folding over rate, batch and averages for surgery, over λ for
weighted sums.

    python -m benchmarks.sensitivity --dataset_dir DIR [--output_dir sensitivity] [--epochs 3] [--runs N] [--figure
    FILE.png]

Every run trains `train.yaml` on native pixels with the same number of slice presentations and is scored on `val`, with
the last weights and with their running mean. The network is one whose fields can fold: a displacement, neither
integrated nor smoothed, one direction at a time; so what keeps a field smooth is how the two gradients are combined.
A finished run is a file in the output folder and is not run
again; `--runs` stops after so many. `sensitivity.json`, `sensitivity.csv` and the figure hold what is finished so far.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from scripts.api import ROOT
from scripts.data.datalists import select_pairs
from scripts.devices import check_device
from scripts.errors import InputError, one_line
from scripts.files import write_csv, write_json
from tqdm import tqdm

from benchmarks.options import positive
from benchmarks.rows import SCORED_BY, TRAINED_BY, code_of, prints
from benchmarks.setting import processor, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

FIGURES = ("dice", "folding_percent", "hd95_voxel", "mse")
FOLDABLE = {
    "integration": None,
    "network_def#backbone#integration_steps": 0,
    "network_def#backbone#smoothing": 0.0,
    "network_def#backbone#antisymmetric": False,
    "working_spacing": False,
}
RATES, BATCHES = (3e-4, 1e-3, 3e-3), (4, 16)
WEIGHTS = (0.01, 0.1, 0.0, 0.03, 0.001, 0.003)
# Dice in percent above which most points lie; the figure shows these, and names the others.
CROWDED = 76.0
COLORS = dict(zip(RATES, ("tab:blue", "tab:green", "tab:red")))
MARKERS = dict(zip(BATCHES, "os"))
GRAY, PURPLE = "0.6", "tab:purple"
NAMES = {"pcgrad_symmetric": "PCGrad, UPGrad", "config": "ConFIG"}


@dataclass(frozen=True)
class Run:
    """What is varied; the defaults are those of train.yaml."""

    strategy: str = "projection"
    weight: float = 0.0
    learning_rate: float = 1e-3
    batch_size: int = 4
    seed: int = 0

    @property
    def name(self) -> str:
        """A file name."""
        weight = f"_{self.weight:g}" if self.strategy == "weighted_sum" else ""
        return f"{self.strategy}{weight}_rate{self.learning_rate:g}_batch{self.batch_size}_seed{self.seed}"


def plan() -> list[Run]:
    """All runs, those first that say most."""
    sums = [Run("weighted_sum", weight) for weight in WEIGHTS]
    surgery = [Run(learning_rate=rate, batch_size=batch) for batch in BATCHES for rate in RATES]
    others = [Run("config"), Run("pcgrad_symmetric")]
    seeds = [Run(seed=1), Run("weighted_sum", 0.01, seed=1)]
    rates = [Run("weighted_sum", 0.01, rate) for rate in RATES]
    return list(dict.fromkeys([Run(), *sums[:3], *surgery, *sums[3:], *others, *seeds, *rates]))


def train(run: Run, settings: dict, dataset_dir: str, progress: tqdm) -> dict:
    """Train and score one run; the bar advances by slices.

    Returns:
        "mean" and "last": the figures on `val` of the running mean of the weights and of the last weights; "steps",
        "slices", "seconds", and the means of the last epoch, "similarity", "smoothness" and "conflict_ratio".
    """
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            config_file=[str(ROOT / "configs" / "train.yaml"), *settings["config"]],
            meta_file=str(ROOT / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            **FOLDABLE,
            dataset_dir=dataset_dir,
            output_dir=folder,
            max_epochs=settings["epochs"],
            val_interval=settings["epochs"],
            device=settings["device"],
            is_not_rank0=True,  # neither logs nor checkpoints
            **asdict(run),
        )
        workflow.initialize()
        trainer, evaluator = (
            workflow.parser.get_parsed_content(name) for name in ("train::trainer", "validate::evaluator")
        )
        slices = []

        def advance(engine: Engine) -> None:
            slices.append(len(engine.state.output["pred"]))
            progress.total = engine.state.epoch_length * engine.state.max_epochs * slices[0]
            progress.update(slices[-1])

        trainer.add_event_handler(Events.ITERATION_COMPLETED, advance)
        start = time.perf_counter()
        workflow.run()
        seconds = time.perf_counter() - start
        score = lambda: {name: evaluator.state.metrics[f"val_{name}"] for name in FIGURES}
        mean = score()
        evaluator.network = workflow.parser.get_parsed_content("network")
        evaluator.run(global_epoch=settings["epochs"])
        epoch = {name: trainer.state.metrics[name] for name in ("similarity", "smoothness", "conflict_ratio")}
        workflow.finalize()
    if isnan(mean["dice"]):
        raise InputError(
            f"{dataset_dir}: no label in the `val` split; Dice needs <subject>_frameNN_gt.nii.gz beside the images."
        )
    return {"mean": mean, "last": score(), "steps": len(slices), "slices": sum(slices), "seconds": seconds, **epoch}


def _load(path: Path, settings: dict) -> dict | None:
    """A finished run of the same settings, else None."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return found if found["settings"] == settings else None


def _collect(results: Sequence[dict], output_dir: Path) -> None:
    """Write `sensitivity.json` and `sensitivity.csv`, a row for each run and kind of weights."""
    write_json(output_dir / "sensitivity.json", {"runs": list(results)})
    keys = ("steps", "slices", "similarity", "smoothness", "conflict_ratio")
    rows = [
        {**result["run"], "weights": kind, **result[kind], **{key: result[key] for key in keys}}
        for result in results
        for kind in ("mean", "last")
    ]
    if rows:
        write_csv(output_dir / "sensitivity.csv", rows)


# --- the figure


@dataclass
class Panels:
    """Both halves of the figure, and what they show."""

    surgery: Axes
    sums: Axes
    by_run: dict[Run, dict]

    def point(self, run: Run, kind: str = "mean") -> tuple[float, float]:
        """Folding and Dice of a run's running mean of the weights, or of its last ones."""
        return self.by_run[run][kind]["folding_percent"], self.by_run[run][kind]["dice"]


def _draw(results: Sequence[dict], path: Path) -> None:
    """Dice against folding: surgery over rate, batch and averaging, beside the curve of the weighted sums.

    Args:
        results: as `_collect` takes them.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    panels = Panels(left, right, {Run(**result["run"]): result for result in results})
    _draw_sums(panels)
    _draw_surgery(panels)
    _draw_defaults(panels)
    _draw_rivals(panels)
    _draw_repetitions(panels)
    _crop(panels)
    left.set_title("surgery over rate, batch and averaging")
    right.set_title("weighted sums over λ, and other strategies without λ")
    left.set_ylabel("Dice, % (val)")
    for axes in (left, right):
        axes.set_xlabel("folding, % of pixels")
        axes.grid(alpha=0.3)
    figure.legend(handles=_legend(panels), fontsize=9, loc="outside lower center", ncols=5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _annotate(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Name a point; a name outside the axes is left out."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=9, annotation_clip=True, **style)


def _draw_sums(panels: Panels) -> None:
    """The curve of the weighted sums over λ, everywhere; each λ is named beside it."""
    sums = sorted((run for run in panels.by_run if run == Run("weighted_sum", run.weight)), key=lambda run: run.weight)
    for axes in (panels.surgery, panels.sums):
        axes.plot(*zip(*map(panels.point, sums)), color=GRAY, marker="o", markersize=5, zorder=1)
    for number, run in enumerate(sums):
        # In turn below and above: small λ lie side by side.
        _annotate(panels.sums, f"λ {run.weight:g}", panels.point(run), (4, 8 if number % 2 else -14), color="0.35")


def _draw_surgery(panels: Panels) -> None:
    """Surgery over rate and batch, of the running mean (filled) and of the last weights."""
    for run in filter(_plain_surgery, panels.by_run):
        style = {"color": COLORS[run.learning_rate], "marker": MARKERS[run.batch_size], "markersize": 9}
        (x, y), (x0, y0) = panels.point(run), panels.point(run, "last")
        panels.surgery.plot([x0, x], [y0, y], color=style["color"], linewidth=0.8, alpha=0.6, zorder=2)
        panels.surgery.plot(x0, y0, **style, markerfacecolor="white", zorder=3)
        panels.surgery.plot(x, y, **style, zorder=4)


def _plain_surgery(run: Run) -> bool:
    """Whether a run differs from the defaults in rate and batch alone."""
    return run == Run(learning_rate=run.learning_rate, batch_size=run.batch_size)


def _draw_defaults(panels: Panels) -> None:
    """The run that train.yaml gives, ringed everywhere."""
    if Run() not in panels.by_run:
        return
    for axes in (panels.surgery, panels.sums):
        axes.plot(*panels.point(Run()), marker="o", markersize=17, color="none", markeredgecolor="black", zorder=5)
    panels.sums.plot(*panels.point(Run()), marker="o", markersize=9, color=COLORS[1e-3], zorder=4)
    _annotate(panels.sums, "projection (GSMorph)", panels.point(Run()), (-14, 2), ha="right")


def _draw_rivals(panels: Panels) -> None:
    """The other strategies that have no λ."""
    for strategy, marker in (("pcgrad_symmetric", "^"), ("config", "v")):
        if (run := Run(strategy)) in panels.by_run:
            panels.sums.plot(*panels.point(run), marker=marker, markersize=9, color=PURPLE, zorder=4)
            _annotate(panels.sums, NAMES[strategy], panels.point(run), (9, 4))


def _draw_repetitions(panels: Panels) -> None:
    """Beside the sums: other seeds, and the sum of the most runs at other rates, each joined to its first run."""
    axes, center = panels.sums, Run("weighted_sum", 0.01)
    for run in panels.by_run:
        first = replace(run, seed=0)
        if run.seed and first in panels.by_run:
            color = COLORS[1e-3] if run.strategy == "projection" else GRAY
            axes.plot(*zip(panels.point(first), panels.point(run)), color=color, linestyle=":", zorder=2)
            axes.plot(*panels.point(run), marker="x", markersize=8, color=color, zorder=3)
            _annotate(axes, f"seed {run.seed}", panels.point(run), (-14, -15), color="0.35")
        elif run != center and run == replace(center, learning_rate=run.learning_rate) and center in panels.by_run:
            color = COLORS[run.learning_rate]
            axes.plot(*zip(panels.point(center), panels.point(run)), color=color, linewidth=0.8, zorder=2)
            axes.plot(*panels.point(run), marker="o", markersize=6, color=color, zorder=3)


def _crop(panels: Panels) -> None:
    """Show what lies above `CROWDED`, if two or more do, and name the runs below it in the half that draws them."""
    points = {run: panels.point(run) for run in panels.by_run}
    seen = [at for run in points for at in (points[run], panels.point(run, "last")) if at[1] > CROWDED]
    if len(seen) < 2:
        return
    (x0, y0), (x1, y1) = np.min(seen, axis=0), np.max(seen, axis=0)
    panels.sums.set_xlim(max(x0 - 0.1, 0), x1 + 0.15)
    panels.sums.set_ylim(y0 - 0.8, y1 + 0.8)
    for axes, half in ((panels.surgery, True), (panels.sums, False)):
        below = {run: at for run, at in points.items() if at[1] <= CROWDED and (run.strategy == "projection") == half}
        names = [f"{_describe(run)} {y:.1f} at {x:.2g} %" for run, (x, y) in below.items()]
        axes.text(
            0.98, 0.02, "\n".join(["below:" * bool(names), *names]), transform=axes.transAxes, fontsize=9, ha="right"
        )


def _describe(run: Run) -> str:
    """What a run varies, in words."""
    if run.strategy == "weighted_sum":
        return f"λ {run.weight:g},"
    return NAMES.get(run.strategy) or f"rate {run.learning_rate:g}, batch {run.batch_size}:"


def _legend(panels: Panels) -> list[Line2D]:
    """A line for each rate, batch and kind of weights that is drawn."""
    from matplotlib.lines import Line2D

    surgery = [run for run in panels.by_run if _plain_surgery(run)]
    rates, batches = ({getattr(run, key) for run in surgery} for key in ("learning_rate", "batch_size"))
    handle = lambda label, **style: Line2D([], [], linestyle="none", markersize=8, label=label, **style)
    return [
        *(handle(f"rate {rate:g}", color=color, marker="D") for rate, color in COLORS.items() if rate in rates),
        *(handle(f"batch {n}", color="0.3", marker=marker) for n, marker in MARKERS.items() if n in batches),
        handle("running mean of the weights", color="0.3", marker="D"),
        handle("last weights", color="0.3", marker="D", markerfacecolor="white"),
        handle("defaults", color="none", markeredgecolor="black", marker="o"),
        handle("another seed", color=GRAY, marker="x"),
        Line2D([], [], color=GRAY, marker="o", label="weighted sum over λ"),
    ]


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Do the runs that are left, write the tables and the figure; returns the finished runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensitivity", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset_dir", required=True, help="folder in ACDC's layout, trained on `train`, scored on `val`"
    )
    parser.add_argument("--output_dir", default="sensitivity", help="folder of the finished runs and the tables")
    parser.add_argument(
        "--epochs", type=positive, default=3, help="passes over the training slices, the same for every run"
    )
    parser.add_argument("--runs", type=int, help="stop after so many runs; all that are left by default")
    parser.add_argument(
        "--config", nargs="*", default=[], help="configs merged over train.yaml, such as configs/demo.yaml"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figure", help="PNG to write; <output_dir>/sensitivity.png by default")
    options = parser.parse_args(argv)
    check_device(options.device)
    if options.device == "cpu":
        torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.WARNING)
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = {key: getattr(options, key) for key in ("epochs", "device", "config")}
    settings["dataset"] = Path(options.dataset_dir).resolve().name
    settings["data"] = {split: prints(select_pairs(options.dataset_dir, None, split)) for split in ("train", "val")}
    settings["code"] = code_of((*TRAINED_BY, *SCORED_BY))
    words = sys.argv[1:] if argv is None else argv
    measured = setting("benchmarks.sensitivity", words, options, processor(options.device))
    paths = {run: output_dir / f"{run.name}.json" for run in plan()}
    left = [run for run, path in paths.items() if _load(path, settings) is None]
    print(f"{len(paths) - len(left)} of {len(paths)} runs are finished", flush=True)
    for number, run in enumerate(left[: options.runs], 1):
        with tqdm(unit="slice", desc=f"{run.name}, {number} of {len(left[: options.runs])}") as progress:
            result = train(run, settings, options.dataset_dir, progress)
        write_json(paths[run], {"run": asdict(run), **result, "settings": settings, **measured})
        figures = ", ".join(f"{name} {result['mean'][name]:.3g} ({result['last'][name]:.3g})" for name in FIGURES)
        print(f"{run.name}: {figures}, {result['seconds']:.0f} s", flush=True)
    results = [result for path in paths.values() if (result := _load(path, settings)) is not None]
    _collect(results, output_dir)
    if results:
        _draw(results, Path(options.figure or output_dir / "sensitivity.png"))
    return results


if __name__ == "__main__":
    with one_line():
        main()
