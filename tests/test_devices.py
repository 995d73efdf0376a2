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

"""Devices that are there and those that are not."""

from __future__ import annotations

import ignite.distributed as idist
import pytest
import torch
from monai.utils import set_determinism
from scripts import devices
from scripts.devices import (
    allow_tf32,
    by_device,
    check_bf16,
    check_device,
    count_processes,
    default_device,
    distribute,
    fit_threads,
    gather_rows,
    start_process_group,
    time_kernels,
    to_device,
)
from scripts.errors import InputError
from scripts.registration.networks import RegistrationUNet


def test_the_default_device_is_there() -> None:
    check_device(default_device())


@pytest.mark.parametrize("device", [f"cuda:{torch.cuda.device_count()}", "gpu", "meta", "cpu:7", ""])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device: str) -> None:
    with pytest.raises(InputError, match=f"--device {device}: no such device here; use one of cpu"):
        check_device(device)


def test_a_cuda_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cpu", "cuda", "cuda:1"):
        check_device(device)
    assert chosen == ["cuda:1"]


def test_a_number_by_the_device() -> None:
    assert [by_device(device, cpu=4, other=32) for device in ("cpu", "cuda:1", torch.device("cpu"))] == [4, 32, 4]


def test_processes_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # as other launchers leave it
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert count_processes() == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert count_processes() == 4


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_network_goes_to_a_device_in_its_memory_format(channels_last: bool) -> None:
    network = torch.nn.Conv2d(3, 4, 3)
    assert to_device(network, "cpu", channels_last) is network
    assert network.weight.is_contiguous(memory_format=torch.channels_last) is channels_last


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_batch_norm_sees_the_whole_batch_on_cuda_devices(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that stays on the CPU."""
    seen = {}
    monkeypatch.setattr(devices, "DistributedDataParallel", lambda network, **options: seen.update(options) or network)
    network = distribute(RegistrationUNet(2, features=(4, 4), norm="batch"), device)
    norms = {type(layer).__name__ for layer in network.modules() if "Norm" in type(layer).__name__}
    assert norms == {"SyncBatchNorm" if device == "cuda:0" else "BatchNorm2d"}
    assert seen["device_ids"] == ([torch.device(device)] if device == "cuda:0" else None)
    assert seen["forward_sync_buffers"]
    distribute(RegistrationUNet(2, features=(4, 4), norm="instance"), "cpu")
    assert not seen["forward_sync_buffers"]


@pytest.mark.parametrize("busy", [False, True])
def test_one_thread_is_taken_where_several_are_slower(
    busy: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    now, threads = 0.0, [2]

    def clock() -> float:
        # Called before and after; a step takes longer on two threads of a busy machine.
        nonlocal now
        now += 0.5 if threads[0] == 1 else 5.0 if busy else 0.3
        return now

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: threads.__setitem__(0, number))
    monkeypatch.setattr(devices.time, "perf_counter", clock)
    with caplog.at_level("INFO", logger="inference"):
        fit_threads("cpu")
    assert threads == [1 if busy else 2]
    assert ("one thread is faster than 2" in caplog.text) == busy


@pytest.mark.parametrize(("device", "given"), [("cuda:0", None), ("cpu", "2")])
def test_threads_that_were_chosen_or_do_not_count_stay(
    device: str, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", pytest.fail)
    fit_threads(device)


@pytest.mark.parametrize("initialized", [False, True])
def test_a_library_call_leaves_threads_and_device_as_they_were(
    initialized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"threads": 4, "device": 2 if initialized else 0, "initialized": initialized}
    monkeypatch.setattr(torch, "get_num_threads", lambda: now["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: now.update(threads=number))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: now["initialized"])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now["device"])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: now.update(device=device, initialized=True))
    before = dict(now)

    @devices.settings_kept()
    def call() -> None:
        torch.set_num_threads(1)
        torch.cuda.set_device(1)
        raise InputError("stopped")

    with pytest.raises(InputError, match="stopped"):
        call()
    assert now == before | {"initialized": True}


def test_tf32_is_switched_both_ways() -> None:
    for allowed, precision in ((False, "highest"), (True, "high")):
        allow_tf32(allowed)
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == precision
        with torch.backends.cudnn.flags(benchmark=False):
            pass


def test_a_call_from_python_leaves_tf32_as_it_was() -> None:
    with devices.settings_kept():
        allow_tf32(True)
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        with devices.settings_kept():
            allow_tf32(False)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_kernels_are_timed_whatever_determinism_asks() -> None:
    try:
        set_determinism(seed=0)
        time_kernels()
        assert torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.deterministic
    finally:
        set_determinism(None)
    assert not torch.backends.cudnn.benchmark


def test_several_processes_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match="start it by torchrun"):
        start_process_group("cpu")


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert default_device() == "cuda:1"
    for device in ("cuda:0", "cuda"):
        with pytest.raises(InputError, match=f"--device {device}: each process has a device of its own"):
            start_process_group(device)


@pytest.mark.parametrize(
    ("parts", "count", "rows"),
    [
        ([["a", "c"], ["b"]], 3, "abc"),
        ([["a"], ["b"], []], 2, "ab"),
        ([["a", "d"], ["b", "a"], ["c", "b"]], 4, "abcd"),  # a sampler's repeated cases
        ([["a"], ["b"], ["a"]], 2, "ab"),
        ([[], []], 0, ""),
    ],
)
def test_rows_of_all_processes_come_in_the_order_of_the_data_set(
    monkeypatch: pytest.MonkeyPatch, parts: list, count: int, rows: str
) -> None:
    monkeypatch.setattr(idist, "all_gather", lambda _: parts)
    assert gather_rows(parts[0], count) == list(rows)


def test_one_process_keeps_its_rows() -> None:
    assert gather_rows(["a", "b"], 2) == ["a", "b"]


def test_bfloat16_is_refused_where_the_hardware_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, "cpu_name": "bf16"})
    check_bf16("cpu", False)
    with pytest.raises(InputError, match="--bf16 True: cpu has no bfloat16 arithmetic; leave it False"):
        check_bf16("cpu", True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    check_bf16("cpu", True)


def test_processes_that_joined_already_join_once(process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("joined twice"))
    start_process_group("cpu")
