"""Which device a workflow runs on."""

from __future__ import annotations

import torch

from scripts.errors import InputError


def default_device() -> str:
    """The first CUDA device where there is one, else the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def check_device(device: str | torch.device) -> None:
    """Stop where a device is not there.

    Raises:
        InputError: naming the device and those that are there.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: no such device here; use one of {', '.join(there)}.") from error
