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

"""Classical registration by ITK and SimpleITK, of single slices and of stacks: Demons and SyN over three levels of
resolution. Both are imported where they are used.

Each method takes two arrays (X, Y), moving and fixed, and gives a displacement (2, X, Y) in pixels, channel i along
array axis i, pull convention (moved(x) = moving(x + u(x))); SyN takes stacks (X, Y, Z), too, and gives (3, X, Y, Z) in
voxels. Arrays reach ITK transposed: then axis i of ITK's image is array axis i. Its spacing is 1 in the slice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from scripts.errors import InputError

FACTORS = (4, 2, 1)  # of the pyramids
CORRELATION_RADIUS = 4  # pixels


def _to_itk(image: NDArray, gap: float = 1.0) -> object:
    """An ITK image of a slice (X, Y), or of a stack (X, Y, Z) whose slices lie so many pixels apart."""
    import itk

    found = itk.image_from_array(np.ascontiguousarray(image.T, dtype=np.float32))
    found.SetSpacing([1.0, 1.0, gap][: image.ndim])
    return found


def _to_array(field: object) -> NDArray:
    """A displacement (2, X, Y) in pixels, or (3, X, Y, Z) in voxels, of an ITK image of vectors."""
    import itk

    found = itk.array_from_image(field).T
    return np.ascontiguousarray(found / np.reshape(field.GetSpacing(), (-1, *[1] * (found.ndim - 1))), dtype=np.float32)


def _demons(moving: NDArray, fixed: NDArray, filter_name: str, iterations: int = 50, sigma: float = 1.0) -> NDArray:
    """Demons (Thirion, MIA 1998) by the named ITK filter, in ITK's pyramid.

    Args:
        moving: slice (X, Y).
        fixed: slice (X, Y).
        filter_name: `SymmetricForcesDemonsRegistrationFilter`, or `DiffeomorphicDemonsRegistrationFilter` (Vercauteren
            et al., NeuroImage 2009).
        iterations: at each of three levels.
        sigma: standard deviation in pixels of the Gaussian over the displacement after each iteration.
    """
    import itk

    image, field = itk.Image[itk.F, 2], itk.Image[itk.Vector[itk.F, 2], 2]
    level = getattr(itk, filter_name)[image, image, field].New(StandardDeviations=sigma)
    pyramid = itk.MultiResolutionPDEDeformableRegistration[image, image, field, itk.F].New(
        MovingImage=_to_itk(moving), FixedImage=_to_itk(fixed)
    )
    pyramid.SetRegistrationFilter(level)
    # Halves the resolution from level to level.
    pyramid.SetNumberOfLevels(len(FACTORS))
    pyramid.SetNumberOfIterations([iterations] * len(FACTORS))
    pyramid.Update()
    return _to_array(pyramid.GetOutput())


def _fast_demons(moving: NDArray, fixed: NDArray, iterations: int = 50, sigma: float = 1.0) -> NDArray:
    """Demons of SimpleITK's `FastSymmetricForcesDemonsRegistrationFilter` (Vercauteren et al., MICCAI 2007), which `itk`
    does not wrap; each level starts from the field of the coarser one.

    Args:
        moving: slice (X, Y).
        fixed: slice (X, Y).
        iterations: at each of three levels.
        sigma: standard deviation in pixels of the Gaussian over the displacement after each iteration.
    """
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def shrunk(image: NDArray, factor: int) -> object:
        found = SimpleITK.GetImageFromArray(np.ascontiguousarray(image.T, dtype=np.float32))
        if factor == 1:
            return found
        return SimpleITK.Shrink(SimpleITK.SmoothingRecursiveGaussian(found, factor / 2), [factor] * 2)

    level = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
    level.SetNumberOfIterations(iterations)
    level.SetStandardDeviations(sigma)
    field = None
    for factor in FACTORS:
        images = shrunk(fixed, factor), shrunk(moving, factor)
        # Displacements are in the pixels of the slice at every level: an image keeps its place and its size.
        start = [SimpleITK.Resample(field, images[0])] if field else []
        field = level.Execute(*images, *start)
    return np.ascontiguousarray(SimpleITK.GetArrayFromImage(field).T, dtype=np.float32)


def _syn(
    moving: NDArray,
    fixed: NDArray,
    iterations: int | Sequence[int] = 50,
    update_variance: float = 3.0,
    total_variance: float = 0.0,
    step: float = 0.25,
    gap: float = 1.0,
) -> NDArray:
    """SyN on cross-correlation (Avants et al., MIA 2008), each level started from the composition of the coarser ones.

    Args:
        moving: slice (X, Y) or stack (X, Y, Z). Coarser levels keep all slices of a stack, and a voxel is compared with
            the next slices alone.
        fixed: of the same shape.
        iterations: at most, at each of three levels or one number a level, the coarsest first; a level ends earlier
            where it converges.
        update_variance: in voxels² of a level, of the Gaussian over each update.
        total_variance: in voxels² of a level, of the Gaussian over the whole displacement of a level.
        step: largest update in voxels of a level.
        gap: pixels from slice to slice of a stack.
    """
    import itk

    axes, shape = moving.ndim, moving.shape
    # ITK's Gaussians take no fewer pixels along an axis.
    moving, fixed = (np.pad(x, [(0, max(4 - n, 0)) for n in shape], mode="edge") for x in (moving, fixed))
    image, vectors = itk.Image[itk.F, axes], itk.Image[itk.Vector[itk.F, axes], axes]
    moving, fixed = _to_itk(moving, gap), _to_itk(fixed, gap)
    found = itk.CompositeTransform[itk.D, axes].New()
    for factor, limit in zip(FACTORS, [iterations] * len(FACTORS) if isinstance(iterations, int) else iterations):
        correlation = itk.ANTSNeighborhoodCorrelationImageToImageMetricv4[image, image].New(
            Radius=[CORRELATION_RADIUS, CORRELATION_RADIUS, 1][:axes]
        )
        # Python has no adaptors that carry a field from level to level within one filter.
        level = itk.SyNImageRegistrationMethod[image, image].New(
            MovingImage=moving, FixedImage=fixed, Metric=correlation
        )
        level.SetNumberOfLevels(1)
        level.SetShrinkFactorsPerDimension(0, [factor, factor, 1][:axes])
        level.SetSmoothingSigmasPerLevel([factor / 2 if factor > 1 else 0])
        level.SetNumberOfIterationsPerLevel([limit])
        level.SetLearningRate(step)
        level.SetGaussianSmoothingVarianceForTheUpdateField(update_variance)
        level.SetGaussianSmoothingVarianceForTheTotalField(total_variance)
        level.SetMovingInitialTransform(found)
        level.Update()
        found.AddTransform(level.GetModifiableTransform())
    sampled = itk.TransformToDisplacementFieldFilter[vectors, itk.D].New(
        Transform=found, ReferenceImage=fixed, UseReferenceImage=True
    )
    sampled.Update()
    return _to_array(sampled.GetOutput())[(slice(None), *(slice(n) for n in shape))]


METHODS: dict[str, Callable[..., NDArray]] = {
    "demons": partial(_demons, filter_name="SymmetricForcesDemonsRegistrationFilter"),
    "diffeomorphic_demons": partial(_demons, filter_name="DiffeomorphicDemonsRegistrationFilter"),
    "fast_demons": _fast_demons,
    "syn": _syn,
    "syn_volume": _syn,
}


@cache
def _warm_up(name: str, axes: int) -> None:
    """A method's first call in a process loads its templates, for twenty seconds and more."""
    shape = (2, 32, 32, 4)[: 1 + axes]
    METHODS[name](*np.random.default_rng(0).random(shape, dtype=np.float32), iterations=1)


