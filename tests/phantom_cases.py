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

"""A phantom as the cases that inference is asked to register, for conftest.py, test_frames.py and test_registration.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, CopyItemsd
from scripts.cardiac.phantom import Phantom, write_phantom
from scripts.data.cases import find_cases
from scripts.data.loading import LoadCase, PairFrames
from scripts.data.preprocessing import ScaleSlicesd

PHANTOM = Phantom.random((0, 1), size=(48, 44), slices=3, frames=5)
T, Z = 5, 3


def prepare(item: Mapping, resample_moving: bool = False) -> dict:
    """What the network is handed of a case, as the workflow makes it."""
    names = ["moving", "fixed"]
    copies = CopyItemsd(names, names=["moving_image", "fixed_image"])
    transforms = Compose([LoadCase(resample_moving), copies, ScaleSlicesd(names), PairFrames()])
    (batch,) = DataLoader(Dataset([dict(item)], transforms), batch_size=1)
    return decollate_batch(batch)[0]


def write_cine(folder: Path) -> Path:
    """The phantom as a cine, its first frame's label beside it."""
    path = folder / "heart_4d.nii.gz"
    cine = np.stack([PHANTOM.image(t).round() for t in range(1, T + 1)], axis=-1).astype(np.int16)
    write_phantom(path, cine, PHANTOM)
    write_phantom(path.with_name("label.nii.gz"), PHANTOM.label(1), PHANTOM)
    return path


def prepare_cine(path: Path) -> dict:
    label = path.with_name("label.nii.gz")
    return prepare(find_cases(cine=str(path), reference_frame=1, reference_label=str(label))[0])


def write_pair(folder: Path) -> dict[str, str]:
    """The phantom's third and first frame, and the label of the third."""
    paths = {}
    for name, array in (("moving", PHANTOM.image(3)), ("fixed", PHANTOM.image(1)), ("moving_label", PHANTOM.label(3))):
        paths[name] = str(folder / f"{name}.nii.gz")
        write_phantom(Path(paths[name]), array.astype(np.float32), PHANTOM)
    return paths
