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

"""Bull's-eyes of the left ventricle: the 17 segments of Cerqueira et al., Circulation 105:539 (2002), base outside, apex
in the middle, anterior up and the septum to the left.

matplotlib is imported where it is used, so that training does without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scripts.cardiac.segments import APICAL, BASAL, MID, SECTORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
# Inner and outer radius of each ring.
RINGS = {BASAL: (0.75, 1.0), MID: (0.5, 0.75), APICAL: (0.25, 0.5)}
TRUE_APEX = 17
ANTERIOR_INSERTION = 120.0  # degrees counterclockwise from the right
# Percent at which colors end; red is a wall that contracts.
LIMITS = {"circumferential": 30.0, "radial": 100.0}
COLORS = {"circumferential": "RdBu", "radial": "RdBu_r"}
BLANK = "#eceff3"
HATCH = "////"  # of a segment that stretches


def wedges() -> dict[int, tuple[float, float, float, float]]:
    """Of each segment but the apex: inner and outer radius, and the angles in degrees, counterclockwise from the right,
    from which and to which it goes."""
    found = {}
    for level, (inner, outer) in RINGS.items():
        for sector in SECTORS[level]:
            start = (ANTERIOR_INSERTION + sector.start) % 360
            found[sector.segment] = (inner, outer, start, start + sector.width)
    return found


def draw_bullseyes(
    peaks: Mapping[str, Mapping[int, float]], stretched: Mapping[str, Mapping[int, float]] | None = None
) -> Figure:
    """Peak strain of each segment in percent, a bull's-eye for each name of `peaks`; blank where nothing was measured.

    Args:
        peaks: ratios by segment, by the names of `strain.segment_peaks`.
        stretched: of segments that are hatched, the ratio at end systole, which is printed, too, by the same names.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    for axis, (name, values) in zip(figure.subplots(1, len(peaks), squeeze=False)[0], peaks.items()):
        late = {segment: 100 * value for segment, value in (stretched or {}).get(name, {}).items()}
        _draw_bullseye(axis, {segment: 100 * value for segment, value in values.items()}, late, name)
    return figure


def _draw_bullseye(axis: Axes, values: Mapping[int, float], stretched: Mapping[int, float], name: str) -> None:
    """One bull's-eye of percents."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Circle, Wedge

    scale = ScalarMappable(Normalize(-LIMITS[name], LIMITS[name]), colormaps[COLORS[name]])
    edge = {"edgecolor": "#55606e", "linewidth": 1.2}
    for segment, (inner, outer, start, end) in wedges().items():
        value = values.get(segment, np.nan)
        color = scale.to_rgba(value) if np.isfinite(value) else BLANK
        hatch = HATCH if segment in stretched else None
        axis.add_patch(Wedge((0, 0), outer, start, end, width=outer - inner, facecolor=color, hatch=hatch, **edge))
        middle, radius = np.deg2rad((start + end) / 2), (inner + outer) / 2
        text = f"{round(value)}".replace("-", "−") if np.isfinite(value) else "–"
        below = f"{segment}, ES {round(stretched[segment]):+d}".replace("-", "−") if hatch else str(segment)
        _write(axis, radius * np.cos(middle), radius * np.sin(middle), text, below, color, bool(hatch))
    axis.add_patch(Circle((0, 0), RINGS[APICAL][0], facecolor=BLANK, **edge))
    _write(axis, 0, 0, "–", str(TRUE_APEX), BLANK)
    sides = {"anterior": (0, 1.07, 0), "inferior": (0, -1.07, 0), "septal": (-1.07, 0, 90), "lateral": (1.07, 0, -90)}
    for side, (x, y, turn) in sides.items():
        axis.text(x, y, side, ha="center", va="center", rotation=turn, fontsize=10, color="#55606e")
    axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    axis.set_title(f"peak {name} strain, %", fontsize=12)
    axis.axis("off")
    axis.figure.colorbar(scale, ax=axis, shrink=0.7, pad=0.02, extend="both")


def _write(axis: Axes, x: float, y: float, text: str, below: str, background: object, on_hatch: bool = False) -> None:
    """A segment's value and, smaller below it, its number, in black or white, whichever shows, on a plain patch where there
    is a hatch."""
    from matplotlib.colors import to_rgb

    ink = "white" if np.dot(to_rgb(background), (0.299, 0.587, 0.114)) < 0.5 else "#1b2430"
    style = {"ha": "center", "va": "center", "color": ink}
    if on_hatch:
        style["bbox"] = {"facecolor": background, "edgecolor": "none", "pad": 1.0}
    axis.text(x, y + 0.02, text, fontsize=12, fontweight="bold", **style)
    axis.text(x, y - 0.075, below, fontsize=7, **style)
