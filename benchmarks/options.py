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

"""Command lines of the benchmarks: what their options may be, and how a document shows them."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

PATHS = (
    "--reference",
    "--dataset_dir",
    "--test_dataset_dir",
    "--cines_dir",
    "--long_axis",
    "--cache",
    "--output_dir",
    "--checkpoint",
    "--cine",
    "--reference_label",
    "--data",
    "--prepare",
    "--thresholds",
)


def positive(text: str) -> int:
    """An option's whole number from 1 on.

    Raises:
        ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} must be a whole number, 1 or more")
    return int(text)


def writable(text: str) -> Path:
    """An option's file to write, asked for before hours of measuring.

    Raises:
        ArgumentTypeError: where its folder is not there.
    """
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentTypeError(
            f"{text} cannot be written: {'it is a folder' if path.is_dir() else 'its folder is not there'}"
        )
    return path


def shown(options: Namespace) -> dict[str, object]:
    """Options as a JSON file may show them: without paths of this machine."""
    return {key: value for key, value in vars(options).items() if key != "json" and f"--{key}" not in PATHS}


def command(module: str, argv: Sequence[str]) -> str:
    """The command line of a benchmark as a document may show it: paths of this machine and the JSON file are left
    out."""
    words = [f"python -m {module}"]
    rest = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while rest:
        word = rest.pop(0)
        if word == "--json":
            rest.pop(0)
        elif word in PATHS:
            words += [word, "PATH"]
            rest.pop(0)
        else:
            words.append(word)
    return " ".join(words)
