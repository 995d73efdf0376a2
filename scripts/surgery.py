"""Gradient surgery: pure functions over two lists of gradients, one of the similarity and one of the smoothness.

Per group of tensors with flattened gradients s (similarity) and r (smoothness), GSMorph (Dou et al., MICCAI 2023) keeps s where
<s, r> >= 0 and otherwise takes its projection on the plane normal to r, s - <s, r> / |r|^2 r. A group is one tensor (GSMorph), the
tensors of one module, or all tensors at once (GS-PCGrad). Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GRANULARITIES = ("tensor", "module", "vector")


class Conflicts(NamedTuple):
    """How two lists of gradients meet, one value a group (all on the gradients' device)."""

    dot: Tensor
    """<s, r>, shape (groups,)."""
    similarity_norm: Tensor
    """|s|, shape (groups,)."""
    smoothness_norm: Tensor
    """|r|, shape (groups,)."""
    well_posed: Tensor
    """True where |r| >= tau * max |r|, shape (groups,); elsewhere r is rounding noise and s is left alone."""

    @property
    def conflicting(self) -> Tensor:
        """True where <s, r> < 0 and r is no rounding noise, shape (groups,)."""
        return (self.dot < 0) & self.well_posed

    @property
    def ratio(self) -> Tensor:
        """Share of the well-posed groups that conflict, a scalar in [0, 1]."""
        return self.conflicting.sum() / self.well_posed.sum().clamp(min=1)

    @property
    def cosine(self) -> Tensor:
        """Mean cosine between s and r over the well-posed groups, a scalar in [-1, 1]."""
        tiny = torch.finfo(self.dot.dtype).tiny
        cosine = self.dot / self.similarity_norm.clamp(min=tiny) / self.smoothness_norm.clamp(min=tiny)
        return (cosine * self.well_posed).sum() / self.well_posed.sum().clamp(min=1)


def group_indices(names: Sequence[str], granularity: str) -> list[int]:
    """The group of each parameter.

    Args:
        names: dotted parameter names, as `torch.nn.Module.named_parameters` gives them.
        granularity: "tensor" (a group a tensor: GSMorph), "module" (a group a module: a convolution's weight and bias together) or
            "vector" (one group: GS-PCGrad).

    Returns:
        A group number in 0 .. groups-1 for each name.

    Raises:
        ValueError: for another granularity.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is one of {', '.join(GRANULARITIES)}, got {granularity!r}.")
    if granularity == "vector":
        return [0] * len(names)
    keys = list(names) if granularity == "tensor" else [name.rpartition(".")[0] for name in names]
    order = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    return [order[key] for key in keys]


def find_conflicts(
    similarity: Sequence[Tensor], smoothness: Sequence[Tensor], groups: Sequence[int] | None = None, tau: float = 0.0
) -> Conflicts:
    """Dot products and norms of two lists of gradients, group by group.

    Args:
        similarity: gradients s of the similarity loss, tensors of any shapes.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
        groups: the group of each tensor (`group_indices`); None makes each tensor a group of its own.
        tau: groups with |r| < tau * max |r| are marked ill-posed. 0 turns the guard off.
    """
    if not similarity or len(similarity) != len(smoothness):
        raise ValueError(f"two lists of equal length >= 1 are needed, got {len(similarity)} and {len(smoothness)}.")
    s = [gradient.flatten() for gradient in similarity]
    r = [gradient.flatten() for gradient in smoothness]
    dot = torch.stack([torch.dot(a, b) for a, b in zip(s, r)])
    s_norm, r_norm = torch.stack(torch._foreach_norm(s)), torch.stack(torch._foreach_norm(r))
    if groups is not None and list(groups) != list(range(len(s))):
        index = torch.tensor(groups).to(dot.device, non_blocking=True)
        zeros = dot.new_zeros(max(groups) + 1)
        dot = zeros.index_add(0, index, dot)
        s_norm = zeros.index_add(0, index, s_norm.square()).sqrt()
        r_norm = zeros.index_add(0, index, r_norm.square()).sqrt()
    return Conflicts(dot, s_norm, r_norm, r_norm >= tau * r_norm.max())


def project(
    similarity: Sequence[Tensor],
    smoothness: Sequence[Tensor],
    groups: Sequence[int] | None = None,
    conflicts: Conflicts | None = None,
) -> list[Tensor]:
    """Project s on the plane normal to r in each group where they conflict; s elsewhere (r is dropped, not added).

    With `groups` None or a tensor each this is GSMorph's rule, with one group GS-PCGrad (Dou et al., MICCAI 2023).

    Args:
        similarity: gradients s of the similarity loss.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
        groups: the group of each tensor; None makes each tensor a group.
        conflicts: what `find_conflicts` returned for these arguments (with its guard); None finds them with tau = 0.
    """
    conflicts = conflicts or find_conflicts(similarity, smoothness, groups)
    norm = conflicts.smoothness_norm.clamp(min=torch.finfo(conflicts.dot.dtype).tiny)
    # Two divisions by |r|: its square underflows long before |r| does. An overflow of r spoils every group, so that a GradScaler,
    # which sees only the result, skips the step; dropped as no conflict it would pass in silence.
    spoiled = 0.0 * conflicts.smoothness_norm.max()
    coefficient = (torch.where(conflicts.conflicting, conflicts.dot / norm / norm, 0.0) + spoiled).unbind()
    index = range(len(similarity)) if groups is None else groups
    return [s - coefficient[i] * r for s, r, i in zip(similarity, smoothness, index)]


def agree(similarity: Sequence[Tensor], smoothness: Sequence[Tensor], noise: bool = False) -> list[Tensor]:
    """Keep s, entry by entry, where its sign is r's (GS-Agr).

    Args:
        similarity: gradients s of the similarity loss.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
        noise: False zeroes the entries that disagree; True draws them from a normal distribution whose standard deviation is the
            tensor's mean magnitude of s.
    """
    kept = []
    for s, r in zip(similarity, smoothness):
        # Not plain zeros: NaN where s or r overflowed, so that a GradScaler skips the step.
        other = 0.0 * (s + r)
        if noise:
            other = other + torch.randn_like(s) * s.abs().mean()
        kept.append(torch.where(s.sign() == r.sign(), s, other))
    return kept


def add_weighted(similarity: Sequence[Tensor], smoothness: Sequence[Tensor], weight: float) -> list[Tensor]:
    """The weighted sum s + weight * r: what training without surgery does (VoxelMorph)."""
    return [s + weight * r for s, r in zip(similarity, smoothness)]


def settle(
    similarity: Sequence[Tensor],
    smoothness: Sequence[Tensor],
    strategy: str = "projection",
    groups: Sequence[int] | None = None,
    tau: float = 0.0,
    weight: float = 0.0,
) -> tuple[list[Tensor], Conflicts]:
    """One gradient out of two, by the named strategy.

    Args:
        similarity: gradients s of the similarity loss.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
        strategy: "projection", "agreement", "agreement_noise" or "weighted_sum".
        groups: the group of each tensor; None makes each tensor a group. Only the projection depends on it.
        tau: guard of `find_conflicts`; only the projection depends on it.
        weight: of the smoothness in "weighted_sum".

    Returns:
        The settled gradients, in the order and shapes of the arguments, and the conflicts between them.

    Raises:
        ValueError: for another strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is one of {', '.join(STRATEGIES)}, got {strategy!r}.")
    conflicts = find_conflicts(similarity, smoothness, groups, tau)
    if strategy == "projection":
        return project(similarity, smoothness, groups, conflicts), conflicts
    if strategy == "weighted_sum":
        return add_weighted(similarity, smoothness, weight), conflicts
    return agree(similarity, smoothness, noise=strategy == "agreement_noise"), conflicts


STRATEGIES = ("projection", "agreement", "agreement_noise", "weighted_sum")
