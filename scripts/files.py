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

"""Files that are written whole or not at all, of plain values; and what kind of file one is."""

from __future__ import annotations

import csv
import errno
import json
import math
import mmap
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from scripts.errors import InputError, hidden_end, is_full_disk

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

LONGEST_NAME = 100  # characters
# Bytes from which a scratch array is a file.
LARGE = 1 << 26
# What spreadsheets take for the beginning of a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# What archives begin with: zip, 7z, rar, bzip2, xz.
ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ")
# What a DICOM file without a preamble begins with, in little endian.
FIRST_TAGS = tuple(
    bytes([group, 0, element, 0]) for group, element in ((2, 0), (2, 1), (8, 0), (8, 1), (8, 5), (8, 8), (8, 22))
)


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM by its first bytes, with a preamble or, as some archives write it, without."""
    head = _first_bytes(path, 132)
    if head[128:] == b"DICM":
        return True
    # After the tag stands a value representation of two capitals, or a length that is small and even.
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return head.startswith(FIRST_TAGS) and (explicit or (head[4] % 2 == 0 and head[5:8] == bytes(3)))


def is_archive(path: str | Path) -> bool:
    """Whether a file is an archive or a compressed file of others, by its first bytes or its name."""
    head = _first_bytes(path, 6)
    is_packed_image = Path(path).name.lower().endswith((".nii.gz", ".hdr.gz", ".img.gz"))
    return (
        head.startswith(ARCHIVES)
        or (head[:2] == b"\x1f\x8b" and not is_packed_image)
        or (head != b"" and Path(path).suffix == ".tar")
    )


def _first_bytes(path: str | Path, count: int) -> bytes:
    """What a file begins with; nothing where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def plain_path(path: str | Path) -> Path:
    """The absolute path, without "." and "..", whose names are those that were given: a link may lead from a pseudonym
    to a patient's name."""
    return Path(os.path.abspath(path))


def files_below(folder: str | Path) -> list[Path]:
    """All files in a folder and below it, sorted, broken links among them. Links to folders are followed; each folder
    counts once.

    Raises:
        InputError: for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename}: cannot be listed ({error.strerror}); make it readable or move it away."
        ) from error

    found, visited = [], set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(place)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        paths = [Path(place) / name for name in names]
        found += [path for path in paths if path.is_file() or not path.exists()]
    return sorted(found)


def parts_of(path: str | Path) -> list[Path]:
    """The files that hold an image: itself, a header with its voxels, or all in a folder of DICOM files."""
    path = Path(path)
    if path.is_dir():
        return files_below(path)
    return [path.with_suffix(end) for end in (".hdr", ".img")] if path.suffix in (".hdr", ".img") else [path]


def this_machine() -> str:
    """This machine, or the container whose numbers its processes have: several may share the machine's name."""
    with suppress(OSError):
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def own_name(path: Path, kind: str) -> Path:
    """A path beside another one that no other process takes, with the same endings, by which libraries know formats."""
    return path.with_name(f".{kind}_{this_machine()}_{os.getpid()}_{path.name}")


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder under the names of `own_name`."""
    name = re.compile(rf"\.(part|old)_{re.escape(this_machine())}_(?P<process>\d+)_.+")
    for path in folder.iterdir():
        if (found := name.fullmatch(path.name)) and not _is_running(int(found["process"])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether a process of this machine is there; elsewhere than on POSIX this is always yes, since it cannot be asked."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is someone else's.
    return True


def replace_folder(new: Path, final: Path) -> None:
    """Put a folder in the place of another one; where several processes do so, one of theirs stays, whole."""
    old = own_name(final, "old")
    while True:
        # Removing takes time, renaming none: an interruption leaves the old folder or the new one, never half of one.
        with suppress(FileNotFoundError):
            os.replace(final, old)
        try:
            os.replace(new, final)
        except BaseException as error:
            if getattr(error, "errno", None) not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(OSError):
                    os.replace(old, final)
                raise
            # Another process was faster.
            shutil.rmtree(old, ignore_errors=True)
        else:
            shutil.rmtree(old, ignore_errors=True)
            return


def scratch_array(shape: Sequence[int], kind: type = np.float32, folder: str | Path | None = None) -> np.ndarray:
    """An array of no particular content: in memory, or, where it is large, in a file without a name in a folder, which
    goes with the array.

    `let_go` gives the memory of such a file's pages back.

    Args:
        shape: of the array.
        kind: of its numbers.
        folder: for the file; None keeps every array in memory.

    Raises:
        InputError: naming the folder, where its disk has no room for the file.
    """
    size = math.prod(shape) * np.dtype(kind).itemsize
    if folder is None or size < LARGE:
        return np.empty(shape, kind)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), size, folder)
        return np.memmap(file, kind, "w+", shape=tuple(shape))


def _reserve(file: int, size: int, folder: str | Path) -> None:
    """Have the disk keep room for an open file of some bytes: it would end the process without a word where it is full
    once pages of the file are written.

    Raises:
        InputError: naming the folder, where it has no such room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        # Other errors say that the file system cannot tell.
        if is_full_disk(error):
            raise InputError(
                f"{folder}: its disk is full, and {size / 1e9:.2g} GB are needed there for what does not fit into memory; "
                "free some space, or give another --output_dir."
            ) from error


