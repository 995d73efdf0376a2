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

"""The workflows in short: `python -m scripts register C_4d.nii.gz --output_dir OUT`.

Each command is a run of MONAI's bundle with config files of this one, and takes the options that these files have:

    register CINE | MOVING FIXED     inference.yaml (with --dims 2 and slices.yaml, each slice by itself)
    apply FIELD [MOVING]             apply_field.yaml
    train [DATASET_DIR]              train.yaml
    evaluate [DATASET_DIR]           train.yaml, evaluate.yaml and depth.yaml (with --dims 2 or --config without the last)

`--config NAME[,NAME...]` merges further files over them: a name in configs/, such as labeled, or a path.
"""

from __future__ import annotations

import difflib
import gc
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scripts.errors import InputError, report_error
from scripts.help import bundle_version, describe_files
from scripts.progress import stage

_ROOT = Path(__file__).resolve().parents[1]
# Files beside a command's own. Further ones (--config) may bring another network, which evaluation then scores as it is.
_BY_DIMS = {"register": {"2": ("slices.yaml",), "3": ()}, "evaluate": {"2": (), "3": ("depth.yaml",)}}
_CONFIG_HELP = (
    "--config NAME[,NAME...] merges config files over the command's own: names in configs/, such as labeled, or paths."
)
_DIMS_HELP = "--dims 2 leaves motion along the stack out: each slice by itself."


@dataclass(frozen=True)
class _Command:
    """What a command runs: config files, and the options that its first words stand for, by their number."""

    summary: str
    configs: tuple[str, ...]
    places: tuple[tuple[str, ...], ...]


COMMANDS = {
    "register": _Command(
        "every frame of a cine to a reference frame, or a moving stack to a fixed one",
        ("inference.yaml",),
        (("cine",), ("moving", "fixed")),
    ),
    "apply": _Command(
        "a field that was written before, to an image, its label or landmarks",
        ("apply_field.yaml",),
        (("field",), ("field", "moving")),
    ),
    "train": _Command("a network by gradient surgery", ("train.yaml",), (("dataset_dir",),)),
    "evaluate": _Command(
        "Dice, Hausdorff distance and folding of weights on labeled pairs",
        ("train.yaml", "evaluate.yaml"),
        (("dataset_dir",),),
    ),
}


def main(words: Sequence[str]) -> None:
    """Run the command that the words after `python -m scripts` name.

    Raises:
        InputError: for a command or a config file that is not there, or with more words than the command takes.
    """
    if "--version" in words:
        print(bundle_version())
        return
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    name, rest = words[0], list(words[1:])
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        raise InputError(
            f"{name}: no such command; {f'did you mean {close[0]}?' if close else 'give one of ' + ', '.join(COMMANDS)}"
        )
    if not rest:
        raise InputError(
            f"{name}: nothing to work on; give {_usage(name)}, or options (python -m scripts {name} --help)."
        )
    configs = _configs_of(name, rest)
    if {"-h", "--help"} & set(rest):
        print(f"python -m scripts {_usage(name)} [--option value ...]", COMMANDS[name].summary, "", sep="\n")
        general = [_CONFIG_HELP, *[_DIMS_HELP] * (name in _BY_DIMS)]
        print("\n".join(general), describe_files(configs), sep="\n\n")
        return
    arguments = _to_bundle_run(name, configs, rest)
    print(f"{name}: loading PyTorch and MONAI ...", flush=True)
    # Nothing that is imported is garbage, and Python would look for some again and again.
    gc.disable()
    with stage("loading"):
        import monai.bundle  # noqa: F401  most of what a run imports; some seconds
    gc.freeze()
    gc.enable()
    # MONAI warns that config files of others may run any code.
    warnings.filterwarnings("ignore", message="parsing config_file")
    sys.argv = arguments
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def _overview() -> str:
    """All commands, a line each."""
    width = max(len(_usage(name)) for name in COMMANDS)
    lines = [f"  {_usage(name):<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "python -m scripts COMMAND [--option value ...]",
            "",
            *lines,
            "",
            "python -m scripts COMMAND --help lists the command's options; --version tells the bundle's version.",
            _CONFIG_HELP,
        ]
    )


