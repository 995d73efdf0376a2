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

import difflib
import inspect
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from types import TracebackType

import yaml
from fire.parser import DefaultParseValue
from scripts.errors import InputError, first_cause, printable
from scripts.help import bundle_version, describe_files
from tqdm import tqdm

OPTION = re.compile(r"--?[A-Za-z_]")
LOST = re.compile(r"by peer|Broken pipe")  # what gloo says of a process that is gone
PATIENCE = 15  # seconds that torchrun has to end a process that lost another one
RUN_BY_NAME = ("imports", "initialize", "run", "finalize")  # keys of a config that MONAI reads by itself
PATHS = ("bundle_root", "moving", "fixed", "cine", "field", "points", "checkpoint", "initial_weights", "onnx", "resume")


def check(argv: Sequence[str] | None = None) -> None:
    """Refuse unknown options and values of another kind than the option has, and have errors end with one line that
    names the cure; print help or the version where they are asked for, and end.

    Args:
        argv: the command line; None takes `sys.argv` where it is a run of MONAI's bundle.

    Raises:
        InputError: naming the option and the cure.
    """
    if argv is None:
        if not is_bundle_run(sys.argv):
            return
        argv = sys.argv
        sys.excepthook = report_error
    options = parse_options(argv)
    if "version" in options:
        print(bundle_version())
        raise SystemExit
    if options.keys() & {"help", "h"}:
        print(describe_files(config_files(options)))
        raise SystemExit
    config = load_configs(options)
    from monai.bundle import run

    known = set(config) | set(inspect.signature(run).parameters) | {"workflow_type", "workflow_name", "properties_path"}
    for name, value in options.items():
        top = name.replace("#", "::").split("::")[0]
        if top not in known:
            close = difflib.get_close_matches(top, known, n=1)
            hint = f"did you mean --{close[0]}?" if close else "the options are the top-level keys of the config file."
            raise InputError(f"--{name}: no such option; {hint}")
        if name in config and name not in RUN_BY_NAME and not is_read(name, config):
            raise InputError(
                f"--{name}: nothing in these config files reads it, so it would change nothing; leave it out."
            )
        check_path(name, value)
        read = DefaultParseValue(value) if value is not None else True
        if read is None or read in ("null", "~"):
            # MONAI drops None, and takes the others for words.
            raise InputError(
                f"--{name} {value}: MONAI would drop it or read it as text; leave --{name} out, or write --{name} '$None'"
            )
        # Fire reads false as a word, which would count as true.
        if str(read).lower() in ("true", "false") and not isinstance(read, bool):
            raise InputError(f"--{name} {value}: would be read as text; write --{name} {str(read).capitalize()}")
        if isinstance(config.get(name), bool) and not isinstance(read, bool):
            raise InputError(f"--{name} {value}: is a switch; write --{name} True or --{name} False")
        # False is how a path is left out.
        if is_path(name) and read is not False and read != value:
            raise InputError(f"--{name} {value}: was read as {read!r}; write it as --{name} ./{value}")


def check_counts(at_least: int = 1, **options: object) -> None:
    """Stop where an option that counts something is not a whole number of `at_least` or more.

    Args:
        at_least: the smallest number that the options may be.
        options: values by name.

    Raises:
        InputError: naming the option and the cure.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
            raise InputError(
                f"--{name} {value}: must be a whole number, {at_least} or more; give one, or leave --{name} out."
            )


def check_rates(at_most: float = math.inf, **options: object) -> None:
    """Stop where an option is not a number above 0.

    Args:
        at_most: the largest number that the options may be.
        options: values by name.

    Raises:
        InputError: naming the option and the cure.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= at_most:
            limit = "" if at_most == math.inf else f" and at most {at_most:g}"
            raise InputError(f"--{name} {value}: must be a number above 0{limit}; give one, or leave --{name} out.")


def check_sizes(slice_size: object, crop_size: object) -> None:
    """Stop where the size of slices or crops is not two numbers of pixels, or crops are larger than slices.

    Raises:
        InputError: naming the option and the cure.
    """
    for name, size in (("slice_size", slice_size), ("crop_size", crop_size)):
        if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(f"--{name} {size}: must be two numbers of pixels, such as [128,128].")
    if any(crop > whole for crop, whole in zip(crop_size, slice_size)):
        raise InputError(
            f"--crop_size {crop_size}: is larger than --slice_size {slice_size}; give a smaller one, or larger slices."
        )


