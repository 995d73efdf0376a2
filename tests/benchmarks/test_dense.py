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

"""Strain from DENSE phases: a motion of known strain is read back, through wraps, and the document says what was
measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scripts.cardiac.strain import measure_strain
from scripts.errors import InputError

from benchmarks import dense

SIZE, CENTER, PIXEL, KE = 64, 31.5, 1.75, 0.1
WAVELENGTH = 1 / KE / PIXEL  # pixels
RESULTS = ROOT / "benchmarks" / "results" / "dense.json"
DATA = ROOT.parent / "shared" / "data" / "dense_sim"


def grid() -> np.ndarray:
    """Places about the center, (X, Y, 2) in pixels."""
    return np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), axis=-1) - CENTER


def moved_ring(scales: list[float], shift: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Wrapped phases (T, 2, X, Y) and masks (T + 1, X, Y) of a ring that shrinks to each scale and drifts."""
    phases, masks = [], []
    for t, scale in enumerate([1.0, *scales]):
        before = (grid() - t * np.array(shift)) / scale
        radius = np.linalg.norm(before, axis=-1)
        masks.append((radius > 14) & (radius < 24))
        u = np.moveaxis(grid() - before, -1, 0)
        phases.append(np.angle(np.exp(2j * np.pi * u / WAVELENGTH)))
    return np.stack(phases)[1:], np.stack(masks)


def test_a_known_motion_is_read_from_wrapped_phases() -> None:
    scales = [0.96, 0.92, 0.88, 0.84, 0.8]
    phases, masks = moved_ring(scales, (0.6, -0.4))
    fields = dense.tissue_fields(phases, masks, WAVELENGTH)
    exact = (np.array(scales)[:, None, None, None] - 1) * grid() + np.arange(1, 6)[:, None, None, None] * [0.6, -0.4]
    inside = masks[0]
    # More than half a wavelength, hence wrapped.
    assert np.abs(exact[:, inside]).max() > WAVELENGTH
    np.testing.assert_allclose(fields[:, :, inside, 0], np.moveaxis(exact[:, inside], -1, 1), atol=0.02)
    rows = measure_strain(fields, dense.wall_label(masks[0]), np.diag([PIXEL, PIXEL, 8, 1]))
    green = (np.array(scales)[:, None].repeat(inside.sum(), axis=1) ** 2 - 1) / 2
    found = dense.compare(rows, {name: dense.engineering(green) for name in dense.STRAINS})
    for figures in found.values():
        assert figures["largest_difference"] < 0.002
    assert found["circumferential"]["reference_peak"] == pytest.approx(-0.2)


def test_strain_relative_to_another_frame() -> None:
    reference = np.array([[0.1, 0.1], [-0.2, -0.2], [-0.01, -0.01]])
    rows = [
        {"region": "global", "circumferential": length / 0.99 - 1, "radial": 0.0}
        for length in (1.1, 0.8, 0.99)  # of a fiber, by hand
    ]
    figures = dense.compare(rows, {"circumferential": reference}, frame=2)["circumferential"]
    assert figures["largest_difference"] == pytest.approx(0)
    assert figures["peak"] == pytest.approx(-0.1919, abs=1e-4)


def test_the_cavity_is_what_the_wall_encloses() -> None:
    _, masks = moved_ring([], (0, 0))
    label = dense.wall_label(masks[0])
    radius = np.linalg.norm(grid(), axis=-1)
    np.testing.assert_array_equal(label[..., 0], np.select([radius <= 14, radius < 24], [3, 2], 0))


def test_files_that_are_not_there_or_lack_something_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"xcat_1\.npz: no such file"):
        dense.main(["--dataset_dir", str(tmp_path)])
    np.savez(tmp_path / "xcat_1.npz", mask=np.zeros((2, 4, 4), bool))
    with pytest.raises(InputError, match=r"xcat_1\.npz: lacks Ecc, Err"):
        dense.main(["--dataset_dir", str(tmp_path)])


def test_the_document_says_what_was_measured() -> None:
    cases = json.loads(RESULTS.read_text())["cases"]
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for name, ways in cases.items():
        for way, strains in ways.items():
            cells = [
                f"{row['peak']:.3f} ({row['reference_peak']:.3f}) | {row['mean_difference']:.3f}"
                for row in strains.values()
            ]
            line = f"| {name} | {way.replace('_', ' ')} | {' | '.join(cells)} |".replace("-", "−")
            assert line in text, line


def test_strain_of_displacements_is_that_of_the_simulation() -> None:
    """At most 0.015 on XCAT, whose own figure is good to 0.01, and within the 0.03 of the annular one's."""
    cases = json.loads(RESULTS.read_text())["cases"]
    for name, limit in (("xcat", 0.015), ("annular", 0.03)):
        assert cases[name]["displacement"]["circumferential"]["mean_difference"] <= limit


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no DENSE simulations in {DATA}")
@pytest.mark.parametrize("name", dense.CASES)
def test_the_committed_figures_are_those_of_the_data(name: str) -> None:
    case = dense.read_case(DATA / dense.CASES[name])
    first = case["mask"][0]
    pixel = dense.FIELD_OF_VIEW / len(first)
    fields = dense.tissue_fields(
        np.stack([case["phase_x"], case["phase_y"]], axis=1), case["mask"], 1 / float(case["ke"]) / pixel
    )
    rows = measure_strain(fields, dense.wall_label(first), np.diag([pixel, pixel, 8, 1]))
    references = {key: dense.engineering(case[value][:, first]) for key, value in dense.STRAINS.items()}
    committed = json.loads(RESULTS.read_text())["cases"][name]["displacement"]
    for strain, found in dense.compare(rows, references).items():
        assert found["mean_difference"] == pytest.approx(committed[strain]["mean_difference"], abs=1e-4)
