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

"""Whether to trust a registration: folding, inverse consistency, similarity, behavior over the cycle, and a verdict in
plain words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.cardiac.cines import LABELS
from scripts.cardiac.registrations import CineRegistration, Registration
from scripts.files import let_go, one_by_one
from scripts.registration import fields
from scripts.registration.fields import compose, in_view, jacobian_determinant, unstack

# Beyond which a figure is called out. Below `moved_mm`, the largest displacement, nothing has been registered; below
# `compressed_determinant` area counts as compressed, which a cavity that empties may be, and it takes more of it where
# no label tells the cavities; `mse_after` is that of a frame or slice; frames whose error is below a share of the
# largest resemble the reference from the start.
THRESHOLDS = {
    "folding_percent": 0.1,
    "compressed_percent": 5.0,
    "compressed_percent_unlabeled": 15.0,
    "inverse_error_mm_p95": 0.1,
    "mse_after_to_before": 0.9,
    "mse_after": 0.3,
    "mse_of_a_slice_to_median": 5.0,
    "closure_ratio": 3.0,
    "jump_ratio": 3.0,
    "moved_mm": 0.5,
    "compressed_determinant": 0.02,
    "unconverged_voxels_error": 0.011,  # a tenth above fields.INVERTED
    "share_of_the_largest_mse_before": 0.25,
}
# Thresholds that a pair has no use for.
OF_A_CYCLE = ("closure_ratio", "jump_ratio", "share_of_the_largest_mse_before")
CAVITIES = (LABELS["rv"], LABELS["lv"])
MOVING = 0.25  # of the largest displacement, above which a region moves


def assess(
    registration: Registration,
    inversion_errors: NDArray | None = None,
    reached: NDArray | None = None,
    doubts: Sequence[str] = (),
) -> dict:
    """Figures of each frame and slice, of the cycle, and a verdict.

    Args:
        registration: fields and images.
        inversion_errors: |v + u(y + v)| in voxels, (T, X, Y, Z), as the inversion left it; None counts no unconverged
            voxel.
        reached: where a moving image of another grid is seen, before and after it is moved, (X, Y, Z); None is
            everywhere.
        doubts: sentences on the input that belong to the verdict.

    Returns:
        "frames": a dict for each frame (`_frame_figures`), each with "slices"; "cycle" for a cine; "verdict", a list of
        sentences; "trustworthy", whether no threshold was crossed; "thresholds", those that were used; "plane", one of
        `planes.PLANES` or None, and "plane_basis", one of `planes.BASIS`;
        "left_out_percent", the share of voxels that hold no measurement, and count in no range and no similarity.
    """
    frames, valid = [], registration.cine.valid
    if valid is not None:
        reached = valid if reached is None else valid & reached
    for t in range(len(registration.fields)):
        errors = None if inversion_errors is None else inversion_errors[t]
        frames.append(_frame_figures(registration, t, errors, reached))
        let_go(
            registration.fields, registration.inverses, registration.moved, registration.cine.image, inversion_errors
        )
    cycle = _cycle_figures(registration) if registration.has_cycle else {}
    limits = dict(THRESHOLDS)
    unlabeled = limits.pop("compressed_percent_unlabeled")
    if registration.labels is None:
        limits["compressed_percent"] = unlabeled
    verdict = [*doubts, *judge(registration, frames, cycle, limits)]
    return {
        "verdict": verdict
        or ["No figure crosses its threshold: the fields fit the images, do not fold, and can be inverted."],
        "trustworthy": not verdict,
        "thresholds": {name: limit for name, limit in limits.items() if cycle or name not in OF_A_CYCLE},
        **registration.describe_reference(),
        "plane": registration.cine.plane,
        "plane_basis": registration.cine.plane_basis,
        "left_out_percent": 0.0 if valid is None else 100.0 * float(1 - valid.mean()),
        "cycle": cycle,
        "frames": frames,
    }


def _frame_figures(
    registration: Registration, t: int, inversion_errors: NDArray | None = None, reached: NDArray | None = None
) -> dict:
    """Folded and compressed area in percent, extremes of the Jacobian determinant, inverse errors in mm, and the
    relative squared error, of a frame.

    Folded area is a share of the slices, compressed area one of what moves (by more than a quarter of the frame's
    largest displacement), labeled cavities apart.

    The squared error is what the best gain (0 or more) and offset of a slice leave of its intensities, in units of the
    fixed image's standard deviation, where x + u(x) stays in view: images of two scanners, or of two gains, may fit.
    The inverse error is the larger of u∘v and v∘u against the identity, where x + u(x) stays in view and the
    determinant is above 0.1. Unconverged are voxels whose inverse stays in view and is off by more than a hundredth of
    a voxel. Blank is a slice that is constant in either image.
    """
    axes = len(registration.fields[0])

    def by_slice(values: torch.Tensor) -> torch.Tensor:
        """(Z, X, Y) from what fields of slices have, that, or of a volume, (1, X, Y, Z)."""
        return values if axes == 2 else values[0].movedim(-1, 0)

    u, v = (
        unstack(torch.from_numpy(np.ascontiguousarray(f[t])).double(), axes)
        for f in (registration.fields, registration.inverses)
    )
    spacing = torch.tensor(registration.cine.spacing[:axes], dtype=torch.float64).view(1, -1, *[1] * axes)
    determinants = [jacobian_determinant(one) for one in (u, v)]
    errors = []
    for one, other, own in ((u, v, determinants[0]), (v, u, determinants[1])):
        length = fields.length(compose(other, one) * spacing)
        errors.append(by_slice(torch.where(in_view(one) & (own > 0.1), length, torch.nan)))
    determinant = by_slice(determinants[0])
    inverse = [error.flatten(1) for error in errors]
    fixed = torch.from_numpy(np.ascontiguousarray(registration.fixed)).double().movedim(-1, 0)
    scale = fixed.var().clamp(min=torch.finfo(torch.float64).tiny)
    seen = by_slice(in_view(u))
    if reached is not None:
        seen = seen & torch.from_numpy(np.ascontiguousarray(reached)).bool().movedim(-1, 0)
    images = [
        torch.from_numpy(np.ascontiguousarray(i[..., t])).double().movedim(-1, 0)
        for i in (registration.cine.image, registration.moved)
    ]
    squares = [_misfit(image, fixed, seen) / scale for image in images]
    length = by_slice(fields.length(u * spacing))
    tissue = length > MOVING * length.max()
    if registration.label is not None:
        tissue &= torch.from_numpy(~np.isin(registration.label, CAVITIES)).movedim(-1, 0)
    compressed = tissue & (determinant > 0) & (determinant < THRESHOLDS["compressed_determinant"])
    pair = np.stack([registration.cine.image[..., t], registration.fixed])
    blank = (np.ptp(pair, axis=(1, 2)) == 0).any(axis=0)
    unconverged = np.zeros(len(fixed))
    if inversion_errors is not None:
        missed = inversion_errors > THRESHOLDS["unconverged_voxels_error"]
        unconverged = (missed & by_slice(in_view(v)).movedim(0, -1).numpy()).sum(axis=(0, 1))

    def figures(part: slice) -> dict:
        inside = [error[part][~error[part].isnan()].numpy() for error in inverse]
        # Unknown where no voxel counts.
        inside = [error if len(error) else np.full(1, np.nan) for error in inside]
        return {
            "folding_percent": 100.0 * float((determinant[part] <= 0).double().mean()),
            "compressed_percent": 100.0 * int(compressed[part].sum()) / max(int(tissue[part].sum()), 1),
            "jacobian_min": float(determinant[part].min()),
            "jacobian_max": float(determinant[part].max()),
            "inverse_error_mm_p95": float(np.max([np.percentile(error, 95) for error in inside])),
            "inverse_error_mm_max": float(np.max([error.max() for error in inside])),
            "unconverged_voxels": int(unconverged[part].sum()),
            "largest_displacement_mm": float(length[part].max()),
            "mse_before": float(squares[0][part].mean()),
            "mse_after": float(squares[1][part].mean()),
            "blank_slices": int(blank[part].sum()),
        }

    slices = [{"slice": z + 1, **figures(slice(z, z + 1))} for z in range(len(fixed))]
    return {"frame": t + 1, **figures(slice(None)), "slices": slices}


def _misfit(image: torch.Tensor, fixed: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of gain * image + offset and fixed in each slice (Z,), by the gain >= 0 and the offset
    that make it least.

    Args:
        image: (Z, X, Y).
        fixed: the same.
        seen: which voxels count, (Z, X, Y).
    """
    number = seen.sum((1, 2)).clamp(min=1)
    centered = [(x - ((seen * x).sum((1, 2)) / number)[:, None, None]) * seen for x in (image, fixed)]
    cross, own, total = (
        (a * b).sum((1, 2)) for a, b in ((centered[0], centered[1]), (centered[0],) * 2, (centered[1],) * 2)
    )
    explained = torch.where(own > 0, cross.clamp(min=0).square() / own.clamp(min=torch.finfo(own.dtype).tiny), 0.0)
    return (total - explained).clamp(min=0) / number


