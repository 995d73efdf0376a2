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

"""Files are there as a whole or not at all; what they hold is plain."""

from __future__ import annotations

import csv
import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import files
from scripts.errors import InputError
from scripts.files import (
    claimed,
    clear_leftovers,
    files_below,
    is_dicom,
    own_name,
    parts_of,
    plain,
    replace_folder,
    this_machine,
    whole_file,
    write_csv,
    write_json,
    write_text,
)
from scripts.training.checkpoints import check_unused


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.nii.gz"
    with whole_file(path) as part:
        assert part.name.endswith(".nii.gz")
        part.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    write_text(path, "z\u00e4hlt")
    assert path.read_bytes() == b"z\xc3\xa4hlt"
    assert [file.name for file in path.parent.iterdir()] == ["a.nii.gz"]


def test_a_folder_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "new" / "output"
    with claimed(folder):
        assert str(os.getpid()) in (folder / ".in_use").read_text()
        # A training of this process that failed does not keep its next one out.
        with claimed(folder):
            pass
    assert not list(folder.iterdir())
    # What a dead process left, nobody holds.
    (folder / ".in_use").write_text("process 7 on elsewhere")
    with claimed(folder):
        pass
    with (folder / ".in_use").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 7 on elsewhere")
        file.flush()
        with (
            pytest.raises(InputError, match=r"output: is in use by process 7 on elsewhere.*another folder"),
            claimed(folder),
        ):
            pass
        assert (folder / ".in_use").read_text() == "process 7 on elsewhere"
        with pytest.raises(InputError, match="is in use by process 7"):
            check_unused(folder, None)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="a file is in the place of a folder"), claimed(place):
            pass


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt()])
def test_an_order_to_end_is_not_lost_where_a_writer_fails_on_its_way_out(end: BaseException, tmp_path: Path) -> None:
    def write() -> None:
        with files.whole_file(tmp_path / "model.pt") as part:
            part.touch()
            try:
                raise end
            finally:
                raise RuntimeError("unexpected pos 184832 vs 184720")

    with pytest.raises(type(end)) as caught:
        write()
    assert caught.value is end
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = own_name(tmp_path / "a.txt", "part")
    there = {kind: own_name(tmp_path / "case", kind) for kind in ("part", "old")}
    dead = [path.with_name(path.name.replace(f"_{os.getpid()}_", f"_{gone.pid}_")) for path in (here, *there.values())]
    dead[0].touch()
    for path in dead[1:]:
        (path / "fields").mkdir(parents=True)
    # Of another machine, and of a container that has this machine's name and other processes.
    others = [tmp_path / dead[0].name.replace(this_machine(), name) for name in ("elsewhere", socket.gethostname())]
    kept = [here, there["part"], *others, tmp_path / ".part_of_mine", tmp_path / "case"]
    for path in kept:
        path.touch()
    clear_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == set(kept)


@pytest.mark.parametrize("taken", [False, True])
def test_a_folder_takes_the_place_of_another_whoever_was_faster(
    taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, final = tmp_path / "new", tmp_path / "case"
    for path in (new, final):
        path.mkdir()
        (path / path.name).touch()
    replace, calls = os.replace, []

    def interfere(source: Path, target: Path) -> None:
        calls.append(target)
        if taken and calls == [own_name(final, "old"), final]:
            final.mkdir()
            (final / "another's").touch()
        replace(source, target)

    monkeypatch.setattr(os, "replace", interfere)
    replace_folder(new, final)
    assert [path.name for path in final.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [final]
    assert len(calls) == (4 if taken else 2)


@pytest.mark.parametrize("error", [OSError("no permission"), KeyboardInterrupt()])
def test_an_interrupted_replacement_leaves_the_old_folder(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, final, replace = tmp_path / "new", tmp_path / "case", os.replace
    for path in (new, final):
        path.mkdir()
        (path / path.name).touch()

    def fail(source: Path, target: Path) -> None:
        if source == new:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        replace_folder(new, final)
    assert [path.name for path in final.iterdir()] == ["case"]
    assert set(tmp_path.iterdir()) == {new, final}


def test_json_holds_plain_types_and_null_for_nan(tmp_path: Path) -> None:
    value = {1: np.float32(0.5), "a": [np.int64(3), float("nan"), np.inf], "b": (np.bool_(True), None, "x")}
    expected = {"1": 0.5, "a": [3, None, None], "b": [True, None, "x"]}
    assert plain(value) == expected
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == expected


def test_a_cell_without_a_figure_is_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 0.1, "y": float("nan")}, {"x": None, "y": np.float64(2.5)}])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"x": "0.1", "y": ""}, {"x": "", "y": "2.5"}]
    with pytest.raises(ValueError, match="z"):
        write_csv(tmp_path / "b.csv", [{"x": 1}, {"x": 2, "z": 3}])
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_no_rows_leave_no_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [])
    assert not list(tmp_path.iterdir())


def test_raw_voxels_are_no_dicom_and_an_image_in_two_files_is_both(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(np.full(100, 8, np.uint16).tobytes())
    assert not is_dicom(path)
    for begin in (b"\x08\0\x16\0UI\x1a\0", b"\x08\0\x16\0\x1a\0\0\0", b"\x02\0\0\0UL\x04\0", bytes(128) + b"DICM"):
        path.write_bytes(begin + bytes(50))
        assert is_dicom(path)
    assert parts_of(path) == [tmp_path / "a.hdr", path]
    assert parts_of(tmp_path / "a.nii.gz") == [tmp_path / "a.nii.gz"]


def test_links_to_folders_are_followed_and_each_folder_counts_once(tmp_path: Path) -> None:
    for name in ("real/a", "root/b/c"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    (root / "linked").symlink_to(tmp_path / "real")
    (root / "twice").symlink_to(tmp_path / "real")
    (root / "b" / "loop").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    assert files_below(root) == [root / "b" / "c", root / "gone", root / "linked" / "a"]
    with pytest.raises(InputError, match=r"nowhere: cannot be listed \(No such file or directory\); make it readable"):
        files_below(tmp_path / "nowhere")


def test_a_large_array_is_a_file_that_goes_with_it(tmp_path: Path) -> None:
    for folder, shape in ((tmp_path, (64, 1 << 18)), (tmp_path, (8, 8)), (None, (64, 1 << 18))):
        array = files.scratch_array(shape, folder=folder)
        assert isinstance(array, np.memmap) == (folder is not None and len(shape) == 2 and shape[0] == 64)
        array[:] = np.arange(shape[0])[:, None]
        view = np.moveaxis(array, 0, -1)
        files.let_go(view, None)
        assert not list(tmp_path.iterdir())
        # What was let go of is read again.
        np.testing.assert_array_equal(view[0], np.arange(shape[0]))
        assert [row[0] for row in files.one_by_one(array)] == list(range(shape[0]))


def test_a_disk_without_room_for_an_array_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a page that the disk has no room for would end the process."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        InputError, match=r"out: its disk is full, and 0\.067 GB are needed .*free some space, or give"
    ) as caught:
        files.scratch_array((64, 1 << 18), folder=tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    assert files.scratch_array((8, 8), folder=tmp_path / "out").shape == (8, 8)
