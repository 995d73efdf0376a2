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

"""Displacement fields as tensors (B, d, *spatial): voxels of the fixed grid, channel i along array axis i, pull
convention (moved(x) = moving(x + u(x))). Two and three dimensions are one function.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Warp
from torch import Tensor, nn
from torch.nn import functional as F

FEW_VOXELS = 0.05  # share of a field's voxels that Newton's method takes one by one
INVERTED = 1e-2  # voxels; an inverse that misses by less is converged


def warp(image: Tensor, field: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """The image pulled through a field: out(x) = image(x + u(x)), shape (B, C, *spatial), through MONAI's `Warp`.

    Args:
        image: (B, C, *spatial).
        field: (B, d, *spatial), voxels.
        mode: "bilinear" (linear in 3-D too), "nearest" for labels, or "bicubic" (2-D).
        padding_mode: what lies outside: "border", "zeros" or "reflection".
    """
    return Warp(mode=mode, padding_mode=padding_mode)(image.to(field.dtype), field)


def unstack(stack: Tensor, axes: int) -> Tensor:
    """What fields of so many axes act on, as a batch: a stack (C, X, Y, Z) as slices (Z, C, X, Y) for 2, as one volume (1, C, X, Y,
    Z) for 3, and frames (C, X, Y, Z, T) as volumes (T, C, X, Y, Z)."""
    return stack[None] if stack.ndim == axes + 1 else stack.movedim(-1, 0)


def restack(batch: Tensor, axes: int, frames: bool = False) -> Tensor:
    """The reverse of `unstack`, also for maps without channels, (Z, X, Y) or (1, X, Y, Z); `frames` keeps an axis of
    volumes, the last one."""
    return batch[0] if axes == 3 and not frames else batch.movedim(0, -1)


def warp_stack(image: Tensor, field: Tensor, mode: str = "bilinear") -> Tensor:
    """A stack (C, X, Y, Z) pulled through a field (d, X, Y, Z), voxels of the fixed grid; slice by slice where d = 2."""
    axes = len(field)
    return restack(warp(unstack(torch.as_tensor(image), axes).to(field), unstack(field, axes), mode), axes)


class LinearWarp(nn.Module):
    """MONAI's `Warp`, linear with a repeated border, which never waits for a GPU: that one's list of indices is copied
    to it each time."""

    def forward(self, image: Tensor, field: Tensor) -> Tensor:
        """out(x) = image(x + u(x)), for (B, C, *spatial) and (B, d, *spatial) in voxels."""
        slices = to_slices(field)
        depth = slices.shape[0] // field.shape[0]
        return to_stack(sample_grid(to_slices(image), sampler_grid(slices) + to_sampler(slices), depth), field)


def warp_label(label: Tensor, field: Tensor) -> Tensor:
    """A label map pulled through a field: at each voxel the value that weighs most in the linear interpolation.

    Borders are those of the interpolated structures instead of the nearest neighbor's; ANTs calls it GenericLabel.

    Args:
        label: (B, 1, *spatial), any values.
        field: (B, d, *spatial), voxels.
    """
    values = label.unique()
    weights = torch.cat([warp((label == value).to(field.dtype), field) for value in values], dim=1)
    return values[weights.argmax(dim=1, keepdim=True)]


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The field whose warp is that of `first`, then that of `second`: u(x) = second(x) + first(x + second(x)).

    Where x + second(x) is in view, warp(warp(image, first), second) and warp(image, compose(first, second)) sample the
    same points; all (B, d, *spatial), voxels.
    """
    return second + warp(first, second)


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """The displacement of a stationary velocity field after unit time, by scaling and squaring (Arsigny et al., MICCAI
    2006).

    What MONAI's `DVF2DDF` does with a repeated border, about four times as fast on a CPU, in a form that TorchScript
    and ONNX take.

    Args:
        velocity: (B, d, *spatial), voxels per unit time.
        steps: number of squarings.
    """
    slices = to_slices(velocity)
    depth = slices.shape[0] // velocity.shape[0]
    grid = sampler_grid(slices)
    return to_stack(from_sampler(integrate_in_sampler(to_sampler(slices), grid, steps, depth)), velocity)


class Integration(nn.Module):
    """`integrate` as a module for configs.

    Args:
        num_steps: number of squarings.
    """

    def __init__(self, num_steps: int = 7) -> None:
        super().__init__()
        self.num_steps = num_steps

    def forward(self, velocity: Tensor) -> Tensor:
        """(B, d, *spatial) velocity -> displacement of that shape, voxels."""
        return integrate(velocity, self.num_steps)


def to_slices(stack: Tensor) -> Tensor:
    """(B, C, X, Y, Z) as a batch of slices (B * Z, C, X, Y), a stack's one after another; (B, C, X, Y) as it is."""
    return stack if stack.dim() == 4 else stack.movedim(-1, 1).flatten(0, 1)


