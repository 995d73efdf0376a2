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

"""From the fields of a case to a registration: what they move, their inverses, and all that is measured on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray
from scripts.cardiac.answers import GIVEN, measure_answers
from scripts.cardiac.cines import Cine
from scripts.cardiac.longitudinal import measure_longitudinal
from scripts.cardiac.planes import is_long_axis
from scripts.cardiac.quality import assess
from scripts.cardiac.registrations import CineRegistration, PairRegistration, Registration
from scripts.cardiac.strain import measure_strain
from scripts.data.grids import pull
from scripts.data.points import move_points, read_points, to_lps
from scripts.errors import InputError
from scripts.files import let_go, one_by_one, scratch_array
from scripts.progress import stage
from scripts.registration import fields as field_algebra
from scripts.registration.fields import balance_inverse, in_view, restack, unstack, warp_label, warp_stack


def invert_array(field: NDArray, tolerance: float = field_algebra.INVERTED) -> tuple[NDArray, NDArray]:
    """The inverse of a field, on the same grid: v with v(y) + u(y + v(y)) = 0 (`fields.invert` for NumPy arrays).

    Args:
        field: (d, X, Y, Z) in voxels, channel i along array axis i, pull direction; in-plane (d = 2, or no more along
            the slices than a tenth of the tolerance, as rounding in files leaves) it is inverted slice by slice.
        tolerance: voxels.

    Returns:
        The inverse (d, X, Y, Z), and the length of its error in voxels (X, Y, Z).
    """
    if len(field) == 3 and np.abs(field[2]).max() <= 0.1 * tolerance:
        in_plane, error = invert_array(field[:2], tolerance)
        return np.concatenate([in_plane, np.zeros_like(field[2:])]), error
    stack = torch.from_numpy(np.ascontiguousarray(field))
    if len(field) == 3:
        inverse, error = field_algebra.invert(stack[None], tolerance)
        return inverse[0].numpy(), error[0].numpy()
    inverse, error = field_algebra.invert(stack.movedim(-1, 0), tolerance)
    return inverse.movedim(0, -1).numpy(), error.movedim(0, -1).numpy()


class AssembleRegistration(Transform):
    """From a field on the native grid, (2, X, Y, Z * T) of slices or (3, X, Y, Z, T) of stacks, to a "registration", with all that
    is measured on it. Of a case that is "in_plane" the third component, which is 0, is left out.

    A case may come in parts of some frames, one after the other (`loading.in_parts`); the last one has it.

    Args:
        sector_origin: degrees, see `strain.measure_strain`; None finds the sectors by the RV.
        scratch_dir: folder for what does not fit into memory, see `files.scratch_array`; None keeps all in memory.

    Raises:
        InputError: for an origin that is not a number, and when called with a field that holds NaN or Inf.
    """

    def __init__(self, sector_origin: float | None = None, scratch_dir: str | Path | None = None) -> None:
        self.sector_origin = sector_origin
        self.scratch_dir = scratch_dir
        self._frames: _Frames | None = None

    def __call__(self, data: Mapping) -> dict:
        if data.get("in_plane"):
            data = {**data, "pred": data["pred"][:2]}
        first, count = int(data.get("first_frame", 0)), len(data["moving_image"])
        total = int(data.get("frames", count))
        if first == 0:
            shape = (total, *data["moving_image"].shape[1:])
            self._frames = _Frames(shape, len(data["pred"]), self.scratch_dir)
        self._frames.add(data, first)
        if first + count < total:
            return dict(data)
        frames, self._frames = self._frames, None
        return {**data, "registration": self.assemble(data, frames)}

    def assemble(self, data: Mapping, frames: _Frames) -> Registration:
        """A registration of all frames, with all that is measured on it."""
        times = data.get("times")
        cine = Cine(
            name=str(data["case"]),
            image=np.moveaxis(frames.image, 0, -1),
            affine=_fixed_affine(data),
            times=None if times is None else torch.as_tensor(times).numpy(),
            valid=None if data.get("valid") is None else torch.as_tensor(data["valid"]).cpu().numpy(),
            plane=str(data.get("plane") or "") or None,
            plane_basis=str(data.get("plane_basis", "unknown")),
        )
        registration = _MAKERS[data["kind"]](
            data,
            _labels(data, frames),
            cine=cine,
            fields=frames.fields,
            inverses=frames.inverses,
            moved=np.moveaxis(frames.moved, 0, -1),
            label_basis=data.get("label_basis"),
            segmented=np.moveaxis(frames.segmented, 0, -1) if "segmented" in data else None,
            is_measured=bool(data.get("is_measured", True)),
        )
        strain, remarks = [], []
        if isinstance(registration, CineRegistration):
            strain = self.measure_heartbeat(registration)
            remarks = registration.function.get("remarks", [])
        registration.quality = assess(
            registration,
            frames.inversion_errors,
            _seen_on_both(data, torch.from_numpy(frames.fields[:1])),
            str(data.get("doubts", "")).splitlines(),
            remarks,
        )
        if self.sector_origin is not None and not strain:
            logging.getLogger("inference").warning(
                f"{cine.name}: has no strain to divide by --sector_origin; give --reference_label with the LV and its "
                "myocardium."
            )
        if "points" in data:
            registration.points = _carry_points(registration, data["points"])
        return registration

    def measure_heartbeat(self, registration: CineRegistration) -> list[dict]:
        """Measure function and strain of a cine, if it has a label; returns the rows of strain: longitudinal in a
        long-axis view, else circumferential; radial in both."""
        r, cine = registration, registration.cine
        if r.label is None:
            return []
        in_plane = r.fields.shape[1] == 2
        r.function = measure_answers(
            r.answers,
            r.label_basis or GIVEN,
            cine.spacing,
            cine.times,
            r.reference,
            cine.is_stack,
            in_plane,
            r.is_measured,
        )
        if is_long_axis(cine.plane):
            r.strain = measure_longitudinal(r.fields, r.label, cine.affine, cine.times)
        else:
            anatomy = None if r.segmented is None else r.segmented[..., r.reference - 1]
            r.strain = measure_strain(r.fields, r.label, cine.affine, self.sector_origin, cine.times, anatomy)
        return r.strain


def _make_cine(data: Mapping, labels: Mapping[str, NDArray], **parts: object) -> CineRegistration:
    """The registration of a cine, from the label of its reference frame and that carried to each frame."""
    return CineRegistration(
        reference=int(data["reference"]),
        reference_basis=str(data["reference_basis"]),
        label=labels.get("reference_label"),
        labels=labels.get("carried"),
        **parts,
    )


def _make_pair(data: Mapping, labels: Mapping[str, NDArray], **parts: object) -> PairRegistration:
    """The registration of a pair, from the label of one of its images and that carried to the other one."""
    given = "moving_label" in labels
    carried = labels["carried"][..., 0] if labels else None
    return PairRegistration(
        fixed=torch.as_tensor(data["fixed_image"]).cpu().float()[0].numpy(),
        moving_label=labels.get("moving_label"),
        moved_label=carried if given else None,
        fixed_label=labels.get("reference_label"),
        carried_label=None if given else carried,
        fixed_segmented=(
            None if data.get("fixed_segmented") is None else torch.as_tensor(data["fixed_segmented"][0]).numpy()
        ),
        **parts,
    )


_MAKERS: dict[str, Callable[..., Registration]] = {"cine": _make_cine, "pair": _make_pair}
# Which fields carry a label: a moving one goes where the moving image does, that of a reference the other way.
_CARRIED_BY = {"reference_label": "inverses", "moving_label": "fields"}


def _label_key(data: Mapping) -> str | None:
    """The key of a case's label, None where it has none."""
    return next((key for key in _CARRIED_BY if data.get(key) is not None), None)


