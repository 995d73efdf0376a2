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

"""What a network is shown: intensities scaled by slice, a working pixel size, and fields back on the native grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import scale_affine
from scripts.errors import InputError
from scripts.registration.fields import resize_field, restack, unstack
from torch import Tensor
from torch.nn import functional as F

# Pixels along an axis that are left of a resampled image at least.
SMALLEST = 8
# And at most, where resampling adds pixels: no scanner has so many, so that a size or a spacing must be wrong.
LARGEST = 2048


class ScaleSlicesd(MapTransform):
    """Scale each slice of a stack (1, X, Y, Z) to [0, 1], so that scanner units and 8-bit copies give the same input.

    Intensities are clipped at a percentile of the stack (of each frame's, in a cine), then each slice is scaled min-max
    (the published protocol scales its 8-bit, clipped slices min-max; clipping those again changes nothing).

    Args:
        keys: images to scale.
        clip_percentile: upper clip, in percent of the stack's voxels; 100 clips nothing.
        allow_missing_keys: whether an item may lack an image.

    Raises:
        InputError: naming the file, for an image that is constant in every slice.
    """

    def __init__(self, keys: Sequence[str], clip_percentile: float = 99.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clip_percentile = clip_percentile

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict:
        item = dict(data)
        for key in self.key_iterator(data):
            image = data[key]
            name = image.meta.get("filename_or_obj", key) if isinstance(image, MetaTensor) else key
            item[key] = scale_slices(image, self.clip_percentile, data.get("valid"))
            if not item[key].any():
                raise InputError(
                    f"{name}: the {key} image is constant in every slice, at least below the "
                    f"{self.clip_percentile:g}th percentile; give another image, another --reference_frame, or "
                    "--clip_percentile 100."
                )
        return item


def scale_slices(image: Tensor, clip_percentile: float = 100.0, valid: Tensor | None = None) -> Tensor:
    """Each slice of (..., X, Y, Z) scaled min-max to [0, 1], after clipping at a percentile of its stack, of what is
    `valid` (X, Y, Z) in it; a constant one is 0."""
    if clip_percentile < 100:
        # NumPy's: torch.quantile stops at 16 million voxels.
        array = torch.as_tensor(image).numpy()
        if valid is None:
            limit = np.percentile(array, clip_percentile, axis=(-3, -2, -1), keepdims=True, method="higher")
        else:
            inside = array[..., torch.as_tensor(valid).numpy()]
            limit = np.percentile(inside, clip_percentile, axis=-1, method="higher")[..., None, None, None]
        image = image.clamp(max=torch.from_numpy(np.asarray(limit)))
    low, high = image.amin(dim=(-3, -2), keepdim=True), image.amax(dim=(-3, -2), keepdim=True)
    return (image - low) / torch.where(high > low, high - low, 1.0)


class ResizeToSpacingd(MapTransform):
    """Resample stacks (1, X, Y, Z) in-plane to a working spacing; the outer pixel edges stay where they are.

    A network knows hearts of the size in pixels that it was trained on; scanners differ in their pixels by a factor of
    two.

    Args:
        keys: images to resample.
        spacing: in-plane pixel size in mm; None or False leaves the native pixels (the published protocol).
        tolerance: pixels within a factor of 1 + tolerance stay as they are: resampling blurs, and networks bear that
            much.
        allow_missing_keys: whether an item may lack an image.

    Raises:
        InputError: for a spacing that leaves next to nothing of an image.
    """

    def __init__(
        self,
        keys: Sequence[str],
        spacing: float | None = None,
        tolerance: float = 0.15,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing = spacing or None
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        item, keys = dict(data), list(self.key_iterator(data))
        if self.spacing is None or not keys:
            return item
        # By the first image for all: affines that are one grid's may differ in their last digits.
        shape, pixels = data[keys[0]].shape[1:3], data[keys[0]].pixdim.tolist()
        factors = [length / self.spacing for length in pixels[:2]]
        if all(1 / (1 + self.tolerance) <= factor <= 1 + self.tolerance for factor in factors):
            return item
        size = [max(round(n * factor), 1) for n, factor in zip(shape, factors)]
        if max(size) > max(LARGEST, *shape):
            name = data[keys[0]].meta.get("filename_or_obj", keys[0])
            raise InputError(
                f"{name}: has {' x '.join(map(str, shape))} pixels of {pixels[0]:g} x {pixels[1]:g} mm, of which "
                f"--working_spacing {self.spacing:g} would make {' x '.join(map(str, size))}; correct the file's voxel "
                "sizes, or give a larger spacing."
            )
        if min(size) < SMALLEST <= min(shape):
            raise InputError(
                f"--working_spacing {self.spacing:g}: leaves {size[0]} x {size[1]} pixels of {tuple(shape)}; give a smaller one."
            )
        for key in keys:
            image = data[key]
            slices = F.interpolate(
                image.as_tensor().movedim(-1, 0), size=size, mode="bilinear", align_corners=False, antialias=True
            )
            affine = image.affine @ torch.from_numpy(scale_affine(image.shape[1:], (*size, image.shape[-1])))
            item[key] = MetaTensor(slices.movedim(0, -1).contiguous(), meta=dict(image.meta))
            item[key].affine = affine
        return item


class FieldToNatived(Transform):
    """Bring a field (d, X, Y, Z) from the working grid to the native one, in voxels of the native grid; volumes may have
    frames, (3, X, Y, Z, T).

    Args:
        field: key of the field.
        reference: key of the image whose grid is the native one.
    """

    def __init__(self, field: str = "pred", reference: str = "fixed_image") -> None:
        self.field = field
        self.reference = reference

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict:
        field = torch.as_tensor(data[self.field]).detach().cpu().float()
        axes = len(field)
        native = resize_field(unstack(field, axes), data[self.reference].shape[1 : 1 + axes])
        return {**data, self.field: restack(native, axes, frames=field.ndim == 5)}


class PreparePair:
    """`prepare_batch` of MONAI's engines for pairs: (network input, loss target), both the pair (B, 2, *spatial).

    Where the batch holds labels of its images under "label" (data sets with labels), the target is (pair, label),
    augmented alike.

    Args:
        augment: a function of the pair, or of the pair and its labels, or None.
        channels_last: whether to hand the network its input in channels-last memory format (2-D).
    """

    def __init__(self, augment: Transform | None = None, channels_last: bool = False) -> None:
        self.augment = augment
        self.channels_last = channels_last

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        pair = batchdata["pair"].to(device=device, non_blocking=non_blocking, **kwargs)
        # Gradients of MetaTensors are MetaTensors, and slow.
        pair = pair.as_tensor() if isinstance(pair, MetaTensor) else pair
        label = batchdata.get("label")
        if label is None:
            pair = pair if self.augment is None else self.augment(pair)
        else:
            label = label.to(device=device, non_blocking=non_blocking)
            pair, label = (pair, label) if self.augment is None else self.augment(pair, label)
        if self.channels_last and pair.ndim == 4:
            pair = pair.contiguous(memory_format=torch.channels_last)
        return pair, pair if label is None else (pair, label)
