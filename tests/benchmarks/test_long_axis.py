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

"""Carried labels and strain of long-axis views against drawn ones, on a ventricle whose figures are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scripts.errors import InputError

from benchmarks.long_axis import compare, measure
from tests.cardiac.test_longitudinal import SPACING, half_ellipse, horseshoe


def test_what_is_carried_exactly_is_the_same_as_what_is_drawn() -> None:
    stretches = (1.0, 0.9, 0.8, 0.9)
    drawn = np.stack([horseshoe(stretch=stretch) for stretch in stretches], axis=-1)
    exact = [half_ellipse(stretch) / half_ellipse() - 1 for stretch in stretches]
    found = compare(drawn, drawn, exact, SPACING)
    assert found["frames"] == {"reference": 1, "end_systole": 3}
    assert (
        found["dice_percent"]["carried"]["all"]["lv"] == found["dice_percent"]["carried"]["end_systole"]["myo"] == 100
    )
    assert found["dice_percent"]["before"]["end_systole"]["lv"] < found["dice_percent"]["before"]["all"]["lv"] < 100
    assert np.isnan(found["dice_percent"]["carried"]["all"]["rv"])
    peaks = found["peak_percent"]
    assert peaks["carried"] == peaks["drawn"] == pytest.approx(peaks["points"], abs=2)


def test_a_cine_without_its_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a_4d\.nii\.gz: has no a_4d_gt.nii.gz beside it"):
        measure(tmp_path / "a_4d.nii.gz", (3, 2, 1))
