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

"""The rules of the house, read off the tree: arrows point down, configs name what exists, every option is explained."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scripts"
PURE = (
    "surgery/rules",
    *(
        f"registration/{name}"
        for name in ("fields", "depth", "shifts", "metrics", "losses", "networks", "inferers", "refinement")
    ),
)
# Rooms from the ground up: none imports from a level above its own.
LEVELS = ({"surgery"}, {"registration"}, {"data", "cardiac", "report"}, {"training", "workflow"})
MODULES = sorted(
    str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"
)
OPTIONAL = (
    "itk",
    "matplotlib",
    "tensorboard",
    "mlflow",
    "onnx",
    "onnxruntime",
    "openvino",
    "pydicom",
    "jinja2",
    "PIL",
    "contourpy",
)
CONFIGS = sorted(
    str(path.relative_to(ROOT)) for place in ("configs", "benchmarks") for path in (ROOT / place).rglob("*.yaml")
)


@cache
def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_no_engine_file_format_or_config(module: str) -> None:
    names = imported(PACKAGE / f"{module}.py")
    for foreign in (
        "ignite",
        "nibabel",
        "itk",
        "yaml",
        "monai.bundle",
        "monai.engines",
        "monai.data",
        "scripts.training.handlers",
    ):
        assert not any(name == foreign or name.startswith(f"{foreign}.") for name in names)


@cache
def arrows() -> dict[str, set[str]]:
    """The modules of `scripts` that each of them imports, as paths without suffix."""
    found = {}
    for module in MODULES:
        names = {name.removeprefix("scripts.").replace(".", "/") for name in imported(PACKAGE / f"{module}.py")}
        found[module] = names & set(MODULES)
    return found


def test_no_arrow_comes_back() -> None:
    TopologicalSorter(arrows()).prepare()  # raises a CycleError that names the modules


def test_no_room_knows_one_above_it() -> None:
    level = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
    for module, others in arrows().items():
        room = module.rpartition("/")[0]
        above = [other for other in others if level.get(other.rpartition("/")[0], -1) > level.get(room, len(LEVELS))]
        assert not above, f"{module} imports {above}"


@pytest.mark.parametrize(
    "start",
    [
        *("data/cases", "data/loading", "training/datasets"),
        *("registration/networks", "registration/inferers", "surgery/rules"),
    ],
)
def test_what_reads_and_computes_knows_neither_scores_nor_reports(start: str) -> None:
    reached, left = set(), [start]
    while left:
        module = left.pop()
        if module not in reached:
            reached.add(module)
            left += arrows()[module]
    measures = {"training/evaluation", "cardiac/quality", "cardiac/strain", "cardiac/function"}
    assert not [module for module in reached if module in measures or module.startswith(("workflow/", "report/"))]


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_where_used(module: str) -> None:
    names = imported(PACKAGE / f"{module}.py", top_level_only=True)
    assert not {name.split(".")[0] for name in names} & set(OPTIONAL)


@pytest.mark.parametrize("module", MODULES)
def test_modules_have_tests_and_docstrings(module: str) -> None:
    room, _, name = module.rpartition("/")
    if name != "errors":
        assert ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text()))
        assert (ROOT / "tests" / room / f"test_{name.strip('_')}.py").is_file()


def test_scripts_bear_the_header_of_monai() -> None:
    headers = {path.read_text().split("\n\n")[0].strip() for path in PACKAGE.rglob("*.py")}
    assert len(headers) == 1
    assert headers.pop().startswith(
        "# Copyright (c) MONAI Consortium\n# Licensed under the Apache License, Version 2.0"
    )


def texts(config: object) -> Iterator[str]:
    """Every text in a config, and every key."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(config, list):
        for value in config:
            yield from texts(value)
    elif isinstance(config, str):
        yield config


def components(config: object) -> Iterator[dict]:
    """Every part of a config that names a target."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        config = list(config.values())
    for value in config if isinstance(config, list) else []:
        yield from components(value)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_name_what_exists(name: str) -> None:
    for part in components(yaml.safe_load((ROOT / name).read_text())):
        module, _, member = part["_target_"].rpartition(".")
        if module.startswith(("scripts", "benchmarks")):
            target = getattr(importlib.import_module(module), member)
            taken = inspect.signature(target).parameters
            given = {key for key in part if not key.startswith("_")}
            assert given <= set(taken) or any(p.kind is p.VAR_KEYWORD for p in taken.values()), part


JOINED = re.compile(r"(bundle_root|output_dir) \+ '/[^']+'")


def is_wiring(node: ast.AST) -> bool:
    """Whether an expression only wires: a name, a constant, a list, an attribute, a call of such, or a path joined to one of
    the two folders."""
    if isinstance(node, (ast.Name, ast.Constant)):
        return True
    if isinstance(node, ast.Attribute):
        return is_wiring(node.value)
    if isinstance(node, ast.List):
        return all(map(is_wiring, node.elts))
    if isinstance(node, ast.Call):
        return all(map(is_wiring, (node.func, *node.args, *(keyword.value for keyword in node.keywords))))
    return JOINED.fullmatch(ast.unparse(node)) is not None or ast.unparse(node) in ("lambda x: x['loss']", "rank > 0")


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_wire_and_do_not_compute(name: str) -> None:
    for text in texts(yaml.safe_load((ROOT / name).read_text())):
        if text.startswith("$import "):
            continue
        assert not re.search(r"(::|#)\d", text), f"{name}: {text} refers to a list item by its number"
        if text.startswith("$"):
            # MONAI's references are names.
            expression = re.sub(r"@([\w:]+)", lambda found: found[1].replace("::", "__"), text[1:])
            assert is_wiring(
                ast.parse(expression, mode="eval").body
            ), f"{name}: {text} computes; give it a name in Python"


@pytest.mark.parametrize(
    "text", ["1 + 1", "a if b else c", "a and b", "[x for x in y]", "output_dir + name", "lambda x: x", "seed + rank"]
)
def test_what_computes_is_seen(text: str) -> None:
    assert not is_wiring(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize("name", ["train", "inference"])
def test_every_plain_option_has_a_comment(name: str) -> None:
    config = ConfigParser.load_config_file(str(ROOT / "configs" / f"{name}.yaml"))
    lines = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()
    for key, value in config.items():
        if isinstance(value, (dict, list)) or str(value).startswith(("@", "$@")) or key == "seed":
            continue
        line = next(line for line in lines if line.startswith(f"{key}:"))
        assert "#" in line, f"{name}.yaml: {key} has no comment"


def test_metadata_at_the_top_is_the_one_in_configs() -> None:
    assert (ROOT / "metadata.json").resolve() == (ROOT / "configs" / "metadata.json").resolve()


def test_changelogs_hold_the_version() -> None:
    metadata = ConfigParser.load_config_file(str(ROOT / "configs" / "metadata.json"))
    assert metadata["version"] in metadata["changelog"]
    released = re.findall(r"^## (\d\S*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert metadata["version"] == released[0]