def _cycle_figures(registration: CineRegistration) -> dict:
    """How the fields behave over the cycle, in mm over the moving region: step from frame to frame, roughness in time,
    and closure.

    Roughness is the second difference in time; where it is largest, at `jump_frame`, its ratio to the mean step is
    `jump_ratio`: a frame out of order leaps there and back. The heartbeat is periodic, so the step from the last frame
    to the first should be like the others; its ratio to the largest of them is `closure_ratio`. Cines of a part of the
    cycle do not close.
    """
    spacing = np.array(registration.cine.spacing[: len(registration.fields[0])])
    amplitude = np.zeros(registration.fixed.shape)
    for u in one_by_one(registration.fields):
        amplitude = np.maximum(amplitude, np.sqrt(np.einsum("ixyz,i->xyz", u**2, spacing**2)))
    moving = amplitude > max(MOVING * float(amplitude.max()), 1e-6)
    if not moving.any():
        return {}
    count = len(registration.fields)
    # Three frames at a time: all of them might not fit into memory.
    track = [registration.fields[t % count][:, moving] * spacing[:, None] for t in range(2)]
    steps, bends = [], []
    for t in range(2, count + 2):
        steps.append(np.linalg.norm(track[1] - track[0], axis=0).mean())
        track.append(registration.fields[t % count][:, moving] * spacing[:, None])
        bends.append(np.linalg.norm(track[2] - 2 * track[1] + track[0], axis=0).mean())
        track.pop(0)
        let_go(registration.fields)
    steps, others, roughness = np.array(steps), np.array(steps[:-1]), np.array(bends[:-2])
    return {
        "step_mm_mean": float(others.mean()),
        "step_mm_max": float(others.max()),
        "temporal_roughness_mm": float(roughness.mean()),
        "jump_ratio": float(roughness.max() / max(others.mean(), 1e-6)),
        "jump_frame": int(roughness.argmax()) + 2,
        "closure_mm": float(steps[-1]),
        "closure_ratio": float(steps[-1] / max(others.max(), 1e-6)),
    }


