"""From a network's output to a displacement field, for batches of slices and for whole stacks."""

from __future__ import annotations

from collections.abc import Callable

from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from scripts.losses import full_precision


class FieldInferer(Inferer):
    """Displacement field of a pair: the network's output in full precision, integrated where it is a velocity.

    Args:
        inferer: how the network meets the input: `SimpleInferer` for a batch of slices (B, 2, X, Y), or MONAI's `SliceInferer` with
            `spatial_dim: 2` and `roi_size: [-1, -1]` for a stack (B, 2, X, Y, Z), whole slice by whole slice.
        integration: MONAI's `DVF2DDF` for a stationary velocity field, None for a displacement.
    """

    def __init__(self, inferer: Inferer | None = None, integration: nn.Module | None = None) -> None:
        super().__init__()
        self.inferer = inferer or SimpleInferer()
        self.integration = integration

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """(B, 2, *spatial) -> in-plane displacement (B, d, *spatial), voxels of the fixed grid, pull convention."""

        def to_field(pair: Tensor) -> Tensor:
            # Coordinates in half precision are off by up to a fifth of a voxel.
            field = full_precision(network(pair, *args, **kwargs))
            return field if self.integration is None else self.integration(field)

        return self.inferer(inputs, to_field)