def _labels(data: Mapping, frames: _Frames) -> dict[str, NDArray]:
    """A case's label (X, Y, Z) by its key, and "carried" (X, Y, Z, T); nothing where it has none."""
    key = _label_key(data)
    if key is None:
        return {}
    label = torch.as_tensor(data[key]).cpu()[0].round().numpy().astype(np.uint8)
    return {key: label, "carried": np.moveaxis(frames.carried, 0, -1)}


class _Frames:
    """What registration makes of each frame of a case, filled part by part.

    Args:
        shape: (T, X, Y, Z) of all frames.
        axes: components of their fields.
        scratch_dir: see `files.scratch_array`.
    """

    def __init__(self, shape: tuple[int, ...], axes: int, scratch_dir: str | Path | None) -> None:
        frames, *grid = shape
        self.image, self.moved, self.inversion_errors = (scratch_array(shape, folder=scratch_dir) for _ in range(3))
        self.fields, self.inverses = (scratch_array((frames, axes, *grid), folder=scratch_dir) for _ in range(2))
        self.carried, self.segmented = (scratch_array(shape, np.uint8, scratch_dir) for _ in range(2))

    def add(self, data: Mapping, first: int) -> None:
        """Fill the frames of a part, of which `first` is the first one, counted from 0."""
        fields = _frame_fields(data, first)
        self._fill("fields", first, fields)
        self._fill("image", first, torch.as_tensor(data["moving_image"]).cpu().float())
        self._fill("moved", first, _move_frames(data, fields).movedim(-1, 0))
        if "segmented" in data:
            self._fill("segmented", first, torch.as_tensor(data["segmented"]).cpu())
        inverses, errors = invert_stacks(fields)
        self._fill("inverses", first, inverses)
        self._fill("inversion_errors", first, errors)
        key = _label_key(data)
        if key is not None:
            by = {"fields": fields, "inverses": inverses}[_CARRIED_BY[key]]
            self._fill("carried", first, carry_label(data, data[key], by).movedim(-1, 0))

    def _fill(self, name: str, first: int, values: torch.Tensor) -> None:
        array = getattr(self, name)
        array[first : first + len(values)] = values.numpy()
        let_go(array)


