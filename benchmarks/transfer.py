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

"""What "no weight to tune" is worth: a weight tuned in one setting and used in another, beside surgery with its
defaults.

    python -m benchmarks.transfer --dataset_dir DIR [--output_dir output/transfer] [--epochs 15] [--runs N] [--smoke]
    python -m benchmarks.transfer --dataset_dir DIR --known benchmarks/results/transfer.json [--changes NAME ...]

Each setting is trained by surgery and by weighted sums over decades of λ, one decade more where the best is at an end;
`val` chooses λ, `test` is scored in both directions. Beyond a λ that leaves the images where they are, as smaller ones
do not, none is tried. The regret of a method in a setting is the Dice that it loses there against the λ chosen in that
setting, with the folding beside it. Methods: λ chosen in another setting, for all pairs; that λ times the ratio of both
gradients' norms, which carries no weight either; surgery. Dice between two decades is interpolated over log λ. Images in
[0, 255] need no training: there λ is 255² times as large.
`--changes` trains surgery once more with each of `benchmarks.changes`, which then stand beside it.

A finished row is a file in OUT/rows/ and is not run again, an interrupted one goes on from its last epoch; `--runs`
stops after so many. `--known` takes the rows of an earlier transfer.json as they are, whatever code made them.
OUT/transfer.json, transfer.csv and transfer.png hold what is finished. `--smoke` is a trial of minutes on phantoms,
which says nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.transforms import MapTransform
from scripts.cardiac.phantom import write_phantom_dataset
from scripts.devices import check_device
from scripts.errors import InputError, one_line
from scripts.files import write_csv, write_json
from scripts.training.datasets import batch_loader

from benchmarks import rows
from benchmarks.changes import CHANGES
from benchmarks.options import positive
from benchmarks.setting import processor, setting
from benchmarks.table import count_slices, quiet, step_seconds
from benchmarks.timing import format_rows

DECADES = (-3, -2, -1, 0, 1)
WIDEST = (-5, 3)  # decades that an end may move to
SURGERY = "surgery"
UNET = {"_target_": "scripts.registration.networks.RegistrationUNet", "conv_bias": True}
LNCC = {"_target_": "LocalNormalizedCrossCorrelationLoss", "spatial_dims": 2, "kernel_size": 9}
STILL = 0.1  # percent of Dice beyond the unregistered images' up to which a row has moved nothing
SHOWN_DICE = 6.0  # percent below surgery that a panel reaches down to
BYTES = 255.0**2  # by which the squared differences of images in [0, 255] are larger
FIRST_STEPS = 20  # of the similarity alone: a field of zero has no smoothness gradient
PHANTOMS = {"subjects": 60, "size": (160, 160), "slices": 8, "frames": 4}
SMOKE_PHANTOMS = {"subjects": 4, "size": (32, 32), "slices": 2, "frames": 4}


class AddNoised(MapTransform):
    """Adds normal noise to images in [0, 1], the same to a case whenever it is loaded.

    Args:
        keys: images.
        deviation: standard deviation.
    """

    def __init__(self, keys: Sequence[str], deviation: float) -> None:
        super().__init__(keys)
        self.deviation = deviation

    def __call__(self, data: Mapping) -> dict:
        item = dict(data)
        for key in self.key_iterator(item):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{item['case']} {key}".encode()))
            noise = torch.randn(item[key].shape, generator=generator)
            item[key] = (item[key] + self.deviation * noise).clamp(0, 1)
        return item


def _with_noise(deviation: float) -> dict:
    """What makes images noisy as the network sees them; they are scored without."""
    transforms = rows.load_configs("configs/train.yaml")["train"]["preprocessing"]["transforms"]
    noise = {"_target_": "benchmarks.transfer.AddNoised", "keys": ["moving", "fixed"], "deviation": deviation}
    joined = next(i for i, one in enumerate(transforms) if isinstance(one, dict) and one["_target_"] == "ConcatItemsd")
    return {"train::preprocessing::transforms": [*transforms[:joined], noise, *transforms[joined:]]}


@dataclass(frozen=True)
class Setting:
    """Something a user may train with: what differs from train.yaml under table.yaml."""

    title: str
    overrides: dict = field(default_factory=dict)
    phantoms: bool = False


# Fields can fold: nothing but the loss keeps them smooth.
FOLDABLE = {"network_def::backbone::smoothing": 0.0}
SETTINGS = {
    "mse": Setting("ACDC, MSE", FOLDABLE),
    "lncc": Setting("LNCC", {**FOLDABLE, "similarity": LNCC}),
    "l2": Setting("l2 smoothness", {**FOLDABLE, "smoothness::norm": "l2"}),
    "noise": Setting("10 % noise", {**FOLDABLE, **_with_noise(0.1)}),
    "phantoms": Setting("phantoms", FOLDABLE, phantoms=True),
    "unet": Setting("published U-Net", {"network_def::backbone": UNET, "averaging": 1.0}),
}


@dataclass(frozen=True)
class Run:
    """A row: one training."""

    setting: str
    decade: int | None = None
    """Of λ; None is surgery."""
    seed: int = 0
    change: str | None = None
    """Of surgery, by its name in `benchmarks.changes`."""

    @property
    def name(self) -> str:
        """A file name."""
        method = SURGERY if self.decade is None else f"1e{self.decade}"
        change = f"_{self.change}" if self.change else ""
        return f"{self.setting}_{method}{change}_seed{self.seed}"

    @property
    def method(self) -> str:
        """Of benchmarks/methods/."""
        return "gsmorph" if self.decade is None else "voxelmorph_m"


@dataclass
class RunStudy(rows.Study):
    """The data, folder and options of one row."""

    run: Run = None

    @property
    def overrides(self) -> dict:
        """What the options, the setting and the row change in the configs."""
        weight = {} if self.run.decade is None else {"weight": 10.0**self.run.decade}
        cache = {"cache_dir": str(Path(self.options.output_dir).parents[1] / "cache")}
        change = CHANGES[self.run.change] if self.run.change else {}
        return {**super().overrides, **cache, **SETTINGS[self.run.setting].overrides, **weight, **change}


def study_of(run: Run, options: argparse.Namespace) -> RunStudy:
    """A row's study, whose folder is its own."""
    given = dict(vars(options))
    given["output_dir"] = str(Path(options.output_dir) / "trainings" / run.name)
    given["seed"], given["test_dataset_dir"] = run.seed, None
    if SETTINGS[run.setting].phantoms:
        given["dataset_dir"] = options.phantoms
    return RunStudy(argparse.Namespace(**given), run)


