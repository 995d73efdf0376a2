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

"""Gradient surgery: pure functions over two lists of gradients, one of the similarity and one of the smoothness.

Per group of tensors with flattened gradients s (similarity) and r (smoothness), GSMorph (Dou et al., MICCAI 2023) keeps
s where <s, r> >= 0 and otherwise takes its projection on the plane normal to r, s - <s, r> / |r|^2 r. A group is one
tensor (GSMorph), the tensors of one module, or all tensors at once (GS-PCGrad). The other rules, for comparison: each
gradient projected off the other, the bisector of both (ConFIG), sign agreement entry by entry, and the weighted sum.
Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from scripts.errors import InputError
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


def group_indices(names: Sequence[str], granularity: str) -> list[int]:
    """The group of each parameter.

    Args:
        names: dotted parameter names, as `torch.nn.Module.named_parameters` gives them.
        granularity: "tensor" (a group a tensor: GSMorph), "module" (a group a module: a convolution's weight and bias
            together) or "vector" (one group: GS-PCGrad).

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


@lru_cache
def _index(groups: tuple[int, ...], device: torch.device) -> Tensor:
    """The groups on a device, copied there once: a copy in each step would wait, and cannot be part of a CUDA graph."""
    return torch.tensor(groups, device=device)


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
    coefficient = (removal(conflicts, conflicts.smoothness_norm) + spoiled(conflicts.smoothness_norm)).unbind()
    index = range(len(similarity)) if groups is None else groups
    return [torch.addcmul(s, coefficient[i], r, value=-1) for s, r, i in zip(similarity, smoothness, index)]


def removal(conflicts: Conflicts, norm: Tensor) -> Tensor:
    """How much of a gradient with these norms to subtract from the other for its projection: <s, r> / norm² in
    conflict, else 0."""
    norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    # Two divisions: the square underflows long before the norm does.
    return torch.where(conflicts.conflicting, conflicts.dot / norm / norm, 0.0)


def spoiled(*norms: Tensor) -> Tensor:
    """0, or NaN where a norm of any group overflowed.

    Added to coefficients it spoils every group, so that a GradScaler, which sees only the result, skips the step;
    dropped as no conflict an overflow would pass in silence.
    """
    return 0.0 * sum(norm.max() for norm in norms)


def project_both(
    similarity: Sequence[Tensor],
    smoothness: Sequence[Tensor],
    groups: Sequence[int] | None = None,
    conflicts: Conflicts | None = None,
) -> list[Tensor]:
    """Each gradient projected off the other where they conflict, and added (PCGrad: Yu et al., NeurIPS 2020, algorithm
    1).

    s - <s, r> / |r|² r + r - <s, r> / |s|² s where <s, r> < 0, and s + r elsewhere. No step makes either loss worse to
    first order, but the scale of the smoothness counts as a weight does: it is added.

    Args:
        similarity: gradients s of the similarity loss.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
        groups: the group of each tensor; None makes each tensor a group.
        conflicts: what `find_conflicts` returned for these arguments; groups that are not well-posed keep s. None: tau
            = 0.
    """
    conflicts = conflicts or find_conflicts(similarity, smoothness, groups)
    of_s = 1.0 - removal(conflicts, conflicts.similarity_norm)
    of_r = 1.0 * conflicts.well_posed - removal(conflicts, conflicts.smoothness_norm)
    return combine(similarity, smoothness, of_s, of_r, groups, conflicts)


def project_on_dual_cone(
    similarity: Sequence[Tensor],
    smoothness: Sequence[Tensor],
    groups: Sequence[int] | None = None,
    conflicts: Conflicts | None = None,
) -> list[Tensor]:
    """Mean of the projections of s and r on the dual cone {g : <g, s> >= 0, <g, r> >= 0} (UPGrad: Quinton and Rey,
    arXiv 2406.16232).

    In conflict the nearest point of the cone to s is its projection on the plane normal to r, and the other way round.
    So for two gradients this is half of `project_both`, and Adam, whose steps do not depend on the gradient's scale,
    makes the same of both.

    Args:
        similarity: gradients s of the similarity loss.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
        groups: the group of each tensor; None makes each tensor a group.
        conflicts: what `find_conflicts` returned for these arguments; groups that are not well-posed get s / 2. None:
            tau = 0.
    """
    return [0.5 * gradient for gradient in project_both(similarity, smoothness, groups, conflicts)]


