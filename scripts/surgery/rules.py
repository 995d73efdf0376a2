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

"""Gradient surgery: what of the gradients of two losses, similarity and smoothness, each group of parameters keeps.

A group has the flattened gradients s (similarity) and r (smoothness): one tensor (GSMorph), the tensors of one module,
or all tensors at once (GS-PCGrad). A rule looks at their dot product and norms and gives two shares, and the optimizer
gets of_s * s + of_r * r. Where r is rounding noise the rules take it for zero. Only agreement, which decides entry by
entry, is no such rule. Nothing here waits for the device, and everything can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from scripts.errors import InputError
from torch import Tensor

GRANULARITIES = ("tensor", "module", "vector")


class Conflicts(NamedTuple):
    """How two lists of gradients meet, with one value per group (all on the gradients' device)."""

    dot: Tensor
    """<s, r>, shape (groups,)."""
    similarity_norm: Tensor
    """|s|, shape (groups,)."""
    smoothness_norm: Tensor
    """|r|, shape (groups,)."""
    well_posed: Tensor
    """True where |r| >= tau * max |r|, shape (groups,); elsewhere r is rounding noise and taken for zero."""

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

    def part_along(self, norm: Tensor) -> Tensor:
        """<s, r> / norm² in conflict, else 0, shape (groups,): how many times the gradient with this norm, s or r, the
        other one contains."""
        norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
        # Two divisions: the square underflows long before the norm does.
        return torch.where(self.conflicting, self.dot / norm / norm, 0.0)


# of_s and of_r, each of shape (groups,). of_s is the number 1 where all groups keep s whole, which saves a pass over it.
Shares = tuple[Tensor | Literal[1], Tensor]
Rule = Callable[[Conflicts], Shares]


def _project(conflicts: Conflicts) -> Shares:
    """s, in conflict projected on the plane normal to r (GSMorph; with one group GS-PCGrad: Dou et al., MICCAI 2023).

    Without conflict r is dropped, not added, so the scale of the smoothness does not matter.
    """
    return 1, -conflicts.part_along(conflicts.smoothness_norm)


def _project_both(conflicts: Conflicts) -> Shares:
    """The sum of s and r, in conflict each projected off the other (PCGrad: Yu et al., NeurIPS 2020, algorithm 1).

    No step makes either loss worse to first order, but the scale of the smoothness counts as a weight does.
    """
    of_s = 1.0 - conflicts.part_along(conflicts.similarity_norm)
    return of_s, 1.0 * conflicts.well_posed - conflicts.part_along(conflicts.smoothness_norm)


def _project_on_dual_cone(conflicts: Conflicts) -> Shares:
    """Mean of the projections of s and r on the dual cone {g : <g, s> >= 0, <g, r> >= 0} (UPGrad: Quinton and Rey,
    arXiv 2406.16232).

    In conflict the nearest point of the cone to s is its projection on the plane normal to r, and the other way round.
    So for two gradients this is half of `_project_both`, and Adam, whose steps do not depend on the gradient's scale,
    makes the same of both.
    """
    of_s, of_r = _project_both(conflicts)
    return 0.5 * of_s, 0.5 * of_r


def _bisect(conflicts: Conflicts) -> Shares:
    """The direction at equal angles to s and r, as long as both projections on it together (ConFIG: Liu et al., ICLR
    2025, eq. 2).

    For two gradients the paper's pseudo-inverse is the bisector, and with its length (<s, d> + <r, d>) d, d the unit
    vector of s / |s| + r / |r|, becomes (|s| + |r|) / 2 (s / |s| + r / |r|): 0 for opposite gradients, the sum for
    parallel ones. The direction does not depend on the scale of either loss.
    """
    s, r = conflicts.similarity_norm, conflicts.smoothness_norm
    tiny = torch.finfo(s.dtype).tiny
    # A gradient of zero (against the other) has no direction: the other one is the result.
    both = (s > tiny * r.clamp(min=1.0)) & (r > tiny * s.clamp(min=1.0)) & conflicts.well_posed
    of_s = torch.where(both, 0.5 + 0.5 * r / s.clamp(min=tiny), 1.0)
    return of_s, torch.where(both, 0.5 + 0.5 * s / r.clamp(min=tiny), 1.0 * conflicts.well_posed)


def _add_weighted(weight: float) -> Rule:
    """The rule of training without surgery: s + weight * r (VoxelMorph)."""
    return lambda conflicts: (1, torch.full_like(conflicts.dot, weight))


def agree(similarity: Sequence[Tensor], smoothness: Sequence[Tensor]) -> list[Tensor]:
    """s where its sign is r's, entry by entry, and zero elsewhere (GS-Agr: Dou et al., MICCAI 2023).

    Args:
        similarity: gradients s of the similarity loss.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
    """
    return [torch.where(s.sign() == r.sign(), s, 0.0) for s, r in zip(similarity, smoothness)]


# Strategies whose shares depend on the conflicts, and so on the guard.
RULES = {"projection": _project, "pcgrad_symmetric": _project_both, "upgrad": _project_on_dual_cone, "config": _bisect}
STRATEGIES = (*RULES, "agreement", "weighted_sum")


def group_indices(names: Sequence[str], granularity: str) -> list[int]:
    """The group of each parameter.

    Args:
        names: dotted parameter names, as `torch.nn.Module.named_parameters` gives them.
        granularity: "tensor" (each tensor is a group: GSMorph), "module" (so is each module: a convolution's weight and
            bias together) or "vector" (one group: GS-PCGrad).

    Returns:
        A group number in 0 .. groups-1 for each name.

    Raises:
        InputError: for another granularity.
    """
    if granularity not in GRANULARITIES:
        raise InputError(f"granularity is one of {', '.join(GRANULARITIES)}, got {granularity!r}.")
    if granularity == "vector":
        return [0] * len(names)
    keys = list(names) if granularity == "tensor" else [name.rpartition(".")[0] for name in names]
    order = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    return [order[key] for key in keys]


@lru_cache
def _index(groups: tuple[int, ...], device: torch.device) -> Tensor:
    """The groups on a device, copied there once: a copy in each step would wait, and cannot be part of a CUDA graph."""
    return torch.tensor(groups, device=device)


def find_conflicts(
    similarity: Sequence[Tensor], smoothness: Sequence[Tensor], groups: Sequence[int] | None = None, tau: float = 0.0
) -> Conflicts:
    """Dot products and norms of two lists of gradients, group by group; the arguments are those of `aggregate`."""
    if not similarity or len(similarity) != len(smoothness):
        raise ValueError(f"two lists of equal length >= 1 are needed, got {len(similarity)} and {len(smoothness)}.")
    # Products, not torch.dot: flattening a channels-last gradient would copy it.
    dot = torch.stack([product.sum() for product in torch._foreach_mul(list(similarity), list(smoothness))])
    s_norm, r_norm = (torch.stack(torch._foreach_norm(list(gradients))) for gradients in (similarity, smoothness))
    if groups is not None and list(groups) != list(range(len(similarity))):
        index = _index(tuple(groups), dot.device)
        zeros = dot.new_zeros(max(groups) + 1)
        dot = zeros.index_add(0, index, dot)
        s_norm = zeros.index_add(0, index, s_norm.square()).sqrt()
        r_norm = zeros.index_add(0, index, r_norm.square()).sqrt()
    return Conflicts(dot, s_norm, r_norm, r_norm >= tau * r_norm.max())


def aggregate(
    similarity: Sequence[Tensor],
    smoothness: Sequence[Tensor],
    strategy: str = "projection",
    groups: Sequence[int] | None = None,
    tau: float = 0.0,
    weight: float = 0.0,
) -> tuple[list[Tensor], Conflicts]:
    """One gradient out of two, by the named strategy. Where a norm overflowed, all of it is NaN.

    Args:
        similarity: gradients s of the similarity loss, tensors of any shapes.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
        strategy: "projection" (GSMorph), "pcgrad_symmetric", "upgrad", "config", "agreement" (GS-Agr) or "weighted_sum"
            (VoxelMorph).
        groups: the group of each tensor (`group_indices`); None makes each tensor a group of its own.
        tau: guard; r is taken for zero in groups with |r| < tau * max |r|. 0 turns it off.
        weight: of the smoothness in "weighted_sum".

    Returns:
        The gradients for the optimizer, in the order and shapes of the arguments, and the conflicts between s and r.

    Raises:
        InputError: for another strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is one of {', '.join(STRATEGIES)}, got {strategy!r}.")
    conflicts = find_conflicts(similarity, smoothness, groups, tau)
    # An overflow that passed for "no conflict" would go unseen; NaN is what a GradScaler and NonFiniteLossHandler look for.
    nan = 0.0 * (conflicts.similarity_norm.max() + conflicts.smoothness_norm.max())
    if strategy == "agreement":
        return [g + nan for g in agree(similarity, smoothness)], conflicts
    rule = _add_weighted(weight) if strategy == "weighted_sum" else RULES[strategy]
    index = range(len(similarity)) if groups is None else groups
    of_s, of_r = rule(conflicts)
    of_r = (of_r + nan).unbind()
    if isinstance(of_s, Tensor):
        of_s = of_s.unbind()
        similarity = [of_s[i] * s for s, i in zip(similarity, index)]
    return [torch.addcmul(s, of_r[i], r) for s, r, i in zip(similarity, smoothness, index)], conflicts
