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

"""Loading, scaling, resampling and augmenting pairs, against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import STACK_SHAPE
from monai.data import MetaTensor
from scripts.data.preprocessing import FieldToNatived, PreparePair, ResizeToSpacingd, ScaleSlicesd, scale_slices
from scripts.errors import InputError


def test_slices_are_scaled_as_by_hand(stack: np.ndarray) -> None:
    found = scale_slices(torch.from_numpy(stack)[None].float(), 90.0)[0].numpy()
    clipped = np.minimum(stack, np.percentile(stack, 90, method="higher")).astype(np.float64)
    for z in range(STACK_SHAPE[2]):
        s = clipped[..., z]
        np.testing.assert_allclose(found[..., z], (s - s.min()) / (s.max() - s.min()), atol=1e-6)


def test_scanner_units_and_a_clipped_8_bit_copy_give_the_same_input() -> None:
    raw = np.random.default_rng(1).gamma(2.0, 300.0, (64, 64, 4)).astype(np.int16)
    clipped = np.minimum(raw, np.percentile(raw, 99, method="higher")).astype(np.float64)
    eight_bit = np.round(255 * (clipped - clipped.min()) / (clipped.max() - clipped.min()))
    both = [scale_slices(torch.from_numpy(x.astype(np.float32))[None], 99.0) for x in (raw, eight_bit)]
    torch.testing.assert_close(*both, rtol=0, atol=1.01 / 255)


def test_a_constant_slice_is_0_and_an_image_of_nothing_else_is_named(stack: np.ndarray) -> None:
    stack[..., 1] = 7
    image = MetaTensor(torch.from_numpy(stack)[None].float(), meta={"filename_or_obj": "somewhere/es.nii.gz"})
    scaled = ScaleSlicesd(["moving"])({"moving": image})["moving"]
    assert not scaled[..., 1].any()
    assert all(scaled[..., z].max() == 1 for z in range(stack.shape[-1]) if z != 1)
    with pytest.raises(InputError, match=r"somewhere/es\.nii\.gz: the moving image is constant in every slice"):
        ScaleSlicesd(["moving"])({"moving": torch.zeros_like(image)})


def test_resampling_to_a_spacing_and_the_field_back(stack: np.ndarray) -> None:
    affine = torch.diag(torch.tensor([1.5, 2.0, 8.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(stack)[None].float(), affine=affine)
    resized = ResizeToSpacingd(["fixed"], spacing=1.0)({"fixed": image})["fixed"]
    assert resized.shape == (1, 18, 20, 3)
    for nothing in (None, False):
        assert ResizeToSpacingd(["fixed"], spacing=nothing)({"fixed": image})["fixed"] is image
    # A constant displacement of 3 mm and -2 mm.
    field = torch.tensor([3.0, -2.0]).view(2, 1, 1, 1).expand(2, *resized.shape[1:])
    native = FieldToNatived()({"pred": field, "fixed_image": image})["pred"]
    assert native.shape == (2, *STACK_SHAPE)
    torch.testing.assert_close(native, torch.tensor([2.0, -1.0]).view(2, 1, 1, 1).expand_as(native))


@pytest.mark.parametrize(
    ("pixels", "left"), [((1.5, 1.5), True), ((1.31, 1.72), True), ((1.5, 1.28), False), ((1.76, 1.5), False)]
)
def test_pixels_near_the_spacing_stay_as_they_are(stack: np.ndarray, pixels: tuple[float, float], left: bool) -> None:
    affine = torch.diag(torch.tensor([*pixels, 8.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(stack)[None].float(), affine=affine)
    resized = ResizeToSpacingd(["fixed"], spacing=1.5)({"fixed": image})["fixed"]
    assert (resized is image) == left
    if not left:
        assert resized.shape[1:3] == tuple(round(n * s / 1.5) for n, s in zip(STACK_SHAPE, pixels))


@pytest.mark.parametrize("pixels", [(1.25, 1.250001), (1.7249998, 1.7250003)])
def test_images_whose_affines_differ_in_the_last_digits_stay_on_one_grid(pixels: tuple[float, float]) -> None:
    images = {
        key: MetaTensor(
            torch.rand(1, 51, 51, 2), affine=torch.diag(torch.tensor([s, s, 8.0, 1.0], dtype=torch.float64))
        )
        for key, s in zip(("moving", "fixed"), pixels)
    }
    resized = ResizeToSpacingd(["moving", "fixed"], spacing=1.5)(images)
    assert resized["moving"].shape == resized["fixed"].shape


def test_resampling_keeps_a_ramp_where_it_is_and_blank_slices_blank() -> None:
    affine = torch.diag(torch.tensor([0.6, 2.4, 8.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-20.0, 5.0, 3.0])
    image = MetaTensor(torch.zeros(1, 60, 20, 2), affine=affine)
    x, y = (affine[a, 3] + affine[a, a] * torch.arange(n) for a, n in ((0, 60), (1, 20)))
    image[0, ..., 0] = x[:, None] + 0.5 * y
    resized = ResizeToSpacingd(["fixed"], spacing=1.5)({"fixed": image})["fixed"]
    assert resized.shape == (1, 24, 32, 2)
    x, y = (resized.affine[a, 3] + resized.affine[a, a] * torch.arange(n) for a, n in ((0, 24), (1, 32)))
    # One axis shrinks, the other grows.
    torch.testing.assert_close(
        resized[0, 2:-2, 2:-2, 0].as_tensor().double(), (x[:, None] + 0.5 * y)[2:-2, 2:-2], rtol=0, atol=0.02
    )
    assert not resized[..., 1].any()


def test_refuses_a_spacing_that_leaves_nothing() -> None:
    image = MetaTensor(
        torch.rand(1, 40, 36, 2), affine=torch.diag(torch.tensor([1.5, 1.5, 8.0, 1.0], dtype=torch.float64))
    )
    with pytest.raises(InputError, match=r"--working_spacing 15: leaves 4 x 4 pixels"):
        ResizeToSpacingd(["fixed"], spacing=15)({"fixed": image})


def test_prepare_batch_hands_plain_tensors_in_the_wanted_format() -> None:
    batch = {"pair": MetaTensor(torch.rand(2, 2, 8, 8))}
    image, target = PreparePair(channels_last=True)(batch, torch.device("cpu"))
    assert type(image) is torch.Tensor
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert target is image
