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

"""The cine in `sample/`, cut from a Sunnybrook one.

    python -m benchmarks.sample --subject PATH/SC-HF-I-2 --output_dir sample/SC-HF-I-2

`PATH/SC-HF-I-2` is a subject in ACDC's layout: `Info.cfg`, `<subject>_4d.nii.gz` and labels `<subject>_frameNN_gt.nii.gz`.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

# The heart in plane, and every slice on which the left ventricle is drawn.
BOX = (slice(4, 108), slice(2, 106), slice(2, 11))
PERCENTILE = 99.9
# Gray levels: their rounding is far below the image's noise, and saves a third of the file.
LEVELS = 64


def cut_sample(subject: Path, output_dir: Path) -> None:
    """Write the cropped cine in 8 bits, its labels and `Info.cfg` to a folder. Positions in mm and frame times are kept."""
    output_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(subject / "Info.cfg", output_dir / "Info.cfg")
    cine = nib.load(subject / f"{subject.name}_4d.nii.gz").slicer[BOX]
    image = np.asarray(cine.dataobj, dtype=np.float32)
    image = np.clip(image / np.percentile(image, PERCENTILE), 0, 1)
    gray = (np.round(image * (LEVELS - 1)) * (255 // (LEVELS - 1))).astype(np.uint8)
    small = nib.Nifti1Image(gray, cine.affine)
    small.header.set_xyzt_units(*cine.header.get_xyzt_units())
    small.header["pixdim"][4] = cine.header["pixdim"][4]
    _write(output_dir / f"{subject.name}_4d.nii.gz", small)
    for path in sorted(subject.glob("*_gt.nii.gz")):
        label = nib.load(path).slicer[BOX]
        _write(output_dir / path.name, nib.Nifti1Image(np.asarray(label.dataobj, dtype=np.uint8), label.affine))


def _write(path: Path, image: nib.Nifti1Image) -> None:
    """Compressed as far as gzip goes, without the time of writing."""
    path.write_bytes(gzip.compress(image.to_bytes(), 9, mtime=0))


def main() -> None:
    """Command line of `cut_sample`."""
    parser = argparse.ArgumentParser(description=cut_sample.__doc__.splitlines()[0])
    parser.add_argument("--subject", type=Path, required=True, help="folder of the subject in ACDC's layout")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    cut_sample(options.subject, options.output_dir)


if __name__ == "__main__":
    main()
