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

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.cardiac.cines import LABELS, CineRegistration
from scripts.files import let_go, one_by_one
from scripts.registration import fields
from scripts.registration.fields import compose, in_view, jacobian_determinant

Array = NDArray[np.floating]
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


def assess(registration: CineRegistration, inversion_errors: Array | None = None, reached: Array | None = None) -> dict:
    """Figures of each frame and slice, of the cycle, and a verdict.

    Args:
        registration: fields and images.
        inversion_errors: |v + u(y + v)| in voxels, (T, X, Y, Z), as the inversion left it; None counts no unconverged
            voxel.
        reached: where a moving image of another grid is seen, before and after it is moved, (X, Y, Z); None is
            everywhere.

    Returns:
        "frames": a dict a frame (`frame_figures`), each with "slices"; "cycle" for a cine; "verdict", a list of
        sentences; "trustworthy", whether no threshold was crossed; "thresholds", those that were used; "plane", one of
        `planes.PLANES` or None, and "plane_basis", one of `planes.BASIS`.
    """
    frames = []
    for t in range(len(registration.fields)):
        errors = None if inversion_errors is None else inversion_errors[t]
        frames.append(frame_figures(registration, t, errors, reached))
        let_go(
            registration.fields, registration.inverses, registration.moved, registration.cine.image, inversion_errors
        )
    cycle = cycle_figures(registration) if registration.reference and len(frames) > 2 else {}
    limits = dict(THRESHOLDS)
    unlabeled = limits.pop("compressed_percent_unlabeled")
    if registration.labels is None:
        limits["compressed_percent"] = unlabeled
    verdict = judge(frames, cycle, registration.reference, limits)
    return {
        "verdict": verdict
        or ["No figure crosses its threshold: the fields fit the images, do not fold, and can be inverted."],
        "trustworthy": not verdict,
        "thresholds": {name: limit for name, limit in limits.items() if cycle or name not in OF_A_CYCLE},
        "reference_frame": registration.reference,
        "reference_basis": registration.reference_basis,
        "plane": registration.cine.plane,
        "plane_basis": registration.cine.plane_basis,
        "cycle": cycle,
        "frames": frames,
    }