def _fixed_affine(data: Mapping) -> np.ndarray:
    """Voxel index of the fixed image to RAS in mm, (4, 4)."""
    return data["fixed_image"].affine.cpu().double().numpy()


def _frame_fields(data: Mapping, first: int = 0) -> torch.Tensor:
    """The network's field (2, X, Y, Z * T), frames fastest, or (3, X, Y, Z, T), as (T, d, X, Y, Z); the reference frame's is the
    identity.

    Args:
        data: of some frames.
        first: number of the first of them, counted from 0.

    Raises:
        InputError: for NaN or Inf.
    """
    frames = len(data["moving_image"])
    fields = torch.as_tensor(data["pred"]).cpu().float()
    fields = (fields if fields.ndim == 5 else fields.unflatten(-1, (-1, frames))).movedim(-1, 0).clone()
    if not fields.isfinite().all():
        raise InputError(f"{data['case']}: the network gives fields with NaN or Inf; check --checkpoint.")
    reference = data.get("reference")  # a pair has none
    if reference is not None and first < reference <= first + frames:
        fields[int(reference) - 1 - first] = 0
    return fields


def _move_frames(data: Mapping, fields: torch.Tensor) -> torch.Tensor:
    """The frames through their fields (T, d, X, Y, Z), sampled once from what was read, (X, Y, Z, T).

    Voxels whose source lies outside the image are 0, as in ITK and ANTs.
    """
    if "moving_native" in data:
        return _pull_native(data["moving_native"], fields[0], _fixed_affine(data))
    frames = torch.as_tensor(data["moving_image"]).cpu().float()
    return torch.stack([warp_stack(frame[None], u)[0] * _seen(u) for frame, u in zip(frames, fields)], dim=-1)


