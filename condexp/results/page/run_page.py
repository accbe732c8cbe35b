"""The page of one run: what stands in it as text and tables."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from condexp.results.layer_measures import LayerMeasures
from condexp.results.network_lines import curvature_lines, network_line
from condexp.results.page.rows import Rows
from condexp.results.page.run_data import pack_run
from condexp.results.report_origins import commands, describe_machines, read_provenance
from condexp.results.run_view import (
    EXPLANATIONS,
    SYMBOLS,
    headline,
    setting_rows,
    worst_first,
)
from condexp.results.status_view import RunRow
from condexp.results.tables.numbers import Mark, format_number, format_seconds
from condexp.store.reader import Run
from condexp.store.run_folder.liveness import UNFINISHED, Liveness, liveness_of
from condexp.store.run_folder.status import Status
from condexp.store.schema.fields import COVERAGE_NAMES

TOP = 20
ORIGINS = {"started": "begun", "folder": "command's folder", "data_sha256": "data SHA-256"}
COMPARED = ("input", "grad_output", "kfac", "fisher")


@dataclass(frozen=True)
class Cell:
    """A number of a table: how it is written, and the interval that it lies in."""

    text: str
    interval: str = ""


def run_page(run: Run) -> dict[str, Any]:
    """Gather what the page of a run shows.

    Args:
        run: The run, finished or not.

    Returns:
        What the template ``run.html`` takes.

    Raises:
        DamageError: If the run is damaged.
    """
    rows, metrics, status = Rows.read(run), run.metrics, run.status
    data = rows.layers
    sort, order = worst_first(data)
    packed = pack_run(run, rows, order)
    return {
        "title": headline(run),
        "folder": str(run.path),
        **_state(run, status),
        "tiles": list(_tiles(data, metrics, status)),
        "setting": list(setting_rows(run)),
        "step": int(data.steps[-1]) if len(data.steps) else None,
        "worst": _worst(data, sort, order[:TOP]),
        "num_layers": len(data.layers),
        "network": list(_network(rows)),
        "certificates": list(_certificates(rows)),
        "not_analysed": [note.partition(": ")[::2] for note in run.not_analysed],
        "explanations": list(EXPLANATIONS.values()),
        "machines": describe_machines([run.path]).values.tolist(),
        "provenance": list(_provenance(run)),
        "commands": commands([run.path]),
        "data": packed.data,
        "blobs": packed.blobs,
        "notes": packed.notes,
    }


def _state(run: Run, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state in words, and whether the run goes on."""
    if not status:
        return {"state": "", "remark": "", "live": False, "updated": ""}
    known = Status(**status)
    row = RunRow(known, liveness_of(run.path, known))
    live = known.state in UNFINISHED and row.life in {Liveness.ALIVE, Liveness.SILENT}
    return {"state": row.label, "remark": row.remark, "live": live, "updated": known.updated}


