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

"""What config files offer on the command line, read off the files themselves: options, comments, defaults, groups."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

_GROUP = re.compile(r"# --- (.*)")
_JOINED = re.compile(r"\$@(\w+) \+ '(.*)'")  # a path below that of another option
_NOT_SHOWN = "wiring"  # title of the part that is not for the command line
_COLUMN = 26  # where the comments begin


def bundle_version() -> str:
    """The bundle's name and version; without its metadata, as some clients unpack it, that the version is unknown."""
    path = Path(__file__).parents[1] / "configs" / "metadata.json"
    if not path.is_file():
        return "GSMorph for MONAI, version unknown"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    return f"{metadata['name']} {metadata['version']}"


def describe_files(paths: Sequence[str | Path]) -> str:
    """The options of config files that are merged in this order, the last file first: of each its first comment, then
    its groups of options. An option has one line, with the default that the merged files give it."""
    described: list[str] = []
    defaults: dict[str, str | None] = {}
    explained: set[str] = set()
    for path in map(Path, reversed(paths)):
        described.append(describe_file(path, defaults, explained))
        for _, name, default, comment in _options(path.read_text(encoding="utf-8")):
            defaults.setdefault(name, default)
            if comment is not None:
                explained.add(name)
    return "\n\n".join(
        [*described, "A setting inside another is given by its path: --network_def::backbone::hidden 48"]
    )


def describe_file(
    path: str | Path, defaults: Mapping[str, str | None] | None = None, explained: Collection[str] = ()
) -> str:
    """A config file's first comment, and a line for each top-level key that has a comment, under its group's title.

    Args:
        path: of the file.
        defaults: of keys of files that are merged over it, which count here.
        explained: keys that have a line already, and get none here.
    """
    path, defaults = Path(path), defaults or {}
    text = path.read_text(encoding="utf-8")
    lines = [f"{path.name}: {_first_comment(text)}"]
    titles = {number: found[1] for number, line in enumerate(text.splitlines()) if (found := _GROUP.match(line))}
    shown: str | None = None
    for number, name, default, comment in _options(text):
        if comment is None or name in explained:
            continue
        default = defaults.get(name, default)
        title = next((titles[start] for start in sorted(titles, reverse=True) if start < number), None)
        if title == _NOT_SHOWN:
            continue
        if title != shown:
            lines += ["", f"{title}"]
            shown = title
        note = comment if default is None else f"{comment} [{default}]"
        lines += _wrap(f"  --{name}", note)
    return "\n".join(lines)


def _first_comment(text: str) -> str:
    """The first sentence or more that a file begins with, up to the commands in it."""
    head = re.match(r"(?:# ?(?!  ).*\n)*", text)[0]
    words = " ".join(line.lstrip("# ") for line in head.splitlines() if not line.startswith("# ---"))
    return re.sub(r" Run from the bundle's root:.*|:$", "", words.strip())


def _options(text: str) -> Iterator[tuple[int, str, str | None, str | None]]:
    """Line (from 0), name, default (None where it is computed or a component) and comment, if any, of each top-level
    key."""
    rows = text.splitlines()
    for key, value in yaml.compose(text).value:
        end = value.end_mark if value.start_mark.line == value.end_mark.line == key.start_mark.line else key.end_mark
        found = re.match(r"\W*?\s+# ?(.*)", rows[key.start_mark.line][end.column :])
        yield key.start_mark.line, key.value, _default(value), found[1] if found else None


def _default(value: yaml.Node) -> str | None:
    """A default as text; None for none, and for one that is computed."""
    if isinstance(value, yaml.MappingNode):
        return None
    if not isinstance(value, yaml.ScalarNode):
        scalars = all(isinstance(item, yaml.ScalarNode) for item in value.value)
        return f"[{', '.join(item.value for item in value.value)}]" if scalars else None
    if joined := _JOINED.fullmatch(value.value):
        return f"{joined[1].upper()}{joined[2]}"
    return None if value.tag.endswith(":null") or value.value.startswith(("$", "@")) else value.value


def _wrap(name: str, note: str) -> list[str]:
    """A name and its note, the note in a column of its own."""
    width = max(shutil.get_terminal_size((110, 24)).columns, 60)
    rows = textwrap.wrap(note, width - _COLUMN) or [""]
    first = [f"{name:<{_COLUMN}}{rows.pop(0)}"] if len(name) < _COLUMN else [name]
    return first + [" " * _COLUMN + row for row in rows]