@dataclass(frozen=True)
class _Evidence:
    """What a verdict rests on: figures of the frames but the reference, of the cycle, and the limits."""

    frames: list[dict]
    cycle: dict
    limit: dict[str, float]

    def above(self, figure: str) -> list[dict]:
        """Frames with a figure above its limit."""
        return [f for f in self.frames if f[figure] > self.limit[figure]]

    def cycle_above(self, figure: str) -> list[dict]:
        """All frames where a figure of the cycle is above its limit."""
        return self.frames if self.cycle.get(figure, 0) > self.limit[figure] else []

    @cached_property
    def motionless(self) -> list[dict]:
        """All frames, where nothing moves in any of them."""
        moved = [f for f in self.frames if f["largest_displacement_mm"] >= self.limit["moved_mm"]]
        return [] if moved else self.frames

    @cached_property
    def no_better(self) -> list[dict]:
        """Frames whose images fit hardly better than before; those that resembled the reference then had nothing to
        gain."""
        apart = self.limit["share_of_the_largest_mse_before"] * max((f["mse_before"] for f in self.frames), default=0.0)
        gain = self.limit["mse_after_to_before"]
        seen = [f for f in self.frames if f["blank_slices"] < len(f["slices"])]
        return [f for f in seen if f["mse_before"] > apart and f["mse_after"] > gain * f["mse_before"]]

    @cached_property
    def typical(self) -> float:
        """Median error of a slice."""
        errors = [row["mse_after"] for f in self.frames for row in f["slices"]]
        return float(np.median(errors)) if errors else 0.0

    @cached_property
    def misfits(self) -> list[dict]:
        """Frames that do not fit where most slices do not, so that none stands out."""
        limit = self.limit["mse_after"]
        bad = [f for f in self.frames if f["mse_after"] > limit and f not in self.no_better]
        return bad if self.typical > limit else []

    @property
    def contrast_percent(self) -> float:
        return 100 * self.limit["mse_after"]

    def is_odd(self, row: dict) -> bool:
        """Whether a slice fits far worse than most, where most do."""
        high = max(self.limit["mse_after"], self.limit["mse_of_a_slice_to_median"] * self.typical)
        return self.typical <= self.limit["mse_after"] and row["mse_after"] > high and not row["blank_slices"]

    def with_slices(self, bad: Callable[[dict], bool]) -> list[dict]:
        """Frames with a bad slice."""
        return [f for f in self.frames if any(bad(row) for row in f["slices"])]

    def _numbers(self, bad: Callable[[dict], bool]) -> str:
        return ", ".join(map(str, sorted({row["slice"] for f in self.frames for row in f["slices"] if bad(row)})))

    @property
    def blank_slices(self) -> str:
        return self._numbers(_is_blank)

    @property
    def odd_slices(self) -> str:
        return self._numbers(self.is_odd)


