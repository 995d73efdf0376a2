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

"""Every fault by every door that takes it: one line with file and cure, a failing exit status, and nothing written.

Runs the real commands, `python -m scripts …`, in this process.
"""

from __future__ import annotations

import copy
import csv
import gzip
import inspect
import json
import os
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from scripts.cardiac.phantom import write_phantom_dataset
from scripts.command_line import report_error
from scripts.data.itk_fields import write_field
from scripts.data.nifti import VECTOR

from tests import dicom_files as dcm

# Small, and quickly over.
SMALL = {
    "register": (),
    "train": ("--slice_size", "[32,32]", "--crop_size", "[32,32]", "--max_epochs", "1", "--cache_dir", "False"),
    "evaluate": ("--crop_size", "[32,32]"),
}
CPU = ("--device", "cpu")
# What is wrong is found before anything is segmented.
PLAIN = (*CPU, "--segmentation", "none")


class Outcome(NamedTuple):
    """What a command left: exit status, what it printed on stderr, and the files below its output folder."""

    status: int
    printed: str
    written: list[str]

    @property
    def last_line(self) -> str:
        return self.printed.strip().splitlines()[-1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Runs a command of `python -m scripts` with an output folder of its own, as the interpreter would."""

    def command(*words: object, output_dir: object = tmp_path / "OUT") -> Outcome:
        argv = [str(word) for word in (*words, "--output_dir", output_dir)]
        monkeypatch.setattr(sys, "argv", ["scripts/__main__.py", *argv])
        monkeypatch.setattr(sys, "excepthook", report_error)
        # Fire wants to know its caller, and would have the source of each function below pytest's read.
        monkeypatch.setattr(inspect, "stack", partial(inspect.stack, context=0))
        capfd.readouterr()
        status = 0
        try:
            runpy.run_module("scripts", run_name="__main__", alter_sys=False)
        except SystemExit as end:
            status = int(end.code or 0)
        except Exception as error:
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
        folder = Path(str(output_dir))
        written = (
            sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
        )
        return Outcome(status, capfd.readouterr().err, written)

    return command


@pytest.fixture(autouse=True)
def kept_settings() -> Iterator[None]:
    """Commands set threads and flags of the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects in ACDC's layout, one each for training, validation and test."""
    root = write_phantom_dataset(
        tmp_path_factory.mktemp("tiny") / "data", subjects=3, size=(32, 32), slices=2, frames=3, progress=False
    )
    names = sorted(path.name for path in root.glob("*/"))
    (root / "splits.json").write_text(json.dumps(dict(zip(("train", "val", "test"), ([n] for n in names)))))
    return root


# --- faults of a NIfTI file: each spoils the file at a path


def _header(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a header, whatever nibabel thinks of it."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    change(content)
    path.write_bytes(gzip.compress(bytes(content)))


def _array(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> None:
    image = nib.load(path)
    array = change(np.asarray(image.dataobj).astype(np.float32))
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)


def _set_affine(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(array, change(image.affine.copy())), path)


def _pack(offset: int, kind: str, *values: float) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        struct.pack_into(f"<{len(values)}{kind}", content, offset, *values)

    return change


def _first_voxel(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return change


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def cut_in_header(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:200]))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no image at all\n" * 40)


def not_compressed(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def archive(path: Path) -> None:
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.nii.gz", content)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def nan(path: Path) -> None:
    _array(path, _first_voxel(np.nan))


def infinite(path: Path) -> None:
    _array(path, _first_voxel(np.inf))


def beyond_single_precision(path: Path) -> None:
    image = nib.load(path)
    array = np.asarray(image.dataobj).astype(np.float64)
    array.flat[0] = 1e300
    nib.save(nib.Nifti1Image(array, image.affine), path)


def complex_numbers(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.complex64), image.affine), path)


def colors(path: Path) -> None:
    image = nib.load(path)
    rgb = np.zeros(image.shape, [(c, np.uint8) for c in "RGB"])
    nib.save(nib.Nifti1Image(rgb, image.affine), path)


def constant(path: Path) -> None:
    _array(path, np.zeros_like)


def meters(path: Path) -> None:
    _header(path, lambda content: content.__setitem__(123, 1))


def micrometers(path: Path) -> None:
    _header(path, lambda content: content.__setitem__(123, 3))


def no_size(path: Path) -> None:
    def change(content: bytearray) -> None:
        _pack(80, "f", 0.0, 0.0, 0.0)(content)
        _pack(252, "h", 0, 0)(content)

    _header(path, change)


def affine_of_nan(path: Path) -> None:
    def change(content: bytearray) -> None:
        _pack(252, "h", 0, 1)(content)
        _pack(280, "f", *[float("nan")] * 12)(content)

    _header(path, change)


