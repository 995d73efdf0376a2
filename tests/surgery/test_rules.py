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

"""Properties of the projection (method: GSMorph, MICCAI 2023) over random gradients, and independent computations of
each strategy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls
from scripts.surgery.rules import RULES, STRATEGIES, aggregate, agree, find_conflicts, group_indices
from torch import Tensor

NAMES = ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight"]
SHAPES = [(4, 2, 3, 3), (4,), (8, 4), (8,), (1,)]
GRANULARITIES = ["tensor", "module", "vector"]
SYMMETRIC = ["pcgrad_symmetric", "upgrad", "config"]


def gradients(seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: [scale * torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return draw(), draw()


def project(s: list[Tensor], r: list[Tensor], groups: list[int] | None = None) -> list[Tensor]:
    """GSMorph's rule without a guard."""
    return aggregate(s, r, groups=groups)[0]


def by_hand(s: list[Tensor], r: list[Tensor], groups: list[int]) -> list[np.ndarray]:
    """The rule in plain float64 NumPy, group by group."""
    settled = [tensor.double().numpy().copy() for tensor in s]
    for group in set(groups):
        members = [i for i, g in enumerate(groups) if g == group]
        s_flat = np.concatenate([s[i].double().numpy().ravel() for i in members])
        r_flat = np.concatenate([r[i].double().numpy().ravel() for i in members])
        dot = s_flat @ r_flat
        if dot < 0:
            for i in members:
                settled[i] -= dot / (r_flat @ r_flat) * r[i].double().numpy()
    return settled


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_projection_equals_the_rule_by_hand(seed: int, granularity: str) -> None:
    s, r = gradients(seed)
    groups = group_indices(NAMES, granularity)
    for found, expected in zip(project(s, r, groups), by_hand(s, r, groups)):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_random_gradients_have_both_kinds_of_tensors() -> None:
    conflicting = torch.cat([find_conflicts(*gradients(seed)).conflicting for seed in range(5)])
    assert conflicting.any()
    assert not conflicting.all()


@pytest.mark.parametrize("seed", range(5))
def test_projection_properties(seed: int) -> None:
    s, r = gradients(seed)
    settled = project(s, r)
    for a, b, g in zip(s, r, settled):
        assert (g * b).sum() >= -1e-12
        assert g.norm() <= a.norm() * (1 + 1e-12)
        if (a * b).sum() >= 0:
            assert torch.equal(g, a)
    again = project(settled, r)
    torch.testing.assert_close(again, settled, rtol=0, atol=1e-14)
    untouched = project(s, [torch.zeros_like(b) for b in r])
    assert all(torch.equal(a, g) for a, g in zip(s, untouched))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6])
def test_projection_is_of_degree_0_in_r_and_1_in_s(scale: float) -> None:
    s, r = gradients(7, torch.float32)
    settled = project(s, r)
    # In fp32 |r|^2 is about 1e-29 here: an absolute eps would show.
    torch.testing.assert_close(project(s, [scale * b for b in r]), settled, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        project([scale * a for a in s], r), [scale * g for g in settled], rtol=1e-4, atol=1e-6 * scale
    )


def test_projection_does_not_depend_on_the_order_of_tensors() -> None:
    s, r = gradients(3)
    order = [3, 0, 4, 2, 1]
    permuted = project([s[i] for i in order], [r[i] for i in order])
    assert all(torch.equal(permuted[k], project(s, r)[i]) for k, i in enumerate(order))