def to_stack(slices: Tensor, like: Tensor) -> Tensor:
    """The reverse of `to_slices`, by the axes and the depth of `like`; no values move in memory."""
    return slices if like.dim() == 4 else slices.unflatten(0, [-1, like.shape[4]]).movedim(1, -1)


def sampler_grid(field: Tensor) -> Tensor:
    """Where the voxels of a field's grid lie in the sampler's coordinates, (1, d, X, Y) for slices (N, d, X, Y).

    These are in-plane those of `grid_sample`, from -1 to 1 between the outer voxels' centers, array axis 1 before axis
    0; where d = 3 the third one counts slices from each slice itself.
    """
    axes: list[Tensor] = []
    for size in field.shape[2:]:
        # Not `linspace`: an ONNX export would fix its length.
        axes.append(torch.arange(size, dtype=field.dtype, device=field.device) * (2.0 / max(size - 1, 1)) - 1.0)
    points = torch.meshgrid(axes, indexing="ij")
    channels = [points[1], points[0]]
    if field.shape[1] == 3:
        channels.append(torch.zeros_like(points[0]))
    return torch.stack(channels).unsqueeze(0)


def to_sampler(field: Tensor) -> Tensor:
    """A displacement of slices (N, d, X, Y) from voxels to the sampler's coordinates."""
    channels: list[Tensor] = []
    for axis in (1, 0):
        channels.append(field[:, axis] * (2.0 / max(field.shape[axis + 2] - 1, 1)))
    if field.shape[1] == 3:
        channels.append(field[:, 2])
    return torch.stack(channels, dim=1)


def from_sampler(field: Tensor) -> Tensor:
    """A displacement of slices (N, d, X, Y) from the sampler's coordinates to voxels."""
    channels: list[Tensor] = []
    for axis in (0, 1):
        channels.append(field[:, 1 - axis] * (0.5 * max(field.shape[axis + 2] - 1, 1)))
    if field.shape[1] == 3:
        channels.append(field[:, 2])
    return torch.stack(channels, dim=1)


def sample_grid(image: Tensor, points: Tensor, depth: int = 1) -> Tensor:
    """Slices of images (N, C, X, Y) at points (N, d, X, Y) in the sampler's coordinates, linear, border repeated.

    Args:
        image: stacks of `depth` slices, one after another.
        points: d = 2 samples each slice for itself, d = 3 its stack.
        depth: slices of a stack.
    """
    # Never in half precision: at 128 voxels the coordinates would be off by up to a fifth of one.
    image = image.to(points.dtype)
    if points.shape[1] == 2:
        return F.grid_sample(image, points.movedim(1, -1), mode="bilinear", padding_mode="border", align_corners=True)
    number = torch.arange(len(points), device=points.device) % depth
    z = points[:, 2] + number.view(-1, 1, 1)
    if image.is_cuda:
        volume = image.unflatten(0, [-1, depth]).movedim(1, 2)
        where = torch.stack([points[:, 0], points[:, 1], z * (2.0 / max(depth - 1, 1)) - 1.0], dim=-1)
        where = where.unflatten(0, [-1, depth])
        moved = F.grid_sample(volume, where, mode="bilinear", padding_mode="border", align_corners=True)
        return moved.movedim(2, 1).flatten(0, 1)
    return _pull_through_slices(image, points, z, depth)