def bad_quaternion(path: Path) -> None:
    def change(content: bytearray) -> None:
        _pack(252, "h", 1, 0)(content)
        _pack(256, "f", 1.0, 1.0, 1.0)(content)

    _header(path, change)


def pixels_of_meters(path: Path) -> None:
    _set_affine(path, lambda affine: affine @ np.diag([2000.0, 2000.0, 1.0, 1.0]))


def sheared(path: Path) -> None:
    def change(affine: np.ndarray) -> np.ndarray:
        affine[:3, 0] += 0.3 * affine[:3, 1]
        return affine

    _set_affine(path, change)


def slices_first(path: Path) -> None:
    def turned(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, 2, 0)

    _array(path, turned, np.diag([8.0, 1.5, 1.5, 1.0]))


def pixels_of_micrometers(path: Path) -> None:
    _set_affine(path, lambda affine: affine @ np.diag([0.001, 0.001, 0.001, 1.0]))


def never_meant(path: Path) -> None:
    """A header that asks for terabytes."""
    _header(path, _pack(42, "h", 30000, 30000, 3000))


def no_slices(path: Path) -> None:
    _header(path, _pack(46, "h", 0))


def less_than_no_slices(path: Path) -> None:
    _header(path, _pack(46, "h", -2))


def units_of_nothing(path: Path) -> None:
    _header(path, lambda content: content.__setitem__(123, 255))


def sizes_of_nan(path: Path) -> None:
    _header(path, _pack(80, "f", float("nan")))


def voxels_beyond_the_file(path: Path) -> None:
    _header(path, _pack(108, "f", 1e7))


def kind_of_nothing(path: Path) -> None:
    _header(path, _pack(70, "h", 9999))


def header_alone(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:352]))


def more_after_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def expands_without_end(path: Path) -> None:
    """A small file that expands to far more than its header tells."""
    content = gzip.decompress(path.read_bytes())
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(content)
        for _ in range(300):
            file.write(bytes(1 << 20))


FAULTS: dict[Callable[[Path], None], str] = {
    cut_off: "complete|damaged|cut|end",
    cut_in_header: "complete|header|cut",
    empty: "empty|complete|cut",
    text: "complete|no NIfTI|not NIfTI|as NIfTI",
    not_compressed: r"rename it to \.nii",
    archive: "unpack it",
    flipped_byte: "complete|damaged|checksum|CRC",
    folder: "is a folder|NIfTI file|DICOM",
    loop: "no such file|link|loop|levels",
    nan: "replace those voxels",
    infinite: "replace those voxels",
    beyond_single_precision: "too large|single precision|scale",
    complex_numbers: "magnitude",
    colors: "gray",
    constant: "constant",
    meters: "in mm",
    micrometers: "in mm",
    no_size: "true size",
    affine_of_nan: "affine|true size|sform",
    bad_quaternion: "qform|quaternion",
    pixels_of_meters: "mm",
    pixels_of_micrometers: "no heart is so small; correct the file's voxel sizes",
    sheared: "right angles",
    slices_first: "reorder",
    never_meant: "no cine is so large|complete",
    no_slices: "holds no voxel",
    less_than_no_slices: "complete|voxel",
    units_of_nothing: "write it again in mm",
    sizes_of_nan: "true size",
    voxels_beyond_the_file: "complete",
    kind_of_nothing: "complete|not recognized",
    header_alone: "complete",
    more_after_the_end: "complete",
}


def check(outcome: Outcome, name: str, cure: str) -> None:
    """One line that names file (or option) and cure, no traceback, and nothing written."""
    assert outcome.status != 0, outcome.printed[-1500:]
    assert "Traceback" not in outcome.printed, outcome.printed[-3000:]
    assert outcome.last_line.startswith("error: "), outcome.last_line
    assert name in outcome.last_line
    assert re.search(cure, outcome.last_line), outcome.last_line
    assert len(outcome.last_line) < 600
    assert not outcome.written


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_cine(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], fault: Callable[[Path], None]) -> None:
    path = Path(shutil.copy(next(tiny.glob("*1/*_4d.nii.gz")), tmp_path / "spoiled_4d.nii.gz"))
    fault(path)
    check(run("register", path, *PLAIN), path.name, FAULTS[fault])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_pair(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], fault: Callable[[Path], None]) -> None:
    frames = sorted(tiny.glob("*1/*_frame0?.nii.gz"))
    paths = [Path(shutil.copy(frame, tmp_path / frame.name)) for frame in frames[:2]]
    fault(paths[0])
    check(run("register", *paths, *PLAIN), paths[0].name, FAULTS[fault])


