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

"""How good a registration is: folding, inverse consistency, similarity, behavior over the cycle, and a verdict on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.cardiac.agreement import (
    compare_slices,
    fit_label,
    lone_departures,
    measure_curve,
    summarize_agreement,
    wall_change,
)
from scripts.cardiac.answers import CARRIED, GIVEN, SEGMENTED
from scripts.cardiac.appearance import measure_image
from scripts.cardiac.cines import LABELS
from scripts.cardiac.coherence import measure_slices
from scripts.cardiac.evidence import Evidence, measured
from scripts.cardiac.function import volumes
from scripts.cardiac.phases import find_phases
from scripts.cardiac.registrations import CineRegistration, Registration
from scripts.cardiac.verdict import NOTHING_FOUND, OF_A_CYCLE, PASSED, THRESHOLDS, judge, worst
from scripts.files import let_go, one_by_one
from scripts.registration import fields
from scripts.registration.fields import compose, in_view, jacobian_determinant, unstack

CAVITY_VALUES = (LABELS["rv"], LABELS["lv"])
MOVING = 0.25  # of the largest displacement, above which a region moves


def assess(
    registration: Registration,
    inversion_errors: NDArray | None = None,
    reached: NDArray | None = None,
    doubts: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> dict:
    """Figures of each frame and slice, of the cycle, and a verdict.

    Args:
        registration: fields and images.
        inversion_errors: |v + u(y + v)| in voxels, (T, X, Y, Z), as the inversion left it; None counts no unconverged
            voxel.
        reached: where a moving image of another grid is seen, before and after it is moved, (X, Y, Z); None is
            everywhere.
        doubts: sentences on the input that belong to the verdict.
        remarks: sentences on the ventricles' figures that belong there, too, and change no grade.

    Returns:
        "frames": a dict for each frame (`_frame_figures`), each with "slices"; "cycle" for a cine; "grade", one of
        `verdict.GRADES`; "verdict", a list of sentences; "findings", a `verdict.Finding` as a dict for each that has a
        grade; "thresholds", those that were used, and "measured", `evidence.measured` beside them; "plane", one of
        `planes.PLANES` or None, and "plane_basis", one of `planes.BASIS`; "doubts" as given;
        "image", `appearance.measure_image`; "contours", `compare_contours`;
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
    unused = set() if cycle else set(OF_A_CYCLE)
    judged = [frame for frame in frames if frame["frame"] in registration.frames_to_judge()]
    image = measure_image(registration.fixed, registration.cine.spacing)
    contours = compare_contours(*registration.compared, registration.cine.spacing, registration.label_basis == GIVEN)
    findings = judge(judged, cycle, limits, image, contours, registration.are_numbered, doubts, remarks)
    grade = worst(findings)
    return {
        "grade": grade,
        "verdict": [NOTHING_FOUND] * (grade == PASSED) + [finding.sentence for finding in findings],
        "findings": [asdict(finding) for finding in findings],
        "thresholds": {name: limit for name, limit in limits.items() if name not in unused},
        "measured": measured(Evidence(judged, cycle, limits, image, contours)),
        **registration.describe_reference(),
        "plane": registration.cine.plane,
        "plane_basis": registration.cine.plane_basis,
        "left_out_percent": 0.0 if valid is None else 100.0 * float(1 - valid.mean()),
        "image": image,
        "doubts": list(doubts),
        "contours": contours,
        "cycle": cycle,
        "frames": frames,
    }


