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

"""Long-axis cines with a label in every frame: labels that the registration carries against drawn ones, and longitudinal
strain by both.

    python -m benchmarks.long_axis --dataset_dir DIR [--label_values 3 2 1] [--checkpoint models/model.pt] [--json
    long_axis.json]

DIR holds `<name>_4d.nii.gz` beside `<name>_4d_gt.nii.gz`. Each cine is registered by the inference workflow to the frame
of the largest drawn LV area, whose label alone it is given. Longitudinal strain is that of the reference's midline by its
points, as the bundle gives it, and that of the midlines of carried and of drawn labels, frame by frame: these lie where
the middle of the wall is, which moves inward as the wall thickens, and shorten by more than the tissue does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scripts.api import ROOT, register_cine
from scripts.cardiac.cines import LABELS
from scripts.cardiac.longitudinal import midline_length
from scripts.devices import check_device
from scripts.errors import InputError, one_line
from scripts.registration.metrics import dice_percent, nan_mean

from benchmarks.options import writable
from benchmarks.setting import keep, processor, setting


def compare(carried: NDArray, drawn: NDArray, strain: Sequence[float], spacing: Sequence[float]) -> dict[str, object]:
    """Carried labels and strain against drawn labels.

    Args:
        carried: labels (X, Y, T); 1 RV, 2 myocardium, 3 LV cavity.
        drawn: the same shape and values.
        strain: longitudinal strain of each frame by the carried midline, ratios.
        spacing: of pixels in mm, (2,).

    Returns:
        The reference and end systole (the frames of the largest and the smallest drawn LV area, from 1), Dice in percent
        of each structure over all other frames and at end systole, without registration, too, and longitudinal strain in
        percent by frame and at its peak: of the reference's midline by its points, and of each frame's own midline in
        carried and in drawn labels.
    """
    areas = (drawn == LABELS["lv"]).sum(axis=(0, 1))
    reference, systole = int(areas.argmax()), int(areas.argmin())
    others = [t for t in range(drawn.shape[-1]) if t != reference]

    def overlaps(labels: NDArray, frames: Sequence[int]) -> dict[str, float]:
        return {
            name: nan_mean([dice_percent(labels[..., t] == value, drawn[..., t] == value) for t in frames])
            for name, value in LABELS.items()
        }

    still = np.repeat(drawn[..., reference : reference + 1], drawn.shape[-1], axis=-1)
    strains = {"points": 100 * np.array(strain)}
    for name, labels in (("carried", carried), ("drawn", drawn)):
        lengths = np.array([midline_length(labels[..., t], spacing) for t in range(labels.shape[-1])])
        strains[name] = 100 * (lengths / lengths[reference] - 1)
    return {
        "frames": {"reference": reference + 1, "end_systole": systole + 1},
        "dice_percent": {
            name: {"all": overlaps(labels, others), "end_systole": overlaps(labels, [systole])}
            for name, labels in (("before", still), ("carried", carried))
        },
        "longitudinal_percent": {name: [round(float(v), 2) for v in values] for name, values in strains.items()},
        "peak_percent": {name: round(float(np.nanmin(values)), 2) for name, values in strains.items()},
    }


def measure(path: Path, label_values: Sequence[int], **options: object) -> dict[str, object]:
    """`compare` of the cine of a file and the labels beside it, with its plane and verdict.

    Args:
        path: `<name>_4d.nii.gz`.
        label_values: the file's values of RV, myocardium and LV.
        options: of inference.

    Raises:
        InputError: where there is no label beside it.
    """
    labels = path.with_name(path.name.replace("_4d.", "_4d_gt."))
    if not labels.is_file():
        raise InputError(f"{path}: has no {labels.name} beside it; give a folder whose cines have labels.")
    file = nib.load(labels)
    given, drawn = np.asarray(file.dataobj).astype(int), np.zeros(file.shape, np.uint8)
    for name, value in zip(("rv", "myo", "lv"), label_values):
        drawn[given == value] = LABELS[name]
    reference = int((drawn == LABELS["lv"]).sum(axis=(0, 1, 2)).argmax())
    found = register_cine(
        path, reference_frame=reference + 1, reference_label=(drawn[..., reference], file.affine), **options
    )
    strain = [row["longitudinal"] for row in found.strain]
    compared = compare(found.labels[:, :, 0], drawn[:, :, 0], strain, found.cine.spacing[:2])
    words = {"plane": found.quality["plane"], "verdict": found.quality["verdict"]}
    return {**words, **compared, "volumes": sorted(key for key in found.function if key.endswith(("_ml", "percent")))}


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Print the figures of each cine, and return them with how they were measured.

    Raises:
        InputError: for a folder without such cines.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--label_values", type=int, nargs=3, default=(3, 2, 1), help="of RV, myocardium and LV")
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable)
    options = parser.parse_args(argv)
    check_device(options.device)
    files = sorted(options.dataset_dir.glob("*_4d.nii*"))
    if not files:
        raise InputError(f"{options.dataset_dir}: holds no <name>_4d.nii.gz; give a folder of long-axis cines.")
    found = {}
    for path in files:
        figures = measure(path, options.label_values, checkpoint=options.checkpoint, device=options.device)
        name = path.name.partition("_4d")[0]
        found[name] = figures
        dice, peaks = figures["dice_percent"], figures["peak_percent"]
        print(f"{name} ({figures['plane']}): {' '.join(figures['verdict'])}")
        for when in ("all", "end_systole"):
            pairs = ((key, dice["before"][when][key], dice["carried"][when][key]) for key in LABELS)
            listed = ", ".join(f"{key} {before:.1f} to {after:.1f}" for key, before, after in pairs if before == before)
            print(f"  Dice %, {when.replace('_', ' ')}: {listed}")
        listed = ", ".join(f"{key} {value:.1f}" for key, value in peaks.items())
        print(f"  peak longitudinal strain, %: {listed}")
    words = sys.argv[1:] if argv is None else argv
    result = {**setting("benchmarks.long_axis", words, options, processor(options.device)), "cines": found}
    return keep(result, options.json)


if __name__ == "__main__":
    with one_line():
        main()
