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

"""What inference is asked to register: options and folders to a data list of cines and pairs (`loading.LoadCase`
says what they hold)."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from scripts.cardiac.planes import PLANES, SHORT_AXIS
from scripts.data.acdc import acdc_pairs, find_image, read_info
from scripts.data.datalists import check_files, json_pairs, unique_names, with_label_values
from scripts.data.dicom import is_one_study, list_series, slices_of_one
from scripts.data.mms import MMS_LABELS, mms_label, mms_subjects, mms_table
from scripts.data.nifti import no_cine, shape_of, stem_of
from scripts.data.results import is_result
from scripts.errors import InputError
from scripts.files import files_below, is_dicom, plain_path
from scripts.options import is_none, label_file

# The stem of a NIfTI file that is a label, not a cine: as ACDC and M&Ms (`_gt`), UK Biobank (`seg_`), ITK-SNAP and 3D
# Slicer name theirs.
LABEL_NAME = re.compile(r"^(seg|label|mask)_|_(gt|seg|label|mask)$", re.IGNORECASE)
# The stem of one frame of a cine, as ACDC, or UK Biobank and M&Ms-2 (`_ED`) name it.
FRAME_NAME = re.compile(r"_(frame\d+|ED|ES)$")
# What follows the name of a subject in ACDC's layout in the names of its images.
_ACDC_FILES = ("4d.nii*", "frame*.nii*")


def inference_cases(
    series: int | str | None = None,
    plane: str | None = None,
    only_list: bool = False,
    label_values: Sequence[int | None] | None = None,
    reference_label: str | None = None,
    **sources: object,
) -> list[dict]:
    """The cases of `find_cases`, with names that differ. Options are judged before, in `options`.

    Args:
        series: of the DICOM folder `cine`, see `dicom.read_dicom_cine`.
        plane: of all cases that name none, one of `planes.PLANES`.
        label_values: of the labels of all cases but those of a data list that state their own
            (`options.RULES`).
        reference_label: a file, "auto" for the one beside the cine if there is one, or "none" for no label at all.
        only_list: whether to print what the DICOM folders hold instead, and return no case.
        sources: of `find_cases`.

    Raises:
        InputError: naming the file or option and the cure.
    """
    items = unique_names(find_cases(reference_label=label_file(reference_label), **sources))
    if is_none(reference_label):
        items = [{key: value for key, value in item.items() if key != "reference_label"} for item in items]
    if only_list:
        _print_series(items)
        return []
    given = {key: value for key, value in (("series", series), ("plane", plane)) if value is not None}
    items = with_label_values(items, label_values, keep=bool(sources.get("data_list")))
    return [{**given, **item} for item in items]


def _print_series(items: Sequence[dict]) -> None:
    """Print the listing of each case that is a folder of DICOM files; an unreadable one has a line that says why.

    Raises:
        InputError: where no case is such a folder.
    """
    folders = [item["cine"] for item in items if Path(item.get("cine", "")).is_dir() and "cine" in item]
    if not folders:
        raise InputError(
            "--list_series: lists folders of DICOM files; give one with --cine, or several in --dataset_dir."
        )
    for folder in folders:
        try:
            print(list_series(folder))
        except InputError as error:
            if len(folders) == 1:
                raise
            print(error)


def find_cases(
    cine: str | None = None,
    moving: str | None = None,
    fixed: str | None = None,
    dataset_dir: str | None = None,
    data_list: str | None = None,
    moving_label: str | None = None,
    reference_frame: int | None = None,
    reference_label: str | None = None,
    direction: str = "ES_to_ED",
    points: str | None = None,
    section: str = "test",
) -> list[dict]:
    """The cases of one of four sources; none where no source is given, so that a workflow can be inspected without
    data.

    Args:
        cine: a 4-D NIfTI file or a folder of DICOM files.
        moving: a 3-D NIfTI image, with `fixed`.
        fixed: the 3-D NIfTI image that `moving` is brought onto.
        dataset_dir: a folder of subjects in ACDC's layout, of 4-D NIfTI files, and of folders of such files or of DICOM
            files.
        data_list: a MONAI data list in JSON.
        moving_label: label of `moving`.
        reference_frame: of a cine, counted from 1.
        reference_label: label of the reference frame of `cine`.
        direction: of pairs in ACDC's layout without a cine, see `datalists.acdc_pairs`.
        points: landmarks, which belong to one case.
        section: of the data list.

    Raises:
        InputError: naming the file or option and the cure.
    """
    if cine:
        return [_cine_case(cine, reference_frame, reference_label, points)]
    if moving or fixed:
        return [_single_pair(moving, fixed, moving_label, points)]
    if data_list:
        items = json_pairs(data_list, section)
        if not items:
            raise InputError(f"{data_list}: section '{section}' is empty or missing; add cases to it.")
        return [case for item in items for case in _report_later(_listed_cases, item, item, reference_frame)]
    return _folder_cases(Path(dataset_dir), reference_frame, direction) if dataset_dir else []


def _cine_case(
    path: str | Path, reference_frame: int | None = None, label: str | Path | None = None, points: str | None = None
) -> dict:
    """The item of a cine, a 4-D NIfTI file or a DICOM folder.

    The reference frame is the one given, else the ED of an `Info.cfg` beside the file, else left for `LoadCase` to
    estimate.

    Raises:
        InputError: for a label or points whose frame is not known, or a path that is not there.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; give --cine a 4-D NIfTI file or a folder of DICOM files.")
    item: dict = {"cine": str(path), **_reference(path, reference_frame)}
    item |= _slices_and_frames(path)
    if not label and path.is_file() and "reference" in item:
        label = find_image(path.parent, f"{stem_of(path)}_frame{item['reference']:02d}_gt", required=False)
    for key, file, words in (
        ("reference_label", label, "this label belongs"),
        ("points", points, "these points belong"),
    ):
        if file:
            if "reference" not in item:
                raise InputError(f"{file}: it is not known which frame {words} to; give --reference_frame.")
            if (named := re.search(r"_frame(\d+)(_gt)?\.nii", Path(file).name)) and int(named[1]) != item["reference"]:
                logging.getLogger("inference").warning(
                    f"{file}: is of frame {int(named[1])} by its name, and is taken for that of the reference frame "
                    f"{item['reference']} ({item['reference_basis']}): is --reference_frame right?"
                )
            item[key] = str(file)
    # `LoadCase` reads the files when their turn comes, and tells what is wrong with them.
    item["case"] = item["subject"] = stem_of(path) if path.is_file() else plain_path(path).name
    if not item["case"]:
        raise InputError(f"{path}: has no name that a folder of results could have; rename it.")
    check_files([item])
    return item


