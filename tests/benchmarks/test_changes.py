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

"""Changes to surgery: what each promises, by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from scripts.registration.fields import jacobian_determinant
from scripts.registration.losses import SmoothnessLoss
from torch import Tensor, nn

from benchmarks import transfer
from benchmarks.changes import CHANGES, DeterminantLoss, RelativeSmoothness, RememberingHandler
from benchmarks.transfer import Run


class Point(nn.Module):
    """Parameters that are the prediction, so that gradients can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))

    def forward(self, image: Tensor) -> Tensor:
        return self.at[None] + 0.0 * image


def train(handler: type, slopes: list[list[float]], **arguments: object) -> list:
    """Train a point with the similarity's gradient (1, 0) and smoothness gradients of each step; returns the steps."""
    network, given = Point(), iter(slopes)
    seen = [network.at.detach().clone()]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.zeros(1, 2, dtype=torch.float64), "label": torch.zeros(1)}] * len(slopes),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=lambda point, _: point[0, 0],
        iteration_update=None,
        train_handlers=[
            handler(
                network, lambda point: (point[0] * torch.tensor(next(given), dtype=torch.float64)).sum(), **arguments
            )
        ],
        decollate=False,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(network.at.detach().clone()))
    trainer.run()
    return [after - before for before, after in pairwise(seen)]


def test_the_remembered_mean_is_what_steps_are_projected_off() -> None:
    slopes = [[-1.0, 1.0], [-1.0, 0.0], [0.0, 3.0]]
    steps = train(RememberingHandler, slopes, memory=0.5, granularity="vector", tau=0.0)
    mean = torch.zeros(2, dtype=torch.float64)
    for step, slope in zip(steps, slopes):
        mean = 0.5 * mean + 0.5 * torch.tensor(slope, dtype=torch.float64)
        s = torch.tensor([1.0, 0.0], dtype=torch.float64)
        expected = s - min(0.0, float(s @ mean)) / float(mean @ mean) * mean
        assert torch.allclose(step, -0.1 * expected)
        assert float(expected @ mean) >= -1e-12


def test_growing_as_a_whole_costs_nothing_relative_to_motion() -> None:
    field = torch.randn(1, 2, 16, 16, dtype=torch.float64, requires_grad=True)
    along = lambda loss: float((torch.autograd.grad(loss(100 * field), field)[0] * field).sum())
    assert along(RelativeSmoothness()) == pytest.approx(0.0, abs=0.01)
    assert along(SmoothnessLoss()) > 50
    still = torch.zeros(1, 2, 8, 8, requires_grad=True)
    assert torch.autograd.grad(RelativeSmoothness()(still), still)[0].isfinite().all()


def test_the_determinant_costs_below_its_bound_alone() -> None:
    x = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 8)
    for stretch, expected in ((0.0, 0.0), (-0.4, 0.0), (-0.8, 0.3), (-1.5, 1.0)):
        field = torch.cat([stretch * x, torch.zeros_like(x)], dim=1)
        assert float(jacobian_determinant(field).mean()) == pytest.approx(1 + stretch, abs=1e-5)
        assert float(DeterminantLoss()(field)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_can_be_trained(change: str, phantoms: Path, tmp_path: Path) -> None:
    options = transfer.parse(["--smoke", "--dataset_dir", str(phantoms), "--output_dir", str(tmp_path)])
    options.phantoms = str(phantoms)
    for name in ("mse", "l2"):
        parser = transfer.study_of(Run(name, None, 0, change), options).parser(
            "configs/train.yaml", "benchmarks/table.yaml", "benchmarks/methods/gsmorph.yaml"
        )
        handler = parser.get_parsed_content("train::handlers::1")
        field = torch.randn(1, 2, 16, 16)
        assert float(handler.constraint(field)) > 0
        default = transfer.study_of(Run(name), options).parser(
            "configs/train.yaml", "benchmarks/table.yaml", "benchmarks/methods/gsmorph.yaml"
        )
        keys = ("train::handlers::1", "smoothness", "batch_size", "averaging", "granularity")
        assert any(parser[key] != default[key] for key in keys)
