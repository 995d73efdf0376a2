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

"""One row of the comparison: what it trains, searches or chooses, and how it scores. `table.py` puts the rows side by
side."""

from __future__ import annotations

import hashlib
import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCrop
from scripts.data.datalists import select_pairs
from scripts.errors import InputError
from scripts.files import whole_file, write_json
from scripts.registration.metrics import nan_mean
from scripts.training.cache import source_code
from scripts.workflow.cohort import fingerprint
from torch import Tensor
from tqdm import tqdm

from benchmarks.classical import register_each
from benchmarks.comparison import COLUMNS

ROOT = Path(__file__).parent.parent
SHARED = ("configs/train.yaml", "benchmarks/table.yaml")

# A stack of pairs (2, X, Y, Z), with its affine -> its field (2 or 3, X, Y, Z) in voxels, pull convention, and the
# seconds it took.
Method = Callable[[MetaTensor], tuple[Tensor, float]]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    title: str
    kind: str
    """"initial", "classical" (by its name in `benchmarks.classical`), "learned" (by its name in benchmarks/methods/) or
    "shipped"."""
    trained_as: str = ""
    """The row whose weights this one takes; its own by default."""
    volumes: bool = False
    """Whether fields have a component along the stack, too."""
    configs: tuple[str, ...] = ()
    """What shipped weights are scored by, over train.yaml and evaluate.yaml."""


ROWS = {
    "initial": Row("Initial", "initial"),
    "demons": Row("Demons", "classical"),
    "diffeomorphic_demons": Row("diffeomorphic Demons", "classical"),
    "fast_demons": Row("fast symmetric Demons", "classical"),
    "syn": Row("SyN", "classical"),
    "syn_volume": Row("SyN, volumes", "classical", volumes=True),
    "voxelmorph_s": Row("VoxelMorph-s", "learned"),
    "voxelmorph_m": Row("VoxelMorph-m", "learned"),
    "voxelmorph_l": Row("VoxelMorph-l", "learned"),
    "hypermorph": Row("HyperMorph", "learned"),
    "gs_agr": Row("GS-Agr", "learned"),
    "gs_pcgrad": Row("GS-PCGrad", "learned"),
    "gsmorph": Row("GSMorph", "learned"),
    "gsmorph_velocity": Row("GSMorph, velocity integrated", "learned"),
    "gsmorph_refined": Row("GSMorph, refined at test time", "learned", trained_as="gsmorph"),
    "pcgrad_symmetric": Row("symmetric PCGrad", "learned"),
    "config": Row("ConFIG", "learned"),
    "upgrad": Row("UPGrad", "learned"),
    "shipped": Row("shipped weights, slice by slice", "shipped"),
    "shipped_volume": Row("shipped weights, volumes", "shipped", volumes=True, configs=("configs/depth.yaml",)),
}
# Parameters of `benchmarks.classical` that `val` chooses from.
SEARCHED = {
    "demons": [{"sigma": sigma, "iterations": 50} for sigma in (1.0, 1.5, 2.0, 2.5)],
    "diffeomorphic_demons": [{"sigma": sigma, "iterations": 50} for sigma in (0.5, 0.7, 1.0, 1.5)],
    "fast_demons": [{"sigma": sigma, "iterations": 50} for sigma in (0.7, 1.0, 1.5, 2.0)],
    "syn": [
        {"update_variance": variance, "step": step, "iterations": [80, 40, 20]}
        for variance, step in ((1.0, 0.25), (0.5, 0.25), (0.25, 0.25))
    ],
    "syn_volume": [{"update_variance": variance, "step": 0.25, "iterations": [80, 40, 20]} for variance in (1.0, 0.5)],
}
# Keys of a training's config that its result does not depend on.
WITHOUT_EFFECT = (
    *("max_epochs", "bundle_root", "dataset_dir", "output_dir", "cache_dir", "device"),
    *("resume", "log_every", "graph", "compile", "imports", "initialize", "run", "finalize"),
)
# Modules that a training depends on, with all that these import.
TRAINED_BY = (
    *("benchmarks.hypernetworks", "scripts.registration.networks", "scripts.registration.losses"),
    *(
        "scripts.registration.inferers",
        "scripts.surgery.handler",
        "scripts.training.handlers",
        "scripts.training.datasets",
    ),
    *("scripts.training.augmentation", "scripts.data.loading", "scripts.data.preprocessing"),
)
# The same for scores, and for what is searched.
SCORED_BY = (
    *("benchmarks.classical", "scripts.registration.networks", "scripts.registration.inferers"),
    *("scripts.training.evaluation", "scripts.data.loading", "scripts.data.preprocessing"),
)
WEIGHTS_TRIED = 7  # of a hypernetwork, over its range


