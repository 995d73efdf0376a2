"""The commands of the documents: their options are there, and so are the files and modules that they name."""

from __future__ import annotations

import importlib.util
import re
import shlex

import pytest
from conftest import ROOT
from monai.bundle import ConfigParser
from scripts.command_line import check

DOCUMENTS = ("README.md", "docs/README.md", "docs/experiments.md", "docs/performance.md")
NOT_OF_CONFIGS = {"json", "tracking"}


def commands(document: str) -> list[list[str]]:
    """The words of each line of a document's `sh` blocks, comments apart."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    return [
        words
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True))
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_workflows_know_the_options_of_documented_commands(document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(document):
        if "monai.bundle" in words and "run" in words:
            check(words[words.index("run") :])


def test_documented_modules_and_targets_are_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    found = [words for document in DOCUMENTS for words in commands(document)]
    assert len(found) > 25
    for words in found:
        if words[0] == "make":
            assert words[1] in targets
        elif "-m" in words:
            assert importlib.util.find_spec(words[words.index("-m") + 1])


def test_documented_options_are_there() -> None:
    keys = set(NOT_OF_CONFIGS)
    for path in (ROOT / "configs").glob("*.yaml"):
        keys |= set(ConfigParser.load_config_file(path))
    text = (ROOT / "README.md").read_text()
    names = set(re.findall(r"`--(\w+)", text))
    assert len(names) > 20
    assert names <= keys
