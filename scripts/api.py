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

"""Registration from Python: the inference workflow with paths, nibabel images or arrays, and nothing written.

import sys

sys.path.insert(0, "/path/to/gsmorph_cardiac_registration")  # the folder of the bundle; from any folder
from scripts.api import register, register_cine

result = register_cine("C_4d.nii.gz", reference_label="C_ED_gt.nii.gz", reference_frame=1)
print(result.function["lv_ef_percent"], result.quality["verdict"])
result.fields[7]  # of frame 8: (X, Y, Z, 3), mm along LPS

result = register((moving, affine), (fixed, affine))
result.voxels.fields[0]  # (3, X, Y, Z), voxels; (2, X, Y, Z) with dims=2, and where motion is in-plane alone
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser
from numpy.typing import ArrayLike, NDArray
from scripts.cardiac.registrations import CineRegistration, PairRegistration, Registration
from scripts.data.itk_fields import voxels_to_lps
from scripts.devices import settings_kept
from scripts.errors import InputError, first_cause
from scripts.options import check_option
from torch import nn

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
# By `dims`.
FILES = {3: ("inference.yaml",), 2: ("inference.yaml", "slices.yaml")}
IMAGES = ("cine", "moving", "fixed", "reference_label", "moving_label")
# Keys of the config, besides the checkpoint's file, that the network with its weights depends on.
NETWORK_KEYS = ("axes", "network_def", "network", "trained_network", "checkpoint", "device", "channels_last")

# A path, an image in memory, or an array with its affine (voxel index to RAS in mm, 4 x 4).
Image = str | Path | nib.spatialimages.SpatialImage | tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True)
class Result:
    """Moving images, the frames of a cine or one image (T = 1), registered to a fixed image.

    Fields are displacements in mm along the patient's left, posterior and superior axes (LPS) at the voxels of the
    fixed image, pull direction: what lies at p there lies at p + fields[t](p) in moving image t. They equal the files
    that the workflow writes. All else is what the registration has: `cine`, `fixed`, `moved`, `quality`, `points`,
    `label_basis`, `segmented` and so on, described in `cardiac.registrations`.
    """

    voxels: Registration
    """The same with its fields (T, d, X, Y, Z), d = 2 or 3, in voxels of the fixed image's grid, channel i along array axis i."""

    @cached_property
    def fields(self) -> NDArray[np.float32]:
        """(T, X, Y, Z, 3), mm along LPS, pull direction."""
        return self._in_mm(self.voxels.fields)

    @cached_property
    def inverses(self) -> NDArray[np.float32]:
        """Their inverses (T, X, Y, Z, 3), mm along LPS: what lies at q in frame t lies at q + inverses[t](q) in the
        reference."""
        return self._in_mm(self.voxels.inverses)

    def _in_mm(self, fields: NDArray) -> NDArray[np.float32]:
        return np.stack([voxels_to_lps(u, self.voxels.cine.affine) for u in fields]).astype(np.float32)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "voxels":  # as a copy asks that has nothing yet
            raise AttributeError(name)
        return getattr(self.voxels, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.voxels)})


class CineResult(Result):
    """Every frame of a cine registered to its reference frame: `reference`, `reference_basis`, `label`, `labels`,
    `function` and `strain`, too."""

    voxels: CineRegistration


class PairResult(Result):
    """A moving image registered to a fixed one; T = 1: `moving_label`, `moved_label`, `fixed_label` and `carried_label`,
    too."""

    voxels: PairRegistration


_RESULTS = {CineRegistration: CineResult, PairRegistration: PairResult}


def register_cine(cine: Image, **options: object) -> CineResult:
    """Register every frame of a cine to its reference frame, with the shipped weights.

    Args:
        cine: a 4-D NIfTI file, a folder of DICOM files of a cine or a study, a 4-D nibabel image, whose header tells
            the frame time, or an array (X, Y, Z, T) with its affine.
        options: any top-level key of `configs/inference.yaml` but `bundle_root`, such as `reference_frame`,
            `reference_label` (an image, too), `points` (a CSV, or an array (N, 3) in mm along LPS), `device`, or
            `output_dir`, without which nothing is written; `dims`: 2 registers each slice by itself (`configs/slices.yaml`),
            3, the default, moves stacks along their axis first.

    Returns:
        What the workflow would write.

    Raises:
        InputError: naming file or option and the cure.
    """
    return _register_one(cine=cine, **options)


def register(moving: Image, fixed: Image, **options: object) -> PairResult:
    """Register a moving to a fixed stack of slices (X, Y, Z); T = 1 in the result. Options and errors as in
    `register_cine`; `moving_label` is an image, too."""
    return _register_one(moving=moving, fixed=fixed, **options)


