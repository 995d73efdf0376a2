"""From a network's output to a displacement field, for batches of slices and for whole stacks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from tqdm import tqdm

from scripts.losses import full_precision


class FieldInferer(Inferer):
    """Displacement field of a pair: the network's output in full precision, integrated where it is a velocity.

    Args:
        inferer: how the network meets the input: `SimpleInferer` for a batch of slices (B, 2, X, Y), or MONAI's `SliceInferer` with
            `spatial_dim: 2` and `roi_size: [-1, -1]` for a stack (B, 2, X, Y, Z), whole slice by whole slice.
        integration: `fields.Integration` (or MONAI's `DVF2DDF`) for a stationary velocity field, None for a displacement.
        bf16: whether the network's convolutions run in bfloat16 (autocast); coordinates and integration never do.
        both_ways: whether to append the fields of the way back, fixed to moving: those of the negative velocity.
        progress: whether a stack draws a progress bar.

    Raises:
        ValueError: for both ways without integration, since a displacement's negative is not its inverse.
    """

    def __init__(
        self,
        inferer: Inferer | None = None,
        integration: nn.Module | None = None,
        both_ways: bool = False,
        bf16: bool = False,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if both_ways and integration is None:
            raise ValueError("both_ways needs a velocity: give integration, or set both_ways to false.")
        self.inferer = inferer or SimpleInferer()
        self.integration = integration
        self.both_ways = both_ways
        self.bf16 = bf16
        self.progress = progress

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """(B, 2, *spatial) -> in-plane displacement (B, d, *spatial), or (2 B, …) both ways; voxels of the fixed grid, pull convention."""

        def to_field(pair: Tensor) -> Tensor:
            # Coordinates in half precision are off by up to a fifth of a voxel.
            with torch.autocast(pair.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
                field = network(pair, *args, **kwargs)
            field = full_precision(field)
            field = torch.cat([field, -field]) if self.both_ways else field
            bar.update(len(pair))
            return field if self.integration is None else self.integration(field)

        stack = inputs.ndim == 5
        total = inputs.shape[-1] if stack else len(inputs)
        with tqdm(total=total, desc="computing fields", unit="slice", leave=False, disable=not (self.progress and stack)) as bar:
            return self.inferer(inputs, to_field)
