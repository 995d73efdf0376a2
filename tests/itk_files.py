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

"""What ITK makes of the files that are written."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np

SCALAR, VECTORS = itk.Image[itk.F, 3], itk.Image[itk.Vector[itk.F, 3], 3]


def read_itk(path: Path, kind: type) -> itk.Image:
    """Single slices too as an image in space, which `itk.imread` would not take them for."""
    reader = itk.ImageFileReader[kind].New(FileName=str(path))
    reader.Update()
    return reader.GetOutput()


def itk_moved(field: Path, moving: Path, fixed: Path) -> tuple[np.ndarray, np.ndarray]:
    """The moving image on the fixed grid by ITK's two ways to apply a field, given nothing but the files."""
    vectors, moving_image, fixed_image = read_itk(field, VECTORS), read_itk(moving, SCALAR), read_itk(fixed, SCALAR)
    warped = itk.WarpImageFilter[SCALAR, SCALAR, VECTORS].New(Input=moving_image, DisplacementField=vectors)
    warped.SetOutputParametersFromImage(fixed_image)
    warped.Update()
    # The resampler wants displacements in double precision; a view does not own its memory.
    doubles = itk.array_from_image(vectors).astype(np.float64)
    double_field = itk.image_view_from_array(doubles, ttype=itk.Image[itk.Vector[itk.D, 3], 3])
    double_field.CopyInformation(vectors)
    transform = itk.DisplacementFieldTransform[itk.D, 3].New(DisplacementField=double_field)
    resampled = itk.resample_image_filter(
        moving_image, transform=transform, use_reference_image=True, reference_image=fixed_image
    )
    return tuple(itk.array_from_image(image).T for image in (warped.GetOutput(), resampled))