def _reference(path: Path, frame: object) -> dict:
    """The entries of an item that say which frame of a cine is its reference and why; none where that is to be
    estimated.

    Raises:
        InputError: for a frame that is no number from 1.
    """
    if frame is not None:
        if not re.fullmatch(r"[1-9]\d{0,4}", str(frame)):
            raise InputError(f"{path}: has no frame {frame}; --reference_frame is a number, counted from 1.")
        return {"reference": int(frame), "reference_basis": "given as --reference_frame"}
    ed = _end_diastole(path.parent if path.is_file() else path)
    if ed is not None and _is_alone(path):
        return {"reference": ed, "reference_basis": "end diastole by Info.cfg"}
    return {}


def _slices_and_frames(path: Path) -> dict[str, int]:
    """The number of frames under "frames" where a file (X, Y, T) is the cine of one slice by the NbFrame of the
    `Info.cfg` beside it."""
    info = path.parent / "Info.cfg"
    if not path.is_file() or not info.is_file():
        return {}
    if FRAME_NAME.search(stem_of(path)):
        return {}  # a stack that has as many slices as the cine has frames
    shape, number = shape_of(path), read_info(info).get("NbFrame", "")
    return {"frames": shape[2]} if len(shape) == 3 and shape[2] > 1 and number == str(shape[2]) else {}


def _at_place(name: str, path: Path) -> dict:
    """The item of a cine, or of a subject's folder, of which no more is known yet."""
    return {"case": name, "subject": name, "cine": str(path)}


