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

"""Tags are seen in the image, whatever their direction; images without them have none."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti
from phantom_cases import PHANTOM, prepare
from scripts.cardiac.phantom import Phantom, write_phantom
from scripts.data.loading import LoadCase
from scripts.data.tags import has_tags

from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"


def tagged(image: np.ndarray, spacing: tuple[float, float], degrees: float, distance: float) -> np.ndarray:
    """An image (X, Y, Z) with dark lines by SPAMM of 1-2-1 pulses: cos² profiles, `distance` mm apart."""
    x, y = np.meshgrid(*(np.arange(n) * s for n, s in zip(image.shape, spacing)), indexing="ij")
    along = x * np.cos(np.deg2rad(degrees)) + y * np.sin(np.deg2rad(degrees))
    return image * (1 - 0.6 * np.cos(np.pi * along / distance)[..., None] ** 4)


def test_a_tagged_cine_is_doubted_and_has_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    phantom = Phantom.random((0, 0), size=(128, 120), slices=3, frames=3)
    cine = np.stack([tagged(phantom.image(t), phantom.spacing[:2], 37, 6.0) for t in (1, 2, 3)], axis=-1)
    path = tmp_path / "a.nii.gz"
    write_phantom(path, cine.round().astype(np.int16), phantom)
    doubt = LoadCase()({"cine": str(path), "reference": 1, "case": "a"})["doubts"]
    assert doubt.startswith("Regular lines cross the image")
    assert f"{path}: {doubt}" in [record.message for record in caplog.records]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("degrees", [0, 37, 90, 135])
@pytest.mark.parametrize("distance", [5.0, 8.0])
def test_lines_and_grids_on_a_phantom(seed: int, degrees: float, distance: float) -> None:
    image, spacing = Phantom.random((0, seed), size=(128, 120), slices=3, frames=4).image(1), (1.5, 1.4)
    lines = tagged(image, spacing, degrees, distance)
    assert not has_tags(image, spacing)
    assert has_tags(lines, spacing)
    assert has_tags(tagged(lines, spacing, degrees + 90, distance), spacing)


def test_noise_and_what_has_no_such_frequencies_has_none() -> None:
    assert not has_tags(np.random.default_rng(0).random((64, 64, 3)), (1.5, 1.5))
    assert not has_tags(np.zeros((32, 32, 2)), (1.5, 1.5))
    assert not has_tags(np.random.default_rng(0).random((8, 8, 1)), (30.0, 30.0))


@pytest.mark.parametrize("folder", ["acdc_cines", "scd", "acdc", "long_axis", "../../sample"])
def test_real_images(folder: str) -> None:
    # The crop of patient057 shows the chest wall alone, whose curve is all that its spectrum has.
    paths: list[Path] = [p for p in sorted((DATA / folder).rglob("*_4d.nii.gz"))[::8] if "057" not in p.name]
    if not paths:
        pytest.skip("the data is not here")
    for path in paths:
        file = nib.load(path)
        image, spacing = np.asarray(file.dataobj[..., 0], dtype=float), file.header.get_zooms()[:2]
        assert not has_tags(image, spacing), path
        assert has_tags(tagged(image, spacing, 30, 7.0), spacing), path


def test_a_tagged_cine_is_doubted(tmp_path: Path) -> None:
    cine = np.stack([PHANTOM.image(t) for t in range(1, 6)], axis=-1)
    lines = np.stack([tagged(cine[..., t], (1.5, 1.5), 45, 7.0) for t in range(5)], axis=-1)
    doubts = []
    for name, array in (("plain", cine), ("lines", lines)):
        path = write_nifti(tmp_path / f"{name}.nii.gz", array.astype(np.float32), np.diag([1.5, 1.5, 8, 1]))
        doubts.append(prepare({"cine": str(path), "reference": 1, "case": "a"}).get("doubts", ""))
    assert "tagged" not in doubts[0]
    assert "is it tagged?" in doubts[1]