def spoil_all(source: Path, folder: Path) -> None:
    """A good cine and one for each fault, named after it."""
    folder.mkdir()
    for name in ("good", *(fault.__name__ for fault in FAULTS)):
        shutil.copy(source, folder / f"{name}_4d.nii.gz")
    for fault in FAULTS:
        fault(folder / f"{fault.__name__}_4d.nii.gz")


def check_summary(outcome: Outcome, folder: Path, faults: Iterable[Callable[[Path], None]]) -> None:
    """Each spoiled case fails alone, with its own reason; the good one is done."""
    assert outcome.status != 0
    assert "Traceback" not in outcome.printed, outcome.printed[-3000:]
    with (folder / "summary.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {name.split("/")[0] for name in outcome.written} == {"good", "cohort.html", "summary.csv"}
    assert "good" in rows
    for fault in faults:
        line = " ".join(rows[fault.__name__].values())
        assert re.search(FAULTS[fault], line), line


def test_folder(tiny: Path, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    spoil_all(next(tiny.glob("*1/*_4d.nii.gz")), tmp_path / "data")
    outcome = run("register", "--dataset_dir", tmp_path / "data", "--write", "moved", *CPU)
    check_summary(outcome, tmp_path / "OUT", set(FAULTS) - {folder})  # A folder without images is no case.


def test_list(tiny: Path, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    spoil_all(next(tiny.glob("*1/*_4d.nii.gz")), tmp_path / "data")
    items = [
        {"cine": f"data/{name}_4d.nii.gz", "case": name} for name in ("good", *(fault.__name__ for fault in FAULTS))
    ]
    (tmp_path / "list.json").write_text(json.dumps({"test": items}))
    outcome = run("register", "--data_list", tmp_path / "list.json", "--write", "moved", *PLAIN)
    check_summary(outcome, tmp_path / "OUT", FAULTS)


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_training_and_evaluation(
    tiny: Path, tmp_path: Path, run: Callable[..., Outcome], fault: Callable[[Path], None], command: str
) -> None:
    data = Path(shutil.copytree(tiny, tmp_path / "data"))
    splits = json.loads((data / "splits.json").read_text())
    subject = splits["train" if command == "train" else "test"][0]
    path = sorted((data / subject).glob("*_frame0?.nii.gz"))[0]
    fault(path)
    check(run(command, data, *SMALL[command], *CPU), path.name, FAULTS[fault])


# --- faults of a field and of what it is applied to


@pytest.fixture(scope="module")
def field(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A field on the grid of the phantom's frames."""
    frame = nib.load(next(tiny.glob("*1/*_frame01.nii.gz")))
    path = tmp_path_factory.mktemp("field") / "field.nii.gz"
    write_field(path, np.full((2, *frame.shape), 0.5, np.float32), frame.affine)
    return path


def _field_array(path: Path, change: Callable[[np.ndarray], np.ndarray], intent: int | None = VECTOR) -> None:
    image = nib.load(path)
    made = nib.Nifti1Image(change(np.array(image.dataobj)), image.affine)
    if intent is not None:
        made.header.set_intent(intent)
    nib.save(made, path)


def _far_away(path: Path) -> None:
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += 900
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine, image.header), path)


FIELDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "of two components": (
        partial(_field_array, change=lambda u: u[..., :2]),
        r"a displacement field is \(X, Y, Z, 1, 3\)",
    ),
    "of no intent": (partial(_field_array, change=lambda u: u, intent=0), "intent code 0, .*write"),
    "an image": (partial(_field_array, change=lambda u: u[..., 0, 0], intent=None), "a displacement field is"),
    "a cine": (partial(_field_array, change=lambda u: u[..., 0, :], intent=None), "a displacement field is"),
    "not finite": (partial(_field_array, change=_first_voxel(np.inf)), "replace those voxels"),
    "of NaN": (partial(_field_array, change=_first_voxel(np.nan)), "replace those voxels"),
    "too far": (partial(_field_array, change=_first_voxel(1e30)), "farther than any heart"),
    "of another grid": (partial(_field_array, change=lambda u: u[:-4]), "give the image that the field belongs to"),
    "elsewhere": (_far_away, "give the image that the field belongs to|apart"),
    "missing": (lambda path: path.unlink(), "no such file; correct the path"),
}


# Those that spoil a file's bytes, whatever it holds.
OF_ANY_FILE = (
    cut_off,
    cut_in_header,
    empty,
    text,
    not_compressed,
    archive,
    flipped_byte,
    folder,
    loop,
    meters,
    no_size,
)
OF_ANY_FILE += (affine_of_nan, bad_quaternion, never_meant, no_slices, units_of_nothing, sizes_of_nan, header_alone)
OF_ANY_FILE += (voxels_beyond_the_file, kind_of_nothing, more_after_the_end)


@pytest.mark.parametrize("fault", [*FIELDS, *(fault.__name__ for fault in OF_ANY_FILE)])
def test_apply_field(tiny: Path, field: Path, tmp_path: Path, run: Callable[..., Outcome], fault: str) -> None:
    """A spoiled field moves nothing."""
    known = {spoil.__name__: (spoil, cure) for spoil, cure in FAULTS.items()}
    spoil, cure = FIELDS.get(fault) or known[fault]
    path = Path(shutil.copy(field, tmp_path / "spoiled.nii.gz"))
    spoil(path)
    moving = sorted(tiny.glob("*1/*_frame0?.nii.gz"))[1]
    check(run("apply", path, moving), path.name, cure)


def test_apply_to_an_image_as_a_label(tiny: Path, field: Path, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    path = Path(shutil.copy(sorted(tiny.glob("*1/*_frame0?.nii.gz"))[1], tmp_path / "moving.nii.gz"))
    _array(path, lambda image: np.arange(image.size, dtype=np.float32).reshape(image.shape))
    check(run("apply", field, "--moving_label", path), path.name, "no label map; give an image as --moving")


# A constant image may be moved.
@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault is not constant], ids=lambda fault: fault.__name__
)
def test_apply_to_an_image(
    tiny: Path, field: Path, tmp_path: Path, run: Callable[..., Outcome], fault: Callable[[Path], None]
) -> None:
    path = Path(shutil.copy(sorted(tiny.glob("*1/*_frame0?.nii.gz"))[1], tmp_path / "moving.nii.gz"))
    fault(path)
    check(run("apply", field, path), path.name, f"{FAULTS[fault]}|resample_moving")


