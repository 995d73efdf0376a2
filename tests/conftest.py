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

"""Data, and commands as users type them, for all tests."""

from __future__ import annotations

import atexit
import copy as copies
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch.distributed as dist
from monai.bundle import ConfigParser
from phantom_cases import prepare_cine, write_cine, write_pair
from scripts.cardiac.phantom import write_phantom_dataset
from scripts.data import nifti
from scripts.training import cache as prepared
from warm_python import WarmPython

gc.disable()  # while tests are collected: nothing that is imported is garbage
# torch.compile looks at all backends that are installed, OpenVINO's too, whose telemetry forks to tell of it.
sys.modules.setdefault("openvino_telemetry", None)
ROOT = Path(__file__).parent.parent
STACK_SHAPE = (12, 10, 3)
CACHE = tempfile.TemporaryDirectory(prefix="prepared_")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1"}
WARM = WarmPython(ENVIRONMENT)
# Options of train.yaml for a training of seconds.
SMALL = {
    "slice_size": [32, 32],
    "crop_size": [32, 32],
    "batch_size": 2,
    "max_epochs": 2,
    "val_interval": 1,
    "device": "cpu",
    "cache_dir": CACHE.name,
}


def pytest_collection_finish() -> None:
    """No search for garbage looks through what is imported by now, least of all the one at the end."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)


@pytest.fixture(scope="session", autouse=True)
def configs_are_parsed_once() -> Iterator[None]:
    """The repository's config files, as often as they are asked for: PyYAML takes a tenth of a second for each."""
    parse = ConfigParser.load_config_file

    @cache
    def parse_once(path: Path) -> dict:
        return parse(path)

    def load(filepath: str | Path, **options: object) -> dict:
        file = Path(filepath).absolute()
        return copies.deepcopy(parse_once(file)) if file.is_relative_to(ROOT) else parse(filepath, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigParser, "load_config_file", staticmethod(load))
        yield


@pytest.fixture(autouse=True)
def nothing_was_said() -> None:
    """What is said once of the files of a data set is said again in each test."""
    nifti._heard.cache_clear()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small phantoms in ACDC's layout: 3 train, 1 val, 1 test."""
    return write_phantom_dataset(
        tmp_path_factory.mktemp("data") / "phantoms", subjects=5, size=(40, 36), slices=2, frames=4, progress=False
    )


@pytest.fixture
def copy(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms in a folder that a test may change."""
    return Path(shutil.copytree(phantoms, tmp_path / "data"))


@pytest.fixture(scope="session")
def mms(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms in the published layout of M&Ms: 4-D files, labels LV 1 and RV 3, frames counted from 0; 3 train, 1
    val, 1 test."""
    root = tmp_path_factory.mktemp("data") / "mms"
    places = dict(
        zip(
            sorted(path.name for path in phantoms.glob("phantom*/")),
            ["Training/Labeled"] * 3 + ["Validation", "Testing"],
        )
    )
    lines = [",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
    for number, (code, place) in enumerate(places.items()):
        folder = root / place / code
        folder.mkdir(parents=True)
        info = dict(line.split(": ") for line in (phantoms / code / "Info.cfg").read_text().splitlines())
        cine = nib.load(phantoms / code / f"{code}_4d.nii.gz")
        labels = np.zeros(cine.shape, np.uint8)
        for phase in ("ED", "ES"):
            label = nib.load(phantoms / code / f"{code}_frame{int(info[phase]):02d}_gt.nii.gz")
            labels[..., int(info[phase]) - 1] = np.array([0, 3, 2, 1])[np.asarray(label.dataobj, int)]
        nib.save(cine, folder / f"{code}_sa.nii.gz")
        nib.save(nib.Nifti1Image(labels, cine.affine), folder / f"{code}_sa_gt.nii.gz")
        lines.append(f"{number},{code},Philips,B,2,{int(info['ED']) - 1},{int(info['ES']) - 1},50,NOR,F,170,70")
    (root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def cine_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cine(tmp_path_factory.mktemp("cine"))


@pytest.fixture(scope="module")
def item(cine_path: Path) -> dict:
    return prepare_cine(cine_path)


@pytest.fixture
def array() -> np.ndarray:
    """Voxels of a cine (X, Y, Z, T) in whole numbers."""
    return np.random.default_rng(0).integers(0, 3000, (7, 6, 3, 5)).astype(np.int16)


@pytest.fixture
def stack() -> np.ndarray:
    """Voxels of a stack of slices (X, Y, Z) in whole numbers."""
    return np.random.default_rng(0).integers(0, 4000, STACK_SHAPE).astype(np.int16)


@pytest.fixture
def pair_paths(tmp_path: Path) -> dict[str, str]:
    return write_pair(tmp_path)


@pytest.fixture(scope="session")
def acdc() -> Path:
    """The ACDC subjects beside the repository, where they are there."""
    folder = ROOT.parent / "shared" / "data" / "acdc"
    if not folder.is_dir():
        pytest.skip(f"no ACDC data in {folder.parent}")
    return folder


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of scripts/ for `cache.source_code`, whose files a test may change."""
    root, skipped = tmp_path / "bundle", shutil.ignore_patterns("__pycache__")
    for package in prepared.PACKAGES:
        shutil.copytree(prepared.ROOT / package, root / package, ignore=skipped)
    monkeypatch.setattr(prepared, "ROOT", root)
    return root / "scripts"


def change_code(path: Path) -> None:
    path.write_text(path.read_text() + "\n# changed\n")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """This process as a group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0]) if affine is None else affine), path)
    return path


def write_options(options: Mapping[str, object]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", str(value).replace(" ", ""))]


def bundle_command(*words: object, processes: int = 0, **options: object) -> list[str]:
    """`python -m monai.bundle run` with words and --options, or torchrun's counterpart for a number of processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes else []
    return [sys.executable, *torchrun, "-m", "monai.bundle", "run", *map(str, words), *write_options(options)]


def run_bundle(*words: object, cwd: Path = ROOT, processes: int = 1, **options: object) -> subprocess.CompletedProcess:
    """Run `bundle_command` from the bundle's root; returns what it printed. Several processes know of each other as
    torchrun's do."""
    words = ["run", *map(str, words), *write_options(options)]
    return WARM.run("monai.bundle", words, cwd, timeout=300, processes=processes)


def succeed(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-1000:]
    return result


def last_line(result: subprocess.CompletedProcess) -> str:
    """The last line on stderr of a command that failed."""
    assert result.returncode != 0, result.stdout[-2000:]
    return result.stderr.strip().splitlines()[-1]


def count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


@pytest.fixture(scope="session")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A folder with the outputs of a short training, and what the command printed."""
    output = tmp_path_factory.mktemp("trained")
    result = run_bundle(config_file="configs/train.yaml", dataset_dir=phantoms, output_dir=output, **SMALL)
    return output, succeed(result)