def _one_cine(path: Path, reference_frame: int | None, label: Path | None = None) -> list[dict]:
    """The item of a cine in a folder of cases, alone in a list."""
    return [_cine_case(path, reference_frame, label)]


def _is_alone(path: Path) -> bool:
    """Whether the `Info.cfg` beside a cine is that cine's: it is named as the folder, a folder itself, or the only cine
    there."""
    others = [other for other in _cine_files(path.parent) if other != path] if path.is_file() else []
    if not others or stem_of(path) == plain_path(path).parent.name:
        return True
    logging.getLogger("inference").warning(
        f"{path.parent / 'Info.cfg'}: lies beside several cines, so its ED is not taken for {path.name}'s; give --reference_frame."
    )
    return False


def _end_diastole(folder: Path) -> int | None:
    """The frame of end diastole, counted from 1, by the `Info.cfg` of a folder; None without that file or its line ED.

    Raises:
        InputError: for an ED that is not such a number.
    """
    path = folder / "Info.cfg"
    if not path.is_file():
        return None
    info = read_info(path)
    ed = info.get("ED")
    if not ed:
        logging.getLogger("inference").warning(
            f"{path}: has no line ED, so that the reference frame is estimated; add one such as 'ED: 1', or give "
            "--reference_frame."
        )
    if ed and not re.fullmatch(r"[1-9]\d{0,4}", ed):
        raise InputError(
            f"{path}: ED is {ed[:20]}, which is not a frame (counted from 1); correct or remove that line."
        )
    if ed and ed == info.get("ES"):
        logging.getLogger("inference").warning(f"{path}: has one frame, {ed}, for ED and ES; correct the wrong one.")
    return int(ed) if ed else None


@dataclass(frozen=True)
class _Found:
    """What a folder holds."""

    subjects: list[Path]
    """Folders in ACDC's layout."""
    files: list[Path]
    """4-D NIfTI files."""
    folders: dict[Path, list[Path]]
    """Other folders, with the 4-D NIfTI files of each, or itself where it is a cine in DICOM."""

    @property
    def cines(self) -> list[Path]:
        return [*self.files, *chain(*self.folders.values())]

    @property
    def dicom(self) -> list[Path]:
        return [path for path, cines in self.folders.items() if cines == [path]]


def _folder_cases(root: Path, reference_frame: int | None, direction: str) -> list[dict]:
    """The cases of a folder in M&Ms' layout, or of all kinds that it holds: subjects in ACDC's layout, then 4-D NIfTI
    files, then folders of such files or of DICOM. A folder that inference wrote is no case; what else is left out, such
    as text files, is logged.

    Raises:
        InputError: where it holds none of them.
    """
    if root.is_file():
        raise InputError(f"{root}: is a file; give it as --cine, or --dataset_dir a folder.")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give --dataset_dir a folder that is there.")
    if mms_table(root):
        subjects = sorted(mms_subjects(root).items())
        return list(chain.from_iterable(_mms_case(*subject, reference_frame) for subject in subjects))
    entries = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    found = _search(root, entries)
    cases = []
    for path in found.subjects:
        cases += _report_later(_subject_cases, _at_place(path.name, path), path, reference_frame, direction)
    for path in found.cines:
        cases += _report_later(_one_cine, _at_place(stem_of(path) or path.name, path), path, reference_frame)
    if not cases:
        _refuse_no_case(root, found)
    for level, sentence in _remarks(root, entries, found):
        logging.getLogger("inference").log(level, sentence)
    return cases


def _refuse_no_case(root: Path, found: _Found) -> None:
    """Stop at a folder without a case, with what it has in place of one.

    Raises:
        InputError: always.
    """
    for folder in (root, *found.folders):
        _refuse_no_cine(folder)
    raise InputError(
        f"{root}: holds neither subjects with an Info.cfg, nor 4-D NIfTI files, nor folders of them or of DICOM files; give "
        "--dataset_dir a folder that does, or pairs of frames by --data_list (docs/files.md)."
    )