# --- faults of a DICOM folder: each makes the images (slices of phases) that are written, or spoils their files


def _tags(**tags: object) -> Callable[[list], list]:
    """Tags of all images; None removes one."""
    return lambda stack: dcm.set_tags(stack, lambda z, t: tags)


def _slice_again(stack: list) -> list:
    again = [copy.deepcopy(image) for image in stack[0]]
    for number, image in enumerate(again):
        image.SOPInstanceUID = f"1.2.3.{number}"
    return [*stack, again]


def _several_patients(stack: list) -> list:
    return dcm.set_tags(stack, lambda z, t: {"PatientID": f"4711-JD{z}"})


def _enhanced(change: Callable) -> Callable[[list], list]:
    def make(stack: list) -> list:
        file = dcm.make_enhanced([image for phases in stack for image in phases])
        change(file)
        return [[file]]

    return make


def _no_places(file: object) -> None:
    for group in file.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for path in folder.rglob("IM*"):
            path.write_bytes(change(path.read_bytes()))

    return spoil


def _zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in folder.rglob("IM*"):
            archive.write(path, path.name)
            path.unlink()


def _unchanged(stack: list) -> list:
    return stack


DICOM: dict[str, tuple[Callable[[list], list], Callable[[Path], None] | None, str]] = {
    "a slice missing": (lambda stack: [stack[0], *stack[2:]], None, "add the missing slice"),
    "a slice twice": (_slice_again, None, "slice 1 has several images of one time"),
    "a phase missing": (lambda stack: [stack[0], stack[1][1:], *stack[2:]], None, "look at slice 2.* add the missing"),
    "several patients": (_several_patients, None, "images of 4 patients.* give each patient a folder"),
    "no PixelSpacing": (_tags(PixelSpacing=None), None, "no valid PixelSpacing; export it again"),
    "pixels of no size": (_tags(PixelSpacing=[0, 0]), None, "no valid PixelSpacing; export it again"),
    "no position": (_tags(ImagePositionPatient=None), None, "no valid ImagePositionPatient; export it again"),
    "no orientation": (_tags(ImageOrientationPatient=None), None, "no valid ImageOrientationPatient; export it again"),
    "skewed": (_tags(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), None, "no valid ImageOrientationPatient; export"),
    "far too bright": (_tags(RescaleSlope="1e300", RescaleIntercept=0), None, "beyond single precision .*export it"),
    "zipped": (_unchanged, _zip, "unpack its archives, such as all.zip"),
    "no times": (_tags(TriggerTime=None), None, "have no trigger time.* export it again"),
    "one time": (_tags(TriggerTime=0), None, "trigger times do not differ.* export it again"),
    "another class": (_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), None, "Secondary Capture.* give the folder"),
    "reports": (
        _tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", PixelData=None),
        None,
        "SR Storage.* give the folder",
    ),
    "color": (_tags(SamplesPerPixel=3), None, "in color.* give the folder"),
    "no pixels": (_tags(PixelData=None), None, "is the file complete"),
    "one slice of a still": (lambda stack: [stack[0][:1]], None, "only single images"),
    "Enhanced without frames": (
        _enhanced(lambda file: file.pop("PerFrameFunctionalGroupsSequence")),
        None,
        "which says where its frames lie; export it again",
    ),
    "Enhanced without places": (_enhanced(_no_places), None, "no valid ImagePositionPatient; export it again"),
    "pixels cut off": (_unchanged, _bytes(lambda content: content[:-20]), "is the file complete"),
    "headers cut off": (_unchanged, _bytes(lambda content: content[:420]), "cannot be read as DICOM|no valid"),
    "unknown encoding": (
        _unchanged,
        _bytes(lambda content: content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0", 1)),
        "export it again, uncompressed",
    ),
    "nothing": (lambda stack: [], None, "holds no DICOM MR image"),
}


