"""Programs end with one line where their input is at fault, and with a traceback where they are."""

from __future__ import annotations

import pytest
from conftest import ROOT, WARM
from scripts.errors import InputError, one_line


def test_an_input_error_ends_with_its_message_and_others_pass() -> None:
    with pytest.raises(SystemExit, match=r"^error: a\.nii\.gz: give another$"), one_line():
        raise InputError("a.nii.gz: give another")
    with pytest.raises(ZeroDivisionError), one_line():
        1 / 0  # noqa: B018


@pytest.mark.parametrize("module", ["scanners", "sensitivity", "table"])
def test_a_benchmark_without_data_says_so_in_one_line(module: str) -> None:
    words = ["--dataset_dir", "nowhere", "--device", "cuda:99"]
    result = WARM.run(f"benchmarks.{module}", words, ROOT, timeout=300)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: --device cuda:99: no such device here")
    assert "Traceback" not in result.stderr
