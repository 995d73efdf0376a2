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

"""What preparing a data set gave, kept in files that are made anew where a source file or the preprocessing is another
one.

MONAI's `PersistentDataset` names files by paths alone, writes them in two steps, and stops at one that was cut off:
hence this.
"""

from __future__ import annotations

import ast
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import monai
import torch
from monai.data.utils import pickle_hashing
from monai.transforms import Compose
from scripts.data.datalists import FILE_KEYS
from scripts.errors import InputError
from scripts.files import clear_leftovers, parts_of, whole_file
from torch import Tensor
from tqdm import tqdm

Prepared = dict[str, Tensor]
ROOT = Path(__file__).parents[2]
PACKAGES = ("scripts", "benchmarks")


def prepare_items(
    data: Sequence[dict],
    prepare: Callable[[dict], Prepared],
    settings: Sequence[object],
    cache_dir: str | Path | None = None,
    progress: bool = True,
    unit: str = "pair",
) -> Iterator[Prepared]:
    """What `prepare` makes of each item of a data list, from the cache where it is there, else made and written to it.

    Args:
        data: items that name files or folders under the keys of `datalists.FILE_KEYS`.
        prepare: makes tensors of an item.
        settings: all that decides what `prepare` makes: transforms (their source code counts, too, and what it imports
            from this package) and plain values.
        cache_dir: folder of the cache, which may be deleted at any time; None for none. One that cannot be written is
            done without, and the log says so.
        progress: whether to show a progress bar.
        unit: what the bar counts.
    """
    folder = _writable(cache_dir)
    key, code = ("", "") if folder is None else preparation_key(settings, prepare)
    for item in tqdm(data, desc=f"reading {unit}s", disable=not progress, unit=unit):
        yield prepare(item) if folder is None else _read_or_make(folder, item, prepare, key, code)


def _writable(cache_dir: str | Path | None) -> Path | None:
    """The folder, made where it was not there; None for none, or with a line in the log for one that cannot be
    written."""
    if not cache_dir:
        return None
    folder = Path(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write")
        clear_leftovers(folder)
    except OSError as error:
        logging.getLogger("cache").warning(f"--cache_dir {folder}: prepared slices are not kept there ({error}).")
        return None
    return folder


def preparation_key(settings: Sequence[object], prepare: Callable[[dict], Prepared]) -> tuple[str, str]:
    """Hashes of transforms and values, and of the source code that they and `prepare` run with MONAI's version."""
    flat = [
        part for value in settings for part in (value.flatten().transforms if isinstance(value, Compose) else [value])
    ]
    code = source_code({prepare.__module__, *(type(value).__module__ for value in flat)})
    return pickle_hashing(flat).decode(), pickle_hashing([code, monai.__version__]).decode()


def source_code(modules: Iterable[str]) -> list[str]:
    """The source code of those modules (dotted names) that are of this repository, and of all that they import in
    turn."""
    found, left = {}, list(modules)
    while left:
        name = left.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name not in found and name.split(".")[0] in PACKAGES and path.is_file():
            found[name] = path.read_text()
            left += _imports(found[name])
    return [found[name] for name in sorted(found)]


@cache
def _imports(source: str) -> frozenset[str]:
    """Dotted names of what a module's source code imports, those of members among them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def _read_or_make(folder: Path, item: dict, prepare: Callable[[dict], Prepared], key: str, code: str) -> Prepared:
    """One item from its file in the cache; made and written, the whole file or none, where that is not there, cut off
    or of other sources or code.

    Raises:
        InputError: where it cannot be written, as on a full disk.
    """
    values = sorted((name, str(value)) for name, value in item.items())
    path = folder / f"{pickle_hashing([values, key]).decode()[:32]}.pt"
    # Hashed: paths may tell who a patient is.
    made_of = pickle_hashing([_identify(item), code]).decode()
    try:
        content = torch.load(path, weights_only=True)
        if content["made_of"] == made_of:
            return content["prepared"]
    except Exception:
        pass  # a damaged file may raise any kind of error
    # With a cold cache each process prepares every item: waiting for the first one would outlast the group's timeout on
    # a large data set.
    prepared = prepare(item)
    try:
        with whole_file(path) as part:
            torch.save({"made_of": made_of, "prepared": prepared}, part)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--cache_dir {folder}: cannot be written ({error}); give another folder, or False for none."
        ) from error
    return prepared


def _identify(item: dict) -> list[list]:
    """Path, size in bytes and time of change of each file of an item, those in a folder (of DICOM files) one by one."""
    named = [Path(item[key]) for key in FILE_KEYS if key in item]
    files = [file for path in named for file in parts_of(path)]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
