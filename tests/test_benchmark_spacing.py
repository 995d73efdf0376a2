"""The spacing benchmark: pairs on other pixels show the same heart, and rows are those of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_nifti

from benchmarks import spacing
from scripts.errors import InputError
from scripts.phantom import write_phantom_dataset
from scripts.transforms import LoadCased


def centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return (affine @ [*np.argwhere(mask).mean(axis=0), 1.0])[:3]


@pytest.mark.parametrize("size", [0.7, 2.1])
def test_another_pixel_size_shows_the_same_heart(tmp_path: Path, size: float) -> None:
    x, y = np.meshgrid(np.arange(48), np.arange(40), indexing="ij")
    disc = ((x - 20) ** 2 + (y - 23) ** 2 < 100)[..., None].astype(np.float32)
    affine = np.array([[0, 1.4, 0, 5], [-1.4, 0, 0, 9], [0, 0, 8, -3], [0, 0, 0, 1.0]])
    keys = ("moving", "fixed", "moving_label", "fixed_label")
    item = LoadCased()({key: str(write_nifti(tmp_path / f"{key}.nii.gz", disc, affine)) for key in keys})
    found = spacing.ResamplePaird(size)(item)
    for key in keys:
        image, at = np.asarray(found[key][0]), found[key].affine.numpy()
        assert found[key].pixdim[:2].tolist() == pytest.approx([size, size], rel=0.02)
        mask = image > 0.5
        assert np.allclose(centroid(mask, at), centroid(disc > 0.5, affine), atol=size / 4)
        assert mask.sum() * np.prod(found[key].pixdim[:2].tolist()) == pytest.approx(disc.sum() * 1.4**2, rel=0.05)
    assert set(np.unique(found["moving_label"])) == {0.0, 1.0}


def test_rows_are_those_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_phantom_dataset(tmp_path / "data", 3, seed=0, size=(96, 96), slices=2, frames=4, progress=False)
    words = ["--dataset_dir", str(root), "--split", "test", "--spacings", "2.5", "--json", str(tmp_path / "spacing.json")]
    rows = spacing.main(words)
    assert json.loads((tmp_path / "spacing.json").read_text())["rows"] == rows
    by_run = {(row["spacing"], row["working_spacing"], row["direction"]): row for row in rows}
    assert len(by_run) == len(rows) == 8
    for row in rows:
        assert 60 < row["dice"] < 100
    for direction in ("ES_to_ED", "ED_to_ES"):
        figures = {run[:2]: row["dice"] for run, row in by_run.items() if run[2] == direction}
        # These phantoms have the working spacing already.
        assert figures[None, True] == figures[None, False] > figures[2.5, True] > figures[2.5, False]
    again = spacing.score(2.5, True, str(root), "test", str(spacing.ROOT / "models" / "model.pt"), "cpu")
    assert again["ES_to_ED"]["dice"] == by_run[2.5, True, "ES_to_ED"]["dice"]
    assert "2.5 mm" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--device cuda:99: no such device here"):
        spacing.main(["--dataset_dir", str(tmp_path), "--device", "cuda:99"])
