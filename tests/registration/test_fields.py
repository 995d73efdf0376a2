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

"""Fields against SciPy, ITK and analytic answers, with all axes of different length."""

from __future__ import annotations

from collections.abc import Callable

import itk
import numpy as np
import pytest
import torch
from monai.networks.blocks import DVF2DDF, Warp
from scipy.linalg import expm
from scipy.ndimage import gaussian_filter, map_coordinates
from scripts.registration.fields import (
    Integration,
    LinearWarp,
    balance_inverse,
    compose,
    from_sampler,
    integrate,
    invert,
    jacobian_determinant,
    resize_field,
    sample,
    to_sampler,
    to_slices,
    to_stack,
    warp,
    warp_label,
)

KEPT: list[np.ndarray] = []
SHAPES = {2: (16, 21), 3: (12, 15, 9)}


def grid(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))


def affine_field(matrix: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """u(x) = (matrix - I)(x - c) about the center of the grid, (1, d, *shape)."""
    x = grid(shape) - (np.array(shape) / 2 - 0.5).reshape(-1, *[1] * len(shape))
    return torch.from_numpy(np.einsum("ij,j...->i...", matrix - np.eye(len(shape)), x))[None]


def smooth_field(shape: tuple[int, ...], size: float = 1.0) -> torch.Tensor:
    x = grid(shape)
    return torch.from_numpy(
        np.stack([size * np.sin(0.4 * x[i] + i) * np.cos(0.3 * x[i - 1]) for i in range(len(shape))])
    )[None]


def inner(array: np.ndarray | torch.Tensor, margin: int = 3) -> np.ndarray:
    return np.asarray(array)[(..., *[slice(margin, -margin)] * (np.asarray(array).ndim - 2))]


def to_itk_field(field: torch.Tensor, component: type = itk.D) -> itk.Image:
    """ITK keeps axes in reverse memory order and vectors in (x, y, z), x being the first array axis here."""
    axes = field.shape[1]
    array = np.ascontiguousarray(field[0].movedim(0, -1).permute(*range(axes - 1, -1, -1), axes).numpy())
    dtype = np.float64 if component is itk.D else np.float32
    # A view does not own its memory.
    KEPT.append(array.astype(dtype))
    return itk.image_view_from_array(KEPT[-1], ttype=itk.Image[itk.Vector[component, axes], axes])


@pytest.mark.parametrize("axes", [2, 3])
def test_warp_against_scipy(axes: int) -> None:
    image, field = torch.rand(1, 1, *SHAPES[axes], dtype=torch.float64), 2 * smooth_field(SHAPES[axes])
    expected = map_coordinates(image[0, 0].numpy(), grid(SHAPES[axes]) + field[0].numpy(), order=1, mode="nearest")
    np.testing.assert_allclose(warp(image, field)[0, 0].numpy(), expected, atol=1e-12)
    labels = torch.randint(0, 4, (1, 1, *SHAPES[axes])).double()
    assert set(warp(labels, field, "nearest").unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("axes", [2, 3])
def test_warp_against_itk(axes: int) -> None:
    image, field = torch.rand(1, 1, *SHAPES[axes], dtype=torch.float64), smooth_field(SHAPES[axes])
    picture = itk.image_from_array(np.ascontiguousarray(image[0, 0].numpy().T))
    transform = itk.DisplacementFieldTransform[itk.D, axes].New(DisplacementField=to_itk_field(field))
    moved = itk.resample_image_filter(picture, transform=transform, use_reference_image=True, reference_image=picture)
    np.testing.assert_allclose(inner(warp(image, field))[0, 0], inner(np.asarray(moved).T[None, None])[0, 0], atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channel_i_moves_along_axis_i(axis: int) -> None:
    image = torch.rand(1, 1, 7, 8, 9)
    field = torch.zeros(1, 3, 7, 8, 9)
    field[:, axis] = 2.0
    moved = warp(image, field)
    torch.testing.assert_close(moved.narrow(axis + 2, 0, 5), image.narrow(axis + 2, 2, 5))


@pytest.mark.parametrize("axes", [2, 3])
def test_compose_is_one_warp_after_the_other(axes: int) -> None:
    a, b = (np.eye(axes) + 0.05 * np.random.default_rng(k).standard_normal((axes, axes)) for k in (0, 1))
    first, second = affine_field(a, SHAPES[axes]), affine_field(b, SHAPES[axes])
    expected = affine_field(a @ b, SHAPES[axes])
    np.testing.assert_allclose(inner(compose(first, second)), inner(expected), atol=1e-10)


@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 7), (1, 5), (16, 1, 3), (8, 7, 1)])
def test_linear_warp_is_that_of_monai_and_integrate_its_dvf2ddf(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 3, *shape, dtype=torch.float64)
    field = 3 * torch.randn(2, len(shape), *shape, dtype=torch.float64)
    for linear_warp in (LinearWarp(), torch.jit.script(LinearWarp())):
        torch.testing.assert_close(linear_warp(image, field), warp(image, field))
    slices = to_slices(field)
    torch.testing.assert_close(from_sampler(to_sampler(slices)), slices)
    assert torch.equal(to_stack(slices, field), field)
    for integration in (integrate, torch.jit.script(Integration())):
        torch.testing.assert_close(integration(field), DVF2DDF(num_steps=7, padding_mode="border")(field))


