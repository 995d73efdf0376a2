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

"""From a network's output to a displacement field, for batches of slices and for whole stacks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from numbers import Integral

import torch
from monai.inferers import Inferer, SimpleInferer
from scripts.errors import InputError
from scripts.registration.fields import compose, has_contrast, to_slices, to_stack, warp
from scripts.registration.losses import full_precision
from scripts.registration.pairs import halves, intensities, without_valid
from torch import Tensor, nn
from tqdm import tqdm


def _in_parts(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """A function of a batch whose items do not depend on each other, by halves where a device's memory does not hold
    the whole.

    Raises:
        torch.OutOfMemoryError: for a single item that it does not hold.
    """
    with contextlib.suppress(torch.OutOfMemoryError if len(batch) > 1 else ()):
        return function(batch)
    # Here, where no traceback holds tensors any longer.
    return torch.cat([_in_parts(function, half) for half in batch.tensor_split(2)])


def _only_contrast(field: Tensor, pair: Tensor) -> Tensor:
    """A field (B, d, *spatial) that is the identity in slices that are constant in either image of a pair (B, 2
    C, *spatial)."""
    there = has_contrast(intensities(to_slices(pair))).all(dim=1).view(-1, 1, 1, 1)
    return to_stack(to_slices(field) * there, field)


class FieldInferer(Inferer):
    """Displacement field of a pair: the network's output in full precision, integrated where it is a velocity.

    Args:
        inferer: how the network meets the input: `SimpleInferer` for a batch of slices (B, 2, X, Y) or of volumes, or MONAI's
            `SliceInferer` with `spatial_dim: 2` and `roi_size: [-1, -1]` for a stack (B, 2, X, Y, Z), whole slice by
            whole slice.
        integration: `fields.Integration` (or MONAI's `DVF2DDF`) for a stationary velocity field, None for a
            displacement.
        bf16: whether the network's convolutions run in bfloat16 (autocast), among them those that smooth;
            coordinates and integration never do.
        passes: how often the network registers; from the second pass on it sees the moving image as moved so far, and
            what it finds is composed with that (a recursive cascade of shared weights, Zhao et al., ICCV 2019).
        progress: whether a stack draws a progress bar.

    Raises:
        InputError: for an invalid number of passes.
    """

    def __init__(
        self,
        inferer: Inferer | None = None,
        integration: nn.Module | None = None,
        bf16: bool = False,
        passes: int = 1,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(passes, bool) or not isinstance(passes, Integral) or passes < 1:
            raise InputError(f"passes is 1, 2, …, got {passes!r}.")
        self.inferer = inferer or SimpleInferer()
        self.integration = integration
        self.bf16 = bf16
        self.passes = passes
        self.progress = progress

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """(B, 2, *spatial) -> displacement (B, d, *spatial), voxels of the fixed grid, pull convention; of volumes frame by
        frame, (B, 2, X, Y, Z, T) -> (B, 3, X, Y, Z, T). Further channels are as `pairs` has them.

        In a stack, a slice that is constant in either image gets the identity; slices that exceed a device's memory
        together are taken half at a time.
        """
        if inputs.ndim == 6:
            frames = tqdm(
                inputs.unbind(-1), desc="computing fields", unit="frame", leave=False, disable=not self.progress
            )
            return torch.stack([self._register(frame, network, False, *args, **kwargs) for frame in frames], dim=-1)
        return self._register(inputs, network, self.progress, *args, **kwargs)

    def _register(
        self, inputs: Tensor, network: Callable[..., Tensor], shown: bool, *args: object, **kwargs: object
    ) -> Tensor:
        """See `__call__`, without the frames; `shown` is whether a stack draws a bar of its slices."""
        stack = inputs.ndim == 5
        total = inputs.shape[-1] if stack else len(inputs)

        def cascade(channels: Tensor) -> Tensor:
            pair, valid = without_valid(channels)

            def estimate(pair, last):
                return self.integrate(self.estimate(pair, lambda x: network(x, *args, **kwargs), last, valid))

            field = estimate(pair, self.passes == 1)
            for number in range(2, self.passes + 1):
                moving, fixed = halves(pair)
                moved = warp(full_precision(moving), field)
                field = compose(field, estimate(torch.cat([moved, fixed], dim=1), number == self.passes))
            return field

        def to_field(pair: Tensor) -> Tensor:
            field = _in_parts(cascade, pair) if stack else cascade(pair)
            bar.update(len(pair))
            return _only_contrast(field, without_valid(pair)[0]) if stack else field

        with tqdm(
            total=total, desc="computing fields", unit="slice", leave=False, disable=not (shown and stack)
        ) as bar:
            return self.inferer(inputs, to_field)

    def estimate(
        self, pair: Tensor, network: Callable[[Tensor], Tensor], last: bool, valid: Tensor | None = None
    ) -> Tensor:
        """What the network gives for (B, 2, *spatial), in full precision; `last` tells the last of the passes, and
        `valid` (B, 1, *spatial), for a fit to the pair, where its images hold a measurement."""
        # Coordinates in half precision are off by up to a fifth of a voxel.
        with torch.autocast(pair.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            field = network(pair)
        return full_precision(field)

    def integrate(self, field: Tensor) -> Tensor:
        """The displacement of a network's output."""
        return field if self.integration is None else self.integration(field)


class MapInferer(Inferer):
    """Displacement of a pair of maps, of which, unlike of images, constant slices tell something, too.

    Args:
        integration: of the network's output, a velocity.
    """

    def __init__(self, integration: nn.Module) -> None:
        super().__init__()
        self.integration = integration

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """What the integration makes of the network's output, in full precision."""
        return self.integration(full_precision(network(inputs, *args, **kwargs)))
