"""How registration bears pixels of other sizes than those of its training: Dice with and without the working spacing.

    python -m benchmarks.spacing --dataset_dir DIR [--split val] [--spacings 0.9 1.2 2.0 2.5] [--json spacing.json]

Pairs of a split are resampled in-plane to each pixel size (linearly, averaged where pixels grow; labels by the nearest pixel) and scored
on that grid by `evaluate.yaml`, over the same millimeters: with its `working_spacing` and with `working_spacing: false`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Transform
from torch.nn import functional as F
from tqdm import tqdm

from scripts.api import ROOT
from scripts.devices import check_device
from scripts.errors import one_line
from scripts.transforms import ResizeToSpacingd

SCORED_MM = 192.0
"""Length of the scored square: that of 128 pixels of 1.5 mm."""
FIGURES = ("dice", "hd95_mm", "folding_percent")


class ResamplePaird(Transform):
    """A loaded pair with labels, as a scanner with other pixels would give it.

    Args:
        spacing: in-plane pixel size in mm.
    """

    def __init__(self, spacing: float) -> None:
        self.resize = ResizeToSpacingd(["moving", "fixed"], spacing, tolerance=0.0)

    def __call__(self, data: Mapping) -> dict:
        item = self.resize(data)
        for key, image in (("moving_label", "moving"), ("fixed_label", "fixed")):
            slices = data[key].as_tensor().movedim(-1, 0)
            label = F.interpolate(slices, size=item[image].shape[1:3], mode="nearest-exact").movedim(0, -1)
            item[key] = MetaTensor(label, meta=dict(item[image].meta))
        return item


def score(spacing: float | None, working_spacing: bool, dataset_dir: str, split: str, checkpoint: str, device: str) -> dict:
    """Mean figures of a split at a pixel size, None for the native one: {direction: {figure: mean}}."""
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
                "validate::dataset::data": f"$scripts.datalists.select_pairs(@dataset_dir, None, '{split}', 'both', seed=@seed)",
                "validate::handlers": parser["validate::handlers"][:1],  # the report alone
            }
        )
        if not working_spacing:
            parser["working_spacing"] = False
        if spacing:
            parser["crop_size"] = [2 * round(SCORED_MM / spacing / 2)] * 2
            parser["train::preprocessing::transforms"].insert(
                1, {"_target_": "benchmarks.spacing.ResamplePaird", "spacing": spacing}
            )
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spacing", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True, help="folder in ACDC's layout, with labels")
    parser.add_argument("--split", default="val", help="of splits.json")
    parser.add_argument("--spacings", type=float, nargs="+", default=[0.9, 1.2, 2.0, 2.5], help="mm; the native one comes first")
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="file to write all figures to")
    options = parser.parse_args(argv)
    check_device(options.device)
    runs = [(spacing, working) for spacing in (None, *options.spacings) for working in (True, False)]
    rows = []
    for spacing, working in tqdm(runs, desc="pixel sizes", unit="run"):
        found = score(spacing, working, options.dataset_dir, options.split, options.checkpoint, options.device)
        rows += [{"spacing": spacing, "working_spacing": working, "direction": name, **row} for name, row in found.items()]
    print(f"{'pixels':<10}{'working spacing':<18}{'direction':<12}" + "".join(f"{figure:>18}" for figure in FIGURES))
    for row in rows:
        pixels = f"{row['spacing']:g} mm" if row["spacing"] else "native"
        cells = "".join(f"{row[figure]:>18.3f}" for figure in FIGURES)
        print(f"{pixels:<10}{'as shipped' if row['working_spacing'] else 'none':<18}{row['direction']:<12}{cells}")
    if options.json:
        Path(options.json).write_text(json.dumps({"split": options.split, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    with one_line():
        main()
