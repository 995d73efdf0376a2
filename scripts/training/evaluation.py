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

"""Scoring registered cases: a transform that scores one, a handler that gathers all and writes the tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCrop, Transform
from scripts.cardiac.cines import LABELS
from scripts.data.preprocessing import scale_slices
from scripts.devices import gather_rows
from scripts.files import write_csv, write_json
from scripts.registration.fields import beyond_stack, restack, unstack, warp_stack
from scripts.registration.metrics import DEFINITIONS, folding_percent, mse_hundredfold, overlap, summarize, volume_error

CAVITIES = {f"volume_error_{name}": LABELS[name] for name in ("rv", "lv")}
FIGURES = ("dice", "dice_rv", "dice_myo", "dice_lv", "hd95_mm", "hd95_voxel", *CAVITIES, "mse", "folding_percent")
STAGES = ("initial", "registered")
COLUMNS = tuple(f"{stage}_{key}" for stage in STAGES for key in FIGURES)


class ScoreRegistrationd(Transform):
    """Adds "scores" to a case, {"initial": {...}, "registered": {...}} with the figures of `metrics.DEFINITIONS`.

    Structures are scored on whole slices, which the network has seen; images and folding on a central crop, the
    published protocol.

    Args:
        crop_size: in-plane size of that crop, in pixels.
        field: key of the field (d, X, Y, Z), voxels; in-plane where d = 2.
        stages: those of `STAGES` that are scored.
    """

    def __init__(
        self, crop_size: Sequence[int] = (128, 128), field: str = "pred", stages: Sequence[str] = STAGES
    ) -> None:
        self.crop_size = crop_size
        self.field = field
        self.stages = stages

    def __call__(self, data: Mapping) -> dict:
        item = dict(data)
        field = torch.as_tensor(data[self.field]).detach().cpu().float()
        item["scores"] = score_case(
            field=field,
            moving=data["moving_image"],
            fixed=data["fixed_image"],
            moving_label=data.get("moving_label"),
            fixed_label=data.get("fixed_label"),
            crop_size=self.crop_size,
            stages=self.stages,
        )
        return item


def score_case(
    field: torch.Tensor,
    moving: MetaTensor,
    fixed: MetaTensor,
    moving_label: torch.Tensor | None,
    fixed_label: torch.Tensor | None,
    crop_size: Sequence[int],
    stages: Sequence[str] = STAGES,
) -> dict[str, dict[str, float]]:
    """The figures of one case before ("initial") and after registration ("registered").

    Args:
        field: displacement (d, X, Y, Z), voxels of the fixed grid, pull convention; in-plane where d = 2. What a volume's
            field brings from beyond the ends of the stack has no label, and its intensities are not scored.
        moving: image (1, X, Y, Z) in any unit of intensity.
        fixed: image on the same grid; its affine gives the spacing in mm.
        moving_label: label map of the moving image, or None.
        fixed_label: label map of the fixed image, or None.
        crop_size: in-plane size of the central crop whose images and folding are scored.
        stages: those of `STAGES` that are scored.
    """
    region = CenterSpatialCrop(crop_size).compute_slices(fixed.shape[1:3])
    inside = (slice(None), *region)
    moving_plain, fixed_crop = torch.as_tensor(moving).float().cpu(), torch.as_tensor(fixed).float().cpu()[inside]
    # Each slice is scaled by its own range over the crop; what the field pulls in from outside is scaled the same way.
    low, high = (f(moving_plain[inside], dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
    scaled_moving = (moving_plain - low) / torch.where(high > low, high - low, 1.0)
    scaled_fixed = scale_slices(fixed_crop)
    spacing = fixed.pixdim.tolist() if isinstance(fixed, MetaTensor) else [1.0, 1.0, 1.0]
    labels = [torch.as_tensor(label).cpu() for label in (moving_label, fixed_label) if label is not None]
    present = {name: value for name, value in LABELS.items() if all((label == value).any() for label in labels)}
    scores = {}
    for stage in stages:
        u = torch.zeros_like(field) if stage == "initial" else field
        row = dict.fromkeys(FIGURES, float("nan"))
        if len(labels) == 2:
            maps = (warp_stack(labels[0], u, mode="nearest") * _from_stack(u, margin=0.5), labels[1], labels[0])
            # Of the whole slice: in small pixels, or off the center, a crop would cut the heart.
            moved, fixed_map, moving_map = (x[0].round().numpy().astype(np.uint8) for x in maps)
            row.update(overlap(moved, fixed_map, present, spacing))
            for figure, value in CAVITIES.items():
                if value in present.values():
                    row[figure] = volume_error(*(x == value for x in (moved, fixed_map, moving_map)))
        moved_image, seen = warp_stack(scaled_moving, u)[inside], _from_stack(u)[region]
        if seen.all():
            row["mse"] = mse_hundredfold(moved_image, scaled_fixed)
        else:
            row["mse"] = mse_hundredfold(moved_image[:, seen], scaled_fixed[:, seen])
        row["folding_percent"] = folding_percent(u, region)
        scores[stage] = {key: float(row[key]) for key in FIGURES}
    return scores


def _from_stack(field: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Where a field (d, X, Y, Z) leads beyond the ends of the stack by no more than a margin in slices, (X, Y, Z)."""
    return restack(beyond_stack(unstack(field, len(field))) <= margin, len(field))


