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

"""Which folders are results, and which places results may go to."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.data.results import DONE, check_place, is_result
from scripts.errors import InputError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_is_a_result_by_what_it_holds(tmp_path: Path) -> None:
    assert is_result(make(tmp_path / "whole", DONE, "moved.nii.gz", "fields/frame_01.nii.gz"))
    assert is_result(make(tmp_path / "cut", "moved.nii.gz", ".DS_Store"))
    assert not is_result(make(tmp_path / "points", "points.csv"))
    assert not is_result(make(tmp_path / "mixed", "moved.nii.gz", "heart_4d.nii.gz"))
    assert not is_result(tmp_path / "missing")


def test_results_go_to_a_new_place_or_in_the_place_of_results(tmp_path: Path) -> None:
    check_place(tmp_path / "new" / "case")
    assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new" / "case").exists()
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty")
    check_place(make(tmp_path / "whole", DONE, "fields/frame_01.nii.gz", "fields/frame_01_inverse.nii.gz"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["IM1.dcm"], "is there and holds no results of an earlier run"),
        ([DONE, "heart_4d.nii.gz"], r"holds heart_4d\.nii\.gz beside the results"),
        ([DONE, "fields/notes.txt"], r"holds fields/notes\.txt beside the results"),
    ],
)
def test_what_is_no_result_is_never_replaced(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(InputError, match=rf"case: {words}.*another"):
        check_place(make(tmp_path / "case", *names))


def test_a_file_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file: is there and holds no results"):
        check_place(make(tmp_path, "file") / "file")
    with pytest.raises(InputError, match=r"file: cannot be (made|written)"):
        check_place(tmp_path / "file" / "case")
