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

"""Automatic contours: a loaded case is segmented, and gains a label where it has none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scripts.cardiac.answers import BY_SEGMENTATION, GIVEN
from scripts.cardiac.cines import AUTOMATIC, ESTIMATED
from scripts.cardiac.phases import find_contours
from scripts.cardiac.planes import is_long_axis
from scripts.options import is_none
from scripts.workflow.segmenters import load_segmenter

NO_RING = "The segmentation finds no LV in a ring of myocardium, so no contours are drawn; is it a short-axis cine?"


class SegmentCase(Transform):
    """Segment all images of a case of `loading.LoadCase`: of a cine its frames, of a pair both stacks.

    A cine gains "segmented" (T, X, Y, Z), uint8: 1 RV, 2 myocardium, 3 LV cavity. Its reference frame is end diastole by
    that segmentation, unless one was given; where it has no "reference_label", that of the reference frame is one, and
    "label_basis" is "automatic" instead of "given". A pair gains "segmented" (1, X, Y, Z) of the moving and
    "fixed_segmented" of the fixed image, and where it has no "moving_label" the latter is its "reference_label". A
    long-axis view, or a case in which no LV lies in a ring of myocardium, stays as it is, and a line says so; the latter is
    a doubt of the verdict, too.

    Args:
        segmentation: weights or the folder of a MONAI bundle (`segmenters.load_segmenter`); "none" segments nothing.
        reference_label: the option; "none" segments nothing, either.
        device: where the network runs.
        scratch_dir: folder for what does not fit into memory, see `files.scratch_array`.

    Raises:
        InputError: as `segmenters.load_segmenter`.
    """

    def __init__(
        self,
        segmentation: str | Path,
        reference_label: str | None = None,
        device: str | torch.device = "cpu",
        scratch_dir: str | Path | None = None,
    ) -> None:
        off = is_none(segmentation) or is_none(reference_label)
        self.segment = None if off else load_segmenter(segmentation, device)
        self.scratch_dir = scratch_dir

    def __call__(self, data: Mapping) -> dict:
        item, name = dict(data), data["case"]
        label = "moving_label" if item["kind"] == "pair" else "reference_label"
        if label in item:
            item["label_basis"] = GIVEN
        if self.segment is None:
            return item
        say = logging.getLogger("inference").warning
        if is_long_axis(item["plane"] or None):
            say(
                f"{name}: is a long-axis view ({item['plane']}), which the segmentation does not know; no contours are drawn."
            )
            return item
        spacing = item["fixed"].pixdim.tolist()
        images = item["moving"] if item["kind"] == "cine" else torch.cat([item["fixed"], item["moving"]])
        frames = images.numpy().transpose(1, 2, 3, 0)
        found = find_contours(frames, spacing, self.segment, self.scratch_dir)
        if found is None:
            say(f"{name}: {NO_RING} Where it is, give --reference_label.")
            return item | {"doubts": "\n".join(filter(None, [item.get("doubts"), NO_RING]))}
        segmented = torch.from_numpy(found.labels.transpose(3, 0, 1, 2))
        if item["kind"] == "pair":
            drawn, item["segmented"] = segmented[:1], segmented[1:]
            item["fixed_segmented"] = drawn
        else:
            if item["reference_basis"] == ESTIMATED:
                item |= {"reference": found.ed, "reference_basis": AUTOMATIC}
                item["fixed"] = item["moving"][found.ed - 1 : found.ed].clone()
            drawn, item["segmented"] = segmented[item["reference"] - 1 : item["reference"]], segmented
        if label not in item:
            item["reference_label"] = MetaTensor(drawn.float(), affine=item["fixed"].affine)
            item["label_basis"] = BY_SEGMENTATION
        return item
