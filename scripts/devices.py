"""Which device a workflow runs on."""

from __future__ import annotations

import os

import ignite.distributed as idist
import torch

from scripts.errors import InputError


def default_device() -> str:
    """The first CUDA device where there is one, else the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def local_device() -> str:
    """The device of this process under torchrun: its own CUDA device, or the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def start_process_group() -> None:
    """Join the processes that torchrun started, through NCCL on CUDA devices and gloo on CPUs.

    Raises:
        InputError: outside torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        raise InputError(
            "configs/multi_gpu_train.yaml: needs several processes; start it by torchrun --nproc_per_node=N -m monai.bundle run …"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    # Ignite's own initialization: it creates groups collectively, which must not wait for the first handler that only rank 0 has.
    idist.initialize("nccl" if torch.cuda.is_available() else "gloo")


def leave_process_group() -> None:
    """Leave the processes that torchrun started."""
    idist.finalize()


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
