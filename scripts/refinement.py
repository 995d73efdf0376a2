"""Fitting the network to the one pair at hand, by the same surgery as in training, and forgetting it afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.inferers import FieldInferer
from scripts.losses import SmoothnessLoss, WarpedSimilarity
from scripts.surgery import settle


class RefiningInferer(FieldInferer):
    """`FieldInferer` whose network first takes some steps of Adam on the pair itself; a copy does, so that no pair leaves a trace.

    Each chunk of slices is fitted for itself, in both directions where the network gives a velocity, the similarity gradient settled
    with the smoothness gradient tensor by tensor.

    Args:
        inferer: see `FieldInferer`.
        integration: see `FieldInferer`.
        iterations: steps a chunk of slices; 0 is no refinement.
        learning_rate: of Adam.
        similarity: a loss of (moved, fixed); default is the mean squared error.
        tau: guard of the projection.
        bf16: see `FieldInferer`; the steps themselves run in full precision.
        progress: see `FieldInferer`.

    Raises:
        InputError: for steps of a network without parameters, such as an exported one, or a number of steps that is none.
    """

    def __init__(
        self,
        inferer: Inferer | None = None,
        integration: nn.Module | None = None,
        iterations: int = 0,
        learning_rate: float = 5e-4,
        similarity: nn.Module | None = None,
        tau: float = 1e-5,
        bf16: bool = False,
        progress: bool = False,
    ) -> None:
        super().__init__(inferer, integration, bf16=bf16, progress=progress)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
            raise InputError(f"--refine_iterations {iterations}: is no number of steps; give 0, 1, 2, ….")
        self.iterations = iterations
        self.learning_rate = learning_rate
        self.loss = WarpedSimilarity(similarity or nn.MSELoss())
        self.constraint = SmoothnessLoss()
        self.tau = tau

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """See `FieldInferer`."""
        if not self.iterations:
            return super().__call__(inputs, network, *args, **kwargs)
        return super().__call__(inputs, lambda pair: self.refine(network, pair)(pair), *args, **kwargs)

    def refine(self, network: nn.Module, pair: Tensor) -> nn.Module:
        """A copy of the network, fitted to a batch of pairs (B, 2, X, Y)."""
        if not any(p.requires_grad for p in network.parameters()):
            raise InputError("--refine_iterations: an exported network cannot be fitted; leave out configs/inference_onnx.yaml.")
        infer = FieldInferer(integration=self.integration, both_ways=self.integration is not None)
        with torch.enable_grad(), torch.autocast(pair.device.type, enabled=False):
            fitted = copy.deepcopy(network)
            parameters = [p for p in fitted.parameters() if p.requires_grad]
            optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
            pair = pair.detach().clone()
            for _ in range(self.iterations):
                field = infer(pair, fitted)
                losses = self.loss(field, pair), self.constraint(field)
                gradients = [torch.autograd.grad(loss, parameters, retain_graph=n == 0) for n, loss in enumerate(losses)]
                settled, _ = settle(*gradients, tau=self.tau)
                for parameter, gradient in zip(parameters, settled):
                    parameter.grad = gradient
                optimizer.step()
        return fitted
