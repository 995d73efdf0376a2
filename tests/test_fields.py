"""Fields against SciPy, ITK and analytic answers, with all axes of different length."""

from __future__ import annotations

import itk
import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.ndimage import map_coordinates

from scripts.fields import compose, integrate, jacobian_determinant, resize_field, warp

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
    return torch.from_numpy(np.stack([size * np.sin(0.4 * x[i] + i) * np.cos(0.3 * x[i - 1]) for i in range(len(shape))]))[None]


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
