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

"""Pictures of slices with the outlines of their structures, one for each frame of a player and each slice of a sheet.

Pillow and contourpy are imported where they are used, so that training does without them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scripts.files import let_go
from scripts.report.subjects import CineSubject, PairSubject
from scripts.report.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
# Label values whose union is outlined where the first of them is there, and the color.
OUTLINES = {"LV cavity": ((3,), "#ff7a1a"), "myocardium": ((2, 3), "#ffe14d"), "RV": ((1,), "#4db8ff")}
TILE = 320  # pixels, the side of a picture of the cine
TILES = 165  # of that size in a page; more are smaller
SMOOTH = 1.2  # voxels, the standard deviation of the Gaussian that rounds outlines
SCALE_BAR = 20.0  # mm, the bar in pictures of the cine
SHEET_TILE = 200  # pixels, the side of a picture where all slices are shown
IN_A_ROW = 7  # of these at most


def make_players(subject: CineSubject | PairSubject, view: View) -> dict[str, Any]:
    """Stacks of pictures to loop over, as acquired and registered, and what they are called."""
    r, names = subject.registration, subject.names
    rows = {
        "acquired": (subject.play(r.cine.image), subject.outlined),
        "registered": (subject.play(r.moved), lambda t: r.label),
    }
    if len(names) == 1:
        del rows["registered"]

    side = TILE * min(math.sqrt(TILES / (len(names) * len(view.slices) * len(rows))), 1)

    def draw_stack(images: NDArray, label_of: Callable[[int], NDArray | None], z: int) -> list[str]:
        tiles = []
        for t in range(len(names)):
            label = label_of(t)
            outline = None if label is None else label[(*view.box, z)]
            tiles.append(draw_tile(images[(*view.box, z, t)], outline, view, side, True))
            let_go(images)
        return tiles

    players = {kind: [(title, draw_stack(*row, z)) for z, title in view.slices] for kind, row in rows.items()}
    return {"players": players, "names": names, "start": subject.still(view.frame), "interval": subject.interval}


def per_row(count: int) -> int:
    """In rows of how many pictures a number of them is shown: of as many as fit, the last row as full as may be."""
    return math.ceil(count / math.ceil(count / IN_A_ROW))


def make_sheet(subject: CineSubject | PairSubject, view: View) -> list[tuple[str, list[str]]]:
    """Every slice of the fixed image and of what is shown beside it, with outlines: titles and pictures."""
    sheet = []
    for title, image, label in subject.sheet(view.frame):
        tiles = [
            draw_tile(image[(*view.box, z)], None if label is None else label[(*view.box, z)], view, SHEET_TILE, z == 0)
            for z in range(image.shape[2])
        ]
        sheet.append((title, tiles))
    return sheet


def draw_tile(image: NDArray, label: NDArray | None, view: View, side: float, letters: bool = False) -> str:
    """A cropped slice (X, Y), first axis to the right, with the outlines of its structures, and on demand the letters of
    its edges and a bar of `SCALE_BAR`, as data URI.

    Its proportions are those in mm, its area that of a square whose side is given in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    low, high = view.window
    gray = (255 * np.clip((image.T - low) / (high - low), 0, 1)).astype(np.uint8)
    size = [max(round(side * length / math.sqrt(math.prod(view.extent))), 1) for length in view.extent]
    # Drawn twice as large, so that lines are smooth.
    tile = Image.fromarray(gray).resize((2 * size[0], 2 * size[1]), Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(tile)
    for values, color in OUTLINES.values() if label is not None else ():
        if (label == values[0]).any():
            for line in _outline(np.isin(label, values), size):
                draw.line([tuple(point) for point in 2 * line], fill=color, width=4, joint="curve")
    if letters:
        style = {"fill": "white", "stroke_fill": "black", "stroke_width": 2, "font": ImageFont.load_default(26)}
        (width, height), near = tile.size, 6
        places = {"lm": (near, height / 2), "rm": (width - near, height / 2)}
        places |= {"mt": (width / 2, near), "mb": (width / 2, height - near)}
        for (anchor, place), text in zip(places.items(), view.letters):
            draw.text(place, text, anchor=anchor, **style)
        length = SCALE_BAR * width / view.extent[0]
        draw.rectangle((near, height - near - 8, near + length, height - near), fill="white", outline="black", width=2)
    buffer = io.BytesIO()
    tile.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=75, subsampling=0, optimize=True)
    return _data_uri("jpeg", buffer)


def _outline(mask: NDArray[np.bool_], size: list[int]) -> list[NDArray]:
    """Lines (N, 2) around a mask (X, Y) that is shown in a size in pixels.

    Smoothed by about a voxel, and traced between the pixels that are shown: steps and corners of voxels are no
    anatomy.
    """
    from contourpy import contour_generator
    from PIL import Image

    smooth = ndimage.gaussian_filter(mask.T.astype(np.float32), SMOOTH)
    fine = np.asarray(Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC))
    # A cavity of a few voxels has a line, too.
    lines = contour_generator(z=fine).lines(min(0.5, float(fine.max()) / 2))
    # The first pixel's middle is at one half.
    return [line + 0.5 for line in lines]


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    """A picture to put into a page."""
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure_uri(figure: Figure) -> str:
    """A figure as PNG in a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return _data_uri("png", buffer)