def spoiled_study(folder: Path, fault: str) -> Path:
    """A folder of DICOM files with a fault."""
    change, spoil, _ = DICOM[fault]
    folder.mkdir(parents=True)
    dcm.write(folder, change(dcm.make_stack(slices=4, phases=4)))
    if spoil is not None:
        spoil(folder)
    return folder


@pytest.mark.parametrize("fault", DICOM)
def test_dicom(tmp_path: Path, run: Callable[..., Outcome], fault: str) -> None:
    outcome = run("register", spoiled_study(tmp_path / "study", fault), *CPU)
    check(outcome, "study", DICOM[fault][2])
    assert not re.search("doe|jane|4711", outcome.printed, re.IGNORECASE)


def test_folder_of_studies(tmp_path: Path, run: Callable[..., Outcome]) -> None:
    """Each spoiled study fails alone."""
    for fault in set(DICOM) - {"nothing", "zipped"}:
        spoiled_study(tmp_path / "data" / fault, fault)
    # A scanner gives each patient's images another study.
    good = dcm.set_tags(dcm.make_stack(slices=2, phases=4), lambda z, t: {"StudyInstanceUID": "1.2.3"})
    dcm.write(tmp_path / "data" / "good", good)
    outcome = run("register", "--dataset_dir", tmp_path / "data", *CPU)
    assert outcome.status != 0
    assert "Traceback" not in outcome.printed, outcome.printed[-3000:]
    with (tmp_path / "OUT" / "summary.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {name.split("/")[0] for name in outcome.written} == {"good", "cohort.html", "summary.csv"}
    for fault in set(DICOM) - {"nothing", "zipped"}:
        assert re.search(DICOM[fault][2], rows[fault]["reason"]), rows[fault]
    text = (tmp_path / "OUT" / "summary.csv").read_text() + outcome.printed
    assert not re.search("doe|jane|4711", text, re.IGNORECASE)


# --- faults of what is around the images: lists, tables, options


def _write(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def _make_folder(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


DEEP = "[" * 100_000 + "]" * 100_000
LISTS = {
    "no list": (_write("list.json", "cines: all"), "MONAI data list"),
    "UTF-16": (_write("list.json", '{"test": []}'.encode("utf-16")), "MONAI data list|UTF-8"),
    "deep": (_write("list.json", DEEP), "MONAI data list"),
    "folder": (_make_folder("list.json"), "no such file|folder"),
    "numbers": (_write("list.json", "[1, 2]"), "MONAI data list"),
    "empty": (_write("list.json", '{"test": []}'), "add cases"),
    "item of text": (_write("list.json", '{"test": ["a.nii.gz"]}'), "MONAI data list|item 1"),
    "number for a path": (_write("list.json", '{"test": [{"cine": 7}]}'), "path of a file"),
    "trailing comma": (_write("list.json", '{"test": [{"cine": "a.nii.gz"},]}'), "correct it"),
    "empty path": (_write("list.json", '{"test": [{"cine": ""}]}'), "path of a file"),
    "cine and pair": (_write("list.json", '{"test": [{"cine": "a.nii.gz", "fixed": "b.nii.gz"}]}'), "make two items"),
    "nothing": (_write("list.json", '{"test": [null]}'), "MONAI data list"),
    "no section": (_write("list.json", '{"validation": []}'), "add cases"),
    "misspelled": (_write("list.json", '{"test": [{"cine": "a.nii.gz", "refrence": 1}]}'), "did you mean 'reference'"),
    "other values": (_write("list.json", '{"test": [{"cine": "a", "label_values": [1, 1, 2]}]}'), "label_values"),
    "elsewhere": (_write("list.json", '{"test": [{"cine": "/nowhere/list.json.nii"}]}'), "correct the path"),
    "way out": (_write("list.json", '{"test": [{"cine": "a.nii.gz", "case": "../a"}]}'), "without /"),
    "one image twice": (_write("list.json", '{"test": [{"moving": "list.json", "fixed": "list.json"}]}'), "two images"),
}


@pytest.mark.parametrize("fault", LISTS)
def test_data_list(tmp_path: Path, run: Callable[..., Outcome], fault: str) -> None:
    make, cure = LISTS[fault]
    path = make(tmp_path)
    check(run("register", "--data_list", path, *PLAIN), "list.json", cure)


def test_names_are_cleaned(tiny: Path, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    """No control character reaches a terminal, no formula a spreadsheet, no long name a file system."""
    cine = str(next(tiny.glob("*1/*_4d.nii.gz")))
    names = ["a\n\x1b[2Jb", "=1+1", "\udc80" + "a" * 400]
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"cine": cine, "case": name} for name in names]}))
    outcome = run("register", "--data_list", tmp_path / "list.json", "--write", "moved", *PLAIN)
    assert outcome.status == 0, outcome.printed[-2000:]
    with (tmp_path / "OUT" / "summary.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["a__[2Jb", "_=1+1", "_" + "a" * 99]
    assert "\x1b[2J" not in outcome.printed


def test_a_landmark_is_no_formula(tiny: Path, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    cine = next(tiny.glob("*1/*_4d.nii.gz"))
    center = nib.affines.apply_affine(nib.load(cine).affine, [16, 16, 0]) * [-1, -1, 1]
    line = ",".join(f"{x:.3f}" for x in center)
    (tmp_path / "points.csv").write_text(f'x,y,z,name\n{line},"=HYPERLINK(1)"\n')
    words = ("--reference_frame", "1", "--points", tmp_path / "points.csv", "--write", "moved")
    outcome = run("register", cine, *words, *PLAIN)
    assert outcome.status == 0, outcome.printed[-2000:]
    (table,) = (tmp_path / "OUT").rglob("points.csv")
    assert "'=HYPERLINK" in table.read_text()


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("fault", ["no list", "UTF-16", "deep", "folder", "numbers"])
def test_splits(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], fault: str, command: str) -> None:
    data = Path(shutil.copytree(tiny, tmp_path / "data"))
    (data / "splits.json").unlink()
    made = LISTS[fault][0](tmp_path)
    made.rename(data / "splits.json")
    check(run(command, data, *SMALL[command], *CPU), "splits.json", "correct it|save it|write it again|give the file")


INFOS = {
    "5,000 digits": ("ED: " + "1" * 5000, "ED"),
    "word": ("ED: first", "ED"),
    "beyond": ("ED: 99", "99"),
    "zero": ("ED: 0", "ED"),
    "twice": ("ED: 1\nED: 3", "several lines ED.* remove the wrong ones"),
}


@pytest.mark.parametrize("fault", INFOS)
def test_info(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], fault: str) -> None:
    content, cure = INFOS[fault]
    subject = Path(shutil.copytree(next(tiny.glob("*1/")), tmp_path / "subject"))
    (subject / "Info.cfg").write_bytes(content if isinstance(content, bytes) else content.encode())
    cine = next(subject.glob("*_4d.nii.gz")).rename(subject / "subject_4d.nii.gz")
    outcome = run("register", cine, *PLAIN)
    check(outcome, "", cure)
    assert "Info.cfg" in outcome.last_line or cine.name in outcome.last_line


OPTIONS = {
    ("register", "--direction", "up"): "--direction up: ",
    ("register", "--clip_percentile", "-1"): "--clip_percentile -1: ",
    ("register", "--working_spacing", "0.001"): "--working_spacing 0.001: ",
    ("register", "--device", "meta"): "--device meta: ",
    ("register", "--device", "toaster"): "--device toaster: ",
    ("register", "--reference_frame", "99"): "99",
    ("register", "--reference_frame", "first"): "first",
    ("register", "--slices_at_once", "0"): "--slices_at_once 0: ",
    ("register", "--passes", "0"): "--passes 0: ",
    ("register", "--refine_iterations", "-2"): "--refine_iterations -2: ",
    ("register", "--checkpoint", "none.pt"): "none.pt",
    ("register", "--reference_label", "a" * 300): "more than 255 bytes",
    ("register", "--label_values", "[1, 1, 2]"): "--label_values [1, 1, 2]: ",
    ("register", "--label_values", "3"): "--label_values 3: ",
    ("register", "--series", "3"): "--series: ",
    ("register", "--plane", "axial"): "--plane axial: ",
    ("register", "--sector_origin", "left"): "--sector_origin left: ",
    ("register", "--write", "all"): "--write all: ",
    ("register", "--overwrite", "maybe"): "--overwrite maybe: ",
    ("register", "--segmentation", "none.pt"): "none.pt",
    ("register", "--referense_frame", "1"): "did you mean --reference_frame",
    ("register", "--config", "nothing"): "--config nothing: no such file",
    ("train", "--augmentation#zoom", "-5"): "zoom",
    ("train", "--learning_rate", "0"): "--learning_rate 0: ",
    ("train", "--batch_size", "0"): "--batch_size 0: ",
    ("train", "--max_epochs", "0"): "--max_epochs 0: ",
    ("train", "--strategy", "hope"): "hope",
    ("train", "--granularity", "atom"): "atom",
    ("train", "--slice_size", "[0,1]"): "--slice_size",
    ("train", "--resume", "none.pt"): "none.pt",
    ("train", "--working_spacing", "0.001"): "--working_spacing 0.001: ",
    ("evaluate", "--checkpoint", "none.pt"): "none.pt",
}


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_option(tiny: Path, run: Callable[..., Outcome], words: tuple[str, ...]) -> None:
    command, *option = words
    source = ["--dataset_dir", tiny] if "--direction" in words else [next(tiny.glob("*1/*_4d.nii.gz"))]
    source = source if command == "register" else [tiny, *SMALL[command][:4]]
    device = () if "--device" in words else CPU
    check(run(command, *source, *option, *device), OPTIONS[words], "[;:,]")


def test_an_expression_is_no_path(run: Callable[..., Outcome]) -> None:
    check(run("register", "--cine", "$1+1", *PLAIN), "--cine", "path of a file")


@pytest.mark.parametrize("command", ["register", "train", "evaluate"])
@pytest.mark.parametrize("place", ["file", "below a file", "nothing", "a link to itself"])
def test_output_that_is_no_folder(
    tiny: Path, tmp_path: Path, run: Callable[..., Outcome], command: str, place: str
) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "taken_link").symlink_to("taken_link")
    places = {"file": tmp_path / "taken", "below a file": tmp_path / "taken" / "deeper", "nothing": ""}
    output = {**places, "a link to itself": tmp_path / "taken_link" / "deeper"}[place]
    source = next(tiny.glob("*1/*_4d.nii.gz")) if command == "register" else tiny
    outcome = run(command, source, *SMALL[command], *CPU, output_dir=output)
    check(outcome._replace(written=[]), "taken" if output else "--output_dir", "output_dir|folder")
    assert (tmp_path / "taken").read_text() == "mine"