@dataclass
class Study:
    """What all rows share: the data, the folders and the options."""

    options: Namespace

    @cached_property
    def output_dir(self) -> Path:
        """Of the scores and the tables."""
        other = self.options.test_dataset_dir
        return Path(self.options.output_dir) / (f"on_{Path(other).resolve().name}" if other else "")

    def training_dir(self, name: str) -> Path:
        """Of a row's weights, search and settings."""
        return Path(self.options.output_dir) / "training" / name

    def items(self, split: str) -> list[dict]:
        """The pairs of a split, of the first `subset` subjects: "train" and "val" ES to ED, "test" both ways."""
        folder, direction = self.options.dataset_dir, "both" if split == "test" else "ES_to_ED"
        if split == "test" and self.options.test_dataset_dir:
            # All of another data set may be scored: nothing was trained on it.
            folder, split = self.options.test_dataset_dir, "test_or_all"
        found = select_pairs(folder, None, split, direction, seed=self.settings["seed"])
        kept = list(dict.fromkeys(item["subject"] for item in found))[: self.options.subset]
        return [item for item in found if item["subject"] in kept]

    def prints(self, split: str) -> list[str]:
        """See `rows.prints`; of a split."""
        if split not in self.printed:
            self.printed[split] = prints(self.items(split))
        return self.printed[split]

    @cached_property
    def printed(self) -> dict[str, list[str]]:
        """What `prints` returned."""
        return {}

    @cached_property
    def settings(self) -> dict:
        """train.yaml under table.yaml."""
        return load_configs(*SHARED)

    @property
    def epochs(self) -> int:
        """Of each training."""
        return self.options.epochs or self.settings["max_epochs"]

    @cached_property
    def sizes(self) -> dict[str, list[int]]:
        """In pixels: "slice_size" of training slices and of what ITK is given, "crop_size" of training crops and of
        scored images."""
        return {
            key: [n] * 2 if (n := getattr(self.options, key)) else self.settings[key]
            for key in ("slice_size", "crop_size")
        }

    @property
    def overrides(self) -> dict:
        """What the options change in the configs."""
        cache_dir = str(Path(self.options.output_dir) / "cache")
        seed = {} if self.options.seed is None else {"seed": self.options.seed}
        return {"bundle_root": str(ROOT), "cache_dir": cache_dir, "device": self.options.device, **self.sizes, **seed}

    def parser(self, *files: str, **overrides: object) -> ConfigParser:
        """The configs with the options in them, ready to instantiate from."""
        parser = ConfigParser(load_configs(*files))
        parser.update({**self.overrides, **overrides})
        return parser

    @cached_property
    def postprocess(self) -> Callable[[dict], dict]:
        """Adds "scores" to a case with "pred"."""
        return self.parser(*SHARED).get_parsed_content("validate::postprocessing")

    def cases(self, split: str, files: Sequence[str] = SHARED) -> Iterator[dict]:
        """The loaded pairs of a split, preprocessed as the configs say; the first ones stay in memory for the next
        row."""
        preprocess = self.parser(*files).get_parsed_content("train::preprocessing")
        for number, item in enumerate(tqdm(self.items(split), desc=f"{split} pairs", unit="pair", leave=False)):
            key = (split, item["case"], *files)
            case = self.kept.get(key) or preprocess(item)
            if number < 40:
                self.kept[key] = case
            yield case

    @cached_property
    def kept(self) -> dict[tuple[str, ...], dict]:
        """Loaded pairs."""
        return {}


def prints(items: Sequence[dict]) -> list[str]:
    """Cases, each with a hash of its files: another data set may have the same names."""
    return [f"{item['case']} {fingerprint(item, {})}" for item in items]


def code_of(modules: Sequence[str]) -> str:
    """A hash of modules and of all that these import."""
    return hashlib.sha256("".join(source_code(modules)).encode()).hexdigest()


def load_configs(*files: str) -> dict:
    """The merged content of config files, by their paths from the bundle's root."""
    return ConfigParser.load_config_files([str(ROOT / name) for name in files])


