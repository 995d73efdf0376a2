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

"""Prepared items on disk: read again only while nothing that made them has changed."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import change_code
from monai.transforms import Compose
from scripts.data.datalists import select_pairs
from scripts.data.loading import LoadCase
from scripts.data.preprocessing import ResizeToSpacingd, ScaleSlicesd
from scripts.errors import InputError
from scripts.training.cache import preparation_key, prepare_items
from scripts.training.datasets import FrameDataset, SliceDataset


@pytest.fixture
def files(tmp_path: Path) -> list[dict]:
    """Two items of a file each, and a folder of two files."""
    for name in ("a", "b", "c/1", "c/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return [{"moving": str(tmp_path / "a")}, {"moving": str(tmp_path / "b")}, {"cine": str(tmp_path / "c"), "stack": 0}]


class Maker:
    """Counts what it makes: one tensor an item, its number of the call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: dict) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"value": torch.tensor([float(self.calls)])}


def values(data: list[dict], maker: Maker, cache: Path | None, settings: tuple = ()) -> list[float]:
    return [prepared["value"].item() for prepared in prepare_items(data, maker, settings, cache, progress=False)]


def test_what_was_made_is_read_again(files: list[dict], tmp_path: Path) -> None:
    maker = Maker()
    assert values(files, maker, tmp_path / "new" / "cache") == [1, 2, 3]
    assert values(files[::-1], maker, tmp_path / "new" / "cache") == [3, 2, 1]
    assert maker.calls == 3
    assert len(list((tmp_path / "new" / "cache").iterdir())) == 3
    assert values(files, maker, None) == [4, 5, 6]


def test_an_interruption_leaves_nothing_and_files_are_not_named(
    files: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values(files, Maker(), tmp_path / "cache")
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in (tmp_path / "cache").iterdir())

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        values(files, Maker(), tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("changed", ["content", "time", "member", "new member"])
def test_a_changed_file_is_prepared_anew_in_the_same_place(files: list[dict], tmp_path: Path, changed: str) -> None:
    maker, cache = Maker(), tmp_path / "cache"
    values(files, maker, cache)
    before = set(cache.iterdir())
    if changed == "content":
        (tmp_path / "b").write_text("longer")
    elif changed == "time":
        os.utime(tmp_path / "b", ns=(0, 0))
    else:
        (tmp_path / "c" / ("2" if changed == "member" else "3")).write_text("another slice")
    expected = [1, 4, 3] if changed in ("content", "time") else [1, 2, 4]
    assert values(files, maker, cache) == expected
    assert values(files, maker, cache) == expected
    assert set(cache.iterdir()) == before


def test_an_image_in_two_files_is_prepared_anew_where_either_changes(tmp_path: Path) -> None:
    maker, cache = Maker(), tmp_path / "cache"
    for end in ("hdr", "img"):
        (tmp_path / f"a.{end}").write_text(end)
    for number, end in enumerate(("img", "hdr"), start=1):
        assert values([{"moving": str(tmp_path / "a.hdr")}], maker, cache) == [number]
        (tmp_path / f"a.{end}").write_text("longer")
    assert values([{"moving": str(tmp_path / "a.hdr")}], maker, cache) == [3]


def test_another_preprocessing_has_files_of_its_own(files: list[dict], tmp_path: Path) -> None:
    maker, cache = Maker(), tmp_path / "cache"
    settings = lambda percentile, size: (
        Compose([ScaleSlicesd(["moving"], percentile), ResizeToSpacingd(["moving"])]),
        size,
    )
    first = values(files, maker, cache, settings(99.0, [8, 8]))
    assert values(files, maker, cache, settings(98.0, [8, 8])) == [4, 5, 6]
    assert values(files, maker, cache, settings(99.0, [8, 9])) == [7, 8, 9]
    assert values(files, maker, cache, settings(99.0, [8, 8])) == first


def test_changed_code_makes_anew_in_the_same_place(files: list[dict], tmp_path: Path, own_code: Path) -> None:
    maker, cache = Maker(), tmp_path / "cache"
    settings = (ScaleSlicesd(["moving"]),)
    assert values(files, maker, cache, settings) == [1, 2, 3]
    before = set(cache.iterdir())
    change_code(own_code / "data" / "preprocessing.py")
    assert values(files, maker, cache, settings) == [4, 5, 6]
    assert values(files, maker, cache, settings) == [4, 5, 6]
    assert set(cache.iterdir()) == before


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("data/loading", True),
        ("data/preprocessing", True),
        ("data/nifti", True),
        ("data/dicom", True),
        ("cardiac/cines", True),
        ("registration/fields", True),
        ("files", True),
        ("registration/networks", False),
        ("report/page", False),
    ],
)
def test_code_counts_with_all_that_it_imports(changed: str, counts: bool, own_code: Path) -> None:
    """A changed reader of files, which no transform is defined in, makes slices anew; a changed network does not."""
    settings = (Compose([LoadCase(), ScaleSlicesd(["moving"])]), [8, 8])
    key = preparation_key(settings, Maker())
    assert preparation_key(settings, Maker()) == key
    change_code(own_code / f"{changed}.py")
    assert (preparation_key(settings, Maker()) != key) == counts


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "list"])
def test_a_damaged_file_is_made_anew(files: list[dict], tmp_path: Path, damage: str) -> None:
    maker, cache = Maker(), tmp_path / "cache"
    values(files, maker, cache)
    path = sorted(cache.iterdir())[0]
    if damage in ("other", "list"):
        torch.save({"weights": 1} if damage == "other" else [1], path)
    else:
        path.write_bytes(path.read_bytes()[: 200 if damage == "cut" else 0])
    assert 4 in values(files, maker, cache)
    assert values(files, maker, cache) == values(files, maker, cache)
    assert maker.calls == 4