# Python of a shell's background job would ignore Ctrl-C.
REGISTER = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('scripts', run_name='__main__', alter_sys=True)"
)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_leaves_nothing_half_written(tiny: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    """A registration that is ended while it writes a case."""
    out = tmp_path / "OUT"
    words = ["register", str(next(tiny.glob("*1/*_4d.nii.gz"))), *PLAIN, "--output_dir", str(out)]
    with subprocess.Popen([sys.executable, "-c", REGISTER, *words], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(out.glob(".part_*")):
            time.sleep(0.002)
        process.send_signal(number)
    assert process.returncode == status
    assert not list(out.iterdir())


INFOS_OF_PAIRS = {
    "one frame twice": ("ED: 1\nES: 1", "for ED and ES"),
    "a frame that is not there": ("ED: 1\nES: 99", "no such file"),
    "no end systole": ("ED: 1", "a line such as"),
    "a word": ("ED: 1\nES: end", "a line such as"),
}


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("fault", INFOS_OF_PAIRS)
def test_info_of_a_pair(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], fault: str, command: str) -> None:
    content, cure = INFOS_OF_PAIRS[fault]
    data = Path(shutil.copytree(tiny, tmp_path / "data"))
    splits = json.loads((data / "splits.json").read_text())
    subject = data / splits["train" if command == "train" else "test"][0]
    (subject / "Info.cfg").write_text(content)
    check(run(command, data, *SMALL[command], *CPU), subject.name, cure)


def _weights(folder: Path, change: Callable[[dict], object]) -> Path:
    content = torch.load(Path(__file__).parent.parent / "models" / "model.pt", weights_only=True)
    torch.save(change(content), folder / "weights.pt")
    return folder / "weights.pt"


WEIGHTS = {
    "text": (lambda folder: _write("weights.pt", "weights")(folder), "weights|checkpoint"),
    "of NaN": (
        lambda folder: _weights(
            folder, lambda w: {k: v * np.nan if v.is_floating_point() else v for k, v in w.items()}
        ),
        "NaN",
    ),
    "of another network": (lambda folder: _weights(folder, lambda w: {"a": torch.ones(2)}), "network|lacks optimizer"),
    "of a number": (lambda folder: _weights(folder, lambda w: 7), "weights|network|checkpoint"),
}


@pytest.mark.parametrize("command", ["register", "evaluate", "train"])
@pytest.mark.parametrize("fault", WEIGHTS)
def test_weights(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], command: str, fault: str) -> None:
    make, cure = WEIGHTS[fault]
    path = make(tmp_path)
    source = [next(tiny.glob("*1/*_4d.nii.gz"))] if command == "register" else [tiny, *SMALL[command][:4]]
    outcome = run(command, *source, "--resume" if command == "train" else "--checkpoint", path, *CPU)
    check(outcome, "weights.pt" if fault != "of NaN" or command != "register" else "", cure)