def let_go(*arrays: np.ndarray | None) -> None:
    """Give the memory back that pages of a `scratch_array`'s file took when they were read or written; other arrays
    stay as they are."""
    for array in arrays:
        while array is not None and not isinstance(array, mmap.mmap):
            array = getattr(array, "base", None)
        if array is not None and hasattr(mmap, "MADV_DONTNEED"):
            array.madvise(mmap.MADV_DONTNEED)


def one_by_one(frames: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Each of some frames, which are let go of (`let_go`) once the next one is asked for."""
    for t in range(len(frames)):
        yield frames[t]
        let_go(frames)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which is put in the place of `path` at the end, or removed where something fails
    before.

    Folders that are missing are made.

    Raises:
        InputError: naming the file, where its disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = own_name(path, "part")
    try:
        yield part
        os.replace(part, path)
    except Exception as error:
        if (end := hidden_end(error)) is not None:
            raise end from None
        if is_full_disk(error):
            raise InputError(
                f"{path}: the disk is full; free some space or write to another folder. What was there before stays."
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Keep other processes from claiming a folder, which is made where it is missing.

    The system lets go of it when this process ends, however that may be. File systems without locks claim nothing.

    Raises:
        InputError: naming the folder, where another process has claimed it, or a file is in its place.
    """
    path = Path(folder) / ".in_use"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: a file is in the place of a folder; give another folder.") from error
    with path.open("a+", encoding="utf-8") as file:
        if fcntl is not None and not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if holder != _this_process():
                raise InputError(
                    f"{folder}: is in use by {holder}, which writes there; wait for its end or give another folder."
                )
            # A training of this very process that failed has left its claim: no other process writes.
        file.truncate(0)
        file.write(_this_process())
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _lock(file: IO) -> bool:
    """Lock an open file, where the file system has locks; False where another process did so before."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """A text file in UTF-8."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Mapping) -> None:
    """A JSON file, with null for NaN: JSON has no NaN."""
    write_text(path, json.dumps(plain(content), indent=2) + "\n")


def read_json(path: str | Path) -> object:
    """The content of a JSON file.

    Raises:
        InputError: naming the file, for one that is a folder, is not UTF-8, is not JSON, or nests too deeply.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, where a JSON file is needed; give the file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8; save it as UTF-8.") from error
    except RecursionError as error:
        raise InputError(f"{path}: nests lists too deeply to be read; write it again.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); correct it.") from error


def clean_name(name: str) -> str:
    """A name that a folder, a terminal and a spreadsheet take as it is: without control characters, slashes and broken
    characters, not a formula, and at most 100 characters long."""
    clean = "".join("_" if c in "/\\" or not c.isprintable() else c for c in name)[:LONGEST_NAME]
    return f"_{clean}" if clean.startswith(FORMULA) else clean


def write_csv(path: str | Path, rows: Sequence[Mapping]) -> None:
    """A CSV file with the columns of the first row, an empty cell where a figure does not exist; no file without rows.

    Words that a spreadsheet would run as a formula get an apostrophe before them.
    """
    if not rows:
        return
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({key: _as_words(value) for key, value in plain(row).items()} for row in rows)


def _as_words(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def plain(value: object) -> object:
    """The same structure of Python's own types, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