def test_gradients_through_slices_are_those_of_grid_sample() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 7, 6, 5, dtype=torch.float64)
    field = 2 * torch.randn(2, 3, 7, 6, 5, dtype=torch.float64)
    field[0, 2, ..., 1:-1] = 0.0  # on a slice its difference to the next one counts
    gradients = []
    for warping in (LinearWarp(), warp):
        inputs = [image.clone().requires_grad_(), field.clone().requires_grad_()]
        gradients.append(torch.autograd.grad(warping(*inputs).square().sum(), inputs))
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected)


def test_a_still_first_slice_can_learn_to_move_inward() -> None:
    field = torch.zeros(1, 3, 4, 5, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(LinearWarp()(torch.arange(3.0).expand(1, 1, 4, 5, 3), field).sum(), field)
    assert gradient[:, 2].eq(1).all()


@pytest.mark.parametrize("axes", [2, 3])
def test_integrate_is_the_matrix_exponential(axes: int) -> None:
    generator = 0.05 * np.random.default_rng(2).standard_normal((axes, axes))
    velocity = affine_field(generator + np.eye(axes), SHAPES[axes])
    expected = affine_field(expm(generator), SHAPES[axes])
    # Scaling and squaring begins with one Euler step of 1/2^steps: eight times shorter, eight times closer.
    coarse, fine = (np.abs(inner(integrate(velocity, steps)) - inner(expected)).max() for steps in (7, 10))
    assert coarse < 1e-3
    assert fine < coarse / 6


@pytest.mark.parametrize("axes", [2, 3])
def test_jacobian_of_affine_and_against_itk(axes: int) -> None:
    matrix = np.eye(axes) + 0.2 * np.random.default_rng(3).standard_normal((axes, axes))
    determinant = jacobian_determinant(affine_field(matrix, SHAPES[axes]))
    np.testing.assert_allclose(determinant.numpy(), np.linalg.det(matrix), rtol=1e-10)
    field = smooth_field(SHAPES[axes])
    filtered = itk.displacement_field_jacobian_determinant_filter(to_itk_field(field, itk.F), use_image_spacing=False)
    itk_determinant = np.asarray(filtered).T[None]
    cut = (slice(None), *[slice(1, -1)] * axes)
    np.testing.assert_allclose(jacobian_determinant(field).numpy()[cut], itk_determinant[cut], atol=1e-5)


def test_jacobian_sees_a_field_folded_everywhere() -> None:
    x = torch.arange(10, dtype=torch.float64)
    field = torch.zeros(1, 2, 10, 12, dtype=torch.float64)
    field[:, 0] = -2 * x[:, None]
    assert (jacobian_determinant(field) == -1).all()
    # The same vectors with their channels exchanged do not fold: the order of channels is what counts.
    assert (jacobian_determinant(field.flip(1)) == 1).all()
    with pytest.raises(ValueError, match="channels"):
        jacobian_determinant(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("axes", [2, 3])
def test_resize_keeps_the_physical_displacement(axes: int) -> None:
    shape, size = SHAPES[axes], tuple(2 * n for n in SHAPES[axes])
    matrix = np.eye(axes) + 0.1 * np.random.default_rng(4).standard_normal((axes, axes))
    # An affine map about the center is the same matrix on every grid over the same field of view.
    np.testing.assert_allclose(
        inner(resize_field(affine_field(matrix, shape), size)), inner(affine_field(matrix, size)), atol=1e-10
    )
    field = smooth_field(shape)
    assert resize_field(field, shape) is field


Map = Callable[[np.ndarray], np.ndarray]
VIEWS = {2: (48, 61), 3: (26, 31, 22)}
SPACING_MM = 1.5


@pytest.mark.parametrize("shape", [(14, 11), (9, 8, 7)])
def test_a_label_takes_the_value_that_weighs_most(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    label, field = rng.integers(0, 3, shape) * 5, rng.normal(0, 1.5, (len(shape), *shape))
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) + field
    weights = [map_coordinates((label == value).astype(float), where, order=1, mode="nearest") for value in (0, 5, 10)]
    moved = warp_label(torch.from_numpy(label)[None, None], torch.from_numpy(field)[None])[0, 0].numpy()
    np.testing.assert_array_equal(moved, np.array([0, 5, 10])[np.argmax(weights, axis=0)])
    # Which is not always the nearest voxel's.
    assert 0.05 < (moved != map_coordinates(label, where, order=0, mode="nearest")).mean() < 0.4


def invertible_maps(kind: str, shape: tuple[int, ...]) -> tuple[Map, Map]:
    """x + u(x) and its analytic inverse, of positions (d, ...)."""
    ones = [1] * len(shape)
    center = (np.array(shape) / 2 - 0.5).reshape(-1, *ones)

    def turned(x: np.ndarray, scale: float, angle: float | np.ndarray) -> np.ndarray:
        d = scale * (x - center)
        plane = np.cos(angle) * d[0] - np.sin(angle) * d[1], np.sin(angle) * d[0] + np.cos(angle) * d[1]
        return center + np.stack([*plane, *d[2:]])

    def swirl(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
        return 0.8 * np.exp(-(((x - center) * scale)[:2] ** 2).sum(axis=0) / 81)

    shift = np.array([2.5, -1.75, 0.6][: len(shape)]).reshape(-1, *ones)
    return {
        "expansion": (lambda x: turned(x, 2.4, 0), lambda y: turned(y, 1 / 2.4, 0)),
        "contraction": (lambda x: turned(x, 0.6, 0), lambda y: turned(y, 1 / 0.6, 0)),
        "rotation": (lambda x: turned(x, 1, np.radians(40)), lambda y: turned(y, 1, -np.radians(40))),
        "swirl": (lambda x: turned(x, 1.3, swirl(x)), lambda y: turned(y, 1 / 1.3, -swirl(y, 1 / 1.3))),
        "translation": (lambda x: x + shift, lambda y: y - shift),
    }[kind]


def at(field: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.stack([map_coordinates(channel, where, order=1, mode="nearest") for channel in field])


def inside(where: np.ndarray, margin: float = 0.0) -> np.ndarray:
    last = np.array(where.shape[1:]).reshape(-1, *[1] * len(where)) - 1
    return ((where >= margin) & (where <= last - margin)).all(axis=0)


def length(field: np.ndarray) -> np.ndarray:
    return np.linalg.norm(field, axis=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["expansion", "contraction", "rotation", "swirl", "translation"])
@pytest.mark.parametrize("axes", [2, 3])
def test_invert_against_the_analytic_inverse(axes: int, kind: str, dtype: torch.dtype) -> None:
    x = grid(VIEWS[axes])
    forward, backward = invertible_maps(kind, VIEWS[axes])
    u = forward(x) - x
    field = torch.from_numpy(u)[None].to(dtype)
    inverse, error = invert(field)
    assert (inverse.dtype, inverse.shape, error.shape) == (dtype, field.shape, field[:, 0].shape)
    v, analytic = inverse[0].double().numpy(), backward(x) - x
    view = inside(x + analytic)
    assert view.mean() > 0.2
    assert error[0].numpy()[view].max() <= 0.01
    # An error in u grows by the inverse's gradient; a swirl is not linear between voxels, the others are.
    assert length(v - analytic)[view].max() < (0.05 if kind == "swirl" else 0.02)
    np.testing.assert_allclose(error[0], length(v + at(u, x + v)), atol=1e-4 if dtype == torch.float32 else 1e-9)
    assert SPACING_MM * np.percentile(length(v + at(u, x + v))[inside(x + v)], 95) < 0.1
    # Between a point whose origin is in view and one whose origin is not, v has a bend.
    valid = inside(x + u) & inside(x, 2) & (jacobian_determinant(field)[0].numpy() > 0.1)
    assert SPACING_MM * np.percentile(length(u + at(v, x + u))[valid], 95) < 0.1


@pytest.mark.parametrize("axes", [2, 3])
def test_the_error_of_an_inverse_tells_where_it_fails(axes: int) -> None:
    shape, rng = VIEWS[axes], np.random.default_rng(5)
    noise = np.stack([gaussian_filter(rng.normal(size=shape), 4) for _ in range(axes)])
    folded, reflection, smooth = (
        20 * noise / np.abs(noise).max(),
        affine_field(-np.eye(axes), shape)[0],
        smooth_field(shape)[0],
    )
    fields = torch.stack([torch.from_numpy(folded), reflection, smooth])
    before = fields.clone()
    inverses, errors = invert(fields)
    assert torch.equal(fields, before)
    assert inverses.isfinite().all()
    for u, v, error in zip(*(tensor.numpy() for tensor in (fields, inverses, errors))):
        np.testing.assert_allclose(error, length(v + at(u, grid(shape) + v)), atol=1e-9)
    assert errors[0].max() > 1
    assert errors[2].max() <= 0.01
    # Two points that come to one place cannot both be led back.
    folds = jacobian_determinant(fields)[0].numpy() < 0
    assert np.median(length(folded + at(inverses[0].numpy(), grid(shape) + folded))[folds]) > 1


@pytest.mark.parametrize("axes", [2, 3])
def test_a_balanced_inverse_undoes_its_field_from_both_sides_alike(axes: int) -> None:
    shape = VIEWS[axes]
    x, field = grid(shape), smooth_field(shape, 1.5)
    u, inverse = field[0].numpy(), invert(field)[0]

    def errors(v: np.ndarray) -> list[float]:
        both = ((u, v), (v, u))
        return [float(np.percentile(length(one + at(other, x + one))[inside(x + one, 1)], 95)) for one, other in both]

    before, after = errors(inverse[0].numpy()), errors(balance_inverse(field, inverse)[0].numpy())
    assert before[1] < 0.011
    assert max(after) < 0.8 * max(before)
    assert min(after) > 0.4 * max(after)


def test_nothing_to_balance_leaves_an_inverse_alone() -> None:
    shape, rng = VIEWS[2], np.random.default_rng(5)
    shift = torch.ones(1, 2, *shape, dtype=torch.float64) * 1.5
    torch.testing.assert_close(balance_inverse(shift, -shift), -shift, atol=1e-12, rtol=0)
    # Where u folds and where x + u(x) is out of view, v(x + u(x)) tells nothing of v.
    noise = np.stack([gaussian_filter(rng.normal(size=shape), 4) for _ in range(2)])
    folded = torch.from_numpy(20 * noise / np.abs(noise).max())[None]
    inverse = invert(folded)[0]
    counts = (jacobian_determinant(folded)[0] > 0).numpy() & inside(grid(shape) + folded[0].numpy())
    error = (folded[0].numpy() + at(inverse[0].numpy(), grid(shape) + folded[0].numpy())) * counts
    expected = inverse[0].numpy() - 0.5 * at(error, grid(shape) + inverse[0].numpy())
    np.testing.assert_allclose(balance_inverse(folded, inverse)[0], expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(9, 12), (7, 8, 5), (7, 8, 1)])
def test_sample_against_scipy(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    image, points = rng.random((3, *shape)), rng.uniform(-2, np.array(shape) + 1, (200, len(shape)))
    values = sample(torch.from_numpy(image), torch.from_numpy(points))
    np.testing.assert_allclose(values, at(image, points.T).T, atol=1e-12)
    single = sample(torch.from_numpy(image).float(), torch.from_numpy(points).float())
    np.testing.assert_allclose(single, values, atol=1e-5)
    corners = torch.tensor([[0] * len(shape), [n - 1 for n in shape]]).double()
    np.testing.assert_allclose(sample(torch.from_numpy(image), corners), image.reshape(3, -1)[:, [0, -1]].T, atol=1e-12)


@pytest.mark.parametrize("size", [(9, 14), (7, 6, 8)])
def test_linear_warp_is_monais(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image, field = (
        torch.rand(2, 3, *size, dtype=torch.float64),
        4 * torch.randn(2, len(size), *size, dtype=torch.float64),
    )
    field.requires_grad_()
    found, expected = LinearWarp()(image, field), Warp(mode="bilinear", padding_mode="border")(image, field)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    weights = torch.rand_like(image)
    gradients = [
        torch.autograd.grad((weights * moved).sum(), field, retain_graph=True)[0] for moved in (found, expected)
    ]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)
