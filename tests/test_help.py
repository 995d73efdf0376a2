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

"""Help is read off the config files: whatever they offer with a comment, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from scripts import help
from scripts.help import bundle_version, describe_file, describe_files

CONFIG = """\
# Does one thing. Run from the bundle's root:
#   python -m monai.bundle run
imports:
- $import os

# --- input: of two kinds
one: null  # the first # of two
two: "a # b"                  # the second
silent: 3

# --- output
folder: "$@one + '/out'"      # where it goes
size: [3, 4]   # in pixels
chosen: $os.cpu_count()       # as the machine has it
part:                         # with settings of its own
  inside: 1                   # not at the top

# --- wiring
wire: "@one"                  # nobody gives this
"""


def test_groups_comments_and_defaults_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(CONFIG)
    rows = [re.sub(r"\s{2,}", "  ", row) for row in describe_file(path).splitlines()]
    assert rows == [
        "some.yaml: Does one thing.",
        "",
        "input: of two kinds",
        "  --one  the first # of two",
        "  --two  the second [a # b]",
        "",
        "output",
        "  --folder  where it goes [ONE/out]",
        "  --size  in pixels [[3, 4]]",
        "  --chosen  as the machine has it",
        "  --part  with settings of its own",
    ]


def test_of_merged_files_an_option_has_one_line_with_the_last_default(tmp_path: Path) -> None:
    contents = {
        "base": CONFIG,
        "middle": "size: [5, 6]  # in voxels\ntwo: c\n",
        "top": "size: [7, 8]\none: 9  # a number\n",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    text = describe_files([tmp_path / f"{name}.yaml" for name in contents])
    rows = re.findall(r"^  --(\w+) +(.*)$", text, re.MULTILINE)
    assert rows[:3] == [("one", "a number [9]"), ("size", "in voxels [[7, 8]]"), ("two", "the second [c]")]
    assert [name for name, _ in rows[3:]] == ["folder", "chosen", "part"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_line_of_help_is_an_option(path: Path) -> None:
    names = re.findall(r"^  --(\S+)", describe_file(path), re.MULTILINE)
    assert set(names) <= set(yaml.safe_load(path.read_text()))
    assert len(names) == len(set(names))


def test_the_version_is_that_of_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(help, "__file__", str(tmp_path / "scripts" / "help.py"))
    assert bundle_version().endswith("version unknown")
    monkeypatch.undo()
    assert re.fullmatch(r"\w.* \d+\.\d+\.\d+", bundle_version())
