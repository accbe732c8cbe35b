"""The look of every figure, and the same bytes from the same numbers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from condexp.errors import InputError
from condexp.store.csv_text import write_frame
from condexp.store.files import saving

# Okabe & Ito (2008): distinguishable under every common colour blindness.
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SKY_BLUE, BLACK, GREY, LIGHT_GREY = "#56B4E9", "#000000", "#9A9A9A", "#E4E4E4"


class BlankFigureError(InputError):
    """A figure that would show nothing."""


class Size(StrEnum):
    """How wide a figure is printed."""

    COLUMN = "column"
    TEXT = "text"

    @property
    def width(self) -> float:
        """Inches: of one column of a paper, or of its two columns together."""
        return 3.3 if self is Size.COLUMN else 7.2


TICK_POINTS = 6.5
_RC: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine has it
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": TICK_POINTS,
    "ytick.labelsize": TICK_POINTS,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "hatch.color": "#6A6A6A",
    "figure.dpi": 100,
    "savefig.dpi": 220,
    "pdf.fonttype": 42,  # editable text
    "svg.hashsalt": "condexp",
}
EXTENSIONS = ("pdf", "png", "svg", "csv")
_METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in our style, whatever the user's own settings of matplotlib are.

    Yields:
        Nothing; the settings are restored afterwards.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure that belongs to no window and to no global list of figures.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        The figure, with constrained layout.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def file_stem(*parts: str) -> str:
    """Make a file's name of texts that name what it shows.

    Args:
        parts: The texts; empty ones are left out.

    Returns:
        The name without its extension.

    >>> file_stem("compare", "input_kappa_0.5", "a/b")
    'compare-input_kappa_0.5-a_b'
    """
    return "-".join(re.sub(r"[^\w.]", "_", part) for part in parts if part)


def save(figure: Figure, data: pd.DataFrame, folder: Path, stem: str) -> tuple[Path, ...]:
    """Write a figure as PDF, PNG and SVG, and the numbers it was drawn from as CSV.

    The files hold no date and no version, so that the same data give the same bytes.

    Args:
        figure: The figure; to be called within `style`.
        data: What was drawn.
        folder: Where to; made if it does not exist.
        stem: Name of the files without the extension.

    Returns:
        The paths of the PDF, PNG, SVG and CSV.

    Raises:
        BlankFigureError: If no panel shows anything: an empty figure is not written.
    """
    _refuse_blank(figure, stem)
    _lay_out(figure)
    contents: dict[str, bytes] = {}
    for extension, metadata in _METADATA.items():
        buffer = BytesIO()
        figure.savefig(buffer, format=extension, metadata=metadata)
        contents[extension] = buffer.getvalue()
    text = StringIO()
    write_frame(data, text)
    contents["csv"] = text.getvalue().encode(errors="replace")
    paths = {extension: folder / f"{stem}.{extension}" for extension in EXTENSIONS}
    for extension, path in paths.items():
        with saving(path) as file:
            file.write(contents[extension])
    return tuple(paths.values())


def _refuse_blank(figure: Figure, stem: str) -> None:
    # A blank panel beside others says that it is.
    panels = [axes for axes in figure.axes if axes.axison]
    blank = [axes for axes in panels if not _shows(axes)]
    if len(blank) == len(panels):
        raise BlankFigureError(
            f"{stem}: there is nothing to draw, for it has no finite number (above 0, on a "
            "logarithmic axis) yet; condexp show says of each layer why. Nothing was written."
        )
    for axes in blank:
        axes.text(0.5, 0.5, "no finite number", transform=axes.transAxes, ha="center", color=GREY)


def _shows(axes: Axes) -> bool:
    # A line across the panel marks a place and is no data; marks at its edge are.
    lines = [
        line
        for line in axes.lines
        if line.get_transform() == axes.transData or line.get_marker() != "None"
    ]
    points = [np.asarray(line.get_xydata(), float) for line in lines]
    if any(np.isfinite(each).all(axis=1).any() for each in points):
        return True
    return any(len(each.get_paths()) and np.size(each.get_offsets()) for each in axes.collections)


def _lay_out(figure: Figure) -> None:
    """Lay out once, and round: the last bits of the layout's solver hang on addresses in memory."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    parts = list(figure.subfigs)
    while parts:
        part = parts.pop()
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(6))
        parts += part.subfigs
    for axes in figure.axes:
        axes.set_position(Bbox(axes.get_position().get_points().round(6)))