def clock(device: str) -> float:
    """CPU seconds of this process, or seconds of the clock once a GPU is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


# --- what a row registers with


def _initial_method(pair: MetaTensor) -> tuple[Tensor, float]:
    """No registration."""
    return torch.zeros(pair.shape), float("nan")


def classical_method(study: Study, name: str, parameters: dict, executor: Executor | None) -> Method:
    """One of `benchmarks.classical`, on the central `slice_size` of each slice; the field is zero around it."""

    def method(pair: MetaTensor) -> tuple[Tensor, float]:
        inside = (slice(None), *CenterSpatialCrop(study.sizes["slice_size"]).compute_slices(pair.shape[1:3]))
        images = pair.as_tensor()[inside].numpy()
        if ROWS[name].volumes:
            gap = float(pair.pixdim[2] / pair.pixdim[:2].mean())
            fields, seconds = register_each(name, {**parameters, "gap": gap}, images[None], executor)
            found = fields[0]
        else:
            fields, seconds = register_each(name, parameters, np.moveaxis(images, -1, 0), executor)
            found = np.moveaxis(fields, 0, -1)
        field = torch.zeros(len(found), *pair.shape[1:])
        field[inside] = torch.from_numpy(found)
        return field, seconds

    return method


def network_method(study: Study, parser: ConfigParser, weight: float | None = None) -> Method:
    """The evaluated network of parsed configs; `weight` is what a hypernetwork is evaluated at instead of its own."""
    network = parser.get_parsed_content("validate::evaluator::network").eval()
    inferer, device = parser.get_parsed_content("validate::inferer"), study.options.device
    if weight is not None:
        network.weight.fill_(weight)

    def method(pair: MetaTensor) -> tuple[Tensor, float]:
        start = clock(device)
        with torch.no_grad():
            field = inferer(pair.as_tensor()[None].to(device), network)[0]
        return field.cpu(), clock(device) - start

    return method


def score(study: Study, method: Method, split: str, files: Sequence[str] = SHARED) -> list[dict]:
    """The figures of a method on every pair of a split, as `Study.cases` loads them: subject, direction, vendor and
    those of `COLUMNS`."""
    rows = []
    for case in study.cases(split, files):
        field, seconds = method(case["pair"])
        figures = study.postprocess({**case, "pred": field})["scores"]["registered"]
        names = {"subject": case["subject"], "direction": case["direction"], "vendor": case.get("vendor", "")}
        rows.append({**names, **figures, "seconds": seconds})
    return rows


def mean_of(rows: Sequence[dict]) -> dict[str, float]:
    """Mean of each figure."""
    return {key: nan_mean([row[key] for row in rows]) for key in COLUMNS}


# --- what is fitted on `train` and chosen on `val`


def read_json(path: Path) -> dict | None:
    """The content of a JSON file, None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def with_nan(rows: Sequence[dict]) -> list[dict]:
    """Rows as they were before they became JSON, which has no NaN."""
    return [{key: np.nan if value is None else value for key, value in row.items()} for row in rows]


def settings_of(study: Study, name: str) -> dict:
    """What a row's training depends on, but for the number of epochs."""
    config = load_configs(*SHARED, f"benchmarks/methods/{name}.yaml") | study.overrides
    kept = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    pairs = {f"{split} pairs": study.prints(split) for split in ("train", "val")}
    return {**kept, **pairs, "code": code_of(TRAINED_BY)}


def _check_settings(path: Path, settings: dict) -> None:
    """Stop where other settings were written.

    Raises:
        InputError: naming the folder.
    """
    settings = json.loads(json.dumps(settings))
    found = read_json(path)
    if found is not None and found != settings:
        different = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
        raise InputError(
            f"{path.parent}: was made with other settings ({', '.join(different)}); remove that folder or give "
            "another --output_dir."
        )


