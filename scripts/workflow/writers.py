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

"""What inference leaves on disk: a folder a case, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import singledispatch
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray
from scripts.cardiac.cines import Cine
from scripts.cardiac.function import volume_rows
from scripts.cardiac.registrations import CineRegistration, PairRegistration, Registration
from scripts.data.itk_fields import write_field
from scripts.data.results import DONE, WEIGHTS, check_place, explain_write_errors
from scripts.files import let_go, one_by_one, own_name, replace_folder, whole_file, write_csv, write_json
from scripts.help import bundle_version
from scripts.options import KEPT, names_of
from scripts.progress import stage
from scripts.report.page import write_report
from scripts.training.checkpoints import hash_checkpoint

# What is kept shows; where a label lies may tell who the patient is.
_UNSHOWN = ("kept", "reference label")
_WORDS = {("working spacing", False): "native", ("sector origin", None): "by the RV, where it is labeled"}


class WriteRegistration(Transform):
    """Writes the "registration" of a case to `<output_dir>/<case>/`, under another name until all is there.

    Of what can be kept, a cine leaves `fields/frame_NN.nii.gz`, as `inverse` `fields/frame_NN_inverse.nii.gz`, as
    `moved` `moved.nii.gz` (4-D), and with a label `labels.nii.gz`; a pair leaves `field.nii.gz`,
    `field_inverse.nii.gz`, `moved.nii.gz` and `moved_label.nii.gz`; both leave `report.html`. Figures are always
    written: `quality.json`, `times.csv` where times are known, with a label `function.json`, `volumes.csv` and
    `strain.csv`, and with landmarks `points.csv`.

    Args:
        output_dir: folder of the cases; None writes nothing.
        write: what is kept, of `options.KEPT`: a list, or a text with commas.
        parameters: shown in the report; "weights" is the path of a checkpoint.
        device: shown in the report.

    Raises:
        InputError: for a case's folder that holds something else than results, such as the case itself, or that cannot
            be written, as on a full disk.
    """

    def __init__(
        self,
        output_dir: str | Path | None,
        write: str | Sequence[str] = KEPT,
        parameters: Mapping[str, object] | None = None,
        device: str = "cpu",
    ) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.kept = names_of(write)
        self.parameters = {} if output_dir is None else {**_versions(), **describe_parameters(parameters or {}, device)}

    def __call__(self, data: Mapping) -> dict:
        if self.output_dir is None or "registration" not in data:
            return dict(data)
        registration: Registration = data["registration"]
        if "fingerprint" in data:
            registration.quality["fingerprint"] = data["fingerprint"]
        final = Path(
            os.path.realpath(self.output_dir / registration.cine.name)
        )  # a link leads to where the results are
        check_place(final)
        partial = own_name(final, "part")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with explain_write_errors(final):
                partial.mkdir(parents=True)
                write_case(partial, registration, self.kept)
                if "report" in self.kept:
                    with stage("writing the report"):
                        write_report(partial / "report.html", registration, self.parameters)
                replace_folder(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return dict(data)


def _versions() -> dict[str, str]:
    """Versions of the bundle and of what it computes with."""
    return {"bundle": bundle_version(), "torch": torch.__version__, "MONAI": monai.__version__}


def describe_parameters(parameters: Mapping[str, object], device: str) -> dict[str, str]:
    """Parameters in the words of the report, files of weights by name and hash, not by place, and the
    device."""
    words = {name: _WORDS.get((name, value), str(value)) for name, value in parameters.items() if name not in _UNSHOWN}
    for name in WEIGHTS:
        if (checkpoint := parameters.get(name)) and Path(str(checkpoint)).is_file():
            words[name] = f"{Path(str(checkpoint)).name}, SHA-256 {hash_checkpoint(checkpoint)[:16]}"
    return {**words, "device": str(device)}


def write_case(folder: Path, registration: Registration, kept: Sequence[str] = KEPT) -> None:
    """The files of a registration but its report, into a folder that is there."""
    cine = registration.cine
    images = [(kind, folder / name, array) for kind, name, array in _name_images(registration) if kind in kept]
    with stage("writing images", len(images), "file") as bar:
        for kind, path, array in images:
            path.parent.mkdir(exist_ok=True)
            _WRITERS[kind](path, array, cine)
            let_go(registration.moved, registration.fields, registration.inverses)
            bar.update()
    write_csv(folder / "times.csv", _time_rows(cine))
    if isinstance(registration, CineRegistration) and registration.labels is not None:
        _write_heartbeat(folder, registration)
    write_csv(folder / "points.csv", registration.points)
    write_json(folder / DONE, registration.quality)


def _write_heartbeat(folder: Path, registration: CineRegistration) -> None:
    """The figures of a labeled cine."""
    cine = registration.cine
    if registration.function:
        write_json(folder / "function.json", registration.function)
    if cine.is_stack:
        write_csv(folder / "volumes.csv", volume_rows(registration.answers, cine.spacing, cine.times))
    write_csv(folder / "strain.csv", registration.strain)


@singledispatch
def _name_images(registration: Registration) -> Iterator[tuple[str, str, NDArray]]:
    """Each image and field of a registration: its kind, of `options.KEPT`, its path in the case's folder, and itself."""
    raise TypeError(type(registration))