def _is_blank(row: dict) -> bool:
    return row["blank_slices"] > 0


def _cannot_be_inverted(evidence: _Evidence) -> list[dict]:
    # NaN, where a whole slice leaves the view or folds, is no good error either.
    unknown = evidence.with_slices(lambda row: np.isnan(row["inverse_error_mm_p95"]))
    limit = evidence.limit["inverse_error_mm_p95"]
    return [f for f in evidence.frames if f in unknown or not f["inverse_error_mm_p95"] <= limit]


# What a verdict calls out: in which frames of the evidence e it is so, and the sentence.
_FINDINGS: tuple[tuple[Callable[[_Evidence], list[dict]], str], ...] = (
    (lambda e: e.above("folding_percent"), "The field folds: tissue would pass through itself{frames}."),
    (
        lambda e: [f for f in e.frames if 0 < f["folding_percent"] <= e.limit["folding_percent"]],
        "The field folds at single points, in {e.limit[folding_percent]} % of the area or less{frames}.",
    ),
    (
        lambda e: e.above("compressed_percent"),
        "Tissue is compressed to less than a fiftieth in more than {e.limit[compressed_percent]:g} % of what moves{frames}.",
    ),
    (
        lambda e: e.with_slices(_is_blank),
        "Nothing is registered, and nothing moves, where a slice is blank: {e.blank_slices}{frames}.",
    ),
    (_cannot_be_inverted, "The field cannot be inverted accurately{frames}."),
    (lambda e: e.motionless, "Nothing moves by more than {e.limit[moved_mm]} mm: were the images registered already?"),
    (lambda e: [] if e.motionless else e.no_better, "The images hardly fit better than before{frames}."),
    (
        lambda e: e.misfits,
        "The images do not fit: more than {e.contrast_percent:g} % of their contrast differs{frames}.",
    ),
    (
        lambda e: e.with_slices(e.is_odd),
        "The images hardly fit in a slice, far worse than in most others: {e.odd_slices}{frames}.",
    ),
    (
        lambda e: e.cycle_above("jump_ratio"),
        "Frame {e.cycle[jump_frame]} does not lie between its neighbors in motion: are the frames in order of time?",
    ),
    (
        lambda e: e.cycle_above("closure_ratio"),
        "The last frame does not lead back to the first (a step of {e.cycle[closure_mm]:.1f} mm against "
        "{e.cycle[step_mm_max]:.1f} mm at most elsewhere): the cine covers a part of the cycle, or the registration drifts.",
    ),
)


def judge(registration: Registration, frames: list[dict], cycle: dict, limit: dict[str, float]) -> list[str]:
    """A sentence for each threshold that is crossed, with the frames of a cine; none where all is well."""
    to_judge = registration.frames_to_judge()
    evidence = _Evidence([f for f in frames if f["frame"] in to_judge], cycle, limit)
    sentences = []
    for find, sentence in _FINDINGS:
        if bad := find(evidence):
            where = registration.name_frames([f["frame"] for f in bad])
            sentences.append(sentence.format(e=evidence, frames=where))
    return sentences
