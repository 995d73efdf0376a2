"""Guards of the command line, apart from the runs in test_bundle.py."""

from __future__ import annotations

import sys

import pytest

from scripts import command_line
from scripts.errors import InputError

RUN = ["python", "run", "--config_file", "configs/inference.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--referense_frame", "3"], "--referense_frame: no such option"),
        (["--moveing", "a.nii.gz"], r"--moveing: no such option; did you mean --moving\?"),
        (["--outputdir=x"], r"did you mean --output_dir\?"),
        (["--dataset_dir", "2024_01"], r"--dataset_dir 2024_01: was read as 202401; write it as --dataset_dir \./2024_01"),
        (["--output_dir", "7"], r"write it as --output_dir \./7"),
        (["--moving", "--fixed", "b.nii.gz"], "--moving"),
        (["-referense_frame", "3"], "--referense_frame: no such option"),
        (["--points", "2024_01"], r"write it as --points \./2024_01"),
    ],
)
def test_refuses(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command_line.check(RUN + words)


@pytest.mark.parametrize(
    "words",
    [
        ["--moving", "a.nii.gz", "--fixed=b.nii.gz", "--output-dir", "x"],
        ["--network_def#backbone#hidden", "48", "--postprocessing::transforms::1::output_dir", "y"],
        ["--config_file", "['configs/train.yaml','configs/evaluate.yaml']", "--checkpoint", "m.pt", "--max_epochs", "3"],
        ["--meta_file", "configs/metadata.json", "--tracking", "mlflow", "--logging_file", "configs/logging.conf"],
    ],
)
def test_accepts(words: list[str]) -> None:
    command_line.check(RUN + words)


def test_does_nothing_outside_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "--no-such-option"])
    hook = sys.excepthook
    command_line.check()
    assert sys.excepthook is hook


def test_the_last_line_is_the_first_cause(capsys: pytest.CaptureFixture) -> None:
    try:
        try:
            try:
                raise OSError("low level")
            except OSError as error:
                raise InputError("a.nii.gz: mend it") from error
        except InputError as error:
            raise RuntimeError("Failed to evaluate") from error
    except RuntimeError as error:
        command_line.report_error(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "error: a.nii.gz: mend it\n"
    try:
        raise RuntimeError("wrapper") from ValueError("what went wrong")
    except RuntimeError as error:
        command_line.report_error(type(error), error, error.__traceback__)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: what went wrong"
    assert "Traceback (most recent call last):" in lines