def _mms_case(code: str, subject: Mapping, reference_frame: int | None) -> list[dict]:
    """The item of a subject of `mms.mms_subjects`, alone in a list, with its label where the reference frame has one."""
    cine, frame = subject["cine"], reference_frame or subject["ED"] + 1
    label = mms_label(cine) if str(frame) in (str(subject[phase] + 1) for phase in ("ED", "ES")) else None
    own = {"case": code, "subject": code, "label_values": MMS_LABELS}
    if reference_frame is None:
        own["reference_basis"] = "end diastole by the table of M&Ms"
    return [item | own for item in _report_later(_one_cine, _at_place(code, cine), cine, frame, label)]


def _search(root: Path, entries: Sequence[Path]) -> _Found:
    """What is in a folder with these entries; folders of DICOM of one patient's study are one: the folder itself."""
    found = _list_contents(root, entries)
    if is_one_study(found.dicom):
        logging.getLogger("inference").info(f"{root}: its {len(found.dicom)} folders of DICOM are one patient's study")
        others = {path: cines for path, cines in found.folders.items() if path not in found.dicom}
        return replace(found, folders=others | {root: [root]})
    if not (found.subjects or found.cines) and any(map(_looks_like_dicom, entries)):
        return replace(found, folders={root: [root]})
    return found


def _list_contents(root: Path, entries: Sequence[Path]) -> _Found:
    """What each of these entries of a folder holds, for itself."""
    folders = [path for path in entries if _can_be_searched(path) and not os.path.samefile(path, root)]
    subjects = [path for path in folders if _has_info(path) and _has_acdc_files(path)]
    others = [path for path in folders if path not in subjects and not is_result(path)]
    contents = {path: _cine_files(path) or [path] * _holds_dicom(path) for path in others}
    # One without any image says which it lacks.
    subjects += [path for path, cines in contents.items() if not cines and _has_info(path)]
    return _Found(subjects, _cine_files(root), contents)


def _can_be_searched(path: Path) -> bool:
    """Whether a path is a folder that may be listed."""
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def _has_info(folder: Path) -> bool:
    """Whether a folder has ACDC's Info.cfg."""
    return (folder / "Info.cfg").is_file()


def _has_acdc_files(folder: Path) -> bool:
    """Whether a folder has an image under ACDC's names."""
    return any(any(folder.glob(f"{folder.name}_{end}")) for end in _ACDC_FILES)


def _remarks(root: Path, entries: Sequence[Path], found: _Found) -> Iterator[tuple[int, str]]:
    """What a user should know of a folder beside its cases: levels of logging, and sentences."""
    for together in slices_of_one(found.dicom):
        names = ", ".join(path.name for path in together)
        yield (
            logging.WARNING,
            (
                f"{root}: {names} look like slices of one cine and are registered apart; where they are, give --cine {root} "
                "or a folder of them."
            ),
        )
    for stacks in filter(None, map(_maybe_cines, (root, *found.folders))):
        more = f" Left out with it: {len(stacks) - 1} more here." if len(stacks) > 1 else ""
        yield logging.WARNING, f"{stacks[0]}: is left out; it {no_cine(stacks[0], shape_of(stacks[0]))}{more}"
    for path in _beside_dicom(found):
        number = len(found.folders[path])
        yield logging.INFO, f"{path}: cines are its 4-D NIfTI files ({number}); its DICOM files are left out"
    taken = {*found.subjects, *found.files, *(path for path, cines in found.folders.items() if cines)}
    left = [path.name for path in entries if path not in taken]
    if left and root not in taken:
        more = f" and {len(left) - 9} more" if len(left) > 9 else ""
        yield logging.INFO, f"{root}: left out, for they hold no case: {', '.join(left[:9])}{more}"


def _beside_dicom(found: _Found) -> list[Path]:
    """The folders whose cines are NIfTI files that lie beside DICOM."""
    dicom = found.dicom
    return [path for path, cines in found.folders.items() if cines and path not in dicom and _holds_dicom(path)]


def _holds_dicom(folder: Path) -> bool:
    """Whether a DICOM file is in a folder or below it; where it cannot be listed, reading it will say so."""
    try:
        return any(map(_looks_like_dicom, files_below(folder)))
    except InputError:
        return True