def _keep_settings(path: Path, settings: dict) -> None:
    """Write settings, or stop where others were written (`_check_settings`)."""
    _check_settings(path, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def check_study(study: Study, names: Sequence[str]) -> None:
    """Stop before anything is computed where a folder holds what is of other data or options.

    Raises:
        InputError: naming the folder.
    """
    if study.options.test_dataset_dir:
        other = str(Path(study.options.test_dataset_dir).resolve())
        _keep_settings(study.output_dir / "settings.json", {"test_dataset_dir": other})
    for name in dict.fromkeys(ROWS[name].trained_as or name for name in names if ROWS[name].kind == "learned"):
        _check_settings(study.training_dir(name) / "settings.json", settings_of(study, name))


def epochs_done(folder: Path) -> int:
    """Of an interrupted or finished training; 0 without one."""
    numbers = [int(path.stem.rpartition("=")[2]) for path in folder.glob("last_checkpoint_epoch=*.pt")]
    return max(numbers, default=0)


def train(study: Study, name: str) -> float:
    """Train a learned row, or go on, to its last epoch; leaves `model.pt` and returns the seconds of all its epochs
    (NaN where an interruption lost them).

    Raises:
        InputError: where the folder holds a training of other settings, or of more epochs.
    """
    folder = study.training_dir(name)
    _keep_settings(folder / "settings.json", settings_of(study, name))
    done, log = epochs_done(folder), folder / "seconds.json"
    if done > study.epochs:
        raise InputError(
            f"{folder}: has {done} epochs, more than {study.epochs}; remove that folder or give another --output_dir."
        )
    before = (read_json(log) or {}).get(str(done), np.nan) if done else 0.0
    if done < study.epochs:
        device = study.options.device
        workflow = ConfigWorkflow(
            config_file=[str(ROOT / file) for file in (*SHARED, f"benchmarks/methods/{name}.yaml")],
            meta_file=str(ROOT / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            **study.overrides,
            **{
                f"{section}::dataset::data": study.items(split)
                for section, split in (("train", "train"), ("validate", "val"))
            },
            dataset_dir=study.options.dataset_dir,
            output_dir=str(folder),
            max_epochs=study.epochs,
            resume=str(folder / f"last_checkpoint_epoch={done}.pt") if done else None,
        )
        workflow.initialize()
        start = clock(device)

        def keep_seconds(engine: Engine) -> None:
            write_json(log, {str(engine.state.epoch): before + clock(device) - start})

        # After the checkpoint is written, so that seconds never belong to an epoch that is lost.
        workflow.parser.get_parsed_content("train::trainer").add_event_handler(Events.EPOCH_COMPLETED, keep_seconds)
        workflow.run()
        workflow.finalize()
        before = read_json(log)[str(study.epochs)]
    return before


def choose_weight(study: Study, name: str) -> dict:
    """The λ that a trained hypernetwork validates best at, among some over its range; written into its `model.pt`.

    Returns:
        "chosen" and "tried", the parameters and their figures on `val`.
    """
    folder = study.training_dir(name)
    path, parser = folder / "model.pt", network_parser(study, name)
    low, high = parser.get_parsed_content("starting_network").weights
    tried = []
    for weight in np.geomspace(low, high, WEIGHTS_TRIED):
        figures = mean_of(score(study, network_method(study, parser, float(weight)), "val"))
        tried.append({"weight": float(weight), **figures})
    chosen = best(tried)
    state = torch.load(path, weights_only=True)
    with whole_file(path) as part:
        torch.save({**state, "weight": torch.tensor(chosen["weight"])}, part)
    return {"chosen": {"weight": chosen["weight"]}, "tried": tried}


def _search_settings(study: Study, name: str) -> dict:
    """What the search of a classical row depends on."""
    return {"searched": SEARCHED[name], "val": study.prints("val"), "sizes": study.sizes, "code": code_of(SCORED_BY)}


def tried_before(study: Study, name: str) -> list[dict]:
    """What a search with the present settings has tried, finished or interrupted."""
    settings = json.loads(json.dumps(_search_settings(study, name)))
    for file in ("choice.json", "tried.json"):
        found = read_json(study.training_dir(name) / file)
        if found is not None and found["settings"] == settings:
            return with_nan(found["tried"])
    return []


def search(study: Study, name: str, executor: Executor | None) -> dict:
    """The parameters of a classical row that validate best; as `choose_weight`. What was tried with these settings
    before an interruption is not tried again."""
    path, tried = study.training_dir(name) / "tried.json", tried_before(study, name)
    for parameters in SEARCHED[name][len(tried) :]:
        figures = mean_of(score(study, classical_method(study, name, parameters, executor), "val"))
        tried.append({**parameters, **figures})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"tried": tried, "settings": _search_settings(study, name)})
    chosen = best(tried)
    return {"chosen": {key: chosen[key] for key in SEARCHED[name][0]}, "tried": tried}