def _usage(name: str) -> str:
    """A command and the words that may follow it."""
    ways = [" ".join(option.upper() for option in place) for place in COMMANDS[name].places]
    return f"{name} {' | '.join(ways)}"


def _configs_of(name: str, words: list[str]) -> list[Path]:
    """The command's config files, those of --dims and of --config, which are taken out of the words.

    Raises:
        InputError: for other dims, and for dims that are given twice.
    """
    names = COMMANDS[name].configs
    found = [part for value in _take(words, "--config", "--config_file") for part in value.split(",")]
    if name in _BY_DIMS:
        given = list(_take(words, "--dims"))
        if len(given) > 1:
            raise InputError("--dims: is given twice; give it once.")
        dims = given[0] if given else "2" if found and name == "evaluate" else "3"
        if dims not in _BY_DIMS[name]:
            raise InputError(f"--dims {dims}: give 2, for each slice by itself, or 3, for motion along the stack, too.")
        names += _BY_DIMS[name][dims]
    return [*(_ROOT / "configs" / config for config in names), *map(_find_config, found)]


def _take(words: list[str], *options: str) -> Iterator[str]:
    """The values of an option, which are taken out of the words with it."""
    while found := [word for word in words if word.partition("=")[0] in options]:
        position = words.index(found[0])
        _, equals, value = words.pop(position).partition("=")
        yield value if equals else words.pop(position) if position < len(words) else ""


def _find_config(name: str) -> Path:
    """A config file by its name in configs/ or its path.

    Raises:
        InputError: for none, with the names there are.
    """
    for path in (_ROOT / "configs" / f"{name}.yaml", Path(name)):
        if path.is_file():
            _check_config(path)
            return path
    names = sorted(path.stem for path in (_ROOT / "configs").glob("*.yaml"))
    raise InputError(f"--config {name}: no such file; give the path of one, or a name of {', '.join(names)}.")


def _check_config(path: Path) -> None:
    """Stop at a file that is no config: MONAI's errors do not name it.

    Raises:
        InputError: naming the file.
    """
    import yaml

    if path.suffix not in (".yaml", ".yml", ".json"):
        raise InputError(f"--config {path}: is no config by its name; give a .yaml or .json file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--config {path}: cannot be read as YAML ({reason}); correct it.") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: holds no options by name; give a file of lines such as 'passes: 2'.")


def _to_bundle_run(name: str, configs: Sequence[Path], words: Sequence[str]) -> list[str]:
    """The words of the same run by `python -m monai.bundle`.

    Raises:
        InputError: for more words before the options than the command takes.
    """
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    given, options = words[:first], words[first:]
    places = {len(place): place for place in ((), *COMMANDS[name].places)}
    if len(given) not in places:
        raise InputError(f"{' '.join(given)}: too many or too few words; give {_usage(name)}, and options after them.")
    sources = [word for option, path in zip(places[len(given)], given) for word in (f"--{option}", _plain(path))]
    stray = [word for before, word in pairwise(options) if not word.startswith("-") and not _takes_value(before)]
    if stray:
        raise InputError(
            f"{' '.join(stray)}: belongs to no option; give {_usage(name)}, then options, a value each, in quotes where it "
            "has spaces."
        )
    listed = "[" + ",".join(repr(str(path)) for path in configs) + "]"
    if not any(word.partition("=")[0] == "--bundle_root" for word in options):
        sources = ["--bundle_root", str(_ROOT), *sources]
    return ["monai.bundle", "run", "--config_file", listed, *sources, *options]


def _takes_value(word: str) -> bool:
    """Whether the next word may be the value of this one."""
    return word.startswith("-") and "=" not in word


def _plain(path: str) -> str:
    """A path that is not taken for a number or a list."""
    return path if path.startswith(("/", ".", "@", "$")) else f"./{path}"


if __name__ == "__main__":
    sys.excepthook = report_error
    main(sys.argv[1:])
    # Here, where the hook still hears that nobody reads it.
    sys.stdout.flush()
