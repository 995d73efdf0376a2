"""Guards of the command line, apart from the runs in test_bundle.py."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from monai.bundle import ConfigParser
from scripts import command_line, devices
from scripts.command_line import require_one
from scripts.errors import InputError, first_cause
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import LaunchConfig, elastic_launch

RUN = ["python", "run", "--config_file", "configs/inference.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--referense_frame", "3"], "--referense_frame: no such option"),
        (["--moveing", "a.nii.gz"], r"--moveing: no such option; did you mean --moving\?"),
        (["--outputdir=x"], r"did you mean --output_dir\?"),
        (
            ["--dataset_dir", "2024_01"],
            r"--dataset_dir 2024_01: was read as 202401; write it as --dataset_dir \./2024_01",
        ),
        (["--output_dir", "7"], r"write it as --output_dir \./7"),
        (["--moving", "--fixed", "b.nii.gz"], "--moving"),
        (["-referense_frame", "3"], "--referense_frame: no such option"),
        (["--points", "2024_01"], r"write it as --points \./2024_01"),
        (
            ["--integration", "null"],
            r"--integration null: MONAI would drop it or read it as text; .*write --integration '\$None'",
        ),
        (["--integration", "None"], r"write --integration '\$None'"),
        (["--points", "None"], "leave --points out"),
        (["--report", "false"], "--report false: would be read as text; write --report False"),
        (["--output_dir", "False"], "--output_dir False: results need a folder; name one, or leave --output_dir out"),
        (["--output_dir", "false"], "--output_dir False: results need a folder"),
        (
            ["--output_dir", "visit #2"],
            "--output_dir visit #2: holds #, which MONAI would read as ::, another name; rename",
        ),
        (["--cine", "a/b#c/d.nii.gz"], "--cine a/b#c/d.nii.gz: holds #"),
        (["--dataset_dir", "DOE,JOHN"], r"write it as --dataset_dir \./DOE,JOHN"),
        (["--report", "maybe"], "--report maybe: is a switch; write --report True or --report False"),
    ],
)
def test_refuses(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command_line.check(RUN + words)


@pytest.mark.parametrize("option", ["--labels", "--val_interval"])
def test_refuses_what_another_config_left_without_a_reader(option: str) -> None:
    words = [
        "--config_file",
        "['configs/train.yaml','configs/finetune.yaml']",
        option,
        "True" if option == "--labels" else "3",
    ]
    with pytest.raises(InputError, match=f"{option}: nothing in these config files reads it"):
        command_line.check(RUN[:2] + words)


@pytest.mark.parametrize(
    "words",
    [
        ["--moving", "a.nii.gz", "--fixed=b.nii.gz", "--output-dir", "x", "--report", "False", "--bf16"],
        ["--network_def#backbone#hidden", "48", "--postprocessing::transforms::1::output_dir", "y"],
        [
            "--config_file",
            "['configs/train.yaml','configs/evaluate.yaml']",
            "--checkpoint",
            "m.pt",
            "--max_epochs",
            "3",
        ],
        ["--integration", "$None", "--points", "False"],
        ["--output_dir", "@bundle_root + '#'", "--dataset_dir", "./DOE,JOHN", "--checkpoint", "@bundle_root + '/m.pt'"],
        ["--meta_file", "configs/metadata.json", "--tracking", "mlflow", "--logging_file", "configs/logging.conf"],
    ],
)
def test_accepts(words: list[str]) -> None:
    command_line.check(RUN + words)


@pytest.mark.parametrize("value", [0, -2, 1.5, "4", None, True])
def test_what_counts_nothing_is_refused(value: object) -> None:
    command_line.check_counts(batch_size=1, log_every=20)
    command_line.check_counts(at_least=0, seed=0)
    with pytest.raises(
        InputError, match=f"^--log_every {value}: must be a whole number, 1 or more; give one, or leave --log_every out"
    ):
        command_line.check_counts(batch_size=1, log_every=value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), 1.5, "abc", None, True])
def test_what_is_no_rate_is_refused(value: object) -> None:
    command_line.check_rates(averaging=1, at_most=1)
    command_line.check_rates(learning_rate=1.5)
    with pytest.raises(
        InputError,
        match=f"^--averaging {value}: must be a number above 0 and at most 1; give one, or leave --averaging out",
    ):
        command_line.check_rates(averaging=value, at_most=1)


@pytest.mark.parametrize("files", [["train"], ["train", "multi_gpu_train"], ["train", "finetune"]])
@pytest.mark.parametrize("name", ["learning_rate", "averaging"])
def test_each_training_checks_its_rates_first(files: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "start_process_group", lambda *_, **__: None)
    config = ConfigParser()
    config.read_config([f"configs/{file}.yaml" for file in files])
    config.update({"device": "cpu", name: "abc"})
    with pytest.raises(RuntimeError) as caught:
        config.get_parsed_content("initialize")
    assert str(first_cause(caught.value)).startswith(f"--{name} abc: must be a number above 0")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"crop_size": 32}, "--crop_size 32: must be two numbers of pixels"),
        ({"slice_size": [64]}, r"--slice_size \[64\]: must be two numbers of pixels"),
        ({"slice_size": [64, 0]}, "must be two numbers of pixels"),
        ({"slice_size": [100, 100]}, r"--crop_size \[128, 128\]: is larger than --slice_size \[100, 100\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict, words: str) -> None:
    command_line.check_sizes([160, 160], (128, 128))
    with pytest.raises(InputError, match=words):
        command_line.check_sizes(**{"slice_size": [160, 160], "crop_size": [128, 128], **sizes})


COUNTS = ("max_epochs", "batch_size", "log_every", "seed")


@pytest.mark.parametrize(
    ("files", "name"),
    [
        *((["train"], name) for name in COUNTS),
        (["inference"], "slices_at_once"),
        (["inference", "inference_onnx"], "slices_at_once"),
        *((["train", "multi_gpu_train"], name) for name in COUNTS),
        *((["train", "finetune"], name) for name in COUNTS),
    ],
)
def test_each_workflow_checks_its_counts_first(files: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "start_process_group", lambda *_, **__: None)
    config = ConfigParser()
    config.read_config([f"configs/{file}.yaml" for file in files])
    config.update({"device": "cpu", name: -1})
    with pytest.raises(RuntimeError) as caught:
        config.get_parsed_content("initialize")
    assert str(first_cause(caught.value)).startswith(f"--{name} -1: must be a whole number")


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
                raise InputError("a.nii.gz: correct it") from error
        except InputError as error:
            raise RuntimeError("Failed to evaluate") from error
    except RuntimeError as error:
        command_line.report_error(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "error: a.nii.gz: correct it\n"
    try:
        raise RuntimeError("wrapper") from ValueError("what went wrong")
    except RuntimeError as error:
        command_line.report_error(type(error), error, error.__traceback__)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: what went wrong"
    assert "Traceback (most recent call last):" in lines


def fail_in_one_process() -> None:
    """What a process of torchrun does whose companion, or which itself, fails while they exchange tensors."""
    # As in a shell of Slurm, whose tasks are not torchrun's processes.
    os.environ["SLURM_JOB_ID"], local_rank = "7", os.environ["LOCAL_RANK"]
    devices.start_process_group("cpu")
    assert os.environ["SLURM_JOB_ID"] == "7"
    assert os.environ["LOCAL_RANK"] == local_rank == str(torch.distributed.get_rank())
    try:
        if torch.distributed.get_rank() == 1:
            raise InputError("b.nii.gz: correct it")
        torch.distributed.all_reduce(torch.zeros(1))
    except Exception as error:
        command_line.report_error(type(error), error, error.__traceback__)
        os._exit(1)


def test_one_process_that_fails_ends_all_with_its_reason(capfd: pytest.CaptureFixture) -> None:
    """What the others say of its loss is neither printed nor taken for the reason."""
    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork"
    )
    with pytest.raises(ChildFailedError) as caught:
        elastic_launch(config, fail_in_one_process)()
    rank, failure = caught.value.get_first_failure()
    assert rank == 1
    assert failure.message["message"] == "InputError: b.nii.gz: correct it"
    printed = capfd.readouterr().err
    assert printed.count("error: b.nii.gz: correct it") == 1
    assert "by peer" not in printed


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"moving": None, "dataset_dir": None}, "got none"),
        ({"moving": "a", "dataset_dir": "b"}, "got --moving and --dataset_dir"),
    ],
)
def test_exactly_one_source(sources: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        require_one(**sources)
    require_one(moving="a", dataset_dir=None)