def judged_by(tried: Sequence[dict]) -> str:
    """The figure of `COLUMNS` that chooses: Dice, or where no pair has labels the mean squared error."""
    return "mse" if any(np.isnan(row["dice"]) for row in tried) else "dice"


def best(tried: Sequence[dict]) -> dict:
    """The highest Dice, or the lowest mean squared error (`judged_by`)."""
    key = judged_by(tried)
    return max(tried, key=lambda row: -row[key] if key == "mse" else row[key])


def _choose(study: Study, name: str, make: Callable[[], dict], settings: dict) -> dict:
    """A choice that was made before with these settings, else a new one, which is kept in `choice.json`."""
    path, settings = study.training_dir(name) / "choice.json", json.loads(json.dumps(settings))
    found = read_json(path)
    if found is None or found["settings"] != settings:
        found = {**make(), "settings": settings}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return found


# --- rows


def network_parser(study: Study, name: str) -> ConfigParser:
    """The configs that evaluate a learned row or the shipped weights, parsed."""
    if ROWS[name].kind == "shipped":
        return study.parser("configs/train.yaml", "configs/evaluate.yaml", *ROWS[name].configs)
    checkpoint = study.training_dir(ROWS[name].trained_as or name) / "model.pt"
    return study.parser(*SHARED, "configs/evaluate.yaml", f"benchmarks/methods/{name}.yaml", checkpoint=str(checkpoint))


@dataclass
class Prepared:
    """A row that is ready to be scored."""

    method: Callable[[], Method]
    key: dict
    """What its scores depend on, beside the test pairs."""
    files: Sequence[str] = SHARED
    """Configs that preprocess the pairs."""
    training_seconds: float | None = None
    choice: dict | None = None
    """What `val` chose."""


def prepare(study: Study, name: str, executor: Executor | None) -> Prepared:
    """Train or search a row, as far as that has not been done."""
    row = ROWS[name]
    if row.kind == "initial":
        return Prepared(lambda: _initial_method, {})
    if row.kind == "classical":
        choice = _choose(study, name, lambda: search(study, name, executor), _search_settings(study, name))["chosen"]
        return Prepared(lambda: classical_method(study, name, choice, executor), {"parameters": choice}, choice=choice)
    seconds = choice = None
    if row.kind == "learned":
        seconds = train(study, row.trained_as or name)
    if name == "hypermorph":
        settings = {
            "epochs": study.epochs,
            "tried": WEIGHTS_TRIED,
            "val": study.prints("val"),
            "code": code_of(SCORED_BY),
        }
        choice = _choose(study, name, lambda: choose_weight(study, name), settings)["chosen"]
    parser = network_parser(study, name)
    names = ("checkpoint", "scored_checkpoint", "segmentation")
    paths = dict.fromkeys(parser.get_parsed_content(key) for key in names if key in parser)
    weights = b"".join(Path(path).read_bytes() for path in paths)
    key = {"weights": hashlib.sha256(weights).hexdigest(), "inferer": parser.config["validate"]["inferer"]}
    # What ships sees pixels of its own size.
    files = ("configs/train.yaml", *row.configs) if row.kind == "shipped" else SHARED
    return Prepared(lambda: network_method(study, parser), key, files, seconds, choice)


def _scores_key(study: Study, prepared: Prepared) -> dict:
    """What the scores of a row depend on."""
    shared = {"test": study.prints("test"), "sizes": study.sizes, "files": prepared.files, "code": code_of(SCORED_BY)}
    return json.loads(json.dumps({**prepared.key, **shared}))


def scored_before(study: Study, name: str, prepared: Prepared) -> list[dict] | None:
    """The scored pairs of the test split, where the row has been scored as it is now."""
    found = read_json(study.output_dir / "scores" / f"{name}.json")
    return with_nan(found["rows"]) if found is not None and found["key"] == _scores_key(study, prepared) else None


def run_row(study: Study, name: str, executor: Executor | None) -> dict:
    """Train or search, and score one row, as far as that has not been done.

    Returns:
        "rows", the scored pairs of the test split; "training_seconds" and "choice" as `Prepared` has them.
    """
    prepared = prepare(study, name, executor)
    scored = scored_before(study, name, prepared)
    if scored is None:
        scored = score(study, prepared.method(), "test", prepared.files)
        path = study.output_dir / "scores" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": _scores_key(study, prepared), "rows": scored})
    return {"rows": scored, "training_seconds": prepared.training_seconds, "choice": prepared.choice}
