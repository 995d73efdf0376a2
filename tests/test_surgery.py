"""Properties of the projection (method: GSMorph, MICCAI 2023) over random gradients, and independent computations of each strategy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from scripts.surgery import add_weighted, agree, find_conflicts, group_indices, project, settle

NAMES = ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight"]
SHAPES = [(4, 2, 3, 3), (4,), (8, 4), (8,), (1,)]


def gradients(seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: [scale * torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return draw(), draw()


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
@pytest.mark.parametrize("granularity", ["tensor", "module", "vector"])
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
    torch.testing.assert_close(project([scale * a for a in s], r), [scale * g for g in settled], rtol=1e-4, atol=1e-6 * scale)


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
    guarded, conflicts = settle(s, r, tau=1e-5)
    free, _ = settle(s, r, tau=0.0)
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


def test_agreement_noise_has_the_mean_magnitude() -> None:
    generator = torch.Generator().manual_seed(0)
    s, r = (torch.randn(200_000, generator=generator) for _ in range(2))
    torch.manual_seed(0)
    noisy = agree([3 * s], [r], noise=True)[0]
    differ = s.sign() != r.sign()
    assert torch.equal(noisy[~differ], 3 * s[~differ])
    assert float(noisy[differ].std()) == pytest.approx(float((3 * s).abs().mean()), rel=0.02)
    assert float(noisy[differ].mean()) == pytest.approx(0, abs=0.05)


def test_weighted_sum() -> None:
    s, r = gradients(4)
    for a, b, g in zip(s, r, add_weighted(s, r, 0.3)):
        torch.testing.assert_close(g, a + 0.3 * b)


def test_groups_by_name() -> None:
    assert group_indices(NAMES, "tensor") == [0, 1, 2, 3, 4]
    assert group_indices(NAMES, "module") == [0, 0, 1, 1, 2]
    assert group_indices(NAMES, "vector") == [0] * 5


@pytest.mark.parametrize("strategy", ["projection", "agreement", "agreement_noise", "weighted_sum"])
@pytest.mark.parametrize("granularity", ["tensor", "module", "vector"])
def test_nothing_waits_for_the_device(strategy: str, granularity: str) -> None:
    # Meta tensors have no values: whatever reads one on the host raises.
    s, r = ([torch.empty(shape, device="meta") for shape in SHAPES] for _ in range(2))
    settled, conflicts = settle(s, r, strategy, group_indices(NAMES, granularity), tau=1e-5, weight=0.1)
    assert [g.shape for g in settled] == [a.shape for a in s]
    assert conflicts.ratio.device.type == conflicts.cosine.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(conflicts.ratio)


def test_errors() -> None:
    s, r = gradients(0)
    with pytest.raises(ValueError, match="granularity"):
        group_indices(NAMES, "layer")
    with pytest.raises(ValueError, match="strategy"):
        settle(s, r, "pcgrad")
    with pytest.raises(ValueError, match="equal length"):
        find_conflicts(s, r[:-1])
    with pytest.raises(ValueError, match="equal length"):
        find_conflicts([], [])
