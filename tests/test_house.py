"""The rules of the house, read off the tree: arrows point down, configs name what exists, every option is explained."""

from __future__ import annotations

import ast
import importlib
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

ROOT = Path(__file__).parent.parent
PURE = ("surgery", "fields", "metrics", "losses", "networks")
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
CONFIGS = sorted(str(path.relative_to(ROOT / "configs"))[:-5] for path in (ROOT / "configs").rglob("*.yaml"))


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_no_engine_file_format_or_config(module: str) -> None:
    names = imported(ROOT / "scripts" / f"{module}.py")
    for foreign in (
        "ignite",
        "nibabel",
        "itk",
        "yaml",
        "monai.bundle",
        "monai.engines",
        "monai.data",
        "scripts.handlers",
    ):
        assert not any(name == foreign or name.startswith(f"{foreign}.") for name in names)


def arrows() -> dict[str, set[str]]:
    """The modules of `scripts` that each of them imports."""
    names = {path.stem: imported(path) for path in (ROOT / "scripts").glob("*.py")}
    return {module: {name[8:] for name in found if name.startswith("scripts.")} for module, found in names.items()}


def test_no_arrow_comes_back() -> None:
    TopologicalSorter(arrows()).prepare()  # raises a CycleError that names the modules


@pytest.mark.parametrize("start", ["cases", "frames", "datasets", "networks", "inferers", "surgery"])
def test_what_reads_and_computes_knows_neither_scores_nor_reports(start: str) -> None:
    reached, left = set(), [start]
    while left:
        module = left.pop()
        if module not in reached:
            reached.add(module)
            left += arrows()[module]
    assert not reached & {"registration", "writers", "report", "figures", "evaluation", "quality", "strain", "function"}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_heavy_packages_are_imported_where_used(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path, top_level_only=True)} & set(OPTIONAL)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_modules_have_tests_and_docstrings(path: Path) -> None:
    if path.stem not in ("__init__", "errors"):
        assert ast.get_docstring(ast.parse(path.read_text()))
        assert (ROOT / "tests" / f"test_{path.stem}.py").is_file()


def test_configs_name_what_exists() -> None:
    for name in CONFIGS:
        text = (ROOT / "configs" / f"{name}.yaml").read_text()
        for module, member in re.findall(r"scripts\.(\w+)\.(\w+)", text):
            assert hasattr(importlib.import_module(f"scripts.{module}"), member), (
                f"{name}.yaml: scripts.{module}.{member}"
            )


@pytest.mark.parametrize("name", ["train", "inference"])
def test_every_plain_option_has_a_comment(name: str) -> None:
    config = ConfigParser.load_config_file(str(ROOT / "configs" / f"{name}.yaml"))
    lines = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()
    for key, value in config.items():
        if (
            isinstance(value, (dict, list))
            or str(value).startswith(("@", "$@", "$scripts.checkpoints", "$scripts.datalists"))
            or key == "seed"
        ):
            continue
        line = next(line for line in lines if line.startswith(f"{key}:"))
        assert "#" in line, f"{name}.yaml: {key} has no comment"


def test_metadata_at_the_top_is_the_one_in_configs() -> None:
    assert (ROOT / "metadata.json").resolve() == (ROOT / "configs" / "metadata.json").resolve()


def test_changelogs_hold_the_version() -> None:
    metadata = ConfigParser.load_config_file(str(ROOT / "configs" / "metadata.json"))
    assert metadata["version"] in metadata["changelog"]
    assert f"## {metadata['version']}" in (ROOT / "CHANGELOG.md").read_text()
