"""Where a figure was measured: hardware, versions and commit, and the command as a document may show it."""

from __future__ import annotations

import platform
import subprocess
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

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
