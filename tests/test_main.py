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

"""The short form: the same runs as `python -m monai.bundle`, in fewer words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT, WARM, last_line, succeed
from scripts import __main__ as short
from scripts.command_line import check
from scripts.errors import InputError


def call(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scripts", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def expand(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """The words of `python -m monai.bundle` that a short form stands for."""
    monkeypatch.setattr(short.runpy, "run_module", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", [])
    short.main(words)
    return sys.argv


@pytest.mark.parametrize(
    ("words", "configs", "options"),
    [
        (("register", "C.nii.gz"), ["inference"], ["--cine", "./C.nii.gz"]),
        (("register", "2024_01"), ["inference"], ["--cine", "./2024_01"]),
        (("register", "/a", "../b", "--bf16"), ["inference"], ["--moving", "/a", "--fixed", "../b", "--bf16"]),
        (
            ("register", "C", "--dims", "2", "--passes", "2"),
            ["inference", "slices"],
            ["--cine", "./C", "--passes", "2"],
        ),
        (("register", "C", "--dims=3", "--config", "demo"), ["inference", "demo"], ["--cine", "./C"]),
        (("apply", "f.nii", "--points", "p.csv"), ["apply_field"], ["--field", "./f.nii", "--points", "p.csv"]),
        (("train", "--config", "labeled", "--dataset_dir", "D"), ["train", "labeled"], ["--dataset_dir", "D"]),
        (("evaluate", "D"), ["train", "evaluate", "depth"], ["--dataset_dir", "./D"]),
        (("evaluate", "D", "--dims=2"), ["train", "evaluate"], ["--dataset_dir", "./D"]),
        (("evaluate", "D", "--config=demo"), ["train", "evaluate", "demo"], ["--dataset_dir", "./D"]),
        (
            ("evaluate", "D", "--config=demo", "--dims=3"),
            ["train", "evaluate", "depth", "demo"],
            ["--dataset_dir", "./D"],
        ),
        (("train", "--config", "labeled,demo", "--config", "finetune"), ["train", "labeled", "demo", "finetune"], []),
    ],
)
def test_stands_for_a_run_of_the_bundle(
    words: tuple, configs: list, options: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = expand(monkeypatch, *words)
    files = "[" + ",".join(f"'{ROOT / 'configs' / name}.yaml'" for name in configs) + "]"
    assert found == ["monai.bundle", "run", "--config_file", files, "--bundle_root", str(ROOT), *options]
    check(found[1:])
    assert capsys.readouterr().out == f"{words[0]}: loading PyTorch and MONAI ...\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], r"trian: no such command; did you mean train\?"),
        (["x"], "x: no such command; give one of register, apply, train, evaluate"),
        (
            ["train", "--config", "labelled"],
            "--config labelled: no such file; give the path of one, or a name of .*labeled",
        ),
        (["train", "--config"], "--config : no such file"),
        (
            ["register", "a", "--dims", "4"],
            "--dims 4: give 2, for each slice by itself, or 3, for motion along the stack",
        ),
        (["register", "a", "--dims", "2", "--dims=3"], "--dims: is given twice; give it once"),
        (["register", "a", "--passes", "2", "b"], "b: belongs to no option; give register CINE"),
        (["register", "a", "--passes=2", "b"], "b: belongs to no option"),
        (["register", "a", "b", "c"], "a b c: too many or too few words; give register CINE | MOVING FIXED"),
        (["train", "a", "b"], "a b: too many or too few words"),
        (["register"], "register: nothing to work on; give register CINE | MOVING FIXED, or options"),
    ],
)
def test_refuses_what_it_does_not_know(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("|", r"\|")):
        short.main(words)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "a: [1,\n", "cannot be read as YAML .*; correct it"),
        ("a.yaml", "- 1\n", "holds no options by name"),
        ("a.yaml", "", "holds no options by name"),
        ("a.yaml", b"\xff\xfe\0", "cannot be read as YAML"),
        ("a.nii.gz", "passes: 2\n", "is no config by its name"),
    ],
)
def test_a_file_that_is_no_config_is_refused(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"--config .*{name}: {message}"):
        short.main(["register", "C.nii.gz", "--config", str(tmp_path / name)])


def test_the_folder_of_the_bundle_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = expand(monkeypatch, "register", "C.nii.gz", "--bundle_root", "/elsewhere")
    assert [word for before, word in pairwise(found) if before == "--bundle_root"] == ["/elsewhere"]


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ((), ("register CINE", "evaluate DATASET_DIR")),
        (("--help",), ("register CINE", "evaluate DATASET_DIR")),
        (("register", "--help"), ("--cine ", "inference.yaml: Registers cines")),
        (("train", "--config", "labeled", "-h"), ("--strategy ", "labeled.yaml: The recipe")),
        (("train", "--version"), ("GSMorph",)),
    ],
)
def test_help_and_version_come_without_torch(words: tuple, known: Sequence[str]) -> None:
    code = f"import sys; from scripts.__main__ import main; main({list(words)}); assert 'torch' not in sys.modules"
    printed = succeed(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)).stdout
    assert all(word in printed for word in known)


@pytest.mark.parametrize("words", ["scripts train --help", "scripts --version"])
def test_output_that_nobody_reads_ends_quietly(words: str) -> None:
    """As of `| head -1`, which ends after a line; here before any."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        command = [sys.executable, "-m", *words.split()]
        result = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=300)
    assert result.stderr == ""


def test_registers_from_another_folder_as_the_long_form_does(phantoms: Path, tmp_path: Path) -> None:
    """With paths that are relative to where the user is."""
    name = "phantom001/phantom001_4d.nii.gz"
    options = ("--output_dir", tmp_path, "--device", "cpu", "--write", "moved", "--segmentation", "none")
    result = succeed(call("register", name, *options, cwd=phantoms))
    assert (tmp_path / "phantom001" / "moved.nii.gz").is_file()
    assert result.stdout.startswith("register: loading PyTorch and MONAI ...\n")
    assert "_target_" not in result.stderr, "a warning of running one's own config"
    line = last_line(WARM.run("scripts", ["register", name, "--outputdir", str(tmp_path)], ROOT, timeout=300))
    assert line == "error: --outputdir: no such option; did you mean --output_dir?"
