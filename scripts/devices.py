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

"""Which device a workflow runs on, and how the processes that torchrun starts work together."""

from __future__ import annotations

import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, zip_longest

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.utils import set_determinism
from scripts.errors import InputError, under_torchrun
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


def default_device() -> str:
    """The first CUDA device, under torchrun the one of this process, or the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def by_device(device: str | torch.device, cpu: int, other: int) -> int:
    """One number on a CPU, another on any other device."""
    return cpu if str(device).startswith("cpu") else other


def to_device(network: nn.Module, device: str | torch.device, channels_last: bool = True) -> nn.Module:
    """The network itself on a device, the weights of its 2-D convolutions in a memory format."""
    network = network.to(device=device)
    for tensor in chain(network.parameters(), network.buffers()):
        # Module.to would ask it of 3-D kernels as well, which do not have it.
        if channels_last and tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def distribute(network: nn.Module, device: str | torch.device) -> DistributedDataParallel:
    """The network as each of the processes trains it.

    BatchNorm sees the whole batch on CUDA devices, each process's own share on a CPU. The similarity's gradient is
    exchanged at once, as the smoothness's is.
    """
    device = torch.device(device)
    normed = any("BatchNorm" in type(layer).__name__ for layer in network.modules())
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        bucket_cap_mb=1024,
        forward_sync_buffers=normed,  # other buffers are constant
    )


def seed_process(seed: int, rank: int = 0) -> None:
    """Seed all generators, those of each process with another number, and have operations repeat bit for bit."""
    set_determinism(seed=seed + rank)


def is_first_of_node() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def count_processes() -> int:
    """How many processes torchrun started; 1 outside it."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def start_process_group(device: str | torch.device, hours: float | None = None) -> None:
    """Join the processes that torchrun started, through NCCL for CUDA devices and gloo for the CPU; once, even where
    something else joined them before.

    Args:
        device: of the tensors that the processes exchange.
        hours: how long one process waits for another; None takes torch's default, which is minutes.

    Raises:
        InputError: outside torchrun, or for a CUDA device that is not this process's own.
    """
    device = torch.device(device)
    if not under_torchrun():
        raise InputError(
            "configs/multi_gpu_train.yaml: needs several processes; start it by torchrun --nproc_per_node=N -m monai.bundle run …"
        )
    if dist.is_initialized():
        return
    if device.type == "cuda":
        if device.index != int(os.environ["LOCAL_RANK"]):
            raise InputError(
                f"--device {device}: each process has a device of its own; leave --device out, or give cpu."
            )
        check_device(device)
    backend, timeout = "nccl" if device.type == "cuda" else "gloo", None if hours is None else timedelta(hours=hours)
    dist.init_process_group(backend, timeout=timeout)
    # Ignite sets up its collectives now, on all ranks: later only rank 0 would, with handlers of its own. SLURM_JOB_ID
    # is hidden, or ignite would take Slurm's tasks, one a node, for torchrun's processes.
    slurm = os.environ.pop("SLURM_JOB_ID", None)
    idist.sync()
    if slurm is not None:
        os.environ["SLURM_JOB_ID"] = slurm
    if dist.get_rank():
        logging.disable(logging.INFO)  # The first process tells what all of them do.


def join_processes() -> None:
    """Join the processes of inference, which share its cases and meet at the end; outside torchrun nothing happens."""
    if under_torchrun():
        start_process_group("cpu", hours=1000)


def leave_processes() -> None:
    """Leave the processes that were joined, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather_rows(rows: Sequence, count: int) -> list:
    """The rows that the processes made of their shares of a data set, in its order; those of one process as they are.

    Args:
        rows: of items rank, rank + world size, rank + 2 * world size, ...
        count: of the data set's items; more rows are those of items that a sampler repeated to make all shares equal.
    """
    turns = zip_longest(*idist.all_gather(list(rows)))
    return [row for turn in turns for row in turn if row is not None][:count]


def check_device(device: str | torch.device) -> None:
    """Stop where a device is not there; a CUDA device becomes the current one, on which torch puts what names none.

    Raises:
        InputError: naming the device and those that are there.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    try:
        torch.zeros(1, device=device).item()  # one that only pretends, such as meta, holds no number
        if torch.device(device).type == "cpu" and torch.device(device).index:
            raise RuntimeError("torch takes any number after cpu, and loads nothing there")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"--device {device}: no such device here; use one of {', '.join(there)}.") from error
    if torch.device(device).type == "cuda" and torch.device(device).index is not None:
        torch.cuda.set_device(device)


def fit_threads(device: str | torch.device) -> None:
    """On a CPU, take one thread where several are slower, as on a machine with other work: they wait for each other.

    A number in the environment, as torchrun sets one, stands.
    """
    several = torch.get_num_threads()
    if several == 1 or torch.device(device).type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    images, kernel = torch.rand(5, 32, 64, 64), torch.rand(32, 32, 3, 3)
    seconds: dict[int, list[float]] = {several: [], 1: []}
    for _ in range(1 + 5):
        for threads, times in seconds.items():
            torch.set_num_threads(threads)
            start = time.perf_counter()
            F.conv2d(images, kernel).relu_()
            times.append(time.perf_counter() - start)
    # The first of each starts threads.
    alone, together = (statistics.median(seconds[threads][1:]) for threads in (1, several))
    torch.set_num_threads(1 if alone < together else several)
    if alone < together:
        logging.getLogger("inference").info(
            f"other programs keep the CPU busy, where one thread is faster than {several}; OMP_NUM_THREADS={several} takes all."
        )


@contextmanager
def settings_kept() -> Iterator[None]:
    """Torch's number of threads, its current CUDA device, the use of TF32 and where Python looks for modules are
    afterwards what they were before."""
    threads, places = torch.get_num_threads(), list(sys.path)
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        yield
    finally:
        sys.path[:] = places
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        if torch.cuda.is_initialized():
            torch.cuda.set_device(device)


def allow_tf32(allowed: bool = True) -> None:
    """Whether convolutions and matrix products on CUDA devices may round their factors to TF32 (10 bits of mantissa).

    It pays where tensor cores have it, from Ampere on; other devices compute in fp32 either way.
    """
    # After the newer `fp32_precision` was set, reading these raises, here and in other packages.
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def time_kernels() -> None:
    """Let cuDNN take for each shape the kernel that is fastest there, also one that adds in any order; after MONAI's
    `set_determinism`, which forbids that.

    On CUDA devices the gradient of sampling adds in any order whatever cuDNN does.
    """
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True


def check_bf16(device: str | torch.device, bf16: bool) -> None:
    """Stop where bfloat16 is asked for and a device would only imitate it.

    Raises:
        InputError: naming the device.
    """
    if torch.device(device).type == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        there = any(value is True for name, value in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    if bf16 and not there:
        raise InputError(f"--bf16 True: {device} has no bfloat16 arithmetic; leave it False.")