def compare_contours(
    answers: Mapping[str, NDArray], reference: int, spacing: Sequence[float], is_given: bool = False
) -> dict:
    """Where the contours of a cine or a pair part that came to be in two ways; empty where there are no two.

    Args:
        answers: labels of all frames (X, Y, Z, T), by what they rest on; of a pair, T = 2.
        reference: frame whose label is carried, counted from 1.
        spacing: voxel size in mm along X, Y and Z.
        is_given: whether somebody gave the label that is carried.

    Returns:
        `agreement.summarize_agreement` of the left ventricle, wall included; "rows", those of `agreement.compare_slices`;
        "curves", for each answer `agreement.measure_curve` of the LV and `agreement.wall_change`; "departures_percent",
        `agreement.lone_departures` of the LV's carried volume; "ejection_percent", the LV's ejection fraction by each answer,
        from end diastole to end systole by the segmentation; "label_fit_percent", `agreement.fit_label` of a given label, and
        "reference"; and "heart", `coherence.measure_slices` of the segmented reference.
    """
    if not {CARRIED, SEGMENTED} <= answers.keys() or answers[CARRIED].shape[-1] < 2:
        return {}
    rows = compare_slices(answers[CARRIED], answers[SEGMENTED], spacing, reference)
    curves, cavities, ejections, phases = {}, {}, {}, find_phases(answers[SEGMENTED], spacing)
    for name, frames in answers.items():
        volume, nothing = volumes(frames, spacing), np.zeros(frames.shape[-1])
        change, lv = wall_change(volume.get("myo", nothing), reference), volume.get("lv", nothing)
        curves[name] = {**measure_curve(lv), **change}
        cavities[name] = lv
        if phases is not None and lv[phases[0] - 1] > 0:
            ejections[name] = 100 * float(1 - lv[phases[1] - 1] / lv[phases[0] - 1])
    found = {**summarize_agreement(rows), "reference": reference, "curves": curves}
    found["departures_percent"] = lone_departures(cavities[CARRIED], cavities[SEGMENTED]).tolist()
    if len(ejections) == len(answers):
        found["ejection_percent"] = ejections
    if is_given:
        found["label_fit_percent"] = fit_label(answers[CARRIED][..., reference - 1], answers[SEGMENTED])
    return {**found, "heart": measure_slices(answers[SEGMENTED][..., reference - 1], spacing), "rows": rows}


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
    determinant is above 0.1. With motion along the stack it is that of v(y) + u(y + v(y)) alone, by which labels are
    carried, beyond the ends of the stack, too. The way back, u(x) + v(x + u(x)), meets v between slices, where no
    linear interpolation undoes u, and has a figure of its own. Unconverged are voxels whose inverse stays in view and
    is off by more than a hundredth of a voxel. Blank is a slice that is constant in either image.
    """
    axes = len(registration.fields[0])

    def by_slice(values: torch.Tensor) -> torch.Tensor:
        """(Z, X, Y) from what fields of slices have, that, or of a volume, (1, X, Y, Z)."""
        return values if axes == 2 else values[0].movedim(-1, 0)

    u, v = (
        unstack(torch.from_numpy(np.ascontiguousarray(f[t])), axes)
        for f in (registration.fields, registration.inverses)
    )
    spacing = torch.tensor(registration.cine.spacing[:axes], dtype=torch.float64).view(1, -1, *[1] * axes)
    # Slice by slice: all of a frame in double precision would take more memory than anything else.
    maps = zip(*(_measure_field(*pair, spacing) for pair in zip(u.split(1), v.split(1))))
    determinant, length, *errors = (by_slice(torch.cat(parts)) for parts in maps)
    back, inverse = errors[0], errors[1:] if axes == 3 else errors
    fixed, image, moved = (
        torch.from_numpy(np.ascontiguousarray(i)).movedim(-1, 0)
        for i in (registration.fixed, registration.cine.image[..., t], registration.moved[..., t])
    )
    scale = fixed.double().var().clamp(min=torch.finfo(torch.float64).tiny)
    seen = by_slice(in_view(u))
    if reached is not None:
        seen = seen & torch.from_numpy(np.ascontiguousarray(reached)).bool().movedim(-1, 0)
    squares = [_misfits(i, fixed, seen) / scale for i in (image, moved)]
    tissue = length > MOVING * length.max()
    if registration.label is not None:
        tissue &= torch.from_numpy(~np.isin(registration.label, CAVITY_VALUES)).movedim(-1, 0)
    compressed = tissue & (determinant > 0) & (determinant < THRESHOLDS["compressed_determinant"])
    blank = np.any([np.ptp(i.numpy(), axis=(1, 2)) == 0 for i in (image, fixed)], axis=0)
    unconverged = np.zeros(len(fixed))
    if inversion_errors is not None:
        missed = inversion_errors > THRESHOLDS["unconverged_voxels_error"]
        unconverged = (missed & by_slice(in_view(v)).movedim(0, -1).numpy()).sum(axis=(0, 1))

    def figures(part: slice) -> dict:
        return {
            "folding_percent": 100.0 * float((determinant[part] <= 0).double().mean()),
            "compressed_percent": 100.0 * int(compressed[part].sum()) / max(int(tissue[part].sum()), 1),
            "jacobian_min": float(determinant[part].min()),
            "jacobian_max": float(determinant[part].max()),
            "inverse_error_mm_p95": _worst([error[part] for error in inverse], 95),
            "inverse_error_mm_max": _worst([error[part] for error in inverse], 100),
            **({"back_between_slices_mm_p95": _worst([back[part]], 95)} if axes == 3 else {}),
            "unconverged_voxels": int(unconverged[part].sum()),
            "largest_displacement_mm": float(length[part].max()),
            "mse_before": float(squares[0][part].mean()),
            "mse_after": float(squares[1][part].mean()),
            "blank_slices": int(blank[part].sum()),
        }

    slices = [{"slice": z + 1, **figures(slice(z, z + 1))} for z in range(len(fixed))]
    return {"frame": t + 1, **figures(slice(None)), "slices": slices}


def _worst(errors: Sequence[torch.Tensor], percentile: float) -> float:
    """The largest of some maps' percentiles over what is not NaN; NaN where there is nothing in one."""
    known = [error[~error.isnan()].numpy() for error in errors]
    return float(np.max([np.percentile(error, percentile) if len(error) else np.nan for error in known]))


def _measure_field(u: torch.Tensor, v: torch.Tensor, spacing: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of a field and its inverse, (1, d, *spatial) in voxels: the Jacobian determinant, the length in mm, and both inverse
    errors, u(x) + v(x + u(x)) and v(y) + u(y + v(y)), each (1, *spatial); computed in double, kept in single precision.
    """
    u, v = u.double(), v.double()
    maps = (
        jacobian_determinant(u),
        fields.length(u * spacing),
        _inverse_error(u, v, spacing, in_view(u)),
        # Beyond the ends of a stack u goes on as it ends, and v undoes that.
        _inverse_error(v, u, spacing, in_view(v, axes=2)),
    )
    return tuple(values.float() for values in maps)


def _inverse_error(one: torch.Tensor, other: torch.Tensor, spacing: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """How far `other` after `one`, fields (1, d, *spatial) in voxels, is from the identity, in mm, (1, *spatial); NaN where
    nothing is `seen` or `one` all but collapses."""
    length = fields.length(compose(other, one) * spacing)
    return torch.where(seen & (jacobian_determinant(one) > 0.1), length, torch.nan)


def _misfits(image: torch.Tensor, fixed: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """`_misfit` slice by slice, in double precision."""
    slices = zip(*(values.split(1) for values in (image, fixed, seen)))
    return torch.cat([_misfit(i.double(), f.double(), s) for i, f, s in slices])


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