@pytest.mark.parametrize("seed", range(3))
def test_projection_is_the_nearest_gradient_that_does_not_roughen(seed: int) -> None:
    s, r = (torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * seed + k)) for k in (0, 1))
    s = s - 2 * abs(s @ r) / (r @ r) * r
    nearest = minimize(
        lambda g: ((g - s.numpy()) ** 2).sum(),
        x0=np.zeros(6),
        constraints={"type": "ineq", "fun": lambda g: g @ r.numpy()},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(project([s], [r])[0].numpy(), nearest.x, atol=1e-5)


def test_guard_leaves_rounding_noise_alone() -> None:
    s, r = gradients(0)
    s[1] = -torch.ones(4, dtype=torch.float64)
    r[1] = torch.full((4,), 1e-9, dtype=torch.float64)
    guarded, conflicts = aggregate(s, r, tau=1e-5)
    free, _ = aggregate(s, r, tau=0.0)
    assert torch.equal(guarded[1], s[1])
    torch.testing.assert_close(free[1], torch.zeros(4, dtype=torch.float64))
    assert conflicts.well_posed.tolist() == [True, False, True, True, True]
    others = [0, 2, 3, 4]
    alone = find_conflicts([s[i] for i in others], [r[i] for i in others])
    torch.testing.assert_close(conflicts.ratio, alone.ratio)
    torch.testing.assert_close(conflicts.cosine, alone.cosine)


def test_records_against_numpy() -> None:
    s, r = gradients(1)
    conflicts = find_conflicts(s, r)
    cosines = np.array([float((a * b).sum() / a.norm() / b.norm()) for a, b in zip(s, r)])
    assert float(conflicts.ratio) == pytest.approx((cosines < 0).mean())
    assert float(conflicts.cosine) == pytest.approx(cosines.mean())


def test_agreement_keeps_agreeing_entries() -> None:
    s, r = gradients(2)
    for a, b, zeroed in zip(s, r, agree(s, r)):
        np.testing.assert_array_equal(zeroed.numpy(), np.where(np.sign(a) == np.sign(b), a, 0.0))


def test_weighted_sum() -> None:
    s, r = gradients(4)
    for a, b, g in zip(s, r, aggregate(s, r, "weighted_sum", weight=0.3)[0]):
        torch.testing.assert_close(g, a + 0.3 * b)


def by_group(tensors: list[Tensor], groups: list[int]) -> list[np.ndarray]:
    """A float64 vector a group."""
    return [
        np.concatenate([t.double().numpy().ravel() for t, g in zip(tensors, groups) if g == group])
        for group in sorted(set(groups))
    ]


def onto_dual_cone(gradient: np.ndarray, s: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The nearest point whose products with s and r are not negative, by Moreau's decomposition and nonnegative least
    squares."""
    rows = np.stack([s, r])
    return gradient + rows.T @ nnls(rows.T, -gradient)[0]


def pcgrad_rule(s: np.ndarray, r: np.ndarray) -> np.ndarray:
    return sum(a - min(a @ b, 0.0) / (b @ b) * b for a, b in ((s, r), (r, s)))


def upgrad_rule(s: np.ndarray, r: np.ndarray) -> np.ndarray:
    return (onto_dual_cone(s, s, r) + onto_dual_cone(r, s, r)) / 2


def config_rule(s: np.ndarray, r: np.ndarray) -> np.ndarray:
    direction = np.linalg.pinv(np.stack([s / np.linalg.norm(s), r / np.linalg.norm(r)])) @ np.ones(2)
    direction /= np.linalg.norm(direction)
    return (s @ direction + r @ direction) * direction


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("strategy", "rule"), [("pcgrad_symmetric", pcgrad_rule), ("upgrad", upgrad_rule), ("config", config_rule)]
)
def test_symmetric_rules_equal_the_papers_formulas(seed: int, granularity: str, strategy: str, rule: Callable) -> None:
    s, r = gradients(seed)
    groups = group_indices(NAMES, granularity)
    settled, _ = aggregate(s, r, strategy, groups)
    for found, a, b in zip(by_group(settled, groups), by_group(s, groups), by_group(r, groups)):
        # One entry alone leaves opposite gradients no bisector but zero, which rounding divides by itself in the
        # formula.
        expected = np.zeros(1) if strategy == "config" and len(a) == 1 and a @ b < 0 else rule(a, b)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strategy", SYMMETRIC)
def test_symmetric_rules_conflict_with_neither_and_do_not_care_which_is_which(seed: int, strategy: str) -> None:
    s, r = gradients(seed)
    settled, _ = aggregate(s, r, strategy)
    for a, b, g in zip(s, r, settled):
        assert (g * a).sum() >= -1e-12
        assert (g * b).sum() >= -1e-12
    exchanged, _ = aggregate(r, s, strategy)
    torch.testing.assert_close(exchanged, settled, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("strategy", SYMMETRIC)
@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6])
def test_symmetric_rules_are_of_degree_1_in_both(strategy: str, scale: float) -> None:
    s, r = gradients(7, torch.float32)
    settled, _ = aggregate(s, r, strategy)
    scaled, _ = aggregate([scale * a for a in s], [scale * b for b in r], strategy)
    torch.testing.assert_close(scaled, [scale * g for g in settled], rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("strategy", ["pcgrad_symmetric", "upgrad"])
def test_without_conflict_projections_become_the_sum_or_the_mean(strategy: str) -> None:
    s, _ = gradients(0)
    r = [a + 0.1 for a in s]
    settled, conflicts = aggregate(s, r, strategy)
    assert not conflicts.conflicting.any()
    share = {"pcgrad_symmetric": 1.0, "upgrad": 0.5}[strategy]
    assert all(torch.equal(g, share * (a + b)) for a, b, g in zip(s, r, settled))


def test_upgrad_is_the_nearest_mean_found_by_a_general_solver() -> None:
    s, r = (torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    s = s - 2 * abs(s @ r) / (r @ r) * r
    nearest = [
        minimize(
            lambda g, t=target: ((g - t.numpy()) ** 2).sum(),
            x0=np.zeros(6),
            constraints=[{"type": "ineq", "fun": lambda g, n=normal: g @ n.numpy()} for normal in (s, r)],
            method="SLSQP",
            options={"ftol": 1e-14},
        ).x
        for target in (s, r)
    ]
    np.testing.assert_allclose(aggregate([s], [r], "upgrad")[0][0].numpy(), sum(nearest) / 2, atol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_config_has_equal_angles_and_the_length_of_both_projections(granularity: str) -> None:
    s, r = gradients(1)
    groups = group_indices(NAMES, granularity)
    vectors = [by_group(tensors, groups) for tensors in (aggregate(s, r, "config", groups)[0], s, r)]
    for g, a, b in zip(*vectors):
        length = np.linalg.norm(g)
        assert g @ a / np.linalg.norm(a) == pytest.approx(g @ b / np.linalg.norm(b), abs=1e-12)
        assert length**2 == pytest.approx(a @ g + b @ g, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_direction_of_config_does_not_depend_on_the_scale_of_a_loss(scale: float) -> None:
    s, r = gradients(5, torch.float32)
    unit = lambda tensors: [g / g.norm() for g in tensors]
    # The last tensor has one entry, so its gradients may be opposite, and then there is no direction.
    expected, scaled = aggregate(s[:4], r[:4], "config")[0], aggregate(s[:4], [scale * b for b in r[:4]], "config")[0]
    torch.testing.assert_close(unit(scaled), unit(expected), rtol=1e-4, atol=1e-5)


def test_config_of_parallel_and_of_opposite_gradients() -> None:
    s, _ = gradients(3)
    torch.testing.assert_close(aggregate(s, [3 * a for a in s], "config")[0], [4 * a for a in s])
    for g in aggregate(s, [-3 * a for a in s], "config")[0]:
        torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("strategy", "share"), [("pcgrad_symmetric", 1.0), ("upgrad", 0.5), ("config", 1.0)])
def test_a_gradient_of_zero_leaves_the_other_one(strategy: str, share: float, dtype: torch.dtype) -> None:
    s, r = gradients(2, dtype)
    nothing = [torch.zeros_like(a) for a in s]
    assert all(torch.equal(g, share * a) for g, a in zip(aggregate(s, nothing, strategy)[0], s))
    assert all(torch.equal(g, share * b) for g, b in zip(aggregate(nothing, r, strategy)[0], r))
    assert all(torch.equal(g, n) for g, n in zip(aggregate(nothing, nothing, strategy)[0], nothing))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_config_takes_what_is_smaller_than_any_ratio_for_zero(dtype: torch.dtype) -> None:
    s, _ = gradients(2, dtype)
    least = [torch.full_like(a, torch.finfo(dtype).smallest_normal / 64) for a in s]
    torch.testing.assert_close(aggregate(s, least, "config")[0], s)
    torch.testing.assert_close(aggregate(least, s, "config")[0], s)


@pytest.mark.parametrize(("strategy", "share"), [("pcgrad_symmetric", 1.0), ("upgrad", 0.5), ("config", 1.0)])
def test_guard_takes_rounding_noise_for_zero(strategy: str, share: float) -> None:
    s, r = gradients(0)
    r[1] = torch.full((4,), 1e-9, dtype=torch.float64)
    guarded, conflicts = aggregate(s, r, strategy, tau=1e-5)
    assert conflicts.well_posed.tolist() == [True, False, True, True, True]
    assert torch.equal(guarded[1], share * s[1])
    free, _ = aggregate(s, r, strategy, tau=0.0)
    assert not torch.equal(free[1], guarded[1])
    assert all(torch.equal(free[i], guarded[i]) for i in (0, 2, 3, 4))


@pytest.mark.parametrize("which", ["similarity", "smoothness"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_overflow_is_not_dropped_in_silence(strategy: str, granularity: str, value: float, which: str) -> None:
    # A GradScaler sees the result alone. 1e30 is finite, its norm in fp32 is not.
    s, r = gradients(0, torch.float32)
    (s if which == "similarity" else r)[2].flatten()[:2] = value
    settled, _ = aggregate(s, r, strategy, group_indices(NAMES, granularity), tau=1e-5)
    assert not any(g.isfinite().all() for g in settled)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_rules_equal_those_of_torchjd(seed: int, granularity: str) -> None:
    aggregation, linalg = pytest.importorskip("torchjd.aggregation"), pytest.importorskip("torchjd.linalg")

    class Projector(linalg.DualConeProjector):
        """SciPy's nonnegative least squares for the quadratic program: min w G w with w >= u."""

        def __call__(self, preferred: Tensor, gramian: Tensor) -> Tensor:
            root = np.linalg.cholesky(gramian.numpy()).T
            return torch.from_numpy(np.apply_along_axis(lambda u: u + nnls(root, -root @ u)[0], -1, preferred.numpy()))

    oracles = {
        "projection": aggregation.DualProj(
            pref_vector=torch.tensor([1.0, 0.0], dtype=torch.float64), projector=Projector()
        ),
        "pcgrad_symmetric": aggregation.PCGrad(),
        "upgrad": aggregation.UPGrad(projector=Projector()),
        "config": aggregation.ConFIG(),
    }
    assert oracles.keys() == RULES.keys()
    # Without the tensor of one entry, whose Gramian is singular.
    s, r = (tensors[:4] for tensors in gradients(seed))
    groups = group_indices(NAMES[:4], granularity)
    for strategy, oracle in oracles.items():
        settled, _ = aggregate(s, r, strategy, groups)
        for found, a, b in zip(by_group(settled, groups), by_group(s, groups), by_group(r, groups)):
            expected = oracle(torch.from_numpy(np.stack([a, b]))).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=strategy)


def test_groups_by_name() -> None:
    assert group_indices(NAMES, "tensor") == [0, 1, 2, 3, 4]
    assert group_indices(NAMES, "module") == [0, 0, 1, 1, 2]
    assert group_indices(NAMES, "vector") == [0] * 5


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_nothing_waits_for_the_device(strategy: str, granularity: str) -> None:
    # Meta tensors have no values: whatever reads one on the host raises.
    s, r = ([torch.empty(shape, device="meta") for shape in SHAPES] for _ in range(2))
    settled, conflicts = aggregate(s, r, strategy, group_indices(NAMES, granularity), tau=1e-5, weight=0.1)
    assert [g.shape for g in settled] == [a.shape for a in s]
    assert conflicts.ratio.device.type == conflicts.cosine.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        float(conflicts.ratio)


def test_errors() -> None:
    s, r = gradients(0)
    with pytest.raises(ValueError, match="granularity"):
        group_indices(NAMES, "layer")
    with pytest.raises(ValueError, match="strategy"):
        aggregate(s, r, "pcgrad")
    with pytest.raises(ValueError, match="equal length"):
        find_conflicts(s, r[:-1])
    with pytest.raises(ValueError, match="equal length"):
        find_conflicts([], [])
