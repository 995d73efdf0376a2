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

"""The documents: their commands have options that exist, their links lead somewhere, their snippets run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT, WARM, succeed
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from scripts.__main__ import _configs_of, _to_bundle_run
from scripts.command_line import check
from scripts.registration.losses import WarpedSimilarity
from training_runs import make_pairs, make_unet

DOCUMENTS = ("README.md", "sample/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# Of benchmarks and of the short form.
NOT_OF_CONFIGS = {"dims", "config", "alone", "changes", "depth", "json", "native", "reference", "rehearse", "runs"}
NOT_OF_CONFIGS |= {"size", "tracking"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#]+)\)")


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
        if words[:3] == ["python", "-m", "scripts"]:
            rest = words[4:]
            check(_to_bundle_run(words[3], _configs_of(words[3], rest), rest)[1:])


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
    names = {name for document in DOCUMENTS for name in re.findall(r"`--(\w+)", (ROOT / document).read_text())}
    assert len(names) > 20
    assert names <= keys


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document: str) -> None:
    path = ROOT / document
    targets = [target for target in LINK.findall(path.read_text()) if not target.startswith("https://")]
    assert all((path.parent / target).is_file() for target in targets), targets


def test_the_front_page_is_short_and_links_each_page_once() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) < 9000
    for page in ("README", "inference", "training", "files", "benchmarks"):
        assert LINK.findall(text).count(f"docs/{page}.md") == 1


def test_the_first_registration_of_the_front_page_runs(tmp_path: Path) -> None:
    first = next(words for words in commands("README.md") if words[:3] == ["python", "-m", "scripts"])
    words = [str(tmp_path) if word == "OUT" else word for word in first[1:]]
    assert words[0] == "-m"
    run = WARM.run(words[1], words[2:], ROOT, timeout=300)
    printed = succeed(run).stdout + run.stderr
    (shown,) = re.findall(r"```\n(SC-HF-I-2: .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert all(line in printed for line in shown.replace("OUT", str(tmp_path)).splitlines())
    function = json.loads((tmp_path / "SC-HF-I-2" / "function.json").read_text())
    assert function["lv_ef_percent"] == pytest.approx(25.1, abs=3)  # by hand
    assert (tmp_path / "SC-HF-I-2" / "report.html").stat().st_size > 1e6


def test_the_surgery_of_the_front_page_runs_in_a_trainer_of_ones_own() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    network = make_unet()
    before = [p.detach().clone() for p in network.parameters()]
    batch = make_pairs(2, (16, 16))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": batch, "label": batch}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=WarpedSimilarity(torch.nn.MSELoss()),
        decollate=False,
    )
    found = {"network": network, "trainer": trainer}
    exec(block, found)
    assert 0 <= trainer.state.output["conflict_ratio"] <= 1
    assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), before))