def _register(name: str, parameters: dict, pair: NDArray) -> tuple[NDArray, float]:
    """The field of a pair of slices (2, X, Y) or stacks (2, X, Y, Z) by one of `METHODS`, and the CPU seconds it took,
    without the first call's of a process."""
    _warm_up(name, pair.ndim - 1)
    start = time.process_time()
    field = METHODS[name](*pair, **parameters)
    return field, time.process_time() - start


def register_each(
    name: str, parameters: dict, pairs: NDArray, executor: Executor | None = None
) -> tuple[NDArray, float]:
    """The fields of pairs by one of `METHODS`, (S, 2, X, Y) of slices or (S, 3, X, Y, Z) of stacks, and the CPU seconds
    they took together.

    Args:
        name: of the method.
        parameters: of the method.
        pairs: moving and fixed images, slices (S, 2, X, Y) or stacks (S, 2, X, Y, Z).
        executor: processes that share the pairs; None takes this one.
    """
    results = list((executor.map if executor else map)(partial(_register, name, parameters), pairs))
    return np.stack([field for field, _ in results]), sum(seconds for _, seconds in results)


def limit_itk_to_one_thread() -> None:
    """Set ITK's global number of threads.

    Raises:
        InputError: where ITK is not installed.
    """
    try:
        import itk
    except ImportError as error:
        raise InputError("itk: is not installed; pip install itk, or leave out Demons and SyN.") from error
    itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(1)
