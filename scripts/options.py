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

"""What each option of the workflows may be, and which go together: tables, judged before anything is read or written.

`check_options` judges the values that a workflow has, wherever they come from; `check_option` a single one, such as a
word of the command line.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import textwrap
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

from scripts.cardiac.planes import PLANES
from scripts.data.folds import is_fold
from scripts.devices import check_bf16, check_device
from scripts.errors import InputError
from scripts.surgery.rules import GRANULARITIES, STRATEGIES

DIRECTION_CHOICES = ("ES_to_ED", "ED_to_ES", "both")
AUTO, NONE = "auto", "none"  # a label by the segmentation; no label, no segmentation
KEPT = ("fields", "inverse", "moved", "labels", "report")
_PATHS = (
    "bundle_root",
    "moving",
    "fixed",
    "cine",
    "field",
    "points",
    "checkpoint",
    "depth_checkpoint",
    "initial_weights",
    "onnx",
    "resume",
    "segmentation",
)


# Pixels of a side, and channels, that no training of this bundle has: more would only end in a lack of memory.
_LARGEST_SIDE, _MOST_CHANNELS = 2048, 4096
# Bytes of the name of a file or folder on common file systems.
_LONGEST_NAME = 255


class _Rule(NamedTuple):
    """What a value must be: whether it is, and the sentence that says so."""

    fits: Callable[[object], bool]
    words: str


class _Pair(NamedTuple):
    """What several options must be together: their names, whether they fit, and the sentence that says so."""

    names: tuple[str, ...]
    fit: Callable[..., bool]
    words: str


def _is_series(value: object) -> bool:
    return not isinstance(value, bool) and re.fullmatch(r"[0-9]+[a-z]?", str(value)) is not None


def _is_whole(value: object, at_least: int = 0) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= at_least


def _is_number(value: object, above: float = -math.inf, at_most: float = math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and above < value <= at_most


def _are_label_values(values: object) -> bool:
    known = [value for value in values if value is not None] if isinstance(values, (list, tuple)) else []
    return 0 < len(set(known)) == len(known) and len(values) == 3 and all(_is_whole(value, 1) for value in known)


def _must_be(what: str, fits: Callable[[object], bool]) -> _Rule:
    return _Rule(fits, f"must be {what}; give one, or leave --{{name}} out.")


def _whole(at_least: int, at_most: float = math.inf) -> _Rule:
    limit = "" if at_most == math.inf else f" and at most {at_most}"
    return _must_be(
        f"a whole number, {at_least} or more{limit}",
        lambda value: _is_whole(value, at_least) and value <= at_most,  # type: ignore[operator]
    )


def _positive(at_most: float = math.inf, unit: str = "") -> _Rule:
    limit = "" if at_most == math.inf else f" and at most {at_most:g}"
    return _must_be(f"a number{unit} above 0{limit}", lambda value: _is_number(value, 0, at_most))


def _not_negative() -> _Rule:
    return _must_be(
        "a number, 0 or more", lambda value: _is_number(value) and 0 <= value < math.inf  # type: ignore[operator]
    )


def _one_of(*values: str) -> _Rule:
    return _must_be(f"one of {', '.join(values)}", lambda value: value in values)


def _none_or(rule: _Rule) -> _Rule:
    return _Rule(lambda value: value is None or rule.fits(value), rule.words)


_SWITCH = _Rule(lambda value: isinstance(value, bool), "is a switch; write --{name} True or --{name} False.")
_SIZE = _Rule(
    lambda value: isinstance(value, (list, tuple))
    and len(value) == 2
    and all(_is_whole(n, 1) and n <= _LARGEST_SIDE for n in value),
    f"must be two numbers of pixels, {_LARGEST_SIDE} at most, such as [128,128].",
)
_FOLD = _must_be("the number of a fold, from 0, and how many there are, such as '[0,2]'", is_fold)
_WEIGHTS = _must_be(
    "the weights of two folds or more, such as \"['A.pt','B.pt']\"",
    lambda value: isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(path, str) for path in value),
)
_SPACING = _must_be(
    "False, for the images' own pixels, or a pixel size from 0.2 to 20 mm",
    lambda value: value is False or value is None or (_is_number(value) and 0.2 <= value <= 20),
)
_KEPT = _Rule(
    lambda value: bool(names_of(value)) and set(names_of(value)) <= set(KEPT),
    f"names what is kept; give one or more of {','.join(KEPT)}.",
)
_LABEL_VALUES = _Rule(
    _are_label_values,
    "must be the file's values of RV, myocardium and LV in this order, None for one that is absent, such as '[3, 2, 1]'.",
)
# The rule of an option, by its name or its path in the config; options that take a file or a folder have none here.
RULES: dict[str, _Rule] = {
    # of data
    "reference_frame": _none_or(_whole(1)),
    "series": _none_or(_must_be("the number of a series, with its letter if it has one", _is_series)),
    "plane": _none_or(_one_of(*PLANES)),
    "label_values": _none_or(_LABEL_VALUES),
    "direction": _one_of(*DIRECTION_CHOICES),
    "phases": _must_be("1, a frame by itself, or 2", lambda value: _is_whole(value, 1) and value <= 2),
    "axes": _must_be("2, for slices, or 3, for volumes", lambda value: _is_whole(value, 2) and value <= 3),
    "sector_origin": _none_or(_must_be("an angle in degrees", lambda value: _is_number(value, -1e6, 1e6))),
    "working_spacing": _SPACING,
    "clip_percentile": _positive(100, " of percent"),
    "slice_size": _SIZE,
    "crop_size": _SIZE,
    "write": _KEPT,
    # of networks and their speed
    "passes": _whole(1),
    "refine_iterations": _whole(0),
    "slices_at_once": _whole(1),
    **dict.fromkeys(("channels_last", "bf16", "tf32", "amp", "compile", "graph"), _SWITCH),
    **dict.fromkeys(("overwrite", "resample_moving", "list_series", "labels", "is_not_rank0"), _SWITCH),
    # of training
    "max_epochs": _whole(1),
    "batch_size": _whole(1),
    "val_interval": _whole(1),
    "log_every": _whole(1),
    "seed": _whole(0),
    "warmup": _whole(0),
    "fold": _none_or(_FOLD),
    "segmentations": _none_or(_WEIGHTS),
    "rank": _whole(0),
    "learning_rate": _positive(),
    "averaging": _positive(1),
    "strategy": _one_of(*STRATEGIES),
    "granularity": _one_of(*GRANULARITIES),
    "tau": _not_negative(),
    "weight": _not_negative(),
    # of parts
    "augmentation::size": _SIZE,
    **{f"augmentation::{name}": _not_negative() for name in ("gamma", "rotation", "zoom", "elastic")},
    "augmentation::drop_maps": _must_be(
        "a share from 0 to 1", lambda value: _is_number(value, -math.inf, 1) and value >= 0
    ),
    **{f"augmentation::{name}": _SWITCH for name in ("swap", "flip")},
    "integration::num_steps": _whole(0),
    "network_def::backbone::hidden": _whole(1, _MOST_CHANNELS),
    "network_def::backbone::corrections": _whole(0),
    "network_def::backbone::smoothing": _not_negative(),
    "inferer::learning_rate": _positive(),
    "inferer::smoothing": _not_negative(),
    "network_def::backbone::antisymmetric": _SWITCH,
}


def _on_cuda(device: object) -> bool:
    return str(device).startswith("cuda")


def _has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _needs_cuda(name: str) -> _Pair:
    return _Pair(
        (name, "device"),
        lambda given, device: not given or _on_cuda(device),
        f"--{name} True: needs a CUDA device, not {{device}}; leave it out, or give --device cuda:0.",
    )


def _not_recorded(name: str) -> _Pair:
    return _Pair(
        (name, "graph"),
        lambda given, graph: not (given and graph),
        f"--graph True: a step with {name} is not recorded; give one of --graph and --{name}.",
    )


def _belongs(name: str, to: tuple[str, ...], words: str) -> _Pair:
    return _Pair((name, *to), lambda given, *sources: not given or any(sources), f"--{name}: belongs to {words}.")


_APART = ("cine", "moving", "fixed")
_MANY = ("dataset_dir", "data_list")
# What options must be together, by workflow; in this order.
TOGETHER: dict[str, tuple[_Pair, ...]] = {
    "inference": (
        _needs_cuda("tf32"),
        _belongs("points", _APART, "one case; give it with --cine, or with --moving and --fixed"),
        _belongs("moving_label", ("moving", "fixed"), "one pair; give it with --moving and --fixed"),
        _belongs("reference_frame", ("cine", *_MANY), "cines; give it with --cine, --dataset_dir or --data_list"),
        _Pair(
            ("reference_label", "cine"),
            lambda label, cine: label_file(label) is None or bool(cine),
            "--reference_label: belongs to one cine; give it with --cine.",
        ),
        _Pair(
            ("series", "cine"),
            lambda series, cine: series is None or (bool(cine) and Path(str(cine)).is_dir()),
            "--series: belongs to a folder of DICOM files; give it with --cine.",
        ),
        _Pair(
            ("moving", "fixed", "cine", *_MANY),
            lambda moving, fixed, *others: bool(moving) == bool(fixed) or (bool(moving) and any(others)),
            "--moving and --fixed: give both or neither.",
        ),
    ),
    "apply_field": (
        _Pair(("field",), bool, "--field: is missing; give a field that inference wrote."),
        _Pair(
            ("moving", "moving_label", "points"),
            lambda *given: any(given),
            "--field: needs something to move; give --moving, --moving_label or --points.",
        ),
    ),
    "training": (
        _Pair(
            ("crop_size", "slice_size"),
            lambda crops, slices: all(crop <= whole for crop, whole in zip(crops or (), slices or ())),
            "--crop_size {crop_size}: is larger than --slice_size {slice_size}; give a smaller one, or larger slices.",
        ),
        *map(_needs_cuda, ("amp", "graph")),
        *map(_not_recorded, ("amp", "compile")),
        _Pair(
            ("compile", "device"),
            lambda given, device: not given or _on_cuda(device) or _has_compiler(),
            "--compile True: there is no C++ compiler; install g++, name another one in CXX, or leave compile out.",
        ),
    ),
}


def check_options(workflow: str, **options: object) -> None:
    """Judge all options of a workflow: each by its rule, then together, then against this machine.

    Args:
        workflow: of `TOGETHER`.
        options: values by name.

    Raises:
        InputError: naming the first option that does not fit, and the cure.
    """
    for name, value in options.items():
        check_option(name, value)
    for names, fit, words in TOGETHER[workflow]:
        if not fit(*(options.get(name) for name in names)):
            raise InputError(words.format(**{name: options.get(name) for name in names}))
    if options.get("output_dir") is not None:
        _check_folder(options["output_dir"])
    if options.get("resume") and not Path(str(options["resume"])).is_file():
        raise InputError(
            f"--resume {options['resume']}: no such file; give the last_checkpoint_epoch=N.pt of the training."
        )
    if "device" in options:
        check_device(options["device"])
        check_bf16(options["device"], bool(options.get("bf16")))


def check_option(name: str, value: object) -> None:
    """Judge one option.

    Args:
        name: of a top-level key of a config, or the path of a deeper one: "augmentation::zoom".
        value: as it is read.

    Raises:
        InputError: naming the option and the cure.
    """
    rule = RULES.get(name)
    if rule is not None and not rule.fits(value):
        raise InputError(f"--{name} {textwrap.shorten(str(value), 80)}: {rule.words.format(name=name)}")
    if is_path(name):
        _check_path(name, value)


def names_of(value: object) -> tuple[str, ...]:
    """The names in a list of them, or in one text with commas; empty for anything else."""
    if isinstance(value, str):
        value = value.split(",")
    return tuple(str(name).strip() for name in value) if isinstance(value, (list, tuple)) else ()


def is_path(name: str) -> bool:
    """Whether an option takes a file or a folder, by its name."""
    return name.endswith(("_dir", "_label", "_list", "_path")) or name in _PATHS


def is_none(value: object) -> bool:
    """Whether an option is turned off."""
    return value is False or (isinstance(value, (str, Path)) and str(value).lower() == NONE)


def label_file(value: object) -> str | None:
    """The file that `--reference_label` names, None where it names none."""
    return None if is_none(value) or value in (None, AUTO) else str(value)


def require_one(**sources: object) -> None:
    """Stop unless exactly one source of data is given.

    Raises:
        InputError: naming the options.
    """
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        options = ", ".join(f"--{name}" + (" with --fixed" if name == "moving" else "") for name in sources)
        raise InputError(f"give exactly one of {options}; got {' and '.join(f'--{name}' for name in given) or 'none'}.")


def _check_path(name: str, value: object) -> None:
    """Stop at a value that is no path where one is meant, and at a name that MONAI would change."""
    if value is True or not isinstance(value, (str, Path, bool, type(None))):
        raise InputError(f"--{name}: takes the path of a file or folder, got {textwrap.shorten(repr(value), 80)}.")
    if name == "output_dir" and str(value).lower() in ("false", ""):
        raise InputError(f"--output_dir {value}: results need a folder; name one, or leave --output_dir out.")
    if isinstance(value, str) and not value.strip():
        raise InputError(f"--{name} '{value}': names nothing; give a path, or leave --{name} out.")
    if "\0" in str(value):
        raise InputError(f"--{name}: holds a zero byte, which no path has; correct it.")
    if max((len(os.fsencode(part)) for part in Path(str(value)).parts), default=0) > _LONGEST_NAME:
        raise InputError(f"--{name}: holds a name of more than {_LONGEST_NAME} bytes, which no disk takes; shorten it.")
    if "#" in str(value) and not str(value).startswith(("@", "$")):
        raise InputError(
            f"--{name} {value}: holds #, which MONAI would read as ::, another name; rename that file or folder."
        )


def _check_folder(folder: object) -> None:
    """Stop at a folder that cannot be made, since it or one above it is a file, a link to nowhere or not to be written."""
    path = Path(os.path.abspath(str(folder)))
    for part in (path, *path.parents):
        if part.is_dir():
            if not os.access(part, os.W_OK):
                raise InputError(f"--output_dir {folder}: {part} cannot be written to; give another --output_dir.")
            return
        if part.is_symlink() and not part.exists():
            raise InputError(f"--output_dir {folder}: {part} is a link that leads nowhere; give another --output_dir.")
        if part.exists():
            raise InputError(f"--output_dir {folder}: {part} is a file; give another --output_dir.")
