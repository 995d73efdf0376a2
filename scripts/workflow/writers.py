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

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray
from scripts.cardiac.cines import Cine, CineRegistration
from scripts.cardiac.function import volume_rows
from scripts.data.itk_fields import write_field
from scripts.data.results import DONE, check_place, refused
from scripts.files import own_name, replace_folder, whole_file, write_csv, write_json
from scripts.report.page import write_report


class WriteRegistration(Transform):
    """Writes the "registration" of a case to `<output_dir>/<case>/`, under another name until all is there.

    A cine leaves `moved.nii.gz` (4-D), `fields/frame_NN.nii.gz` and `fields/frame_NN_inverse.nii.gz`, `times.csv`
    where its times are known, and with a label `labels.nii.gz`, `function.json`, `volumes.csv` and `strain.csv`; a pair
    leaves `moved.nii.gz`, `field.nii.gz`, `field_inverse.nii.gz` and `moved_label.nii.gz`. Both leave `quality.json`,
    `report.html` and, with landmarks, `points.csv`.

    Args:
        output_dir: folder of the cases; None writes nothing.
        report: whether to write `report.html`.
        parameters: shown in the report.

    Raises:
        InputError: for a case's folder that holds something else than results, such as the case itself, or that cannot
            be written, as on a full disk.
    """

    def __init__(
        self, output_dir: str | Path | None, report: bool = True, parameters: Mapping[str, object] | None = None
    ) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.report = report
        self.parameters = {**versions(), **{key: str(value) for key, value in (parameters or {}).items()}}

    def __call__(self, data: Mapping) -> dict:
        if self.output_dir is None:
            return dict(data)
        registration: CineRegistration = data["registration"]
        if "fingerprint" in data:
            registration.quality["fingerprint"] = data["fingerprint"]
        final = (self.output_dir / registration.cine.name).resolve()  # a link leads to where the results are
        check_place(final)
        partial = own_name(final, "part")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with refused(final):
                partial.mkdir(parents=True)
                write_case(partial, registration)
                if self.report:
                    write_report(partial / "report.html", registration, self.parameters)
                replace_folder(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return dict(data)


def versions() -> dict[str, str]:
    """Versions of the bundle and of what it computes with."""
    metadata = json.loads((Path(__file__).parents[2] / "configs" / "metadata.json").read_text())
    return {
        "bundle": f"{metadata['name']} {metadata['version']}",
        "torch": torch.__version__,
        "MONAI": monai.__version__,
    }


def write_case(folder: Path, registration: CineRegistration) -> None:
    """The files of a registration but its report, into a folder that is there."""
    cine, affine = registration.cine, registration.cine.affine
    if registration.reference is None:
        write_nifti(folder / "moved.nii.gz", registration.moved[..., 0].astype(np.float32), cine)
        write_field(folder / "field.nii.gz", registration.fields[0], affine)
        write_field(folder / "field_inverse.nii.gz", registration.inverses[0], affine)
        if registration.labels is not None:
            write_nifti(folder / "moved_label.nii.gz", registration.labels[..., 0], cine)
    else:
        write_nifti(folder / "moved.nii.gz", registration.moved.astype(np.float32), cine)
        (folder / "fields").mkdir()
        for t in range(cine.frames):
            write_field(folder / "fields" / f"frame_{t + 1:02d}.nii.gz", registration.fields[t], affine)
            write_field(folder / "fields" / f"frame_{t + 1:02d}_inverse.nii.gz", registration.inverses[t], affine)
        write_csv(folder / "times.csv", time_rows(cine))
        if registration.labels is not None:
            write_nifti(folder / "labels.nii.gz", registration.labels, cine)
            if registration.function:
                write_json(folder / "function.json", registration.function)
            if cine.is_stack:
                write_csv(folder / "volumes.csv", volume_rows(registration.labels, cine.spacing, cine.times))
            write_csv(folder / "strain.csv", registration.strain)
    write_csv(folder / "points.csv", registration.points)
    write_json(folder / DONE, registration.quality)


def time_rows(cine: Cine) -> list[dict]:
    """Milliseconds after the trigger, a dict a slice and frame, both counted from 1; none where they are not known.

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
    """Write (X, Y, Z) or (X, Y, Z, T) on the cine's grid, in mm and ms."""
    image = nib.Nifti1Image(array, cine.affine)
    image.header.set_xyzt_units("mm", "msec" if array.ndim == 4 else None)
    if array.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], cine.frame_time or 0.0))
    with whole_file(path) as part:
        nib.save(image, part)
