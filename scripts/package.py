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

"""The bundle as one zip, as the model zoo serves it: regular files under one folder.

Its README is `docs/README.md`; that of the root has the repository's commands. `monai.bundle.load` and MONAI's clients
of federated learning look for configs in JSON, so that each of `configs/` is there in JSON, too.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

from monai.bundle import ConfigParser
from scripts.files import whole_file

ROOT = Path(__file__).parent.parent
FOLDERS = ("configs", "scripts", "models")
FILES = ("LICENSE", "CHANGELOG.md", "requirements.txt", "metadata.json")
# Of `docs`: not the pages of what the repository alone has.
DOCS = (
    "README.md",
    "inference.md",
    "training.md",
    "segmentation.md",
    "verdict.md",
    "files.md",
    "data_license.txt",
    "figures/heartbeat.png",
)
LEFT_OUT = (".pyc", ".ts", ".onnx")  # the last two are exports of a user's own


def build_zip(path: str | Path, name: str) -> Path:
    """Write the bundle to a zip whose one folder is `name`; links are followed, caches and exports left out.

    Args:
        path: zip to write; replaced where it is there.
        name: the bundle's name in the zoo.
    """
    path = Path(path)
    members = [*(ROOT / name for name in FILES), *(ROOT / "docs" / name for name in DOCS)]
    for folder in FOLDERS:
        members += sorted(p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix not in LEFT_OUT)
    with whole_file(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.write(member, f"{name}/{member.relative_to(ROOT)}")
            if member.parent.name == "configs" and member.suffix == ".yaml":
                twin = zipfile.ZipInfo(f"{name}/configs/{member.stem}.json")
                twin.external_attr = 0o644 << 16
                archive.writestr(twin, _as_json(member), zipfile.ZIP_DEFLATED)
    return path


def _as_json(config: Path) -> str:
    """A YAML config in JSON, laid out as the zoo's hooks lay it out."""
    return json.dumps(ConfigParser.load_config_file(config), indent=4) + "\n"


def main() -> None:
    """Command line of `build_zip`."""
    parser = argparse.ArgumentParser(description=build_zip.__doc__.splitlines()[0])
    parser.add_argument("path", help="zip to write")
    parser.add_argument("--name", default="gsmorph_cardiac_registration", help="the bundle's name")
    arguments = parser.parse_args()
    print(build_zip(arguments.path, arguments.name))


if __name__ == "__main__":
    main()
