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

"""Guards of the command line, apart from the runs in test_bundle.py."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from scripts import command_line, devices, errors
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
        (["--passes", "1", "--passes=2"], "--passes: is given twice; give it once"),
        (["--output-dir", "a", "--output_dir", "b"], "--output_dir: is given twice"),
        (["--overwrite", "false"], "--overwrite false: would be read as text; write --overwrite False"),
        (["--output_dir", "False"], "--output_dir False: results need a folder; name one, or leave --output_dir out"),
        (["--output_dir", "false"], "--output_dir false: results need a folder"),
        (
            ["--output_dir", "visit #2"],
            "--output_dir visit #2: holds #, which MONAI would read as ::, another name; rename",
        ),
        (["--cine", "a/b#c/d.nii.gz"], "--cine a/b#c/d.nii.gz: holds #"),
        (["--dataset_dir", "DOE,JOHN"], r"write it as --dataset_dir \./DOE,JOHN"),
        (["--overwrite", "maybe"], "--overwrite maybe: is a switch; write --overwrite True or --overwrite False"),
        (["--direction", "up"], "--direction up: must be one of ES_to_ED, ED_to_ES, both; give one, or leave"),
        (["--output_dir", ""], "--output_dir : results need a folder; name one"),
        (["--checkpoint="], "--checkpoint '': names nothing; give a path"),
        (
            ["--working_spacing", "0.001"],
            "--working_spacing 0.001: must be False, .* or a pixel size from 0.2 to 20 mm",
        ),
        (["--write", "fields,everything"], "--write .*: names what is kept; give one or more of fields,inverse,moved"),
        (["--inferer::passses", "2"], r"--inferer::passses: no such option; did you mean --inferer::passes\?"),
        (["--network_def#backbone#hiden", "2"], r"did you mean --network_def::backbone::hidden\?"),
        (
            ["--network_def#backbone#hidden", "-2"],
            "--network_def::backbone::hidden -2: must be a whole number, 1 or more",
        ),
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
    ("words", "message"),
    [
        (["--augmentation#zoom", "-5"], "--augmentation::zoom -5: must be a number, 0 or more"),
        (["--augmentation#zom", "1"], r"--augmentation#zom: no such option; did you mean --augmentation::zoom\?"),
        (["--working_spacing", "1.2"], None),
        (["--working_spacing", "True"], "--working_spacing True: must be False"),
    ],
)
def test_settings_inside_others_are_judged_too(words: list[str], message: str | None) -> None:
    run = [*RUN[:2], "--config_file", "['configs/train.yaml','configs/demo.yaml']", *words]
    if message is None:
        command_line.check(run)
        return
    with pytest.raises(InputError, match=message):
        command_line.check(run)


@pytest.mark.parametrize(
    "words",
    [
        ["--moving", "a.nii.gz", "--fixed=b.nii.gz", "--output-dir", "x", "--write", "moved", "--bf16"],
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
    command_line.check((RUN[:2] if "--config_file" in words else RUN) + words)


def workflow(files: list[str], monkeypatch: pytest.MonkeyPatch, **options: object) -> ConfigParser:
    """The merged configs as a workflow has them, on the CPU."""
    monkeypatch.setattr(devices, "start_process_group", lambda *_, **__: None)
    config = ConfigParser()
    config.read_config([f"configs/{file}.yaml" for file in files])
    config.update({"device": "cpu", **options})
    return config


TRAININGS = (["train"], ["train", "multi_gpu_train"], ["train", "finetune"], ["train", "evaluate"])


@pytest.mark.parametrize(
    ("files", "name", "value"),
    [
        *((files, name, -1) for files in TRAININGS for name in ("max_epochs", "log_every", "seed", "batch_size")),
        *((files, name, "abc") for files in TRAININGS for name in ("learning_rate", "averaging", "strategy")),
        *((["inference"], name, -1) for name in ("slices_at_once", "passes", "cine", "direction", "bf16")),
        (["inference", "inference_onnx"], "slices_at_once", -1),
    ],
)
def test_each_workflow_checks_its_options_first(
    files: list[str], name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError) as caught:
        workflow(files, monkeypatch, **{name: value}).get_parsed_content("initialize")
    assert re.match(rf"--{name}:? {value}|--{name}: takes the path", str(first_cause(caught.value)))


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
        errors.report_error(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "error: a.nii.gz: correct it\n"
    try:
        raise RuntimeError("wrapper") from ValueError("what went wrong")
    except RuntimeError as error:
        errors.report_error(type(error), error, error.__traceback__)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: what went wrong"
    assert "Traceback (most recent call last):" in lines


def test_a_full_disk_and_a_lost_process_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    errors.report_error(OSError, full, None)
    assert capsys.readouterr().err == "error: --output_dir: its disk is full; free some space or give another folder.\n"
    # Processes that were started by hand: nobody ends this one while it waits.
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(errors, "_PATIENCE", 0)
    monkeypatch.setattr(errors, "_record_error", lambda _: None)
    lost = RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:4242")
    errors.report_error(RuntimeError, lost, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: another process of this run has ended")
    assert "--resume" in line


@pytest.mark.parametrize("expression", ["$1/0", "$unknown + 1", "$(1"])
def test_an_expression_that_fails_is_named_with_its_option(expression: str, capsys: pytest.CaptureFixture) -> None:
    parser = ConfigParser({"passes": expression, "network": {"_target_": "dict", "passes": "@passes"}})
    with pytest.raises(Exception) as caught:  # whatever MONAI makes of it
        parser.get_parsed_content("network")
    options = {"overwrite": None, "passes": expression}
    command_line._report_error(options, caught.type, caught.value, caught.tb)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --passes {expression}: cannot be computed (")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "--output_dir OUT: its disk is full; free some space, or"),
        (OSError(errno.ELOOP, "Too many links", "OUT/a"), "--output_dir OUT: cannot be written (Too many links); give"),
        (OSError(errno.ENOENT, "No such file", "elsewhere/a"), "[Errno 2] No such file: 'elsewhere/a'"),
        (InputError("OUT/a: correct it"), "OUT/a: correct it"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(error: Exception, line: str, capsys: pytest.CaptureFixture) -> None:
    command_line._report_error({"output_dir": "OUT"}, type(error), error, None)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {line}")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_sigterm_removes_what_is_half_written(tmp_path: Path) -> None:
    program = (
        "import time; from scripts.errors import clean_up_at_sigterm; from scripts.files import whole_file\n"
        "clean_up_at_sigterm()\n"
        f"with whole_file({str(tmp_path / 'model.pt')!r}) as part:\n"
        "    part.touch(); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.readline()
        assert list(tmp_path.iterdir())
        process.terminate()
    assert process.returncode == 128 + 15
    assert not list(tmp_path.iterdir())


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
        errors.report_error(type(error), error, error.__traceback__)
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