@pytest.mark.parametrize("fault", ["text", "of another network"])
def test_weights_of_the_segmentation(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], fault: str) -> None:
    make, cure = WEIGHTS[fault]
    path = make(tmp_path)
    check(run("register", next(tiny.glob("*1/*_4d.nii.gz")), "--segmentation", path, *CPU), "weights.pt", cure)
    (tmp_path / "bundle").mkdir()
    outcome = run("register", next(tiny.glob("*1/*_4d.nii.gz")), "--segmentation", tmp_path / "bundle", *CPU)
    check(outcome, "bundle", "inference.json")


POINTS = {
    "no columns": ("a,b\n1,2\n", "columns x, y, z"),
    "words": ("x,y,z\none,2,3\n", "not a number"),
    "infinite": ("x,y,z\ninf,2,3\n", "not a number"),
    "far": ("x,y,z\n9999,2,3\n", "outside the image"),
    "UTF-16": ("x,y,z\n1,2,3\n".encode("utf-16"), "UTF-8"),
    "empty": ("", "columns x, y, z"),
    "semicolons": ("x;y;z\n1;2;3\n", "parted by commas"),
    "decimal commas": ("x,y,z\n1,5,2,5,3,5\n", "row 2 has more entries"),
    "a column twice": ("x,x,y,z\n1,1,2,3\n", "each once"),
    "a short row": ("x,y,z\n1,2\n", "not a number"),
    "a header alone": ("x,y,z\n", "a row for each point"),
    "an open quote": ('x,y,z\n"1,2,3\n', "not a number|CSV"),
    "a field without end": ("x,y,z\n" + "1" * 200_000 + ",2,3\n", "CSV"),
}