def _looks_like_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, by its name or its first bytes, that is not hidden."""
    return path.is_file() and not path.name.startswith(".") and (path.suffix.lower() == ".dcm" or is_dicom(path))


def _cine_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder that are cines (`_is_cine`), no labels by their name and not hidden, sorted."""
    return [path for path in _images(folder) if _is_cine(path)]


def _images(folder: Path) -> list[Path]:
    """The NIfTI files of a folder that are no labels by their name and are not hidden, sorted; of an image in two files,
    the header."""
    files = [path for path in sorted(folder.glob("[!.]*")) if path.name.lower().endswith((".nii", ".nii.gz", ".hdr"))]
    return [path for path in files if not LABEL_NAME.search(stem_of(path))]


def _maybe_cines(folder: Path) -> list[Path]:
    """The NIfTI files (X, Y, Z) of a folder that are not known to be cines (X, Y, T), and may be."""
    files = [path for path in _images(folder) if not FRAME_NAME.search(stem_of(path)) and not _is_cine(path)]
    return [path for path in files if len(shape_of(path)) == 3]


def _report_later(find: Callable[..., list[dict]], item: dict, *args: object) -> list[dict]:
    """The cases that `find` makes of one of many, or that item alone, which `loading.LoadCase` refuses with the reason:
    the others go on."""
    try:
        return find(*args)
    except InputError as error:
        return [{**item, "error": error}]


def _listed_cases(item: dict, reference_frame: int | None = None) -> list[dict]:
    """The cases of an item of a JSON list; the reference frame of a cine is found as that of `--cine` is."""
    check_files([item])
    if item.get("plane", SHORT_AXIS) not in PLANES:
        raise InputError(
            f"{item['case']}: has the plane {item['plane']} in the data list; give one of {', '.join(PLANES)}."
        )
    if "cine" not in item:
        _refuse_frame(item["case"], reference_frame)
        return [item]
    case = _cine_case(
        item["cine"], item.get("reference", reference_frame), item.get("reference_label"), item.get("points")
    )
    own = {key: item[key] for key in ("case", "subject", "series", "plane") if key in item}
    return [case | own | ({"reference_basis": "given in the data list"} if "reference" in item else {})]


def _subject_cases(subject: Path, reference_frame: int | None, direction: str) -> list[dict]:
    """A subject in ACDC's layout: its cine where there is one, else its pair."""
    cine = find_image(subject, f"{subject.name}_4d", required=False)
    if cine is None:
        if not any(subject.glob(f"{subject.name}_{_ACDC_FILES[1]}")):
            _refuse_no_cine(subject)
        _refuse_frame(subject, reference_frame)
        return acdc_pairs(subject.parent, [subject.name], direction)
    return [_cine_case(cine, reference_frame)]


def _refuse_no_cine(folder: Path) -> None:
    """Stop at a folder with a stack that may be meant for a cine.

    Raises:
        InputError: naming the first one, as `--cine` would.
    """
    for path in _maybe_cines(folder):
        raise InputError(f"{path}: {no_cine(path, shape_of(path))}")


def _refuse_frame(case: str | Path, reference_frame: int | None) -> None:
    """Stop where a reference frame is given for a pair, which has none.

    Raises:
        InputError: naming the case.
    """
    if reference_frame is not None:
        raise InputError(
            f"{case}: is a pair, which has no reference frame; leave --reference_frame out, or give the 4-D cine."
        )


def _is_cine(path: Path) -> bool:
    """Whether a NIfTI file has four axes, or is a cine of one slice; one that cannot be read counts, so that it is
    reported."""
    return len(shape_of(path)) in (0, 4) or bool(_slices_and_frames(path))


def _single_pair(
    moving: str | None, fixed: str | None, moving_label: str | Path | None = None, points: str | None = None
) -> dict:
    """The item of two images given on the command line."""
    for name, value in (("moving", moving), ("fixed", fixed)):
        if not value:
            raise InputError(f"--{name} is missing: give both --moving and --fixed.")
    files = {"moving": moving, "fixed": fixed, "moving_label": moving_label, "points": points}
    item = {key: str(file) for key, file in files.items() if file}
    item["case"] = item["subject"] = f"{stem_of(moving)}_to_{stem_of(fixed)}"
    check_files([item])
    return item
