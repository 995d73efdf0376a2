"""Epochs that make as many steps."""

from __future__ import annotations

import pytest
from scripts.training.epochs import scale_epochs


@pytest.mark.parametrize(("batch", "epochs"), [(1, 50), (4, 50), (7, 50), (8, 100), (32, 400)])
def test_a_larger_batch_takes_more_epochs(batch: int, epochs: int) -> None:
    assert scale_epochs(50, batch) == epochs
