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

"""Guards of `python -m monai.bundle run`: options it would swallow in silence, and errors it would bury under its own.

`check` is the first thing each workflow runs. Outside that command line (from Python, in tests) it does nothing.
PyTorch and MONAI are imported where they are used, so that `python -m scripts` answers at once.
"""

from __future__ import annotations

import atexit
import difflib
import gc
import inspect
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pydoc import locate
from types import TracebackType

import yaml
from fire.parser import DefaultParseValue
from scripts.errors import InputError, clean_up_at_sigterm, first_cause, is_full_disk, log_in_one_line, report_error
from scripts.help import bundle_version, describe_files

_OPTION = re.compile(r"--?[A-Za-z_]")
_RUN_BY_NAME = ("imports", "initialize", "run", "finalize")  # keys of a config that MONAI reads by itself
_JUDGES = ("check_options",)  # keys of a config that look at options without using them
_READ_BY_MONAI = ("workflow_type", "workflow_name", "properties_path")


def check(argv: Sequence[str] | None = None) -> None:
    """Refuse unknown options and values of another kind than the option has, and have errors end with one line that
    names the cure; print help or the version where they are asked for, and end.

    Args:
        argv: the command line; None takes `sys.argv` where it is a run of MONAI's bundle.

    Raises:
        InputError: naming the option and the cure.
    """
    if argv is None:
        if not _is_bundle_run(sys.argv):
            return
        argv = sys.argv
        sys.excepthook = partial(_report_error, _parse_options(argv))
        log_in_one_line()
        clean_up_at_sigterm()
        # Or Python would look through all of PyTorch and MONAI for garbage before it ends, which takes seconds.
        atexit.register(gc.freeze)
    _check_given_once(argv)
    options = _parse_options(argv)
    if "version" in options:
        print(bundle_version(), flush=True)
        raise SystemExit
    if options.keys() & {"help", "h"}:
        print(describe_files(_config_files(options)), flush=True)
        raise SystemExit
    config = _load_configs(options)
    for name, value in options.items():
        _check_known(name, config)
        _check_word(name, value, config)


