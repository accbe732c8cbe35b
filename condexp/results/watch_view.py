"""The terminal's view of a run that goes on: how far it is, its curves, its worst layers."""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from condexp.results.layer_measures import LayerMeasures
from condexp.results.live import Look
from condexp.results.run_view import headline, layer_table, metrics_table, worst_first
from condexp.results.status_view import RunRow
from condexp.results.tables.numbers import format_number, format_seconds
from condexp.store.run_folder.status import State, Status

BARS = "▁▂▃▄▅▆▇█"
CURVES = {
    "loss": "batch loss",
    "test_error": "test error %",
    "lr": "learning rate",
    "sharpness": "sharpness",
}


def watch_view(look: Look, width: int = 24, top: int = 5) -> RenderableType:
    """Lay out a run as it is at this moment.

    Args:
        look: The run.
        width: Letters of a sparkline.
        top: Layers that are shown, the worst-conditioned first.

    Returns:
        Something rich can print.
    """
    row = RunRow(look.status, look.life)
    title = headline(look.run) if look.run else look.folder.name
    head = Text.assemble(
        (title, "bold"), "  ", (row.label, row.style), "  ", (str(look.folder), "dim")
    )
    parts: list[RenderableType] = [head]
    if row.remark:
        parts.append(Text(row.remark, style="yellow"))
    if look.run is None:
        return Group(*parts, _progress(look.status, 0, width), Text("no results yet", style="dim"))
    data, metrics = LayerMeasures.read(look.run), look.run.metrics
    num_steps = len(metrics[["loss", "lr"]].dropna(how="all"))
    parts += [_progress(look.status, num_steps, width), metrics_table(look.run)]
    sort, _ = worst_first(data)
    layers = layer_table(look.run, sort=sort, top=top)
    return Group(*parts, _curves(metrics, data, width), layers)


def _progress(status: Status, num_stored: int, width: int) -> RenderableType:
    """Return how far a run is: its status, written every few seconds, may lag behind its file."""
    grid = Table.grid(padding=(0, 2))
    total, step = max(status.num_steps, 1), max(status.step, num_stored)
    bar = ProgressBar(total=total, completed=min(step, total), width=width)
    grid.add_row(f"step {step}/{status.num_steps}", bar, remaining(status, step))
    return grid


def remaining(status: Status, step: int) -> str:
    """Say how long a run will still take, at its speed so far.

    Args:
        status: Its status, which knows the speed.
        step: Steps that are done.

    Returns:
        ``"about 0:01:40 left"``; empty where nothing is left, or known yet, or nobody goes on.

    >>> remaining(Status(State.RUNNING, step=25, num_steps=100, seconds=50.0), 40)
    'about 0:02:00 left'
    """
    left = status.num_steps - step
    if left <= 0 or not status.step or status.state is not State.RUNNING:
        return ""
    return f"about {format_seconds(status.seconds / status.step * left)} left"


def _curves(metrics: pd.DataFrame, data: LayerMeasures, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for name, label in CURVES.items():
        if name not in metrics:
            continue
        numbers = metrics[name].dropna().to_numpy(dtype=float)
        if len(numbers):
            ends = " → ".join(format_number(float(numbers[i])) for i in (0, -1))
            grid.add_row(label, sparkline(numbers, width), ends)
    sort, order = worst_first(data)
    if sort is not None and order:
        layer = order[0]
        values, marks = data.values(sort)[:, layer], data.marks(sort)[:, layer]
        ends = " → ".join(format_number(values[i], marks[i]) for i in (0, -1))
        words = Text(f"{ends} ({data.layers[layer]})")
        grid.add_row(f"log {sort}", sparkline(np.log(values), width), words)
    return grid


def sparkline(values: NDArray[np.float64], width: int) -> str:
    """Draw numbers as a line of bars.

    Args:
        values: The numbers; of many, the mean of each stretch is drawn.
        width: The most letters.

    Returns:
        A letter a number; a blank where it is not finite.

    >>> sparkline(np.array([0.0, 1.0, 2.0, math.inf, 7.0]), 8)
    '▁▂▃ █'
    """
    parts = np.array_split(values, min(width, len(values))) if len(values) else []
    means = pd.Series([part.mean() for part in parts], dtype=float)
    finite = means[np.isfinite(means)]
    low, span = (finite.min(), finite.max() - finite.min()) if len(finite) else (0.0, 0.0)
    heights = (means - low) / (span or math.inf) * (len(BARS) - 1)
    return "".join(BARS[round(h)] if math.isfinite(h) else " " for h in heights)