def under_torchrun() -> bool:
    """Whether this process is one of those that torchrun starts."""
    return "LOCAL_RANK" in os.environ


def is_bundle_run(argv: Sequence[str]) -> bool:
    """Whether this process is `python -m monai.bundle run …`."""
    return len(argv) > 1 and Path(argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") and argv[1] == "run"


def parse_options(argv: Sequence[str]) -> dict[str, str | None]:
    """The `--name value` and `--name=value` options of a command line; None where no value follows."""
    options: dict[str, str | None] = {}
    for position, word in enumerate(argv):
        # Fire takes -a for --a, and --a-b for a_b.
        if not OPTION.match(word):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        following = argv[position + 1] if position + 1 < len(argv) else "--none"
        options[name.replace("-", "_")] = value if equals else None if OPTION.match(following) else following
    return options


def config_files(options: dict[str, str | None]) -> tuple[str, ...]:
    """The config files that the options, or the arguments file that they name, give."""
    from monai.utils import ensure_tuple

    return ensure_tuple(
        yaml.safe_load(options.get("config_file") or "") or load_arguments(options).get("config_file") or ()
    )


def load_arguments(options: dict[str, str | None]) -> dict:
    """The content of the arguments file that the options name; empty without one."""
    from monai.bundle import ConfigParser

    return ConfigParser.load_config_file(options["args_file"]) if options.get("args_file") else {}


def load_configs(options: dict[str, str | None]) -> dict:
    """The merged top level of the config files and the arguments file that the options name."""
    from monai.bundle import ConfigParser

    return load_arguments(options) | ConfigParser.load_config_files(config_files(options))


def is_read(name: str, config: object) -> bool:
    """Whether anything in a config refers to one of its top-level keys."""
    if isinstance(config, (dict, list)):
        return any(is_read(name, value) for value in (config.values() if isinstance(config, dict) else config))
    return isinstance(config, str) and re.search(rf"@{name}\b", config) is not None


def is_path(name: str) -> bool:
    """Whether an option takes a file or a folder, by its name."""
    return name.endswith(("_dir", "_label", "_list", "_path")) or name in PATHS


def check_path(name: str, value: object) -> None:
    """Stop at a value that is not a path where one is meant, and at a file or folder whose name a config would change.

    Raises:
        InputError: naming the option and the cure.
    """
    if is_path(name) and not isinstance(value, (str, Path, bool, type(None))):
        raise InputError(
            f"--{name}: takes the path of a file or folder, got {type(value).__name__}; write it to a file first."
        )
    if name == "output_dir" and str(value).lower() == "false":
        raise InputError("--output_dir False: results need a folder; name one, or leave --output_dir out.")
    if is_path(name) and "#" in str(value) and not str(value).startswith(("@", "$")):
        raise InputError(
            f"--{name} {value}: holds #, which MONAI would read as ::, another name; rename that file or folder."
        )


def report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An `excepthook` whose last line is the first error of the chain: MONAI adds its own "Failed to evaluate" after
    it."""
    cause = first_cause(error)
    if under_torchrun() and is_lost_process(cause):
        # Another process failed: torchrun is about to end this one and to print that one's reason, in which ours would
        # drown it.
        time.sleep(PATIENCE)
    if not isinstance(cause, (InputError, KeyboardInterrupt)):
        traceback.print_exception(kind, error, trace)
    # An open progress bar would draw itself once more after the last line.
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    sys.stdout.flush()
    print(f"error: {printable(str(cause)) or kind.__name__}", file=sys.stderr, flush=True)
    record_error(cause)


def is_lost_process(error: BaseException) -> bool:
    """Whether an error is what a process sees of another one that ended."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or LOST.search(str(error)) is not None


def record_error(error: BaseException) -> None:
    """Leave an error where torchrun looks for the reason that a process ended; elsewhere nothing happens."""
    if not under_torchrun():
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        raise error.with_traceback(None) from None
    except type(error):
        get_error_handler().record_exception(error)


def require_one(**sources: object) -> None:
    """Stop unless exactly one source of data is given.

    Raises:
        InputError: naming the options.
    """
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        options = ", ".join(f"--{name}" + (" with --fixed" if name == "moving" else "") for name in sources)
        raise InputError(f"give exactly one of {options}; got {' and '.join(f'--{name}' for name in given) or 'none'}.")