def test_a_write_that_fails_leaves_nothing_and_names_the_cure(
    files: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(content: dict, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(InputError, match=r"--cache_dir .*No space left on device.*another folder"):
        values(files, Maker(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_made_is_done_without(
    files: list[dict], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        assert values(files, Maker(), tmp_path / "file" / "cache") == [1, 2, 3]
    assert f"--cache_dir {tmp_path / 'file' / 'cache'}: prepared slices are not kept there" in caplog.text


def test_data_sets_are_the_same_from_the_cache(phantoms: Path, tmp_path: Path) -> None:
    from monai.transforms import ConcatItemsd
    from scripts.data.cases import inference_cases
    from scripts.data.loading import LoadPaird

    data = Path(shutil.copytree(phantoms, tmp_path / "data"))
    pairs = select_pairs(str(data), None, "train")
    transform = Compose([LoadPaird(), ScaleSlicesd(["moving", "fixed"]), ConcatItemsd(["moving", "fixed"], "pair")])
    plain = SliceDataset(pairs, transform, (32, 32), progress=False, labels=True)
    cines = inference_cases(dataset_dir=str(data))
    read = Compose([LoadCase(), ScaleSlicesd(["moving"])])
    frames = FrameDataset(cines, read, (32, 32), progress=False)
    for _ in range(2):
        kept = SliceDataset(pairs, transform, (32, 32), progress=False, labels=True, cache_dir=tmp_path / "cache")
        assert torch.equal(kept.pairs, plain.pairs)
        assert torch.equal(kept.labels, plain.labels)
        again = FrameDataset(cines, read, (32, 32), progress=False, cache_dir=tmp_path / "cache")
        assert torch.equal(again.frames, frames.frames)
        # The second time nothing is read from the files themselves, whose names, sizes and times stay.
        for path in data.rglob("*.nii.gz"):
            stat = path.stat()
            path.write_bytes(b"0" * stat.st_size)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