def bisect(
    similarity: Sequence[Tensor],
    smoothness: Sequence[Tensor],
    groups: Sequence[int] | None = None,
    conflicts: Conflicts | None = None,
) -> list[Tensor]:
    """The direction at equal angles to s and r, as long as both projections on it together (ConFIG: Liu et al., ICLR
    2025, eq. 2).

    For two gradients the paper's pseudo-inverse is the bisector, and with its length (<s, d> + <r, d>) d, d the unit
    vector of s / |s| + r / |r|, becomes (|s| + |r|) / 2 (s / |s| + r / |r|): 0 for opposite gradients, the sum for
    parallel ones. The direction does not depend on the scale of either loss.

    Args:
        similarity: gradients s of the similarity loss.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
        groups: the group of each tensor; None makes each tensor a group.
        conflicts: what `find_conflicts` returned for these arguments; groups that are not well-posed keep s. None: tau
            = 0.
    """
    conflicts = conflicts or find_conflicts(similarity, smoothness, groups)
    s, r = conflicts.similarity_norm, conflicts.smoothness_norm
    tiny = torch.finfo(s.dtype).tiny
    # Without a direction there is no angle: where one gradient is zero (against the other), the other one is the
    # result.
    s_counts, r_counts = s > tiny * r.clamp(min=1.0), (r > tiny * s.clamp(min=1.0)) & conflicts.well_posed
    of_s = torch.where(s_counts & r_counts, 0.5 + 0.5 * r / s.clamp(min=tiny), 1.0)
    of_r = torch.where(s_counts & r_counts, 0.5 + 0.5 * s / r.clamp(min=tiny), 1.0 * conflicts.well_posed)
    return combine(similarity, smoothness, of_s, of_r, groups, conflicts)


def combine(
    similarity: Sequence[Tensor],
    smoothness: Sequence[Tensor],
    of_s: Tensor,
    of_r: Tensor,
    groups: Sequence[int] | None,
    conflicts: Conflicts,
) -> list[Tensor]:
    """of_s * s + of_r * r with coefficients of shape (groups,); NaN everywhere where a norm overflowed."""
    nan = spoiled(conflicts.similarity_norm, conflicts.smoothness_norm)
    of_s, of_r = (of_s + nan).unbind(), (of_r + nan).unbind()
    index = range(len(similarity)) if groups is None else groups
    return [of_s[i] * s + of_r[i] * r for s, r, i in zip(similarity, smoothness, index)]


def agree(similarity: Sequence[Tensor], smoothness: Sequence[Tensor]) -> list[Tensor]:
    """Keep s, entry by entry, where its sign is r's, and zero elsewhere (GS-Agr).

    Args:
        similarity: gradients s of the similarity loss.
        smoothness: gradients r of the smoothness loss, the same shapes in the same order.
    """
    # Not plain zeros: NaN where s or r overflowed, so that a GradScaler skips the step.
    return [torch.where(s.sign() == r.sign(), s, 0.0 * (s + r)) for s, r in zip(similarity, smoothness)]


def add_weighted(similarity: Sequence[Tensor], smoothness: Sequence[Tensor], weight: float) -> list[Tensor]:
    """The weighted sum s + weight * r: what training without surgery does (VoxelMorph)."""
    return [s + weight * r for s, r in zip(similarity, smoothness)]


# Strategies that settle group by group, with the guard.
RULES = {"projection": project, "pcgrad_symmetric": project_both, "upgrad": project_on_dual_cone, "config": bisect}
STRATEGIES = (*RULES, "agreement", "weighted_sum")


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
        strategy: "projection" (GSMorph), "pcgrad_symmetric", "upgrad", "config", "agreement" (GS-Agr) or
            "weighted_sum" (VoxelMorph).
        groups: the group of each tensor; None makes each tensor a group. Agreement and weighted sum do not depend on
            it.
        tau: guard of `find_conflicts`; agreement and weighted sum do not depend on it.
        weight: of the smoothness in "weighted_sum".

    Returns:
        The settled gradients, in the order and shapes of the arguments, and the conflicts between them.

    Raises:
        InputError: for another strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is one of {', '.join(STRATEGIES)}, got {strategy!r}.")
    conflicts = find_conflicts(similarity, smoothness, groups, tau)
    if strategy in RULES:
        return RULES[strategy](similarity, smoothness, groups, conflicts), conflicts
    if strategy == "weighted_sum":
        return add_weighted(similarity, smoothness, weight), conflicts
    return agree(similarity, smoothness), conflicts
