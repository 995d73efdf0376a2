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

"""Peak memory of `python -m scripts register` on cines of more and more frames, each in a process of its own.

    python -m benchmarks.memory [--size 256 256 10] [--frames 10 50] [--write fields,inverse,moved,labels,report]

The peak is to stay below the input in single precision and two gigabytes, whatever the number of frames.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scripts.devices import check_device
from scripts.errors import one_line
from scripts.files import write_json

from benchmarks.options import positive, writable
from benchmarks.setting import ROOT, processor, setting

GIGABYTE = 1e9
# Runs the command that follows and prints the most memory that it held, in kilobytes.
WATCH = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def _write_cine(path: Path, size: Sequence[int], frames: int) -> None:
    """A disk that beats within a ring, 240 mm wide, as a 4-D NIfTI file of 16 bits."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in size[:2]), indexing="ij")
    radius = np.hypot(x, y)
    cine = np.empty((*size, frames), np.int16)
    for t in range(frames):
        edge = 0.3 + 0.1 * np.cos(2 * np.pi * t / frames)
        cine[..., t] = (1000 * (radius < edge) + 500 * (radius < edge + 0.1) + 100 * x)[..., None]
    image = nib.Nifti1Image(cine, np.diag([240 / size[0], 240 / size[1], 8.0, 1.0]))
    image.header.set_zooms((*image.header.get_zooms()[:3], 900 / frames))
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, path)


def _measure(size: Sequence[int], frames: int, write: str, device: str) -> dict[str, float]:
    """Gigabytes of the input in single precision, of the peak, and of what the peak has beyond that input."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disk_4d.nii.gz"
        _write_cine(path, size, frames)
        words = ["-m", "scripts", "register", path, "--output_dir", Path(folder) / "OUT", "--write", write]
        command = [sys.executable, *map(str, words), "--device", device]
        done = subprocess.run([sys.executable, "-c", WATCH, *command], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    peak, own = int(done.stdout) * 1024 / GIGABYTE, 4 * float(np.prod([*size, frames])) / GIGABYTE
    return {"frames": frames, "input_gb": own, "peak_gb": peak, "beyond_input_gb": peak - own}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and, with --json, write."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=positive, nargs=3, default=[256, 256, 10], help="voxels of a frame")
    parser.add_argument("--frames", type=positive, nargs="+", default=[10, 50], help="of each cine, two or more")
    parser.add_argument("--write", default="fields,inverse,moved,labels,report", help="what is kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable, help="file for the figures")
    options = parser.parse_args(argv)
    check_device(options.device)
    rows = []
    for frames in options.frames:
        rows.append(_measure(options.size, frames, options.write, options.device))
        print("  ".join(f"{name} {value:.2f}" for name, value in rows[-1].items()), flush=True)
    if options.json:
        where = setting("benchmarks.memory", argv, options, processor(options.device))
        write_json(options.json, {**where, "cines": rows})


if __name__ == "__main__":
    with one_line():
        main()
