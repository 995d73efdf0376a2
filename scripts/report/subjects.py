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

"""What a report shows of a cine, and what of a pair."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scripts.cardiac.answers import BY_SEGMENTATION, SEGMENTED, WORDS
from scripts.cardiac.cines import LABELS
from scripts.cardiac.registrations import CineRegistration, PairRegistration, Registration

# A title, an image (X, Y, Z) and its label.
Picture = tuple[str, NDArray, NDArray | None]


class CineSubject:
    """A cine, whose frames are played one after the other."""

    template = "cine.html.jinja"
    numbered = True

    def __init__(self, registration: CineRegistration) -> None:
        self.registration = registration
        self.function, self.strain = registration.function, registration.strain
        self.interval = registration.cine.frame_time or 60

    @property
    def has_motion(self) -> bool:
        """Whether there is a field to show: that of a single frame is none."""
        return self.registration.cine.frames > 1

    @property
    def names(self) -> list[str]:
        """Of the pictures that are played."""
        r, cine = self.registration, self.registration.cine
        times = [""] * cine.frames if cine.times is None else [f", {ms:.0f} ms" for ms in cine.times.mean(axis=0)]
        return [f"frame {t + 1} of {cine.frames}{time}{r.name_phase(t)}" for t, time in enumerate(times)]

    def frame_beside(self, motion: list[float]) -> int:
        """The frame, counted from 0, shown beside the reference: end systole, else that of the largest mean
        displacement."""
        systole = self.function.get("es_frame")
        return int(np.argmax(motion)) if systole in (None, self.registration.reference) else systole - 1

    def still(self, frame: int) -> int:
        """The picture, counted from 0, that stands still on paper: of the frame shown beside the reference, since the
        reference is registered to itself."""
        return frame

    def play(self, images: NDArray) -> NDArray:
        """(X, Y, Z, pictures) from the frames, as acquired or moved."""
        return images

    def sheet(self, frame: int) -> list[Picture]:
        """The reference, end diastole, and the frame that is shown beside them, once with each answer."""
        r, sheet = self.registration, []
        diastole, first = self.function.get("ed_frame", r.reference) - 1, r.reference - 1
        for t in dict.fromkeys((first, diastole, frame)):
            name = f"{r.name_image(t)}{', the reference' if t == first else ''}"
            for words, labels in self._answers_in(t).items():
                sheet.append((name + words, r.cine.image[..., t], None if labels is None else labels[..., t]))
        return sheet

    def _answers_in(self, frame: int) -> dict[str, NDArray | None]:
        """Labels that differ in a frame, counted from 0, by words behind its name; an automatic one of the reference is that
        which was segmented there."""
        r = self.registration
        if len(r.answers) < 2:
            return {"": r.labels}
        if frame != r.reference - 1:
            return {f", outlines {WORDS[by]}": labels for by, labels in r.answers.items()}
        segmented: dict[str, NDArray | None] = {f", outlines {SEGMENTED}": r.segmented}
        return segmented if r.label_basis == BY_SEGMENTATION else {", outlines as given": r.labels, **segmented}

    def outlined(self, frame: int) -> NDArray | None:
        """The label (X, Y, Z) of a frame, counted from 0, that is outlined where frames are played: the carried one, and
        the RV as it is segmented where its figures rest on that."""
        r = self.registration
        carried = None if r.labels is None else r.labels[..., frame]
        if len(r.answers) < 2 or self.function.get("rv_measured_by") != SEGMENTED:
            return carried
        rv = LABELS["rv"]
        left = np.where(carried == rv, 0, carried)
        return np.where((left == 0) & (r.segmented[..., frame] == rv), rv, left).astype(carried.dtype)


class PairSubject:
    """A pair, whose fixed image alternates with its moving or moved one."""

    template = "pair.html.jinja"
    numbered = False
    function: dict = {}
    strain: list[dict] = []
    interval = 800
    has_motion = True
    names = ["fixed image", "moving or moved image"]

    def __init__(self, registration: PairRegistration) -> None:
        self.registration = registration

    def frame_beside(self, motion: list[float]) -> int:
        """The only one."""
        return 0

    def still(self, frame: int) -> int:
        """The moving or moved image."""
        return 1

    def play(self, images: NDArray) -> NDArray:
        """(X, Y, Z, 2) from the moving or moved image (X, Y, Z, 1)."""
        return np.stack([self.registration.fixed, images[..., 0]], axis=-1)

    def sheet(self, frame: int) -> list[Picture]:
        """Both images."""
        r = self.registration
        moving = None if r.labels is None else r.labels[..., 0]
        return [("fixed image", r.fixed, r.label), ("moving image", r.cine.image[..., 0], moving)]

    def outlined(self, frame: int) -> NDArray | None:
        """The label (X, Y, Z) of the moving image, whatever the picture."""
        labels = self.registration.labels
        return None if labels is None else labels[..., 0]


def subject_of(registration: Registration) -> CineSubject | PairSubject:
    """What to show of a registration."""
    return {CineRegistration: CineSubject, PairRegistration: PairSubject}[type(registration)](registration)
