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

"""What options may be: a table judges them, alone and together."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from pydoc import locate

import pytest
from conftest import ROOT
from monai.bundle import ConfigParser
from scripts.errors import InputError
from scripts.options import KEPT, RULES, check_option, check_options, names_of, require_one

BAD = {
    "max_epochs": [0, -2, 1.5, "4", None, True],
    "seed": [-1, 1.5, None],
    "fold": [2, [2, 2], [0], "0,2"],
    "segmentations": ["A.pt", ["A.pt"], [1, 2]],
    "label_values": [7, [1, 2], [1, 1, 2], "x"],
    "augmentation::drop_maps": [-0.1, 2, None],
    "averaging": [0, -1.0, math.nan, 1.5, "abc", None, True],
    "learning_rate": [0, math.inf + -math.inf, "abc"],
    "inferer::learning_rate": [0.0, -1.0],
    "inferer::smoothing": [-1.0, math.nan],
    "refine_iterations": [1.5, -3, "ten", True],
    "val_interval": [0, -1, 2.5, True, None],
    "reference_frame": [0, 1.5, "ED", True],
    "sector_origin": ["north", math.nan, math.inf, True],
    "working_spacing": [0, 0.001, -1.5, 3000, math.nan, True, "native"],
    "clip_percentile": [0, -5, 101, "99", True, None],
    "crop_size": [32, [64], [64, 0], [64, 6.5]],
    "slice_size": [[100_000, 100_000], [64, 2049]],
    "augmentation::size": [[4096, 4096]],
    "network_def::backbone::hidden": [0, 10**9],
    "direction": ["up", None],
    "write": ["", "fields,all", None, 3, []],
    "bf16": ["maybe", 1, None],
    "strategy": ["best"],
    "tau": [-1e-5, math.nan, math.inf],
    "augmentation::zoom": [-5, "much"],
    "cine": [2, ["a.nii.gz"], True, "", " ", "a#b.nii.gz", "a\0b"],
    "output_dir": ["", False, "False", 7],
}
GOOD = {
    "max_epochs": [1, 300],
    "seed": [0],
    "fold": [None, [0, 2]],
    "segmentations": [None, ["A.pt", "B.pt"]],
    "label_values": [None, [3, 2, 1], [None, None, 1]],
    "augmentation::drop_maps": [0, 0.5, 1],
    "averaging": [1, 1e-3],
    "reference_frame": [None, 1],
    "sector_origin": [None, -30, 12.5],
    "working_spacing": [False, None, 1, 1.5],
    "clip_percentile": [100, 99.0],
    "crop_size": [[64, 32], (128, 128), [2048, 2048]],
    "network_def::backbone::hidden": [1, 4096],
    "write": [KEPT, "fields", "fields, report", ["moved"]],
    "cine": [None, False, "a.nii.gz", Path("a")],
    "output_dir": [None, "@bundle_root + '#'"],
    "anything_else": [object()],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_what_an_option_cannot_be_is_refused_in_one_line(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^--{name}") as caught:
        check_option(name, value)
    assert "\n" not in str(caught.value)
    assert any(
        cure in str(caught.value) for cure in ("give", "write", "name one", "rename", "such as", "got", "correct")
    )


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in GOOD for value in GOOD[name]])
def test_what_an_option_can_be_passes(name: str, value: object) -> None:
    check_option(name, value)


def test_a_huge_value_is_shortened() -> None:
    with pytest.raises(InputError) as caught:
        check_option("max_epochs", "many " * 10_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("workflow", "options", "words"),
    [
        ("training", {"crop_size": [64, 64], "slice_size": [64, 32]}, r"--crop_size \[64, 64\]: is larger than"),
        ("training", {"amp": True, "device": "cpu"}, "--amp True: needs a CUDA device, not cpu; leave it out"),
        ("training", {"graph": True, "device": "cpu"}, "--graph True: needs a CUDA device, not cpu"),
        ("training", {"graph": True, "amp": True, "device": "cuda:0"}, "a step with amp is not recorded; give one"),
        ("training", {"graph": True, "compile": True, "device": "cuda:0"}, "a step with compile is not recorded"),
        ("training", {"compile": True, "device": "cpu"}, "--compile True: there is no C.. compiler"),
        ("inference", {"tf32": True, "device": "cpu"}, "--tf32 True: needs a CUDA device"),
        ("inference", {"points": "p.csv", "dataset_dir": "D"}, "--points: belongs to one case; give it with --cine"),
        ("inference", {"moving_label": "l.nii.gz", "cine": "c"}, "--moving_label: belongs to one pair"),
        ("inference", {"reference_frame": 2, "moving": "a", "fixed": "b"}, "--reference_frame: belongs to cines"),
        ("inference", {"reference_label": "l", "dataset_dir": "D"}, "--reference_label: belongs to one cine"),
        ("inference", {"series": 3, "cine": "FILE"}, "--series: belongs to a folder of DICOM files"),
        ("inference", {"plane": "XYZ", "cine": "FILE"}, "--plane XYZ: must be one of SAX"),
        ("inference", {"fixed": "b"}, "--moving and --fixed: give both or neither"),
        ("apply_field", {"moving": "a"}, "--field: is missing"),
        ("apply_field", {"field": "f.nii.gz"}, "--field: needs something to move"),
        ("inference", {"device": "meta"}, "--device meta: no such device here; use one of cpu"),
        ("training", {"output_dir": "FILE/out"}, "FILE is a file; give another --output_dir"),
        ("training", {"output_dir": "FILE"}, "FILE is a file; give another --output_dir"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    workflow: str, options: dict, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "nothing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    check = {"inference": {"cine": "c.nii.gz"}, "training": {"dataset_dir": "D"}}.get(
        workflow, {"field": "f", "moving": "m"}
    )
    check_options(workflow, **check)
    with pytest.raises(InputError, match=words):
        check_options(workflow, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"], "nothing is made"


@pytest.mark.parametrize("label", ["auto", "none", None])
def test_a_label_that_is_no_file_goes_with_any_source(label: str | None) -> None:
    for source in ({"cine": "c"}, {"dataset_dir": "D"}, {"moving": "a", "fixed": "b"}):
        check_options("inference", reference_label=label, **source)


@pytest.mark.parametrize("name", ["train", "inference", "apply_field", "segmentation"])
def test_every_option_of_a_workflow_is_judged(name: str) -> None:
    """Each top-level key that has a plain value and that help shows, or whose default is computed."""
    config = ConfigParser.load_config_file(str(ROOT / "configs" / f"{name}.yaml"))
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    options = text[text.index("# --- ") : text.index("# --- wiring")]
    names = {key for key in config if f"\n{key}:" in options}
    judged = config["check_options"].keys() - {"_target_", "workflow"}
    parts = {"network_def", "integration", "similarity", "smoothness", "warp", "augmentation", "network"}
    assert names - parts == judged
    assert all(config["check_options"][key] == f"@{key}" for key in judged)


def test_rules_of_parts_are_of_settings_that_exist() -> None:
    names = ("train", "inference")
    configs = [ConfigParser.load_config_file(str(ROOT / "configs" / f"{name}.yaml")) for name in names]
    for path in RULES:
        top, *inner = path.split("::")
        settings = [config[top] for config in configs if top in config] if inner else []
        for part in inner[:-1]:
            settings = [setting[part] for setting in settings]
        targets = [inspect.signature(locate(setting["_target_"])).parameters for setting in settings]
        assert not inner or any(inner[-1] in target for target in targets), path


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"moving": None, "dataset_dir": None}, "give exactly one of --moving with --fixed, --dataset_dir; got none"),
        ({"moving": "a", "dataset_dir": "b"}, "got --moving and --dataset_dir"),
    ],
)
def test_exactly_one_source(sources: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        require_one(**sources)
    require_one(moving="a", dataset_dir=None)


def test_names_come_as_a_list_or_with_commas() -> None:
    assert names_of("a, b") == names_of(["a", "b"]) == ("a", "b")
    assert names_of(3) == ()
