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

"""Options are refused before anything is measured, and shown without this machine's paths."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import inference, options, sensitivity, step, strain, table, training
from benchmarks.setting import setting


def test_commands_are_shown_without_this_machine() -> None:
    words = ["--batch", "32", "--reference", "/somewhere/GSMorph", "--json", "/tmp/x.json", "--device", "cpu"]
    assert (
        options.command("benchmarks.step", words)
        == "python -m benchmarks.step --batch 32 --reference PATH --device cpu"
    )
    words = [
        "--cine=/home/me/patient.nii.gz",
        "--reference_label",
        "/home/me/label.nii.gz",
        "--json=/home/me/x.json",
        "--no_cine",
    ]
    shown = options.command("benchmarks.inference", words)
    assert shown == "python -m benchmarks.inference --cine PATH --reference_label PATH --no_cine"


def test_a_json_file_shows_options_without_paths() -> None:
    given = Namespace(
        rounds=3, json=Path("x.json"), dataset_dir="/home/me/ACDC", cine=None, checkpoint="a.pt", reference_label="b"
    )
    assert options.shown(given) == {"rounds": 3}


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (step, "rounds"),
        (training, "batches"),
        (inference, "slices"),
        (strain, "frames"),
        (sensitivity, "epochs"),
        (table, "subset"),
    ],
)
def test_what_counts_nothing_is_refused(module: object, name: str, value: str, capsys: pytest.CaptureFixture) -> None:
    needed = ["--dataset_dir", "nowhere"] if module in (sensitivity, table) else []
    with pytest.raises(SystemExit):
        module.main([*needed, f"--{name}={value}"])
    assert re.search(rf"argument --{name}: {value} must be a whole number, 1 or more$", capsys.readouterr().err.strip())


def test_a_file_that_cannot_be_written_is_named_first(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for path, reason in ((tmp_path / "none" / "x.json", "its folder is not there"), (tmp_path, "it is a folder")):
        with pytest.raises(SystemExit):
            step.main(["--json", str(path)])
        assert capsys.readouterr().err.strip().endswith(f"argument --json: {path} cannot be written: {reason}")
    assert options.writable(str(tmp_path / "x.json")) == tmp_path / "x.json"


def test_a_result_says_how_it_was_measured_and_not_where(tmp_path: Path) -> None:
    words = ["--dataset_dir", str(tmp_path), "--rounds", "3"]
    parsed = Namespace(dataset_dir=str(tmp_path), rounds=3)
    found = setting("benchmarks.step", words, parsed, "one thread", ["numpy"])
    assert found["command"] == "python -m benchmarks.step --dataset_dir PATH --rounds 3"
    assert found["options"] == {"rounds": 3}
    assert found["hardware"] == "one thread"
    assert set(found["versions"]) == {"torch", "python", "numpy", "commit"}
    assert re.fullmatch(r"[0-9a-f]{10}(-dirty)?|unknown", found["versions"]["commit"])
    assert str(tmp_path) not in str(found)
