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

"""Tables of `docs/performance.md` and `docs/benchmarks.md` from the JSON that the benchmarks wrote.

    python -m benchmarks.report [--check]

A table stands between two comments of a document, which are kept:

    <!-- step_batch8.json steps: milliseconds, to_plain_as_written -->
    <!-- end -->

The first names a file in `benchmarks/results/`, the key of its rows (a dict of dicts), and, where not all are wanted,
the columns. A cell is a number, a text, or {"median", "q1", "q3"}; below the table stand the command, the hardware and
the versions that the file tells.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from scripts.errors import InputError, one_line
from scripts.files import write_text

ROOT = Path(__file__).parent.parent
DOCUMENTS = tuple(ROOT / "docs" / f"{name}.md" for name in ("performance", "benchmarks"))
RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(
    r"(?P<open><!-- (?P<file>\S+\.json) (?P<rows>\w+)(?:: (?P<columns>[\w, ]+))? -->\n).*?(?P<close><!-- end -->)", re.S
)
TITLES = {
    "milliseconds": "ms",
    "to_plain_same_format": "to plain, same format",
    "to_plain_as_written": "to plain as written",
    "to_reference": "to the authors'",
    "mse": "MSE ×10⁻²",
    "dice": "Dice %",
    "folding_percent": "folding %",
    "val_dice": "Dice on val, %",
    "val_folding_percent": "folding on val, %",
    "test_dice": "Dice on test, %",
    "test_folding_percent": "folding on test, %",
}


def _format_number(value: float) -> str:
    """Three digits that count, without an exponent from a thousand to a million."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _format_cell(value: object) -> str:
    """A cell of a table: "1.71 [1.67, 1.74]" for a median with quartiles."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return f"{_format_number(value['median'])} [{_format_number(value['q1'])}, {_format_number(value['q3'])}]"
    return _format_number(value) if isinstance(value, (int, float)) else str(value)


def markdown_table(result: dict, rows: str, columns: Sequence[str] = ()) -> str:
    """A table in Markdown, a row for each entry of result[rows], and how it was measured."""
    table = result[rows]
    columns = columns or list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [
        [re.sub(r"(?<=ch)es$|s$", "", rows), *(TITLES.get(column, column.replace("_", " ")) for column in columns)],
        ["---"] * (len(columns) + 1),
    ]
    lines += [[name, *(_format_cell(row.get(column)) for column in columns)] for name, row in table.items()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    return f"{text}\n\n`{result['command']}`: {result['hardware']}; {versions}.\n"


def render(document: str, results: Path = RESULTS) -> str:
    """The document with each table made anew.

    Raises:
        InputError: naming the file, for one that is not there or lacks what a table needs.
    """

    def fill(block: re.Match) -> str:
        path, rows = results / block["file"], block["rows"]
        try:
            columns = [column.strip() for column in (block["columns"] or "").split(",") if column.strip()]
            table = markdown_table(json.loads(path.read_text()), rows, columns)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; run the benchmark with --json {path}.") from error
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: lacks {error} for its table; run the benchmark again.") from error
        return f"{block['open']}{table}{block['close']}"

    return BLOCK.sub(fill, document)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the documents, or with --check stop where one is not what the results say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a document is not what the results say"
    )
    options = parser.parse_args(argv)
    for document in DOCUMENTS:
        old = document.read_text()
        new = render(old)
        if options.check:
            if new != old:
                raise InputError(f"{document.name}: is not what the results say; run python -m benchmarks.report.")
            continue
        write_text(document, new)
        print(f"{document}: {len(BLOCK.findall(new))} tables")


if __name__ == "__main__":
    with one_line():
        main()
