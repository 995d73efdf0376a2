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

"""The zip of the zoo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from monai.bundle import ConfigParser
from scripts import package
from scripts.package import build_zip


def test_zip_holds_regular_files_of_the_bundle(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_zip(tmp_path / "a" / "bundle.zip", "bundle")) as archive:
        members = {entry.filename: entry for entry in archive.infolist()}
        assert all(name.startswith("bundle/") for name in members)
        # Not links: MONAI unpacks those as text.
        assert all((entry.external_attr >> 28) != 0xA for entry in members.values())
        assert all((entry.external_attr >> 16) & 0o444 == 0o444 for entry in members.values())
        assert b"CC BY-NC-SA" in archive.read("bundle/LICENSE")
        assert json.loads(archive.read("bundle/metadata.json")) == json.loads(
            (ROOT / "configs" / "metadata.json").read_text()
        )
    tracked = subprocess.run(["git", "ls-files", *package.FOLDERS], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        assert {f"bundle/{name}" for name in tracked.stdout.split()} <= members.keys()
    assert len({name.casefold() for name in members}) == len(members)
    assert max(entry.file_size for entry in members.values()) <= 25e6  # larger ones the zoo hosts elsewhere
    assert not any("__pycache__" in name or "/sample/" in name for name in members)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["bundle.zip"]


def test_every_config_has_a_twin_in_json(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_zip(tmp_path / "bundle.zip", "bundle")) as archive:
        archive.extractall(tmp_path)
    configs = sorted((ROOT / "configs").glob("*.yaml"))
    assert {"train", "evaluate", "inference"} <= {config.stem for config in configs}
    for config in configs:
        twin = tmp_path / "bundle" / "configs" / f"{config.stem}.json"
        assert ConfigParser.load_config_file(twin) == ConfigParser.load_config_file(config)
    command = [Path(sys.executable).with_name("pretty-format-json"), "--no-sort-keys", "--indent=4"]
    subprocess.run([*command, *(tmp_path / "bundle" / "configs").glob("*.json")], check=True)


def test_documents_of_the_zip_speak_of_what_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_zip(tmp_path / "bundle.zip", "bundle")) as archive:
        archive.extractall(tmp_path)
    pages = sorted((tmp_path / "bundle" / "docs").glob("*.md"))
    assert len(pages) == 6
    for page in pages:
        text = page.read_text()
        assert not re.search(r"\bmake [a-z]|benchmarks|\btests/|experiments|performance\.md", text), page.name
        targets = re.findall(r"\]\(([^)#:]+)\)", text)
        assert all((page.parent / target).is_file() for target in targets), page.name


def test_exports_and_caches_stay_out_of_the_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [*package.FILES, *(f"docs/{name}" for name in package.DOCS), "models/model.pt"]
    kept += [f"{folder}/kept.py" for folder in package.FOLDERS]
    for name in (*kept, "models/model.ts", "models/model.onnx", "scripts/__pycache__/kept.cpython-311.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.setattr(package, "ROOT", tmp_path)
    with zipfile.ZipFile(build_zip(tmp_path / "bundle.zip", "bundle")) as archive:
        assert set(archive.namelist()) == {f"bundle/{name}" for name in kept}