def _key_of(study: RunStudy) -> str:
    """A hash of all that a row depends on."""
    parts = [
        rows.settings_of(study, study.run.method),
        rows.code_of(rows.SCORED_BY),
        study.epochs,
        study.prints("test"),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _path_of(run: Run, options: argparse.Namespace) -> Path:
    """The file of a finished row."""
    return Path(options.output_dir) / "rows" / f"{run.name}.json"


def _load(run: Run, options: argparse.Namespace) -> dict | None:
    """A finished row of the same data, code and options, else None."""
    found = rows.read_json(_path_of(run, options))
    return found if found is not None and found["key"] == _key_of(study_of(run, options)) else None


def _finish(run: Run, options: argparse.Namespace) -> dict:
    """Train or go on with a row, score it on `val` and `test`, and keep it.

    Returns:
        "val" and "test": means of the figures, ES to ED and both ways; "still": whether the images of `val` stay where they
        are; "seconds"; for surgery also "norm_ratio".
    """
    study, start = study_of(run, options), time.process_time()
    scored = rows.run_row(study, run.method, None)["rows"]
    method = rows.network_method(study, rows.network_parser(study, run.method))
    unmoved = rows.mean_of(rows.score(study, rows.prepare(study, "initial", None).method(), "val"))
    result = {
        "key": _key_of(study),
        "setting": run.setting,
        "decade": run.decade,
        "seed": run.seed,
        "change": run.change,
        "val": rows.mean_of(rows.score(study, method, "val")),
        "test": rows.mean_of(scored),
    }
    result["still"] = result["val"]["dice"] - unmoved["dice"] < STILL
    if run.decade is None and run.change is None:
        result["norm_ratio"] = norm_ratio(study)
    result["seconds"] = time.process_time() - start
    _path_of(run, options).parent.mkdir(parents=True, exist_ok=True)
    write_json(_path_of(run, options), result)
    return result


def norm_ratio(study: RunStudy) -> float:
    """|s| / |r| of the whole gradients of similarity and smoothness, after the first steps of a training by the
    similarity alone."""
    parser = study.parser(*rows.SHARED, f"benchmarks/methods/{study.run.method}.yaml")
    parser["train::dataset::data"] = study.items("train")
    torch.manual_seed(study.run.seed)
    keys = ("network", "optimizer", "train::inferer", "train::loss", "smoothness", "train::trainer::prepare_batch")
    network, optimizer, infer, similarity, smoothness, prepare = (parser.get_parsed_content(key) for key in keys)
    loader = batch_loader(parser.get_parsed_content("train::dataset"), parser["batch_size"])
    parameters, device, batches = list(network.parameters()), torch.device(study.options.device), iter(())
    network.train()
    for step in range(FIRST_STEPS + 1):
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        pair, target = prepare(batch, device)
        field = infer(pair, network)
        s = torch.autograd.grad(similarity(field, target), parameters, retain_graph=step == FIRST_STEPS)
        if step < FIRST_STEPS:
            for parameter, gradient in zip(parameters, s):
                parameter.grad = gradient
            optimizer.step()
    r = torch.autograd.grad(smoothness(field), parameters)
    norm = lambda gradients: float(torch.stack(torch._foreach_norm(gradients)).norm())
    return norm(s) / norm(r)


# --- which rows


def next_run(
    finished: Mapping[Run, dict],
    settings: Sequence[str],
    decades: Sequence[int],
    seeds: int = 1,
    changes: Sequence[str] = (),
) -> Run | None:
    """The first row that is left: surgery and all decades of each setting, then one more decade where the best is at
    an end, then the changes of surgery."""
    for seed in range(seeds):
        for name in settings:
            tried = {run.decade: row for run, row in finished.items() if _is_sum(run, name, seed)}
            for run in (Run(name, None, seed), *(Run(name, decade, seed) for decade in _worth_trying(decades, tried))):
                if run not in finished:
                    return run
            best = _chosen(tried)
            for end, further in ((min(tried), -1), (max(tried), 1)):
                if best == end and WIDEST[0] <= end + further <= WIDEST[1]:
                    return Run(name, end + further, seed)
            for change in changes:
                if (run := Run(name, None, seed, change)) not in finished:
                    return run
    return None


def _worth_trying(decades: Sequence[int], tried: Mapping[int, dict]) -> list[int]:
    """The decades of λ up to the first one that leaves the images where they are while a smaller one does not."""
    moving = [decade for decade, row in tried.items() if not row.get("still")]
    still = [decade for decade in tried if decade not in moving and decade > min(moving, default=decade)]
    return [decade for decade in decades if decade <= min(still, default=decade)]


def _is_sum(run: Run, name: str, seed: int) -> bool:
    """Whether a row is a weighted sum of a setting and a seed."""
    return run.setting == name and run.seed == seed and run.decade is not None and run.change is None


def _chosen(tried: Mapping[float, dict]) -> float:
    """The λ, or its decade, that validates best."""
    return max(tried, key=lambda number: tried[number]["val"]["dice"])


def _hours_left(finished: Mapping[Run, dict], options: argparse.Namespace) -> float:
    """CPU hours of the trainings that are planned and not finished, by a few steps of each setting; scores, and decades
    that are added at an end, come on top."""
    hours = 0.0
    for name in options.settings:
        planned = [Run(name, decade, seed) for seed in range(options.seeds) for decade in (None, *options.decades)]
        planned += [Run(name, None, seed, change) for seed in range(options.seeds) for change in options.changes]
        if left := sum(run not in finished for run in planned):
            study = study_of(planned[0], options)
            steps = max(count_slices(study.items("train")) // study.settings["batch_size"], 1) * study.epochs
            seconds = steps * step_seconds(study, planned[0].method)
            print(f"{name}: {left} rows of about {seconds:.0f} s", flush=True)
            hours += left * seconds / 3600
    return hours


# --- regrets


@dataclass(frozen=True)
class Measured:
    """A setting whose rows are finished: figures on `test`, over log10 λ and by surgery."""

    decades: tuple[float, ...]
    dice: tuple[float, ...]
    folding: tuple[float, ...]
    best: float
    """log10 of the λ that `val` chose."""
    surgery: tuple[float, float]
    """Dice and folding."""
    norm_ratio: float
    changed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Dice and folding of surgery with a change, by its name."""

    def at(self, decade: float) -> tuple[float, float]:
        """Dice and folding at a λ: interpolated over log λ, beyond the ends as there."""
        return tuple(float(np.interp(decade, self.decades, values)) for values in (self.dice, self.folding))

    def scaled(self, factor: float) -> Measured:
        """The same with the similarity multiplied by a factor: λ and the norms' ratio grow by it."""
        shift = float(np.log10(factor))
        return Measured(
            tuple(decade + shift for decade in self.decades),
            self.dice,
            self.folding,
            self.best + shift,
            self.surgery,
            self.norm_ratio * factor,
            self.changed,
        )


def _measured(finished: Mapping[Run, dict], name: str, decades: Sequence[int], seed: int = 0) -> Measured | None:
    """A setting's figures, None while surgery or one of the decades is missing."""
    tried = {run.decade: row for run, row in _sorted_runs(finished) if _is_sum(run, name, seed)}
    surgery = finished.get(Run(name, None, seed))
    if surgery is None or not tried.keys() >= set(_worth_trying(decades, tried)):
        return None
    dice, folding = ([row["test"][key] for row in tried.values()] for key in ("dice", "folding_percent"))
    changed = {run.change: _figures(row) for run, row in finished.items() if run == Run(name, None, seed, run.change)}
    changed.pop(None)
    return Measured(
        tuple(tried), tuple(dice), tuple(folding), _chosen(tried), _figures(surgery), surgery["norm_ratio"], changed
    )


def _figures(row: Mapping) -> tuple[float, float]:
    """Dice and folding on `test`."""
    return row["test"]["dice"], row["test"]["folding_percent"]


def _sorted_runs(finished: Mapping[Run, dict]) -> list[tuple[Run, dict]]:
    """Rows in the order of λ, surgery first."""
    return sorted(finished.items(), key=lambda entry: (entry[0].decade is not None, entry[0].decade or 0))


def regrets(settings: Mapping[str, Measured]) -> list[dict]:
    """For each setting and each way to train there without a search: Dice lost against the λ that was chosen there,
    and folding of both."""
    found = []
    for name, here in settings.items():
        best = here.at(here.best)
        ways = {SURGERY: here.surgery, **{f"{SURGERY}, {change}": figures for change, figures in here.changed.items()}}
        for other, there in settings.items():
            if other != name:
                ways[f"λ of {other}"] = here.at(there.best)
                ways[f"λ of {other} × norms"] = here.at(there.best + np.log10(here.norm_ratio / there.norm_ratio))
        for way, (dice, folding) in ways.items():
            found.append(
                {
                    "setting": name,
                    "method": way,
                    "dice": dice,
                    "regret": best[0] - dice,
                    "folding_percent": folding,
                    "folding_of_best": best[1],
                }
            )
    return found


def summarize(found: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Mean and largest regret, and mean folding less that of the best, of surgery, of each of its changes (in the
    settings that they were tried in), of a λ from elsewhere, and of that times the norms' ratio."""
    groups: dict[str, list[dict]] = {}
    for row in found:
        way = row["method"]
        kind = way if way.startswith(SURGERY) else "λ of another setting" + " × norms" * way.endswith(" × norms")
        groups.setdefault(kind, []).append(row)
    return {
        kind: {
            "regret": float(np.mean([row["regret"] for row in group])),
            "largest": max(row["regret"] for row in group),
            "settings": len({row["setting"] for row in group}),
            "more_folding": float(np.mean([row["folding_percent"] - row["folding_of_best"] for row in group])),
        }
        for kind, group in groups.items()
    }


def compare_changes(finished: Mapping[Run, dict]) -> dict[str, dict[str, float]]:
    """Of each setting in which a change of surgery was trained: the λ that `val` chose, surgery and the changes, with Dice
    and folding on `val`, by which changes are chosen, and on `test`; of the first seed."""
    found = {}
    for name, known in SETTINGS.items():
        tried = {run.decade: row for run, row in finished.items() if _is_sum(run, name, 0)}
        runs = {change: Run(name, None, 0, change) for change in (None, *CHANGES)}
        ours = {change: finished[run] for change, run in runs.items() if run in finished}
        if not tried or not ours.keys() - {None}:
            continue
        best = _chosen(tried)
        ways = {f"λ of {10.0**best:g}": tried[best]}
        ways |= {f"{SURGERY}, {change}" if change else SURGERY: row for change, row in ours.items()}
        for way, row in ways.items():
            found[f"{known.title}: {way}"] = {
                f"{split}_{key}": row[split][key] for split in ("val", "test") for key in ("dice", "folding_percent")
            }
    return found


def _draw(settings: Mapping[str, Measured], path: Path) -> None:
    """Dice over λ in each setting, folding in percent beside it, the λ that `val` chose, and surgery, as a PNG file.

    Weights that leave the images as they are lie below the panels.
    """
    from matplotlib.figure import Figure

    columns = len(settings) if len(settings) < 4 else -(-len(settings) // 2)
    rows_of_panels = -(-len(settings) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows_of_panels), layout="constrained")
    panels = iter(figure.subplots(rows_of_panels, columns, squeeze=False).flat)
    for (name, here), panel in zip(settings.items(), panels):
        panel.plot(here.decades, here.dice, color="tab:gray", marker="o", label="weighted sum")
        panel.plot(here.best, here.at(here.best)[0], color="black", marker="*", markersize=12, label="chosen on val")
        panel.axhline(here.surgery[0], color="tab:blue", label="surgery")
        top, bottom = max(*here.dice, here.surgery[0]), max(min(here.dice), here.surgery[0] - SHOWN_DICE)
        room = 0.15 * (top - bottom)
        panel.set_ylim(bottom - room, top + room)
        for decade, dice, folding in zip(here.decades, here.dice, here.folding):
            if dice >= bottom:
                panel.annotate(
                    f"{folding:.2f}", (decade, dice), (0, 5), textcoords="offset points", ha="center", fontsize=7
                )
        panel.annotate(
            f"{here.surgery[1]:.2f}",
            (here.decades[-1], here.surgery[0]),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color="tab:blue",
        )
        panel.set_title(SETTINGS[name].title)
        panel.set_xlabel("log₁₀ λ")
        panel.set_ylabel("Dice, % (test)")
        panel.grid(alpha=0.3)
    for panel in panels:
        panel.set_visible(False)
    figure.axes[0].legend(fontsize=8, title="beside them: folding, %", title_fontsize=7, loc="lower left")
    figure.savefig(path, dpi=110)


# --- the command


def describe(settings: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """By title, each setting's λ that `val` chose, and Dice and folding on `test` with it and by surgery."""
    return {
        SETTINGS[name].title: {
            "lambda": 10.0**here.best,
            "dice": here.at(here.best)[0],
            "folding_percent": here.at(here.best)[1],
            "dice_by_surgery": here.surgery[0],
            "folding_by_surgery": here.surgery[1],
            "norm_ratio": here.norm_ratio,
        }
        for name, here in settings.items()
    }


def collect(
    finished: Mapping[Run, dict], output_dir: Path, header: dict, decades: Sequence[int] = DECADES
) -> dict[str, dict]:
    """Write transfer.json, transfer.csv and transfer.png of the settings that are finished; returns the summary."""
    settings = {name: found for name in SETTINGS if (found := _measured(finished, name, decades)) is not None}
    apart = {**settings, "bytes": settings["mse"].scaled(BYTES)} if "mse" in settings else {}
    found, summary = regrets(settings), {}
    if len(settings) > 1:
        summary = summarize(found)
    shown = [row for row in regrets(apart) if row["setting"] == "bytes" or "bytes" in row["method"]]
    runs = [{key: value for key, value in row.items() if key != "key"} for _, row in _sorted_runs(finished)]
    tables = {"settings": describe(settings), "methods": summary, "changes": compare_changes(finished)}
    tables |= {"regrets": found, "bytes": shown}
    write_json(output_dir / "transfer.json", {**header, **tables, "runs": runs})
    write_csv(output_dir / "transfer.csv", [*found, *shown])
    if settings:
        _draw(settings, output_dir / "transfer.png")
    return summary


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", help="folder in the layout of ACDC or M&Ms; --smoke does without")
    parser.add_argument("--output_dir", default="output/transfer")
    parser.add_argument("--epochs", type=positive, default=15, help="of each training")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=positive, default=1, help="of each row; the figures are of the first")
    parser.add_argument(
        "--changes", nargs="+", choices=list(CHANGES), default=[], help="of surgery, to train with as well"
    )
    parser.add_argument("--runs", type=positive, help="stop after so many rows; all that are left by default")
    parser.add_argument("--known", help="a transfer.json whose rows are taken as they are")
    parser.add_argument("--subset", type=positive, help="subjects of each split; all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="two settings on tiny phantoms, one epoch each")
    options = parser.parse_args(argv)
    if not options.dataset_dir and not options.smoke:
        parser.error("--dataset_dir DIR is needed")
    options.decades, options.slice_size, options.crop_size = DECADES, None, None
    if options.smoke:
        options.settings, options.epochs, options.decades = ["mse", "phantoms"], 1, (-2, -1)
        options.slice_size = options.crop_size = 32
    return options


def _read_known(path: str | None, epochs: int) -> dict[str, list]:
    """The rows of an earlier transfer.json, "runs", and the processors that they were trained on, "hardware".

    Raises:
        InputError: where its rows were trained for another number of epochs.
    """
    if not path:
        return {"runs": [], "hardware": []}
    found = rows.read_json(Path(path))
    if found is None or found["options"].get("epochs") != epochs:
        raise InputError(f"--known {path}: is no transfer.json of {epochs} epochs; give another, or --epochs.")
    return {"runs": found["runs"], "hardware": found["hardware"].split(", ")}


def _prepare_phantoms(options: argparse.Namespace) -> None:
    """Write the phantoms once, and name their folder in the options."""
    folder = Path(options.output_dir) / "phantoms"
    if not (folder / "splits.json").is_file():
        write_phantom_dataset(folder, progress=False, **(SMOKE_PHANTOMS if options.smoke else PHANTOMS))
    options.phantoms = str(folder)
    options.dataset_dir = options.dataset_dir or str(folder)


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Do the rows that are left, write what is finished, print the summary; returns it.

    Raises:
        InputError: where `val` has no labels.
    """
    options = parse(argv)
    check_device(options.device)
    if options.device == "cpu":
        torch.set_num_threads(1)
    _prepare_phantoms(options)
    words = sys.argv[1:] if argv is None else argv
    known = _read_known(options.known, options.epochs)
    hardware = ", ".join(dict.fromkeys([*known["hardware"], processor(options.device)]))
    header = setting(
        "benchmarks.transfer", words, argparse.Namespace(epochs=options.epochs, smoke=options.smoke), hardware
    )
    possible = [
        run
        for seed in range(options.seeds)
        for name in options.settings
        for run in (
            *(Run(name, None, seed, change) for change in (None, *CHANGES)),
            *(Run(name, decade, seed) for decade in range(WIDEST[0], WIDEST[1] + 1)),
        )
    ]
    finished = {Run(row["setting"], row["decade"], row["seed"], row.get("change")): row for row in known["runs"]}
    finished |= {run: row for run in possible if _path_of(run, options).is_file() and (row := _load(run, options))}
    print(f"about {_hours_left(finished, options):.2g} CPU hours are left", flush=True)
    begun = 0
    wanted = options.settings, options.decades, options.seeds, options.changes
    while (run := next_run(finished, *wanted)) and begun != options.runs:
        print(f"{run.name}: {len(finished)} rows are finished", flush=True)
        with quiet():
            finished[run] = row = _finish(run, options)
        if np.isnan(row["val"]["dice"]):
            raise InputError(f"{options.dataset_dir}: no label in the `val` split; λ is chosen by Dice.")
        figures = ", ".join(f"{key} {row['test'][key]:.3g}" for key in ("dice", "folding_percent"))
        print(f"{run.name}: {figures}, {row['seconds']:.0f} s", flush=True)
        begun += 1
    summary = collect(finished, Path(options.output_dir), header, options.decades)
    if summary:
        print(format_rows(summary))
    return summary


if __name__ == "__main__":
    with one_line():
        main()
