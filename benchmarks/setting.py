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

"""Where a figure was measured: hardware, versions and commit, and the command as a document may show it."""

from __future__ import annotations

import platform
import subprocess
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from scripts.files import write_json

from benchmarks.options import command, shown

ROOT = Path(__file__).parent.parent


def setting(module: str, argv: Sequence[str], options: Namespace, hardware: str, others: Sequence[str] = ()) -> dict:
    """What a benchmark's JSON says of how it was measured: "command", "options", "hardware" and "versions".

    Args:
        module: the benchmark's.
        argv: its command line.
        options: as parsed.
        hardware: in words.
        others: packages that took part, beside torch.
    """
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in others} | {"commit": commit()}
    return {"command": command(module, argv), "options": shown(options), "hardware": hardware, "versions": versions}


def keep(result: dict, path: Path | None) -> dict:
    """The result of a benchmark, which goes to a JSON file where one is given."""
    if path:
        write_json(path, result)
    return result


def commit() -> str:
    """Of the checkout, marked where files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def processor(device: str) -> str:
    """The name of the hardware that is measured."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    names = [
        line.partition(":")[2].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
