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

"""Classical registration of single slices by ITK and SimpleITK: Demons and SyN over three levels of resolution. Both are
imported where they are used.

Each method takes two arrays (X, Y), moving and fixed, and gives a displacement (2, X, Y) in pixels, channel i along
array axis i, pull convention (moved(x) = moving(x + u(x))). Arrays reach ITK transposed, with spacing 1: then axis i of
ITK's image is array axis i, and components and pixels need no conversion.
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


def _to_itk(image: NDArray) -> object:
    """An ITK image of a slice (X, Y)."""
    import itk

    return itk.image_from_array(np.ascontiguousarray(image.T, dtype=np.float32))


def _to_array(field: object) -> NDArray:
    """A displacement (2, X, Y) of an ITK image of vectors."""
    import itk

    return np.ascontiguousarray(itk.array_from_image(field).T)


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
) -> NDArray:
    """SyN on cross-correlation (Avants et al., MIA 2008), each level started from the composition of the coarser ones.

    Args:
        moving: slice (X, Y).
        fixed: slice (X, Y).
        iterations: at most, at each of three levels or one number a level, the coarsest first; a level ends earlier
            where it converges.
        update_variance: in pixels², of the Gaussian over each update.
        total_variance: in pixels², of the Gaussian over the whole displacement of a level.
        step: largest update in pixels.
    """
    import itk

    image, vectors = itk.Image[itk.F, 2], itk.Image[itk.Vector[itk.F, 2], 2]
    moving, fixed = _to_itk(moving), _to_itk(fixed)
    found = itk.CompositeTransform[itk.D, 2].New()
    for factor, limit in zip(FACTORS, [iterations] * len(FACTORS) if isinstance(iterations, int) else iterations):
        correlation = itk.ANTSNeighborhoodCorrelationImageToImageMetricv4[image, image].New(
            Radius=[CORRELATION_RADIUS] * 2
        )
        # Python has no adaptors that carry a field from level to level within one filter.
        level = itk.SyNImageRegistrationMethod[image, image].New(
            MovingImage=moving, FixedImage=fixed, Metric=correlation
        )
        level.SetNumberOfLevels(1)
        level.SetShrinkFactorsPerLevel([factor])
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
    return _to_array(sampled.GetOutput())


METHODS: dict[str, Callable[..., NDArray]] = {
    "demons": partial(_demons, filter_name="SymmetricForcesDemonsRegistrationFilter"),
    "diffeomorphic_demons": partial(_demons, filter_name="DiffeomorphicDemonsRegistrationFilter"),
    "fast_demons": _fast_demons,
    "syn": _syn,
}


@cache
def _warm_up(name: str) -> None:
    """A method's first call in a process loads its templates, for twenty seconds and more."""
    METHODS[name](*np.random.default_rng(0).random((2, 32, 32), dtype=np.float32), iterations=1)


def _register(name: str, parameters: dict, pair: NDArray) -> tuple[NDArray, float]:
    """The field (2, X, Y) of a pair of slices (2, X, Y) by one of `METHODS`, and the CPU seconds it took,
    without the first call's of a process."""
    _warm_up(name)
    start = time.process_time()
    field = METHODS[name](*pair, **parameters)
    return field, time.process_time() - start


def register_slices(
    name: str, parameters: dict, pairs: NDArray, executor: Executor | None = None
) -> tuple[NDArray, float]:
    """The fields (S, 2, X, Y) of pairs of slices (S, 2, X, Y) by one of `METHODS`, and the CPU seconds they took
    together.

    Args:
        name: of the method.
        parameters: of the method.
        pairs: moving and fixed slices.
        executor: processes that share the slices; None takes this one.
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
