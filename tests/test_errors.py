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

"""Programs end with one line where their input is at fault, and with a traceback where they are."""

from __future__ import annotations

import errno
import logging

import pytest
from conftest import ROOT, WARM
from scripts.errors import InputError, log_in_one_line, one_line, report_error


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


def test_loggers_name_an_input_error_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    factory = logging.getLogRecordFactory()
    logger = logging.getLogger("engine")
    try:
        logging.setLogRecordFactory(logging.LogRecord)
        log_in_one_line()
        for error in (InputError("disk full"), RuntimeError("a bug")):
            try:
                raise RuntimeError("on its way") from error
            except RuntimeError:
                logger.exception("engine ends")
    finally:
        logging.setLogRecordFactory(factory)
    ours, bug = caplog.records
    assert ours.getMessage() == bug.getMessage() == "engine ends"
    assert ours.exc_info is None
    assert "a bug" in caplog.text


def test_a_full_disk_that_a_message_names_keeps_its_message(capsys: pytest.CaptureFixture) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for error, words in (
        (full, "--output_dir: its disk is full"),
        (InputError("last.pt: the disk is full"), "last.pt"),
    ):
        error.__cause__ = None if error is full else full
        report_error(type(error), error, None)
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {words}")
