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
from numpy.typing import NDArray
from scripts.cardiac.answers import BY_SEGMENTATION, GIVEN, MEASURED_SHA256
from scripts.cardiac.cines import AUTOMATIC, ESTIMATED, TRIGGERED, largest_cavity
from scripts.cardiac.phases import find_contours
from scripts.cardiac.planes import is_long_axis
from scripts.data.loading import set_reference
from scripts.options import is_none
from scripts.training.checkpoints import hash_checkpoint
from scripts.workflow.segmenters import Segment, load_segmenter
from torch import Tensor

NO_RING = "The segmentation finds no LV in a ring of myocardium, so no contours are drawn; is it a short-axis cine?"


class SegmentCase(Transform):
    """Segment all images of a case of `loading.LoadCase`: of a cine its frames, of a pair both stacks.

    A cine gains "segmented" (T, X, Y, Z), uint8: 1 RV, 2 myocardium, 3 LV cavity. Its reference frame is end diastole by
    that segmentation, unless one was given; where it has no "reference_label", that of the reference frame is one, and
    "label_basis" is "automatic" instead of "given". A pair gains "segmented" (1, X, Y, Z) of the moving image, and where it
    has no "moving_label" the fixed one's is its "reference_label". Both gain "fixed_segmented" (1, X, Y, Z), and "is_measured":
    whether the segmentation is that of `answers.MEASURED_SHA256`. A
    long-axis view, or a case in which no LV lies in a ring of myocardium, gets no contours, and a line says so; the latter is
    a doubt of the verdict, too. A cine without contours whose reference frame was not given gets the one with the largest
    cavity (`cines.largest_cavity`), a long-axis view its first one.

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
        # The folder of another bundle is not it, whatever its weights.
        is_file = not off and Path(segmentation).is_file()
        self.is_measured = is_file and hash_checkpoint(segmentation) == MEASURED_SHA256
        self.scratch_dir = scratch_dir

    def __call__(self, data: Mapping) -> dict:
        label = "moving_label" if data["kind"] == "pair" else "reference_label"
        item = {**data, "label_basis": GIVEN} if label in data else dict(data)
        if self.segment is not None:
            item = self._draw(item, label)
        if "fixed" in item:
            return item
        if is_long_axis(item["plane"] or None):
            return set_reference(item, 1, TRIGGERED)
        return set_reference(item, largest_cavity(_as_cine(item["moving"])), ESTIMATED)

    def _draw(self, item: dict, label: str) -> dict:
        """The item with its contours, where it shows a short axis; `label` is the key of a label that it may have."""
        name = item["case"]
        say = logging.getLogger("inference").warning
        if is_long_axis(item["plane"] or None):
            say(
                f"{name}: is a long-axis view ({item['plane']}), which the segmentation does not know; no contours are drawn."
            )
            return item
        is_pair = item["kind"] == "pair"
        images = torch.cat([item["fixed"], item["moving"]]) if is_pair else item["moving"]
        found = segment_images(images, self.segment, self.scratch_dir)
        if found is None:
            say(f"{name}: {NO_RING} Where it is, give --reference_label.")
            return item | {"doubts": "\n".join(filter(None, [item.get("doubts"), NO_RING]))}
        segmented, ed = found
        if "fixed" not in item:
            item = set_reference(item, ed, AUTOMATIC)
        fixed = 0 if is_pair else item["reference"] - 1
        item["segmented"] = segmented[1:] if is_pair else segmented
        item["is_measured"] = self.is_measured
        item["fixed_segmented"] = drawn = segmented[fixed : fixed + 1]
        if label not in item:
            item["reference_label"] = MetaTensor(drawn.float(), affine=item["fixed"].affine)
            item["label_basis"] = BY_SEGMENTATION
        return item


def segment_images(
    images: MetaTensor, segment: Segment, scratch_dir: str | Path | None = None
) -> tuple[Tensor, int] | None:
    """Label maps of all frames of a cine (T, X, Y, Z), uint8, and which of them is end diastole, from 1
    (`phases.find_contours`); None where no LV lies in a ring of myocardium. A pair is a cine of two frames."""
    found = find_contours(_as_cine(images), images.pixdim.tolist(), segment, scratch_dir)
    return None if found is None else (torch.from_numpy(found.labels.transpose(3, 0, 1, 2)), found.ed)


def _as_cine(images: MetaTensor) -> NDArray:
    """Images (T, X, Y, Z) as (X, Y, Z, T)."""
    return images.numpy().transpose(1, 2, 3, 0)
