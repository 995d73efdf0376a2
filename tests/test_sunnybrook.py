"""Real cines of another scanner, where they are there: the LV contour carried from ED to ES against the one drawn by hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT

from scripts.api import register_cine
from scripts.datalists import read_info
from scripts.metrics import dice_percent

FOLDER = ROOT.parent / "shared" / "data" / "scd"


@pytest.mark.parametrize("subject", ["SC-HF-I-1", "SC-HF-I-2"])
def test_the_contour_reaches_end_systole(subject: str) -> None:
    folder = FOLDER / subject
    if not folder.is_dir():
        pytest.skip(f"no Sunnybrook data in {FOLDER}")
    info = {phase: int(read_info(folder / "Info.cfg")[phase]) for phase in ("ED", "ES")}
    drawn = {phase: folder / f"{subject}_frame{frame:02d}_gt.nii.gz" for phase, frame in info.items()}
    result = register_cine(folder / f"{subject}_4d.nii.gz", reference_label=drawn["ED"], device="cpu")
    assert result.reference == info["ED"]
    assert all(frame["folding_percent"] <= 0.1 for frame in result.quality["frames"])
    assert all(frame["inverse_error_mm_p95"] <= 0.1 for frame in result.quality["frames"])
    ed, es = (nib.load(path).get_fdata() == 3 for path in drawn.values())
    both = ed.any(axis=(0, 1)) & es.any(axis=(0, 1))
    ed, es, carried = ed[..., both], es[..., both], result.labels[..., both, info["ES"] - 1] == 3
    dice, before = dice_percent(carried, es), dice_percent(ed, es)
    fraction, by_hand = (100 * (1 - np.sum(mask) / np.sum(ed)) for mask in (carried, es))
    print(f"\n{subject}: Dice {dice:.1f} (unregistered {before:.1f}), ejection fraction {fraction:.1f} % (by hand {by_hand:.1f} %)")
    assert dice >= 85
    assert abs(fraction - by_hand) <= 8
