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

"""Fitting the field of one pair to that pair, by the same surgery as in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import Inferer
from scripts.registration.fields import Integration, compose, resize_field, to_slices, to_stack, warp
from scripts.registration.inferers import FieldInferer
from scripts.registration.losses import SmoothnessLoss, WarpedSimilarity, full_precision
from scripts.registration.networks import GaussianSmoothing
from scripts.registration.pairs import intensities
from scripts.surgery.rules import aggregate
from torch import Tensor, nn

# Gradient of a voxel's squared error below which Adam's steps get shorter (its epsilon): where images are flat, it is
# that of noise.
NOISE = 1e-3


class RefiningInferer(FieldInferer):
    """`FieldInferer` that corrects what the network gives by some steps of Adam on the pair itself; the network stays
    as it is.

    The correction lives at half the image's in-plane resolution, starts at zero, passes a Gaussian, and is added to the
    network's velocity, scored in both directions, or, without integration, to its displacement of slices, scored in the
    one; a displacement of stacks is followed by a fitted velocity in each slice. Each slice (or volume, where the input is
    not taken slice by slice) is a tensor of its own for the surgery, so that none depends on its neighbors in the batch.

    Args:
        inferer: see `FieldInferer`.
        integration: see `FieldInferer`.
        iterations: steps; 0 is no refinement.
        learning_rate: of Adam; about the length of a step, in voxels of the correction's grid.
        smoothing: standard deviation of the Gaussian, in voxels of the correction's grid.
        similarity: a loss of (moved, fixed), a mean over voxels; default is the mean squared error.
        bf16: see `FieldInferer`; the steps themselves run in full precision.
        passes: see `FieldInferer`; it is the last one that is corrected.
        progress: see `FieldInferer`.
    """

    def __init__(
        self,
        inferer: Inferer | None = None,
        integration: nn.Module | None = None,
        iterations: int = 0,
        learning_rate: float = 0.1,
        smoothing: float = 3.0,
        similarity: nn.Module | None = None,
        bf16: bool = False,
        passes: int = 1,
        progress: bool = False,
    ) -> None:
        super().__init__(inferer, integration, bf16=bf16, passes=passes, progress=progress)
        self.iterations = iterations
        self.learning_rate = learning_rate
        self.smoothing = smoothing
        self.loss = WarpedSimilarity(similarity or nn.MSELoss())
        self.constraint = SmoothnessLoss()

    def estimate(
        self, pair: Tensor, network: Callable[[Tensor], Tensor], last: bool, valid: Tensor | None = None
    ) -> Tensor:
        """See `FieldInferer`."""
        field = super().estimate(pair, network, last, valid)
        if not last or not self.iterations:
            return field
        if self.integration is None and field.ndim == 5:
            return self._refine_slices(field, pair, valid)
        return self.refine(field, pair, valid)

    def _refine_slices(self, field: Tensor, pair: Tensor, valid: Tensor | None) -> Tensor:
        """A displacement of stacks (B, 3, X, Y, Z), then a velocity in each slice, fitted to what the first one has moved:
        motion along the stack rests on contours, of which a fit to intensities knows nothing, and two fields that do not
        fold are composed to one that does not."""
        field, pair = full_precision(field), full_precision(intensities(pair))
        slices = to_slices(torch.cat([warp(pair[:, :1], field), pair[:, 1:]], dim=1))
        fitting = RefiningInferer(
            integration=Integration(),
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            smoothing=self.smoothing,
            similarity=self.loss.similarity,
        )
        start = torch.zeros_like(slices)
        velocity = fitting.refine(start, slices, None if valid is None else to_slices(valid))
        within = to_stack(fitting.integrate(velocity), field)
        return compose(field, torch.cat([within, torch.zeros_like(within[:, :1])], dim=1))

    def refine(self, field: Tensor, pair: Tensor, valid: Tensor | None = None) -> Tensor:
        """The network's field (B, d, *spatial), velocity or displacement in voxels, corrected for its pair (B, 2,
        *spatial), of which only what is `valid` (B, 1, *spatial) is compared."""
        with torch.enable_grad(), torch.autocast(pair.device.type, enabled=False):
            field, pair = (full_precision(tensor.detach()).clone() for tensor in (field, pair))
            axes, size = field.ndim - 2, pair.shape[2:]
            gaussian = GaussianSmoothing(axes, self.smoothing).to(field)
            coarse = [(length + 1) // 2 for length in size[:2]] + list(size[2:])
            correction = field.new_zeros(len(field), axes, *coarse).requires_grad_()
            optimizer = torch.optim.Adam([correction], lr=self.learning_rate, eps=NOISE)

            def refined() -> Tensor:
                return field + resize_field(to_stack(gaussian(to_slices(correction)), correction), size)

            # Sums over voxels and slices: steps depend neither on the size of the image nor on that of the batch.
            scale = pair[:, 0].numel()
            for _ in range(self.iterations):
                displacement = refined()
                if self.integration is not None:
                    displacement = self.integration(torch.cat([displacement, -displacement]))
                losses = scale * self.loss(displacement, pair, valid), scale * self.constraint(displacement)
                gradients = [
                    torch.autograd.grad(loss, correction, retain_graph=n == 0)[0].unbind()
                    for n, loss in enumerate(losses)
                ]
                # No guard: it would compare slices.
                correction.grad = torch.stack(aggregate(*gradients, tau=0.0)[0])
                optimizer.step()
            return refined().detach()