@_name_images.register
def _(registration: CineRegistration) -> Iterator[tuple[str, str, NDArray]]:
    yield "moved", "moved.nii.gz", registration.moved.astype(np.float32, copy=False)
    for t, (field, inverse) in enumerate(zip(registration.fields, registration.inverses), start=1):
        yield "fields", f"fields/frame_{t:02d}.nii.gz", field
        yield "inverse", f"fields/frame_{t:02d}_inverse.nii.gz", inverse
    if registration.labels is not None:
        yield "labels", "labels.nii.gz", registration.labels
    if registration.segmented is not None:
        yield "labels", "segmented.nii.gz", registration.segmented


@_name_images.register
def _(registration: PairRegistration) -> Iterator[tuple[str, str, NDArray]]:
    yield "moved", "moved.nii.gz", registration.moved[..., 0].astype(np.float32, copy=False)
    yield "fields", "field.nii.gz", registration.fields[0]
    yield "inverse", "field_inverse.nii.gz", registration.inverses[0]
    images = {
        "moved_label": registration.moved_label,
        "fixed_label": registration.fixed_label,
        "carried_label": registration.carried_label,
        "segmented": None if registration.segmented is None else registration.segmented[..., 0],
    }
    for name, label in images.items():
        if label is not None:
            yield "labels", f"{name}.nii.gz", label


def _time_rows(cine: Cine) -> list[dict]:
    """Milliseconds after the trigger, a dict for each slice and frame, both counted from 1; none where they are not known.

    Slices are scanned in turn, so that those of one frame differ by some milliseconds.
    """
    if cine.times is None:
        return []
    return [
        {"slice": z, "frame": t, "time_ms": float(time)}
        for z, times in enumerate(cine.times, start=1)
        for t, time in enumerate(times, start=1)
    ]


def write_nifti(path: Path, array: NDArray, cine: Cine) -> None:
    """Write (X, Y, Z) or (X, Y, Z, T) on the cine's grid, in mm and ms, frame by frame."""
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(cine.affine, 2)
    header.set_qform(cine.affine, 0)
    header.set_xyzt_units("mm", "msec" if array.ndim == 4 else None)
    if array.ndim == 4:
        header.set_zooms((*header.get_zooms()[:3], cine.frame_time or 0.0))
    header["vox_offset"] = header.single_vox_offset
    with whole_file(path) as part, nib.openers.Opener(part, "wb") as file:
        header.write_to(file)
        file.write(bytes(header.single_vox_offset - file.tell()))
        for frame in one_by_one(np.moveaxis(array, -1, 0)) if array.ndim == 4 else [array]:
            file.write(frame.tobytes(order="F"))


_WRITERS: dict[str, Callable[[Path, NDArray, Cine], None]] = {
    **dict.fromkeys(("moved", "labels"), write_nifti),
    **dict.fromkeys(("fields", "inverse"), lambda path, field, cine: write_field(path, field, cine.affine)),
}
