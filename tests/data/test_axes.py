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

"""Slices and frames that are exchanged are seen in the image: no real cine looks so, each does when exchanged."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantom_cases import PHANTOM, prepare
from scripts.cardiac.phantom import Phantom, write_phantom
from scripts.data.axes import are_exchanged

from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
REAL = [ROOT / "sample", *(DATA / name for name in ("acdc_cines", "scd", "acdc", "long_axis"))]


def cine_of(phantom: Phantom) -> np.ndarray:
    return np.stack([phantom.image(t) for t in range(1, phantom.frames + 1)], axis=-1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("slices", "frames"), [(2, 3), (3, 12), (8, 8), (10, 4)])
def test_a_phantom_is_told_from_its_exchange(seed: int, slices: int, frames: int) -> None:
    cine = cine_of(Phantom.random((0, seed), size=(48, 48), slices=slices, frames=frames))
    assert not are_exchanged(cine)
    assert are_exchanged(np.swapaxes(cine, 2, 3)) or frames < 8  # so few may part as slices do


def test_noise_and_a_single_slice_tell_nothing() -> None:
    noise = np.random.default_rng(0).random((64, 64, 6, 6))
    assert not are_exchanged(noise)
    assert not are_exchanged(noise[:, :, :1])
    assert not are_exchanged(np.zeros((8, 8, 3, 3)))


@pytest.mark.parametrize("folder", REAL, ids=lambda folder: folder.name)
def test_real_cines(folder: Path) -> None:
    paths = sorted(folder.rglob("*_4d.nii.gz"))[::8]
    if not paths:
        pytest.skip("the data is not here")
    for path in paths:
        cine = np.asarray(nib.load(path).dataobj)
        assert not are_exchanged(cine), path
        assert cine.shape[2] == 1 or are_exchanged(np.swapaxes(cine, 2, 3)), path


def test_a_file_of_exchanged_axes_is_doubted_with_the_cure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cine = cine_of(Phantom.random((0, 1), size=(48, 48), slices=3, frames=12))
    for name, array in (("right", cine), ("exchanged", np.swapaxes(cine, 2, 3))):
        write_phantom(tmp_path / f"{name}.nii.gz", array.round().astype(np.int16), PHANTOM)
    right, exchanged = (
        prepare({"cine": str(tmp_path / f"{name}.nii.gz"), "reference": 1, "case": "a"})
        for name in ("right", "exchanged")
    )
    assert "doubts" not in right
    assert "are slices and frames exchanged?" in exchanged["doubts"]
    (line,) = (record.message for record in caplog.records if "swapaxes(2, 3)" in record.message)
    assert line.startswith(f"{tmp_path}/exchanged.nii.gz: its third axis of 12 changes as frames do")
    # The cure is one.
    img = nib.load(tmp_path / "exchanged.nii.gz")
    cured = nib.Nifti1Image(img.dataobj[:].swapaxes(2, 3), img.affine)
    assert not are_exchanged(cured.get_fdata())