@settings_kept()
def _register_one(dims: int = 3, **options: object) -> CineResult | PairResult:
    """The registration of the one case that the options give."""
    if dims not in FILES:
        raise InputError(f"dims {dims}: give 2, for each slice by itself, or 3, for motion along the stack, too.")
    config = ConfigParser.load_config_files([str(CONFIGS / name) for name in FILES[dims]])
    unknown = set(options) - (set(config) - {"bundle_root"})
    if unknown:
        raise InputError(f"{', '.join(sorted(unknown))}: no such option; they are the top-level keys of {FILES[3][0]}.")
    # What is in memory is written first, so that it is read and checked as files are.
    with TemporaryDirectory(prefix="registration_", ignore_cleanup_errors=True) as folder:
        try:
            found = _run_workflow(config, _written_options(options, Path(folder)))
        except InputError as error:
            # The user knows what is in memory by the option's name.
            names = {str(Path(folder) / f"{name}{ending}"): name for name in options for ending in (".nii", ".csv")}
            message = str(error)
            for path, name in names.items():
                message = message.replace(path, name)
            raise InputError(message) from None
    return _RESULTS[type(found)](found)


def _run_workflow(config: dict, options: Mapping[str, object]) -> Registration:
    for name, value in {"bundle_root": ROOT, **options}.items():
        check_option(name, value)
    parser = ConfigParser(config)
    # Nothing is written, unless asked for.
    parser.update({"bundle_root": str(ROOT), "output_dir": None})
    parser.update({key: str(value) if isinstance(value, Path) else value for key, value in options.items()})
    try:
        parser.get_parsed_content("initialize")
        parser.get_parsed_content("check_source")
        if len(parser.get_parsed_content("data")) != 1:
            raise InputError("give one case: a cine, or a moving and a fixed image.")
        parser["trained_network"] = _trained_network(parser)
        evaluator = parser.get_parsed_content("evaluator")
        evaluator.run()
    except Exception as error:
        # MONAI and ignite chain their own errors after the first one.
        raise first_cause(error) from None
    return evaluator.state.output[0]["registration"]


_kept_network: dict[tuple, nn.Module] = {}


def _trained_network(parser: ConfigParser) -> nn.Module:
    """The network with its weights: the one of the call before, where nothing that it depends on has changed."""
    file = Path(parser.get_parsed_content("checkpoint"))
    changed = file.stat().st_mtime_ns if file.is_file() else None
    key = (*(repr(parser[name]) for name in NETWORK_KEYS), str(file.resolve()), changed)
    if key not in _kept_network:
        network = parser.get_parsed_content("trained_network")
        _kept_network.clear()
        _kept_network[key] = network
    return _kept_network[key]


def _written_options(options: Mapping[str, object], folder: Path) -> dict[str, object]:
    """The options with images and points that are in memory written to files of their names.

    Raises:
        InputError: naming the option, for an array without a valid affine, or of something else than numbers.
    """
    written = dict(options)
    for name in options.keys() & set(IMAGES):
        if not isinstance(options[name], (str, Path, type(None))):
            written[name] = folder / f"{name}.nii"
            _in_memory(name, options[name]).to_filename(written[name])
    points = options.get("points")
    if not isinstance(points, (str, Path, type(None))):
        written["points"] = folder / "points.csv"
        rows = _to_numbers("points", points)
        if rows.ndim != 2 or rows.shape[1] != 3:
            raise InputError(f"points: have the shape {rows.shape}; give (N, 3), x, y and z in mm along LPS.")
        with written["points"].open("w", newline="") as file:
            csv.writer(file).writerows(["xyz", *rows.tolist()])
    return written


def _in_memory(name: str, image: object) -> nib.Nifti1Image:
    """A nibabel image or an array with its affine as a NIfTI image of its own in fp32.

    Raises:
        InputError: naming the option.
    """
    if isinstance(image, nib.Nifti1Pair):
        header, array, affine = image.header, image.dataobj, image.affine
    elif isinstance(image, nib.spatialimages.SpatialImage):
        header, array, affine = None, image.dataobj, image.affine
    elif isinstance(image, tuple) and len(image) == 2:
        header, array, affine = None, image[0], _to_numbers(f"{name}'s affine", image[1])
    else:
        raise InputError(
            f"{name}: takes a path, a nibabel image or (array, affine), the affine from voxel index to RAS in mm; got "
            f"{type(image).__name__}."
        )
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine):
        raise InputError(
            f"{name}: its affine is invalid; give (4, 4) finite numbers, voxel index to RAS in mm, invertible."
        )
    made = nib.Nifti1Image(_to_numbers(name, array), affine, header)
    made.set_data_dtype(np.float32)
    if header is None:
        made.header.set_xyzt_units("mm")
    return made


def _to_numbers(name: str, values: object) -> NDArray:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"dtype {array.dtype}")
        return array.astype(np.float32 if array.dtype.kind != "f" else array.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: is not an array of real numbers ({error}).") from None
