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

"""Whole trainings on a GPU, each scored on the test split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from scripts.files import whole_file
from scripts.registration.metrics import summarize
from scripts.training.datasets import batch_loader
from scripts.training.epochs import scale_epochs
from torch import Tensor

from benchmarks import training
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.checks import EAGER, TRAINING
from benchmarks.gpu.parts import Results, is_done
from benchmarks.gpu.prepared import Case

FIGURES = ("dice", "dice_rv", "dice_myo", "dice_lv", "hd95_mm", "hd95_voxel", "mse", "folding_percent")
# Dou et al., MICCAI 2023, as released: the last weights, and slices as they are.
AS_PUBLISHED = {"learning_rate": 5e-3, "averaging": 1.0, "augmentation": None}
SCORING = 20.0  # seconds, until one training has been scored
MARGIN = 1.1


@dataclass(frozen=True)
class Training:
    """One network, the config that is merged over train.yaml, and how long it trains."""

    network: str
    """One of `benchmarks.training.NETWORKS`."""
    config: str
    """By its path from the bundle's root."""
    epochs: int
    overrides: dict = field(default_factory=dict)
    labeled: bool = False


def _published(method: str) -> Training:
    """One of benchmarks/methods/ in the published setting."""
    return Training("published", f"benchmarks/methods/{method}.yaml", 500, AS_PUBLISHED)


TRAININGS = {
    **{name: _published(name) for name in ("gsmorph", "voxelmorph_m", "gs_pcgrad", "voxelmorph_s", "voxelmorph_l")},
    "recipe": Training("shipped", "configs/labeled.yaml", scale_epochs(100, 32), labeled=True),
}


def _steps_of(bench: Bench, name: str) -> tuple[int, int]:
    """Epochs of a training, and steps of each."""
    steps = max(len(bench.data.pairs) // bench.batch, 1)
    most = bench.most_steps
    return (1, min(most, steps)) if most else (TRAININGS[name].epochs, steps)


def seconds_needed(bench: Bench, name: str, results: Results) -> float:
    """What a training and its scores take: as one that was finished, or by the seconds of its step."""
    network = TRAININGS[name].network
    epochs, steps = _steps_of(bench, name)
    alike = [key for key, value in TRAININGS.items() if value.network == network and is_done(results.get(key))]
    if alike:
        return MARGIN * max(results[key]["seconds"] for key in alike)
    measured = results["steps"][network]
    step = measured[TRAINING if TRAINING in measured else EAGER]["milliseconds"]["median"] / 1e3
    return MARGIN * epochs * steps * step + SCORING


def train(bench: Bench, name: str, results: Results) -> dict:
    """Train, as a CUDA graph where that can be recorded, write the weights as `<name>.pt`, and score them."""
    chosen = TRAININGS[name]
    merged = ConfigParser.load_config_file(str(training.ROOT / chosen.config))
    merged = {key: value for key, value in merged.items() if key != "max_epochs"}
    graph = TRAINING in results["steps"][chosen.network]
    parser = bench.config(chosen.network, graph=graph, **{**merged, **chosen.overrides})
    # Without augmentation, whose crops are random, slices are cropped about their center.
    size = bench.size if parser["augmentation"] is None else None
    loader = batch_loader(bench.data.slices(bench.device, chosen.labeled, size), bench.batch)
    epochs, steps = _steps_of(bench, name)
    trainer = training.make_training(parser, training.Part(loader, steps))
    trainer.state.max_epochs = epochs
    start = time.perf_counter()
    trainer.run()
    _synchronize(bench)
    seconds = time.perf_counter() - start
    weights = {key: value.cpu() for key, value in parser.get_parsed_content("averager").module.state_dict().items()}
    with whole_file(bench.output_dir / f"{name}.pt") as part:
        torch.save(weights, part)
    last = {key: float(trainer.state.metrics[key]) for key in ("similarity", "smoothness", "conflict_ratio")}
    counts = {
        "graph": graph,
        "epochs": epochs,
        "steps": epochs * steps,
        "batch": bench.batch,
        "training_seconds": seconds,
    }
    return {**counts, "last_epoch": last, "test": _score(bench, bench.config(chosen.network), weights)}


def _synchronize(bench: Bench) -> None:
    """Wait for a GPU."""
    if bench.on_gpu:
        torch.cuda.synchronize(bench.device)


def _score(bench: Bench, parser: ConfigParser, weights: dict[str, Tensor]) -> dict:
    """Mean and deviation of each figure over the test subjects, and each subject's, by direction."""
    network = parser.get_parsed_content("bare_network").eval()
    network.load_state_dict(weights)
    inferer, clip = parser.get_parsed_content("validate::inferer"), parser.get_parsed_content("clip_percentile")
    cases, fields = bench.data.cases(), []
    with torch.no_grad():
        for case in cases:
            pair = case.pair(clip)[None].to(bench.device)
            fields.append(inferer(pair, network)[0].float().cpu().numpy())
    run = bench.executor.map if bench.executor else map
    scored = list(run(partial(_score_case, crop=parser.get_parsed_content("crop_size")), cases, fields))
    found = {}
    for direction in dict.fromkeys(case.direction for case in cases):
        rows = {case.subject: row for case, row in zip(cases, scored) if case.direction == direction}
        found[direction] = {**summarize(list(rows.values())), "subjects": rows}
    return found


def _score_case(case: Case, field: NDArray, crop: Sequence[int]) -> dict[str, float]:
    """The figures of one case, in a process of its own."""
    figures = case.score(field, crop)
    return {key: figures[key] for key in FIGURES}


def one_thread() -> None:
    """What a process that scores begins with."""
    torch.set_num_threads(1)
