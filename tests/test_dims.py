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

"""Registration with motion along the stack, the default, and slice by slice."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.api import register_cine
from scripts.cardiac.phantom import Phantom, write_phantom
from scripts.errors import InputError


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Phantom, Path]:
    """A heart whose base descends."""
    heart = Phantom.random(1, size=(64, 64), slices=8, frames=3, shortening=0.2)
    path = tmp_path_factory.mktemp("deep") / "deep_4d.nii.gz"
    write_phantom(path, np.stack([heart.image(t) for t in (1, 2, 3)], axis=-1).astype(np.float32), heart)
    return heart, path


def test_stacks_move_along_their_axis_where_contours_lead(deep: tuple[Phantom, Path]) -> None:
    heart, path = deep
    found, slices = (register_cine(path, reference_frame=1, device="cpu", dims=dims) for dims in (3, 2))
    assert (found.voxels.fields.shape[1], slices.voxels.fields.shape[1]) == (3, 2)
    es, true = heart.end_systole, heart.label(heart.end_systole)
    assert np.abs(found.voxels.fields[es - 1][2]).max() > 0.3
    scores = []
    for result in (found, slices):
        carried = result.labels[..., es - 1]
        scores.append(
            np.mean(
                [
                    2 * ((carried == v) & (true == v)).sum() / ((carried == v).sum() + (true == v).sum())
                    for v in (1, 2, 3)
                ]
            )
        )
    assert scores[0] > scores[1]
    assert "longitudinal" in found.strain[0]
    assert "longitudinal" not in slices.strain[0]


@pytest.mark.parametrize("kind", ["no contours", "long axis", "one slice"])
def test_what_has_no_way_along_its_stack_is_registered_slice_by_slice(cine_path: Path, kind: str) -> None:
    image = nib.load(cine_path)
    if kind == "one slice":
        image = image.slicer[:, :, 1:2]
    options = {"no contours": {"segmentation": "none"}, "long axis": {"plane": "4CH"}}.get(kind, {})
    found, slices = (register_cine(image, reference_frame=1, device="cpu", dims=d, **options) for d in (3, 2))
    assert found.voxels.fields.shape[1] == 2
    assert np.abs(found.voxels.fields).max() > 1
    for name in ("fields", "inverses"):
        np.testing.assert_allclose(getattr(found.voxels, name), getattr(slices.voxels, name), atol=1e-2)


def test_other_dims_are_refused(cine_path: Path) -> None:
    with pytest.raises(InputError, match=r"dims 4: give 2, for each slice by itself, or 3"):
        register_cine(cine_path, dims=4)
