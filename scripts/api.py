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

"""Registration from Python: the inference workflow without its files.

from scripts.api import register, register_cine

result = register_cine("C_4d.nii.gz", reference_label="C_ED_gt.nii.gz", reference_frame=1)
print(result.function["lv_ef_percent"], result.quality["verdict"])
"""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigParser, ConfigWorkflow
from scripts.cardiac.cines import CineRegistration
from scripts.command_line import check_path
from scripts.devices import settings_kept
from scripts.errors import InputError, first_cause

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "inference.yaml"


def register_cine(cine: str | Path, **options: object) -> CineRegistration:
    """Register every frame of a cine to its reference frame, with the shipped weights.

    Args:
        cine: a 4-D NIfTI file, or a folder of DICOM files that holds one stack.
        options: any top-level key of `configs/inference.yaml` but `bundle_root`, such as `reference_frame`,
            `reference_label`, `points`, `device`, or `output_dir`, without which nothing is written.

    Returns:
        What the workflow would write: fields in voxels of the reference frame, inverses, moved images, labels,
        function, strain, quality.

    Raises:
        InputError: naming file or option and the cure.
    """
    return run_one(cine=cine, **options)


def register(moving: str | Path, fixed: str | Path, **options: object) -> CineRegistration:
    """Register a moving to a fixed stack of slices (3-D NIfTI files); T = 1 in the result. Options and errors as in
    `register_cine`."""
    return run_one(moving=moving, fixed=fixed, **options)


@settings_kept()
def run_one(**options: object) -> CineRegistration:
    """The registration of the one case that the options give."""
    unknown = set(options) - (set(ConfigParser.load_config_file(str(CONFIG))) - {"bundle_root"})
    if unknown:
        raise InputError(f"{', '.join(sorted(unknown))}: no such option; they are the top-level keys of {CONFIG.name}.")
    for name, value in {"bundle_root": ROOT, **options}.items():
        check_path(name, value)
    workflow = ConfigWorkflow(
        config_file=str(CONFIG),
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(ROOT),
        # Nothing is written, unless asked for.
        **{"output_dir": None}
        | {key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
    )
    try:
        workflow.initialize()
        workflow.parser.get_parsed_content("check_source")
        cases = workflow.parser.get_parsed_content("data")
        if len(cases) != 1:
            raise InputError("give one case: a cine, or a moving and a fixed image.")
        evaluator = workflow.parser.get_parsed_content("evaluator")
        evaluator.run()
    except Exception as error:
        # MONAI and ignite chain their own errors after the first one.
        raise first_cause(error) from None
    return evaluator.state.output[0]["registration"]