def frame_figures(
    registration: CineRegistration, t: int, inversion_errors: Array | None = None, reached: Array | None = None
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
    u, v = (
        torch.from_numpy(np.ascontiguousarray(f[t])).double().movedim(-1, 0)
        for f in (registration.fields, registration.inverses)
    )
    determinant = jacobian_determinant(u)
    spacing = torch.tensor(registration.cine.spacing[:2], dtype=torch.float64).view(1, 2, 1, 1)
    errors = []
    for one, other in ((u, v), (v, u)):
        length = fields.length(compose(other, one) * spacing)
        valid = in_view(one) & ((determinant if one is u else jacobian_determinant(one)) > 0.1)
        errors.append(torch.where(valid, length, torch.nan))
    inverse = [error.flatten(1) for error in errors]
    fixed = torch.from_numpy(np.ascontiguousarray(registration.fixed)).double().movedim(-1, 0)
    scale = fixed.var().clamp(min=torch.finfo(torch.float64).tiny)
    seen = in_view(u)
    if reached is not None:
        seen = seen & torch.from_numpy(np.ascontiguousarray(reached)).bool().movedim(-1, 0)
    images = [
        torch.from_numpy(np.ascontiguousarray(i[..., t])).double().movedim(-1, 0)
        for i in (registration.cine.image, registration.moved)
    ]
    squares = [misfit(image, fixed, seen) / scale for image in images]
    length = fields.length(u * spacing)
    tissue = length > MOVING * length.max()
    if registration.labels is not None:
        label = registration.label if registration.reference else registration.labels[..., t]
        tissue &= torch.from_numpy(~np.isin(label, CAVITIES)).movedim(-1, 0)
    compressed = tissue & (determinant > 0) & (determinant < THRESHOLDS["compressed_determinant"])
    pair = np.stack([registration.cine.image[..., t], registration.fixed])
    blank = (np.ptp(pair, axis=(1, 2)) == 0).any(axis=0)
    unconverged = np.zeros(len(u))
    if inversion_errors is not None:
        missed = inversion_errors > THRESHOLDS["unconverged_voxels_error"]
        unconverged = (missed & in_view(v).movedim(0, -1).numpy()).sum(axis=(0, 1))

    def figures(part: slice) -> dict:
        inside = [error[part][~error[part].isnan()].numpy() for error in inverse]
        # Where no voxel counts, nobody knows.
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

    slices = [{"slice": z + 1, **figures(slice(z, z + 1))} for z in range(len(u))]
    return {"frame": t + 1, **figures(slice(None)), "slices": slices}


def misfit(image: torch.Tensor, fixed: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
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


def cycle_figures(registration: CineRegistration) -> dict:
    """How the fields behave over the cycle, in mm over the moving region: step from frame to frame, roughness in time,
    and closure.

    Roughness is the second difference in time; where it is largest, at `jump_frame`, its ratio to the mean step is
    `jump_ratio`: a frame out of order leaps there and back. The heartbeat is periodic, so the step from the last frame
    to the first should be like the others; its ratio to the largest of them is `closure_ratio`. Cines of a part of the
    cycle do not close.
    """
    spacing = np.array(registration.cine.spacing[:2])
    amplitude = np.zeros(registration.fixed.shape)
    for u in one_by_one(registration.fields):
        amplitude = np.maximum(amplitude, np.hypot(u[0] * spacing[0], u[1] * spacing[1]))
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


def judge(frames: list[dict], cycle: dict, reference: int | None, limit: dict[str, float]) -> list[str]:
    """A sentence for each threshold that is crossed, with the frames of a cine; none where all is well."""
    others = [f for f in frames if f["frame"] != reference]
    sentences = []

    def call_out(bad: list[dict], words: str) -> None:
        numbers = ", ".join(str(f["frame"]) for f in bad[:8]) + (", …" if len(bad) > 8 else "")
        # A pair has no frames.
        where = f" (frame{'s' if len(bad) > 1 else ''} {numbers})" if reference else ""
        if bad:
            sentences.append(f"{words}{where}.")

    folds = [f for f in others if f["folding_percent"] > limit["folding_percent"]]
    call_out(folds, "The field folds: tissue would pass through itself")
    points = [f for f in others if f not in folds and f["folding_percent"] > 0]
    call_out(points, f"The field folds at single points, in {limit['folding_percent']} % of the area or less")
    call_out(
        [f for f in others if f["compressed_percent"] > limit["compressed_percent"]],
        f"Tissue is compressed to less than a fiftieth in more than {limit['compressed_percent']:g} % of what moves",
    )
    blank = sorted({row["slice"] for f in others for row in f["slices"] if row["blank_slices"]})
    numbers = ", ".join(map(str, blank))
    call_out(
        [f for f in others if f["blank_slices"]],
        f"Nothing is registered, and nothing moves, where a slice is blank: {numbers}",
    )

    # NaN, where a whole slice leaves the view or folds, is no good error either.
    def unknown(f):
        return any(np.isnan(row["inverse_error_mm_p95"]) for row in f["slices"])

    call_out(
        [f for f in others if unknown(f) or not f["inverse_error_mm_p95"] <= limit["inverse_error_mm_p95"]],
        "The field cannot be inverted accurately",
    )
    still = [f for f in others if f["largest_displacement_mm"] < limit["moved_mm"]]
    # Frames that resemble the reference from the start have nothing to gain.
    apart = limit["share_of_the_largest_mse_before"] * max((f["mse_before"] for f in others), default=0.0)
    seen = [f for f in others if f["blank_slices"] < len(f["slices"])]
    worse = [
        f for f in seen if f["mse_before"] > apart and f["mse_after"] > limit["mse_after_to_before"] * f["mse_before"]
    ]
    if others and len(still) == len(others):
        sentences.append(f"Nothing moves by more than {limit['moved_mm']} mm: were the images registered already?")
    else:
        call_out(worse, "The images hardly fit better than before")
    typical = float(np.median([row["mse_after"] for f in others for row in f["slices"]])) if others else 0.0
    if typical > limit["mse_after"]:
        # All of them are bad, so that none stands out.
        bad = [f for f in others if f["mse_after"] > limit["mse_after"] and f not in worse]
        call_out(bad, f"The images do not fit: more than {100 * limit['mse_after']:g} % of their contrast differs")
    else:
        high = max(limit["mse_after"], limit["mse_of_a_slice_to_median"] * typical)
        misfits = {
            f["frame"]: [row["slice"] for row in f["slices"] if row["mse_after"] > high and not row["blank_slices"]]
            for f in others
        }
        numbers = ", ".join(map(str, sorted(set().union(*misfits.values()))))
        call_out(
            [f for f in others if misfits[f["frame"]]],
            f"The images hardly fit in a slice, far worse than in most others: {numbers}",
        )
    if cycle.get("jump_ratio", 0) > limit["jump_ratio"]:
        sentences.append(
            f"Frame {cycle['jump_frame']} does not lie between its neighbors in motion: are the frames in order of time?"
        )
    if cycle.get("closure_ratio", 0) > limit["closure_ratio"]:
        sentences.append(
            f"The last frame does not lead back to the first (a step of {cycle['closure_mm']:.1f} mm against "
            f"{cycle['step_mm_max']:.1f} mm at most elsewhere): the cine covers a part of the cycle, or the "
            "registration drifts."
        )
    return sentences
