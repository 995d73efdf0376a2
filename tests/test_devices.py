"""Devices that are there and those that are not."""

from __future__ import annotations

import pytest
import torch

from scripts.devices import check_device, default_device, start_process_group
from scripts.errors import InputError


def test_the_default_device_is_there() -> None:
    check_device(default_device())


@pytest.mark.parametrize("device", [f"cuda:{torch.cuda.device_count()}", "gpu"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device: str) -> None:
    with pytest.raises(InputError, match=f"--device {device}: no such device here; use one of cpu"):
        check_device(device)


def test_several_processes_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match="start it by torchrun"):
        start_process_group()
