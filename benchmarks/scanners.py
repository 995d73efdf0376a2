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

"""How registration bears images of other scanners and protocols: Dice with other pixels, shading, noise, blur, contrast
and axes.

    python -m benchmarks.scanners --dataset_dir DIR [--split val] [--spacings 0.9 1.2 2.0 2.5] [--json scanners.json]

Pairs of a split are changed in one way at a time and scored by `evaluate.yaml`: by each of `CHANGES`, and resampled
in-plane to each pixel size (linearly, averaged where pixels grow; labels by the nearest pixel), on that grid and over
the same millimeters, with its `working_spacing` and with `working_spacing: false`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import (
    AdjustContrastd,
    Compose,
    Flipd,
    GaussianSmoothd,
    RandBiasFieldd,
    RandRicianNoised,
    Rotate90d,
    Transform,
)
from scripts.api import ROOT
from scripts.data.preprocessing import ResizeToSpacingd
from scripts.devices import check_device
from scripts.errors import one_line
from scripts.files import write_json
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.options import writable
from benchmarks.setting import processor, setting

# Length of the square whose folding is scored: that of 128 pixels of 1.5 mm.
SCORED_MM = 192.0
FIGURES = ("dice", "hd95_mm", "folding_percent")
PAIR = ("moving", "fixed")
LABELS = ("moving_label", "fixed_label")
# Both images of a pair get the same, but for the noise; sd is the standard deviation of the image. A network that knows
# which way hearts lie in its data set fails where they lie otherwise.
CHANGES: dict[str, Callable[[], Transform]] = {
    "coil shading": lambda: RandBiasFieldd(PAIR, coeff_range=(-0.3, 0.3), prob=1.0),
    "noise of 0.1 sd": lambda: RandRicianNoised(PAIR, std=0.1, relative=True, sample_std=False, prob=1.0),
    "noise of 0.3 sd": lambda: RandRicianNoised(PAIR, std=0.3, relative=True, sample_std=False, prob=1.0),
    "blur of 1 pixel": lambda: GaussianSmoothd(PAIR, sigma=(1.0, 1.0, 0.0)),
    "gamma of 0.6": lambda: AdjustContrastd(PAIR, gamma=0.6),
    "gamma of 1.6": lambda: AdjustContrastd(PAIR, gamma=1.6),
    "mirrored": lambda: Flipd(PAIR + LABELS, spatial_axis=0),
    "turned by 90 degrees": lambda: Rotate90d(PAIR + LABELS),
}


class ResamplePaird(Transform):
    """A loaded pair with labels, as a scanner with other pixels would give it.

    Args:
        spacing: in-plane pixel size in mm.
    """

    def __init__(self, spacing: float) -> None:
        self.resize = ResizeToSpacingd(PAIR, spacing, tolerance=0.0)

    def __call__(self, data: Mapping) -> dict:
        item = self.resize(data)
        for key, image in (("moving_label", "moving"), ("fixed_label", "fixed")):
            slices = data[key].as_tensor().movedim(-1, 0)
            label = F.interpolate(slices, size=item[image].shape[1:3], mode="nearest-exact").movedim(0, -1)
            item[key] = MetaTensor(label, meta=dict(item[image].meta))
        return item


def score(
    change: float | str | None, working_spacing: bool, dataset_dir: str, split: str, checkpoint: str, device: str
) -> dict[str, dict]:
    """Mean figures of a split: {direction: {figure: mean}}.

    Args:
        change: a pixel size in mm, the name of one of `CHANGES`, or None for images as they are.
        working_spacing: whether slices are resampled as shipped.
        dataset_dir: folder in ACDC's layout, with labels.
        split: of its `splits.json`.
        checkpoint: weights.
        device: to compute on.
    """
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / name) for name in ("train.yaml", "evaluate.yaml")])
    with tempfile.TemporaryDirectory() as folder:
        parser.update(
            {
                "bundle_root": str(ROOT),
                "dataset_dir": dataset_dir,
                "checkpoint": checkpoint,
                "device": device,
                "output_dir": folder,
                "validate::dataset::data::split": split,
                "validate::handlers": parser["validate::handlers"][:1],  # the report alone
            }
        )
        if not working_spacing:
            parser["working_spacing"] = False
        if isinstance(change, str):
            # One seed, whatever ran before.
            parser["train::preprocessing::transforms"].insert(1, Compose([CHANGES[change]()]).set_random_state(0))
        elif change:
            parser["crop_size"] = [2 * round(SCORED_MM / change / 2)] * 2
            parser["train::preprocessing::transforms"].insert(1, ResamplePaird(change))
        with contextlib.redirect_stdout(io.StringIO()):
            parser.get_parsed_content("validate::evaluator").run()
        summary = json.loads((Path(folder) / "summary.json").read_text())
    other = {key: value for key, value in summary.items() if isinstance(value, dict) and "registered" in value}
    return {
        name: {figure: found["registered"][figure]["mean"] for figure in FIGURES}
        for name, found in {summary["direction"]: summary, **other}.items()
    }


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure, print the table, write the JSON; returns its rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scanners", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True, help="folder in ACDC's layout, with labels")
    parser.add_argument("--split", default="val", help="of splits.json")
    parser.add_argument("--spacings", type=float, nargs="+", default=[0.9, 1.2, 2.0, 2.5], help="mm")
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable, help="file to write all figures to")
    options = parser.parse_args(argv)
    check_device(options.device)
    runs = [(change, working) for change in (None, *options.spacings) for working in (True, False)]
    rows = []
    for change, working in tqdm([*runs, *((name, True) for name in CHANGES)], desc="changes", unit="run"):
        found = score(change, working, options.dataset_dir, options.split, options.checkpoint, options.device)
        images = change if isinstance(change, str) else f"pixels of {change:g} mm" if change else "native"
        rows += [
            {"images": images, "working_spacing": working, "direction": name, **row} for name, row in found.items()
        ]
    print(f"{'images':<22}{'working spacing':<18}{'direction':<12}" + "".join(f"{figure:>18}" for figure in FIGURES))
    for row in rows:
        cells = "".join(f"{row[figure]:>18.3f}" for figure in FIGURES)
        print(
            f"{row['images']:<22}{'as shipped' if row['working_spacing'] else 'none':<18}{row['direction']:<12}{cells}"
        )
    if options.json:
        words = sys.argv[1:] if argv is None else argv
        write_json(
            options.json, {**setting("benchmarks.scanners", words, options, processor(options.device)), "rows": rows}
        )
    return rows


if __name__ == "__main__":
    with one_line():
        main()