def carry_label(data: Mapping, label: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
    """What each field (T, d, X, Y, Z) makes of a label (1, X, Y, Z), (X, Y, Z, T), uint8."""
    label = torch.as_tensor(label).cpu().float()
    if "moving_label_native" in data:
        labels = _pull_native(data["moving_label_native"], fields[0], _fixed_affine(data), is_label=True)
    else:
        labels = torch.stack([_carry_to_frame(label, u) for u in fields], dim=-1)
    return labels.round().to(torch.uint8)


def _carry_to_frame(label: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """What a field (d, X, Y, Z) makes of a label (1, X, Y, Z), 0 where it leads out of view, (X, Y, Z), uint8. Slices come
    one after the other: the weights of all structures in a whole stack take much memory."""
    axes = len(field)
    pairs = zip(unstack(label, axes).split(1), unstack(field, axes).split(1))
    moved = torch.cat([warp_label(one, u)[:, 0].round().to(torch.uint8) for one, u in pairs])
    return restack(moved, axes) * _seen(field)


def _seen_on_both(data: Mapping, fields: torch.Tensor) -> np.ndarray | None:
    """Where a moving image of another grid is seen, both before and after it is moved, (X, Y, Z); None is everywhere."""
    if "moving_native" not in data:
        return None
    native = data["moving_native"]
    everywhere = MetaTensor(torch.ones_like(torch.as_tensor(native)), meta=dict(native.meta))
    before, after = (_pull_native(everywhere, u, _fixed_affine(data))[..., 0] > 0.5 for u in (0 * fields[0], fields[0]))
    return (before & after).numpy()


def _seen(field: torch.Tensor) -> torch.Tensor:
    """Where x + u(x) of a field (d, X, Y, Z) is in the image, the outer half of its outer voxels included, (X, Y, Z)."""
    return restack(in_view(unstack(field, len(field)), margin=0.5), len(field))


def _pull_native(image: MetaTensor, field: torch.Tensor, affine: np.ndarray, is_label: bool = False) -> torch.Tensor:
    """An image (1, X', Y', Z') of another grid through a field (d, X, Y, Z) of the fixed grid: (X, Y, Z, 1)."""
    moved = pull(
        torch.as_tensor(image)[0].cpu().numpy(), image.affine.cpu().double().numpy(), field.numpy(), affine, is_label
    )
    return torch.from_numpy(moved)[..., None]


def invert_stacks(fields: torch.Tensor, voxels: int = 1 << 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverses of fields (T, d, X, Y, Z), and in voxels how far `invert` missed (T, X, Y, Z).

    Where d = 2 they are slice by slice, and balanced. Where d = 3 they are exact at voxels, by which labels are carried:
    between slices that lie far apart no v undoes u, and balanced it would do so nowhere.

    Args:
        fields: in voxels, pull direction.
        voxels: of the slices that are inverted at once, at most; a single slice may have more, as a volume does.
    """
    axes, depth = fields.shape[1], fields.shape[-1]
    inverses, errors = torch.empty_like(fields), torch.empty_like(fields[:, 0])
    step = max(voxels * depth // max(errors[0].numel(), 1), 1) if axes == 2 else depth
    with stage("inverting fields", len(fields), "frame") as bar:
        for t, stack in enumerate(fields):
            for first in range(0, depth, step):
                here = (..., slice(first, first + step))
                field = stack[here].numpy()
                inverse, error = invert_array(field)
                inverses[t][here], errors[t][here] = map(torch.from_numpy, (inverse, error))
                if axes == 2:
                    both = (unstack(f[here], axes) for f in (stack, inverses[t]))
                    inverses[t][here] = restack(balance_inverse(*both), axes)
            bar.update()
    return inverses, errors


def _carry_points(registration: Registration, path: str | Path) -> list[dict]:
    """Rows of landmarks in every frame: frame, name, x, y, z in mm along LPS."""
    names, positions = read_points(path)
    rows = []
    for t, field in enumerate(one_by_one(registration.fields), start=1):
        moved = to_lps(move_points(positions, field, registration.cine.affine))
        rows += [{"frame": t, "name": name, "x": x, "y": y, "z": z} for name, (x, y, z) in zip(names, moved)]
    return rows
