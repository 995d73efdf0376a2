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

"""The report of a registered cine: one HTML page that opens offline, for a reader who has to decide whether to trust
the result.

jinja2 is imported where it is used, so that training does without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scripts.cardiac.answers import BY_SEGMENTATION, SEGMENTED
from scripts.cardiac.registrations import Registration
from scripts.cardiac.strain import segment_peaks, stretched_segments, summarize_strain
from scripts.files import write_text
from scripts.report.bullseye import draw_bullseyes
from scripts.report.charts import draw_curves, draw_segments, strain_curves, volume_curves
from scripts.report.orientation import as_displayed
from scripts.report.panels import draw_differences, draw_field
from scripts.report.subjects import subject_of
from scripts.report.tables import flatten, frame_table, function_tables, name_values, slices_of_levels, threshold_rows
from scripts.report.tiles import OUTLINES, SCALE_BAR, figure_uri, make_players, make_sheet, per_row
from scripts.report.view import choose_view

if TYPE_CHECKING:
    from jinja2 import Environment


def write_report(path: str | Path, registration: Registration, parameters: Mapping[str, str]) -> Path:
    """Write the report as one self-contained HTML page; the whole file or none.

    What depends on a label (contours, volumes, function, strain) is left out where there is none.

    Args:
        path: HTML file to write; its folder is made.
        registration: what to draw.
        parameters: versions and options, shown as they are.

    Returns:
        `path`.
    """
    path = Path(path)
    page = render_page(registration, parameters)
    write_text(path, page)
    return path


def make_environment() -> Environment:
    """How pages are made of the templates beside this file: all text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment


def render_page(registration: Registration, parameters: Mapping[str, str]) -> str:
    """The page as text."""
    r = as_displayed(registration)
    cine, view, subject = r.cine, choose_view(r), subject_of(r)
    sheet = make_sheet(subject, view)
    labeled, many = r.labels is not None and bool(np.any(r.labels)), cine.frames > 1
    volumes = volume_curves(subject.function) if labeled and many and cine.is_stack else {}
    strains = strain_curves(subject.strain, cine.frames) if labeled and many else {}
    peaks = summarize_strain(subject.strain) if strains else {}
    segments = segment_peaks(subject.strain) if strains and cine.is_stack else {}
    systole = subject.function.get("es_frame")
    stretched = stretched_segments(subject.strain, systole) if segments and systole else {}
    return (
        make_environment()
        .get_template(subject.template)
        .render(
            cine=cine,
            registration=r,
            oriented=any(view.letters),
            verdict=r.quality.get("verdict") or [],
            grade=r.quality.get("grade"),
            **function_tables(subject.function if labeled else {}, peaks),
            **make_players(subject, view),
            sheet=sheet,
            # Of one slice, all frames stand in a row.
            per_row=per_row(cine.image.shape[2] if cine.image.shape[2] > 1 else len(sheet)),
            outlines={
                name: color
                for name, (values, color) in OUTLINES.items()
                if labeled and any((subject.outlined(t) == values[0]).any() for t in range(cine.frames))
            },
            lv_segmented=subject.function.get("lv_measured_by") == SEGMENTED and len(r.answers) > 1,
            rv_segmented=subject.function.get("rv_measured_by") == SEGMENTED,
            shown=r.name_image(view.frame),
            differences=figure_uri(draw_differences(r, view)) if subject.has_motion else None,
            field=figure_uri(draw_field(r, view)) if subject.has_motion else None,
            volume_chart=figure_uri(draw_curves(r, volumes, "volume, mL")) if volumes else None,
            strain_chart=figure_uri(draw_curves(r, strains, "global strain, %")) if strains else None,
            has_peaks=bool(peaks),
            bullseyes=figure_uri(draw_bullseyes(segments, stretched)) if segments else None,
            stretched=stretched if any(stretched.values()) else {},
            systole=systole,
            segment_chart=figure_uri(draw_segments(r)) if segments else None,
            segment_slices=slices_of_levels(subject.strain),
            scale_bar=SCALE_BAR,
            automatic=r.label_basis == BY_SEGMENTATION,
            two_answers=len(volumes) > len({name[:2] for name in volumes}),
            quality=frame_table(r.quality.get("frames") or [], subject.numbered),
            cycle=name_values(flatten(r.quality.get("cycle") or {})),
            thresholds=threshold_rows(r.quality),
            left=(r.quality.get("contours") or {}).get("left_in_systole", []) if subject.numbered else [],
            parameters=parameters,
        )
    )