class MeanOverCases(Metric):
    """Mean over the cases of a run of figures that a function takes from a case. NaN is left out; the first figure with
    any value is returned.

    Several processes gather their cases: the mean is that of one process, and a case that a sampler repeated counts
    once.

    Args:
        figures: makes of a case's "scores" some figures in the order of preference.
    """

    def __init__(self, figures: Callable[[Mapping], Sequence[float]]) -> None:
        self.figures = figures
        super().__init__()

    def reset(self) -> None:
        """Forget all cases."""
        self.rows: list[Sequence[float]] = []

    def started(self, engine: Engine) -> None:
        """Forget all cases, and ask how many there will be."""
        super().started(engine)
        self.count = _count_cases(engine)

    def update(self, output: Sequence[Mapping]) -> None:
        """Add the cases of an iteration."""
        self.rows += [self.figures(case["scores"]) for case in output]

    def compute(self) -> float:
        """The mean; NaN without any figure."""
        for column in zip(*gather_rows(self.rows, self.count)):
            there = [value for value in column if not np.isnan(value)]
            if there:
                return float(np.mean(there))
        return float("nan")


def average_score(figure: str) -> MeanOverCases:
    """The mean of one registered figure over the cases of a run."""
    return MeanOverCases(lambda scores: [scores["registered"][figure]])


def average_key_score() -> MeanOverCases:
    """The figure by which the best weights are chosen: Dice in percent, or the negative MSE where no case carries
    labels."""
    return MeanOverCases(lambda scores: [scores["registered"]["dice"], -scores["registered"]["mse"]])


def _count_cases(engine: Engine) -> int:
    """How many cases an evaluator's data set has, of all processes together."""
    loader = engine.state.dataloader
    return len(getattr(loader, "dataset", loader))


class EvaluationReport:
    """Collects the scores of an evaluator's cases and writes `metrics.csv` (a row for each subject) and `summary.json`, and
    prints a table.

    The first direction of the data list gives "initial" and "registered" at the top of the summary; other directions
    follow under their names.

    Args:
        output_dir: folder of the two files.
        directions: names of the directions, the first one the summary's own.
    """

    def __init__(self, output_dir: str | Path, directions: Sequence[str] = ("ES_to_ED", "ED_to_ES")) -> None:
        self.output_dir = Path(output_dir)
        self.directions = tuple(directions)
        self.rows: list[dict] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output):
            direction = batch.get("direction", self.directions[0])
            names = {"subject": batch["subject"], "case": batch.get("case", batch["subject"]), "direction": direction}
            figures = {f"{stage}_{key}": output["scores"][stage][key] for stage in STAGES for key in FIGURES}
            self.rows.append({**names, **figures})

    def write(self, engine: Engine) -> None:
        rows = gather_rows(self.rows, _count_cases(engine))
        if idist.get_rank() != 0:
            return
        summary: dict = {"definitions": DEFINITIONS}
        table: dict[str, dict] = {}
        for number, (direction, chosen) in enumerate(self._by_direction(rows)):
            figures = _summarize_direction(direction, list(chosen.values()))
            print(_format_summary(figures), flush=True)
            # The first direction's figures are the summary's own, and its columns bear no name.
            summary |= {direction: figures} if number else figures
            prefix = f"{direction}_" if number else ""
            for subject, row in sorted(chosen.items()):
                table.setdefault(subject, {"subject": subject}).update({prefix + key: row[key] for key in COLUMNS})
        # A subject of a list may have one direction alone.
        columns = dict.fromkeys(key for row in table.values() for key in row)
        write_csv(self.output_dir / "metrics.csv", [columns | row for row in table.values()])
        write_json(self.output_dir / "summary.json", summary)
        logging.getLogger("evaluation").info(f"wrote {self.output_dir / 'metrics.csv'} and summary.json")

    def _by_direction(self, rows: Sequence[dict]) -> list[tuple[str, dict[str, dict]]]:
        """Names of the directions, those of `directions` first, each with its rows by name."""
        order = {name: number for number, name in enumerate(self.directions)}
        names = sorted({row["direction"] for row in rows}, key=lambda name: (order.get(name, len(order)), name))
        return [(name, name_rows([row for row in rows if row["direction"] == name])) for name in names]


def _summarize_direction(direction: str, rows: Sequence[dict]) -> dict:
    """How many subjects there are, and mean and deviation of each figure, by stage."""
    figures = {stage: summarize([{key: row[f"{stage}_{key}"] for key in FIGURES} for row in rows]) for stage in STAGES}
    labeled = sum(not np.isnan(row["initial_dice"]) for row in rows)
    return {"direction": direction, "subjects": len(rows), "labeled_subjects": labeled, **figures}


def name_rows(rows: Sequence[dict]) -> dict[str, dict]:
    """Rows by subject, or by case for a subject of several, numbered where cases share a name."""
    subjects, named = [row["subject"] for row in rows], {}
    for row in rows:
        name = row["subject"] if subjects.count(row["subject"]) == 1 else row["case"]
        names = (name if number == 1 else f"{name}_{number}" for number in count(1))
        named[next(name for name in names if name not in named)] = row
    return named


def _format_summary(summary: Mapping) -> str:
    """Mean ± std of each figure, a line for each stage."""
    subjects, labeled = summary["subjects"], summary["labeled_subjects"]
    title = f"{summary['direction']}, {subjects} subjects" + (f", {labeled} labeled" if labeled < subjects else "")
    lines = [f"{title:<28}" + "".join(f"{key:>18}" for key in FIGURES)]
    for stage in STAGES:
        cells = [f"{summary[stage][key]['mean']:.3f} ± {summary[stage][key]['std']:.3f}" for key in FIGURES]
        lines.append(f"{stage:<28}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