def _report_error(
    options: Mapping[str, str | None], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """`errors.report_error`, which names the option where an expression that was given as its value has failed, and the
    folder of the results where it cannot be written."""
    cause, link = first_cause(error), error
    if (reason := _why_not_written(cause, options.get("output_dir"))) is not None:
        cause = InputError(f"--output_dir {options['output_dir']}: {reason}")
    expressions = {name: value for name, value in options.items() if str(value).startswith("$")}
    while link is not None and not isinstance(cause, InputError):
        for name, value in expressions.items():
            # All that the errors of MONAI and of Python's parser have of the expression is its text.
            if repr(value) in str(link) or str(getattr(link, "text", "")).strip() == value[1:].strip():
                cause = InputError(f"--{name} {value}: cannot be computed ({cause}); correct the expression.")
        link = link.__cause__
    if isinstance(cause, InputError):
        kind, error, trace = type(cause), cause, None
    report_error(kind, error, trace)


def _why_not_written(error: BaseException, folder: str | None) -> str | None:
    """Why a folder that was given for results cannot be written, with the cure, where an error says so."""
    if folder is None or isinstance(error, InputError):
        return None
    if is_full_disk(error):
        return "its disk is full; free some space, or give another folder."
    place = getattr(error, "filename", None)
    if place is None or not Path(os.path.abspath(str(place))).is_relative_to(os.path.abspath(folder)):
        return None
    return f"cannot be written ({error.strerror}); give another folder."  # type: ignore[attr-defined]


def _check_known(name: str, config: Mapping) -> None:
    """Stop at an option that no config file has, or that nothing in them reads.

    Raises:
        InputError: naming the option, and the nearest one that there is.
    """
    from monai.bundle import run

    top, *inner = name.replace("#", "::").split("::")
    known = {*config, *inspect.signature(run).parameters, *_READ_BY_MONAI}
    if top not in known:
        raise InputError(f"--{name}: no such option; {_did_you_mean('', top, known)}")
    if name in config and name not in _RUN_BY_NAME and not _is_read(name, config):
        raise InputError(f"--{name}: nothing in these config files reads it, so it would change nothing; leave it out.")
    place, above = config.get(top), f"{top}::"
    for part in inner:
        settings = _settings_of(place)
        if settings is not None and part not in settings:
            raise InputError(f"--{name}: no such option; {_did_you_mean(above, part, settings)}")
        place = place.get(part) if isinstance(place, Mapping) else None
        above += f"{part}::"


def _did_you_mean(above: str, name: str, known: Iterable[str]) -> str:
    """A hint at the nearest of the names below a place in the config, or at all of them."""
    known = sorted(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean --{above}{close[0]}?"
    return f"it has {', '.join(known)}." if above else "the options are the top-level keys of the config file."


def _settings_of(place: object) -> set[str] | None:
    """What can be set at a place in the config: its keys, and the parameters of the target that it names; None where
    anything can."""
    if not isinstance(place, Mapping):
        return None
    names = {str(key) for key in place}
    if "_target_" not in place:
        return names
    target = locate(str(place["_target_"]))
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return None if anything else names | {parameter.name for parameter in parameters} | {"_disabled_", "_mode_"}


def _check_word(name: str, value: str | None, config: Mapping) -> None:
    """Stop at a value that fire or MONAI would read as something else than was meant, or that does not suit its option.

    Raises:
        InputError: naming the option and the cure.
    """
    from scripts.options import RULES, check_option, is_path

    if is_path(name) and value is not None:
        check_option(name, value)
    read = True if value is None else DefaultParseValue(value)
    if read is None or read in ("null", "~"):
        # MONAI drops None, and takes the others for words.
        raise InputError(
            f"--{name} {value}: MONAI would drop it or read it as text; leave --{name} out, or write --{name} '$None'"
        )
    # Fire reads false as a word, which would count as true.
    if str(read).lower() in ("true", "false") and not isinstance(read, bool):
        raise InputError(f"--{name} {value}: would be read as text; write --{name} {str(read).capitalize()}")
    if isinstance(read, str) and read.startswith(("$", "@", "%")):
        return  # known when it is computed
    # False is how a path is left out.
    if is_path(name) and not isinstance(read, bool) and read != value:
        raise InputError(f"--{name} {value}: was read as {read!r}; write it as --{name} ./{value}")
    if isinstance(config.get(name), bool) and name not in RULES and not isinstance(read, bool):
        raise InputError(f"--{name} {value}: is a switch; write --{name} True or --{name} False")
    check_option(name.replace("#", "::"), read)


def _is_bundle_run(argv: Sequence[str]) -> bool:
    """Whether this process is `python -m monai.bundle run …`."""
    return len(argv) > 1 and Path(argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") and argv[1] == "run"


def _parse_options(argv: Sequence[str]) -> dict[str, str | None]:
    """The `--name value` and `--name=value` options of a command line; None where no value follows."""
    options: dict[str, str | None] = {}
    for position, word in enumerate(argv):
        # Fire takes -a for --a, and --a-b for a_b.
        if not _OPTION.match(word):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        following = argv[position + 1] if position + 1 < len(argv) else "--none"
        options[name.replace("-", "_")] = value if equals else None if _OPTION.match(following) else following
    return options


def _check_given_once(argv: Sequence[str]) -> None:
    """Stop at an option that is given twice: fire would take the last value.

    Raises:
        InputError: naming the option.
    """
    names = [word.lstrip("-").partition("=")[0].replace("-", "_") for word in argv if _OPTION.match(word)]
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise InputError(f"--{twice[0]}: is given twice; give it once.")


def _config_files(options: dict[str, str | None]) -> tuple[str, ...]:
    """The config files that the options, or the arguments file that they name, give."""
    from monai.utils import ensure_tuple

    return ensure_tuple(
        yaml.safe_load(options.get("config_file") or "") or _load_arguments(options).get("config_file") or ()
    )


def _load_arguments(options: dict[str, str | None]) -> dict:
    """The content of the arguments file that the options name; empty without one."""
    from monai.bundle import ConfigParser

    return ConfigParser.load_config_file(options["args_file"]) if options.get("args_file") else {}


def _load_configs(options: dict[str, str | None]) -> dict:
    """The merged top level of the config files and the arguments file that the options name."""
    from monai.bundle import ConfigParser

    return _load_arguments(options) | ConfigParser.load_config_files(_config_files(options))


def _is_read(name: str, config: object) -> bool:
    """Whether anything in a config uses one of its top-level keys."""
    if isinstance(config, dict):
        return any(_is_read(name, value) for key, value in config.items() if key not in _JUDGES)
    if isinstance(config, list):
        return any(_is_read(name, value) for value in config)
    return isinstance(config, str) and re.search(rf"@{name}\b", config) is not None
