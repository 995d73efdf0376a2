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

"""A cine and a pair once they are registered: two types, and what they have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scripts.cardiac.answers import CARRIED, SEGMENTED
from scripts.cardiac.cines import ESTIMATED, TRIGGERED, Cine


@dataclass(kw_only=True)
class Registration(ABC):
    """Moving images, T frames of a cine or one image (T = 1), registered to a fixed image.

    Fields are in voxels, channel i along array axis i, pull convention. With u = fields[t] on the fixed image's grid,
    moved[..., t](x) = cine.image[..., t](x + u(x)), and the fixed image's point x lies at x + u(x) in moving image t.
    """

    cine: Cine
    """What was moved; of a pair a single frame, the moving image on the fixed one's grid."""
    fields: NDArray
    """(T, d, X, Y, Z), d = 2 in-plane or 3."""
    inverses: NDArray
    """(T, d, X, Y, Z), d = 2 in-plane or 3."""
    moved: NDArray
    """(X, Y, Z, T), intensities of the cine's unit."""
    quality: dict = field(default_factory=dict)
    """What `quality.assess` returns."""
    points: list[dict] = field(default_factory=list)
    """Rows of landmarks in every moving image."""
    label_basis: str | None = None
    """Where the label comes from: `answers.GIVEN` or `answers.BY_SEGMENTATION`; None without one."""
    segmented: NDArray | None = None
    """Labels of the moving images (X, Y, Z, T), each segmented by itself; None where they were not."""
    is_measured: bool = True
    """Whether the segmentation is the one whose limits of agreement are known, `answers.MEASURED_SHA256`."""

    fixed: NDArray = field(init=False)
    """Image (X, Y, Z) that every moving image is brought onto."""
    label: NDArray | None = field(init=False)
    """Label on the fixed image (X, Y, Z): 1 RV, 2 myocardium, 3 LV cavity; None without one."""
    labels: NDArray | None = field(init=False)
    """Labels on the moving images (X, Y, Z, T); None without one."""

    @property
    def answers(self) -> dict[str, NDArray]:
        """Labels of the moving images by what they rest on: the motion, or each image alone."""
        both = {CARRIED: self.labels, SEGMENTED: self.segmented}
        return {by: labels for by, labels in both.items() if labels is not None}

    @property
    @abstractmethod
    def compared(self) -> tuple[dict[str, NDArray], int]:
        """Labels of all images (X, Y, Z, number) by what they rest on, and which of the images, counted from 1, the label
        is of that was carried."""

    has_cycle = False
    """Whether it covers a heartbeat, over which motion has a course."""
    are_numbered = True
    """Whether its moving images are frames, whose numbers mean anything to a reader."""

    @property
    @abstractmethod
    def fixed_name(self) -> str:
        """The fixed image in words."""

    @abstractmethod
    def name_image(self, index: int) -> str:
        """A moving image, counted from 0, in words."""

    @abstractmethod
    def frames_to_judge(self) -> Collection[int]:
        """Frames, counted from 1, whose figures say how good the registration is."""

    @abstractmethod
    def describe_reference(self) -> dict:
        """The entries of `quality.json` on the fixed image and its label."""


@dataclass(kw_only=True)
class CineRegistration(Registration):
    """Every frame of a cine registered to its reference frame.

    With v = inverses[t] on the grid of frame t, labels[..., t](y) = label(y + v(y)).
    """

    reference: int
    """Reference frame, counted from 1."""
    reference_basis: str
    """Why that frame, in words."""
    label: NDArray | None = None
    """That of the reference frame."""
    labels: NDArray | None = None
    """Carried from the reference to every frame."""
    function: dict = field(default_factory=dict)
    """What `answers.measure_answers` returns."""
    strain: list[dict] = field(default_factory=list)
    """Rows of `strain.measure_strain`."""

    @property
    def fixed(self) -> NDArray:
        return self.cine.image[..., self.reference - 1]

    @property
    def has_cycle(self) -> bool:
        return self.cine.frames > 2

    @property
    def compared(self) -> tuple[dict[str, NDArray], int]:
        return self.answers, self.reference

    @property
    def is_estimated(self) -> bool:
        """Whether the reference frame was chosen without contours."""
        return self.reference_basis in (ESTIMATED, TRIGGERED)

    @property
    def fixed_name(self) -> str:
        return f"reference, frame {self.reference}"

    def name_phase(self, index: int) -> str:
        """End diastole or end systole, behind a comma, where a frame, counted from 0, is that; else nothing."""
        phases = {
            self.function.get(f"{key}_frame"): f", {name}"
            for key, name in (("es", "end systole"), ("ed", "end diastole"))
        }
        return phases.get(index + 1, "")

    def name_image(self, index: int) -> str:
        return f"frame {index + 1}{self.name_phase(index)}"

    def frames_to_judge(self) -> Collection[int]:
        return set(range(1, self.cine.frames + 1)) - {self.reference}

    def describe_reference(self) -> dict:
        return {
            "reference_frame": self.reference,
            "reference_basis": self.reference_basis,
            "label_basis": self.label_basis,
        }


@dataclass(kw_only=True)
class PairRegistration(Registration):
    """A moving image registered to a fixed one; T = 1."""

    fixed: NDArray
    moving_label: NDArray | None = None
    """Label of the moving image (X, Y, Z), on the fixed one's grid."""
    moved_label: NDArray | None = None
    """The same through the field, moving_label(x + u(x))."""
    fixed_label: NDArray | None = None
    """Segmentation of the fixed image (X, Y, Z), where there is no moving label."""
    carried_label: NDArray | None = None
    """The same on the moving image, fixed_label(y + v(y)) with v = inverses[0]."""
    fixed_segmented: NDArray | None = None
    """Segmentation of the fixed image (X, Y, Z), whatever label there is; None where it was not segmented."""
    fixed_name = "fixed image"
    are_numbered = False

    @property
    def label(self) -> NDArray | None:
        return self.fixed_label if self.moved_label is None else self.moved_label

    @property
    def labels(self) -> NDArray | None:
        label = self.carried_label if self.moving_label is None else self.moving_label
        return None if label is None else label[..., None]

    @property
    def compared(self) -> tuple[dict[str, NDArray], int]:
        """The fixed image is the first one, the moving image the second."""
        if self.label is None or self.fixed_segmented is None or self.segmented is None:
            return {}, 1
        pairs = {CARRIED: (self.label, self.labels[..., 0]), SEGMENTED: (self.fixed_segmented, self.segmented[..., 0])}
        answers = {by: np.stack(labels, axis=-1) for by, labels in pairs.items()}
        return answers, 1 if self.moving_label is None else 2

    def name_image(self, index: int) -> str:
        return "moving image"

    def frames_to_judge(self) -> Collection[int]:
        return {1}

    def describe_reference(self) -> dict:
        basis = "the fixed image of the pair"
        return {"reference_frame": None, "reference_basis": basis, "label_basis": self.label_basis}