@pytest.mark.parametrize("fault", POINTS)
def test_points(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], fault: str) -> None:
    content, cure = POINTS[fault]
    path = _write("points.csv", content)(tmp_path)
    cine = next(tiny.glob("*1/*_4d.nii.gz"))
    check(run("register", cine, "--reference_frame", "1", "--points", path, *PLAIN), "points.csv", cure)


LABELS = {
    "negative": (lambda label: -label.astype(np.int16), "from 0 on: write it again"),
    "NaN": (lambda label: np.where(label == 3, np.nan, label), "replace those voxels"),
    "65535": (lambda label: np.where(label == 3, 65535, label).astype(np.float64), "label_values"),
    "masks": (lambda label: np.stack([label == value for value in range(4)], axis=-1), "argmax"),
    "fractions": (lambda label: label * 0.5, "fractions"),
    "another structure": (lambda label: label + 4 * (label > 0), "values"),
    "empty": (lambda label: label * 0, "0 everywhere"),
    "M&Ms order": (lambda label: np.array([0, 3, 2, 1])[label.astype(int)], "label_values"),
    "LV = 1 with myocardium": (lambda label: np.array([0, 0, 2, 1])[label.astype(int)], "label_values"),
    "cut": (lambda label: label[:-3], "shape"),
    "one value everywhere": (lambda label: label * 0 + 3, "100 % of a slice"),
    "noise": (lambda label: np.random.default_rng(0).integers(0, 4, label.shape), "noise"),
    "one voxel": (lambda label: np.eye(1, label.size, label.argmax()).reshape(label.shape), "labels 1 voxel in all"),
    "an image": (lambda label: np.arange(label.size).reshape(label.shape), "it seems to be an image"),
    "noise of one value": (lambda label: 3 * np.random.default_rng(0).integers(0, 2, label.shape), "noise"),
}


@pytest.mark.parametrize("command", ["register", "train", "evaluate"])
@pytest.mark.parametrize("fault", LABELS)
def test_label(tiny: Path, tmp_path: Path, run: Callable[..., Outcome], command: str, fault: str) -> None:
    change, cure = LABELS[fault]
    data = Path(shutil.copytree(tiny, tmp_path / "data"))
    splits = json.loads((data / "splits.json").read_text())
    subject = splits["test" if command == "evaluate" else "train"][0]
    for path in (data / subject).glob("*_gt.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)).astype(np.float32), image.affine), path)
    if command == "register":
        cine = next((data / subject).glob("*_4d.nii.gz"))
        label = sorted((data / subject).glob("*_gt.nii.gz"))[0]
        outcome = run("register", cine, "--reference_frame", "1", "--reference_label", label, *PLAIN)
    else:
        if fault == "empty":
            pytest.skip("a label of nothing gives no scores, and a line in the log")
        outcome = run(command, data, *SMALL[command], *CPU)
    check(outcome, "_gt.nii.gz", cure)