def _tiles(
    data: LayerMeasures, metrics: pd.DataFrame, status: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yield the facts at the top: what, the number, and what stands beside it."""
    evals = metrics.dropna(subset=["train_loss", "test_loss"], how="all")
    if len(evals):
        last, best = evals.iloc[-1], evals["test_error"].min()
        if not np.isnan(best):
            beside = f"best {format_number(best)} %"
            yield "test error", f"{format_number(last['test_error'])} %", beside
        yield (
            "train loss",
            format_number(last["train_loss"]),
            f"test loss {format_number(last['test_loss'])}",
        )
    if status:
        # The status is written every few seconds, and may lag behind the file.
        stored = len(metrics[["loss", "lr"]].dropna(how="all"))
        done, num = max(status["step"], stored), status["num_steps"]
        yield "steps", f"{done} / {num}", f"time {format_seconds(status['seconds'])}"
    yield "snapshots", str(len(data.steps)), f"of {len(data.layers)} layers"
    shares = [data.arrays.get(name) for name in COVERAGE_NAMES]
    if shares[0] is not None and len(data.steps):
        gradient = "" if shares[1] is None else f"{_percent(shares[1][-1])} of ‖gradient‖²"
        yield "parameters measured", _percent(shares[0][-1]), gradient


def _percent(share: float) -> str:
    """Return a share in percent; one that is not all is never called 100."""
    if share < 1:
        share = min(share, 0.999)
    return "–" if np.isnan(share) else f"{100 * share:.3g} %"


def _worst(data: LayerMeasures, sort: str | None, order: Sequence[int]) -> dict[str, Any]:
    """Return the table of the worst-conditioned layers at the last snapshot."""
    matrices = [matrix for matrix in COMPARED if matrix in data.matrices] or [*data.matrices][:3]
    names = [f"{matrix}_kappa_{p}" for matrix in matrices for p in data.fractions[:1]]
    names = [name for name in names if name in data.measures]
    columns = [(name, _cells(data, name)) for name in names] if len(data.steps) else []
    if "gradient_residual" in data.measures and len(data.steps):
        columns.append(("gradient_residual", _cells(data, "gradient_residual")))
    sizes = [data.arrays[name] for name in ("type", "d_in", "d_out")]
    return {
        "sort": "" if sort is None else _label(data, sort),
        "head": [_label(data, name) for name, _ in columns],
        "rows": [
            {
                "layer": data.layers[layer],
                "about": [str(size[layer]) for size in sizes],
                "cells": [cells[layer] for _, cells in columns],
            }
            for layer in order
        ],
    }


def _label(data: LayerMeasures, name: str) -> str:
    measure = data.find(name)
    if measure.matrix is None or measure.p is None:
        return "residual"
    return f"κ {data.fractions[measure.p]:g} of {SYMBOLS.get(measure.matrix, measure.matrix)}"


def _cells(data: LayerMeasures, name: str) -> list[Cell]:
    values, marks = data.values(name)[-1], data.marks(name)[-1]
    lows, highs = (end[-1] for end in data.interval(name))
    cells = []
    for value, mark, low, high in zip(values, marks, lows, highs, strict=True):
        known = mark in {Mark.NONE, Mark.AT_LEAST, Mark.ESTIMATED} and not np.isnan(low)
        interval = f"[{format_number(low)}, {format_number(high)}]" if known else ""
        cells.append(Cell(format_number(value, mark), interval))
    return cells


def _network(rows: Rows) -> Iterator[str]:
    """Yield a line for each matrix of the network, at its last snapshot."""
    network = rows.network
    if network is None or not len(network.steps):
        return
    last = len(network.steps) - 1
    if "fisher" in network.matrices:
        yield network_line(network, last).plain
    yield from (line.plain for line in curvature_lines(network, last))


def _certificates(rows: Rows) -> Iterator[tuple[str, str]]:
    """Yield what vouches for the numbers: residuals, coverage, statuses."""
    data = rows.layers
    if not len(data.steps):
        return
    residuals = data.arrays.get("gradient_residual")
    if residuals is not None and np.isfinite(residuals).any():
        row, layer = np.unravel_index(np.nanargmax(residuals), residuals.shape)
        label = "largest gradient residual: distance of the recorded rows from ∂L/∂W, relative"
        where = f"{data.layers[layer]}, step {data.steps[row]}"
        yield label, f"{format_number(float(residuals[row, layer]))} ({where})"
    for name, long_name in COVERAGE_NAMES.items():
        share = data.arrays.get(name)
        if share is not None and np.isfinite(share).any():
            least = f"{_percent(float(np.nanmin(share)))} at the least"
            yield long_name, f"{_percent(float(share[-1]))} at the last snapshot, {least}"
    for matrix in rows.matrices:
        parts = [part for part in (rows.layers, rows.network) if part is not None]
        found = [part.arrays.get(f"{matrix}_status", np.empty(0)) for part in parts]
        counts = Counter(str(status) for statuses in found for status in statuses.ravel())
        total = counts.total() - counts.pop("absent", 0)
        bad = ", ".join(f"{num} {name}" for name, num in sorted(counts.items()) if name != "ok")
        yield (
            f"spectra of {SYMBOLS[matrix]}",
            f"{counts['ok']} of {total} ok" + (f"; {bad}" if bad else ""),
        )


def _provenance(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what the table of versions leaves out."""
    origin = read_provenance(run.path)
    for key, name in ORIGINS.items():
        if origin.get(key):
            yield name, str(origin[key])
    for name in ("config_sha256", "condexp_format_version"):
        if name in run.attrs:
            yield name.replace("_", " "), str(run.attrs[name])