def _pull_through_slices(image: Tensor, points: Tensor, z: Tensor, depth: int) -> Tensor:
    """`sample_grid` for d = 3, from the slice numbers z (N, X, Y): each slice is sampled from every slice of its stack that it
    touches.

    On a CPU several times as fast as `grid_sample` in three dimensions, whose gradient takes most of a training step.
    """
    z = z.clamp(0, depth - 1)
    below = z.detach().floor().clamp(max=max(depth - 2, 0))
    first, last = below.amin([1, 2]), (below.amax([1, 2]) + 1).clamp(max=depth - 1)
    numbers = torch.arange(depth, device=z.device)
    touched = (numbers >= first.unsqueeze(1)) & (numbers <= last.unsqueeze(1))
    to, number = touched.nonzero().unbind(1)
    plane = points[:, :2].movedim(1, -1)[to]
    moved = F.grid_sample(
        image[to // depth * depth + number], plane, mode="bilinear", padding_mode="border", align_corners=True
    )
    above, share = number.view(-1, 1, 1) - below[to], (z - below)[to]
    weight = (above == 0) * (1 - share) + (above == 1) * share
    return torch.zeros_like(image).index_add(0, to, moved * weight.unsqueeze(1))


def integrate_in_sampler(velocity: Tensor, grid: Tensor, steps: int, depth: int = 1) -> Tensor:
    """`integrate` of slices of a velocity in the sampler's coordinates, with the grid they count from."""
    field = velocity / 2.0**steps
    for _ in range(steps):
        field = field + sample_grid(field, grid + field, depth)
    return field


def in_view(field: Tensor, margin: float = 0.0, axes: int | None = None) -> Tensor:
    """Where x + u(x) lies in the image, (B, d, *spatial) -> (B, *spatial), up to a margin in voxels beyond its outer
    voxels' centers; along the first of so many axes, by default along all."""
    inside = torch.ones_like(field[:, 0], dtype=torch.bool)
    for axis, size in enumerate(field.shape[2:][:axes]):
        shape = [-1 if a == axis else 1 for a in range(field.ndim - 2)]
        position = field[:, axis] + torch.arange(size, dtype=field.dtype, device=field.device).view(shape)
        inside &= (position >= -margin) & (position <= size - 1 + margin)
    return inside


def beyond_stack(field: Tensor) -> Tensor:
    """By how many slices a field (B, 3, X, Y, Z) leads beyond the first or the last slice of its stack, (B, X, Y, Z), 0
    where it stays within; 0 everywhere for an in-plane one, (B, 2, ...)."""
    if field.shape[1] < 3:
        return torch.zeros_like(field[:, 0])
    depth = field.shape[-1]
    z = field[:, 2] + torch.arange(depth, dtype=field.dtype, device=field.device)
    return (-z).clamp(min=0.0) + (z - (depth - 1)).clamp(min=0.0)


def length(field: Tensor) -> Tensor:
    """Length of the vectors of a field, (B, d, ...) -> (B, ...)."""
    # Tensor.norm takes fifty times as long over so short an axis.
    return field.square().sum(dim=1).sqrt()


def jacobian_determinant(field: Tensor) -> Tensor:
    """det(I + grad u) by central differences, one-sided at the border, shape (B, *spatial). Spacing cancels out.

    Raises:
        ValueError: where the number of channels is not the number of axes.
    """
    axes = field.ndim - 2
    if field.shape[1] != axes:
        raise ValueError(f"a field of {axes} axes has {axes} channels, got shape {tuple(field.shape)}.")
    # An axis of one voxel has no difference.
    derivatives = [
        torch.gradient(field, dim=axis)[0] if field.shape[axis] > 1 else torch.zeros_like(field)
        for axis in range(2, field.ndim)
    ]
    return _determinant([[derivatives[j][:, i] + (i == j) for j in range(axes)] for i in range(axes)])


def _determinant(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Determinants of matrices given as rows of tensors, by expansion: many small ones at once, where
    `torch.linalg.det` is slow."""
    if len(rows) == 1:
        return rows[0][0]
    minors = [_determinant([[*row[:j], *row[j + 1 :]] for row in rows[1:]]) for j in range(len(rows))]
    return sum((-1) ** j * rows[0][j] * minor for j, minor in enumerate(minors))


def resize_field(field: Tensor, size: list[int]) -> Tensor:
    """The same displacement on another grid over the same field of view, linearly interpolated, in voxels of the new
    grid.

    Grids share their outer voxel edges, as a resampling of the image by spacing does.

    Args:
        field: (B, d, *spatial), voxels.
        size: the new spatial shape.
    """
    old = field.shape[2:]
    if list(size) == list(old):
        return field
    mode = ["linear", "bilinear", "trilinear"][len(old) - 1]
    resized = F.interpolate(field, size=list(size), mode=mode, align_corners=False)
    scale = [new / previous for new, previous in zip(size, old)]
    return resized * torch.tensor(scale, dtype=field.dtype, device=field.device).view([-1] + [1] * len(old))


def invert(field: Tensor, tolerance: float = INVERTED, iterations: int = 12) -> tuple[Tensor, Tensor]:
    """The inverse displacement v of a field u: v(y) + u(y + v(y)) = 0, with u interpolated linearly and its border
    repeated.

    Fixed-point iterations v <- -u(y + v) everywhere, which converge only where |grad u| < 1, then Newton's method at
    the points that they leave. Where u folds, several points may come to y, or none: v then leads to one of them, or to
    the point that came nearest, and the error is its distance to y. Where y + v(y) lies out of the grid, v rests on the
    repeated border.

    Args:
        field: (B, d, *spatial), voxels.
        tolerance: voxels; a point is done when its error is smaller.
        iterations: of each kind, at most.

    Returns:
        The inverse, (B, d, *spatial), and the length of its error |v(y) + u(y + v(y))| in voxels, (B, *spatial).
    """
    inverse, residual = torch.zeros_like(field), field
    error = length(field)
    trial, trial_residual = inverse, residual
    for _ in range(iterations):
        # A few points that converge slowly are cheaper one by one.
        if (error > tolerance).to(field.dtype).mean() < FEW_VOXELS:
            break
        trial = trial - trial_residual
        trial_residual = trial + warp(field, trial)
        trial_error = length(trial_residual)
        better = trial_error < error
        inverse, residual = (
            torch.where(better.unsqueeze(1), *pair) for pair in ((trial, inverse), (trial_residual, residual))
        )
        error = torch.where(better, trial_error, error)
    for image in range(len(field)):
        unresolved = error[image] > tolerance
        if unresolved.any():
            points = unresolved.nonzero().to(field.dtype)
            found, left = _newton(field[image], points, inverse[image][:, unresolved].T, tolerance, iterations)
            inverse[image][:, unresolved] = found.T
            error[image][unresolved] = left
    return inverse, error


def balance_inverse(field: Tensor, inverse: Tensor) -> Tensor:
    """An inverse v that undoes the field u from both sides alike.

    No v on a grid does so exactly: that of `invert` meets v(y) + u(y + v(y)) = 0 at every voxel, which leaves all that
    the grid cannot hold to u(x) + v(x + u(x)). Half of that error, where x + u(x) is in view and u does not fold, is
    subtracted from v at x + u(x).

    Args:
        field: (B, d, *spatial), voxels.
        inverse: of the same shape, as `invert` gives it.

    Returns:
        The balanced inverse, of the same shape.
    """
    error = compose(inverse, field)
    counts = in_view(field) & (jacobian_determinant(field) > 0)
    return inverse - 0.5 * warp(error * counts.unsqueeze(1), inverse)


def _newton(field: Tensor, points: Tensor, start: Tensor, tolerance: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Newton's method for v + u(y + v) = 0 at points y (N, d) from v = start (N, d); returns v and its error (N,).

    The derivative is that of the interpolated field, cell by cell: central differences would be those of another field.
    """
    unit = torch.eye(len(field), dtype=field.dtype, device=field.device)
    differences = [field.diff(dim=axis) for axis in range(1, field.ndim)]

    def residual_of(y: Tensor, v: Tensor) -> Tensor:
        return v + sample(field, y + v)

    def step_of(y: Tensor, v: Tensor, residual: Tensor) -> Tensor:
        matrix = unit + _sample_gradient(differences, y + v)
        # Near a fold a step would be of any length.
        matrix = torch.where((torch.linalg.det(matrix) > 0.05)[:, None, None], matrix, unit)
        return torch.linalg.solve(matrix, residual)

    best, residual = start.clone(), residual_of(points, start)
    error = length(residual)
    step, scale = torch.zeros_like(best), torch.zeros_like(error)
    for _ in range(iterations):
        active = (error > tolerance).nonzero()[:, 0]
        if not len(active):
            break
        fresh = active[scale[active] == 0]
        step[fresh] = step_of(points[fresh], best[fresh], residual[fresh])
        scale[fresh] = 1
        trial = best[active] - scale[active, None] * step[active]
        trial_residual = residual_of(points[active], trial)
        trial_error = length(trial_residual)
        better = trial_error < error[active]
        won, lost = active[better], active[~better]
        best[won], residual[won], error[won] = trial[better], trial_residual[better], trial_error[better]
        scale[won], scale[lost] = 0, 0.5 * scale[lost]
    return best, error


def _sample_gradient(differences: Sequence[Tensor], points: Tensor) -> Tensor:
    """Derivatives (N, C, d) of an image (C, *spatial), linearly interpolated, at points (N, d) in voxels, from its
    differences along each axis: constant along that axis within a cell, linear along the others, none beyond the
    border."""
    columns = []
    for axis, difference in enumerate(differences):
        where, last = points.clone(), difference.shape[axis + 1]
        inside = (points[:, axis] >= 0) & (points[:, axis] <= last)
        where[:, axis] = where[:, axis].floor()
        # An image of one voxel along this axis has no difference.
        column = sample(difference, where) if last else torch.zeros_like(points[:, :1]).expand(-1, len(difference))
        columns.append(column * inside[:, None])
    return torch.stack(columns, dim=-1)


def sample(image: Tensor, points: Tensor) -> Tensor:
    """Values (N, C) of an image (C, *spatial) at points (N, d) in voxels, linear, border repeated."""
    sizes = torch.tensor(image.shape[1:], dtype=points.dtype, device=points.device)
    grid = (2 * points / (sizes - 1).clamp(min=1) - 1).flip(-1)
    shape = (1,) * (image.ndim - 1) + tuple(points.shape)
    values = F.grid_sample(image[None], grid.view(shape), mode="bilinear", padding_mode="border", align_corners=True)
    return values.reshape(len(image), -1).T


def has_contrast(images: Tensor) -> Tensor:
    """Which of the images (N, C, *spatial) are not constant, (N, C): what a network makes of a constant one is
    arbitrary."""
    axes = tuple(range(2, images.ndim))
    return images.amax(axes) > images.amin(axes)
