"""One run as text: its setting, its metrics, and its layers at one snapshot."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from condexp.analysis.vocabulary import CURVATURE_MATRICES, SINGULAR_VALUES
from condexp.errors import InputError
from condexp.results.config_keys import flatten, lookup, setting_text
from condexp.results.layer_measures import LayerMeasures
from condexp.results.network_lines import curvature_lines, network_line, short_measures
from condexp.results.report_origins import describe_threads
from condexp.results.sharpness import sharpness_line
from condexp.results.tables.fitted import Fitted
from condexp.results.tables.numbers import Mark, format_number, format_seconds
from condexp.store.reader import Run

# The groups that say what was computed; where and on what it ran stands in provenance.json.
GROUPS = ("model", "dataset", "optimizer", "scheduler", "loss", "trainer", "analysis")
NOT_SETTING = (
    *("experiment", "profile", "run", "store", "logger"),
    *("data_sha256", "extended_from", "checkpoints"),
)


def headline(run: Run) -> str:
    """Say in one line what was trained, and how far where that is not to the end.

    It goes by the steps that are stored, not by the state, as a run draws its figure before it is
    called complete.

    Args:
        run: The run.

    Returns:
        ``"resnet on digits, seed 1"``, and ``"diverged at step 17"`` or ``"40 of 300 steps"``.
    """
    title = str(run.attrs.get("title") or run.path.name)
    steps = run.metrics.dropna(subset="lr")
    if "checkpoints" in run.config:  # measured afterwards: no step was trained here
        return title
    num_steps = run.status.get("num_steps") or len(steps)
    if len(steps) and not math.isfinite(steps["loss"].iloc[-1]):
        return f"{title}, diverged at step {steps.index[-1]}"
    return title if len(steps) >= num_steps else f"{title}, {len(steps)} of {num_steps} steps"


def setting_table(run: Run) -> Table:
    """Lay out a run's configuration, one line a group.

    Args:
        run: The run.

    Returns:
        A table without borders.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for group, words in setting_rows(run):
        table.add_row(group, Text(words))
    return table


def setting_rows(run: Run) -> Iterator[tuple[str, str]]:
    """Yield a run's configuration, group by group, as the command line spells it.

    Args:
        run: The run.

    Yields:
        The group, and its keys and values; keys that are not set are left out.
    """
    for group in GROUPS:
        values = lookup(run.config, group)
        options = dict(flatten(values)) if isinstance(values, Mapping) else {"name": values}
        name = options.pop("name", None)
        words = [] if name is None else [str(name)]
        words += [
            f"{key}={setting_text(value)}" for key, value in options.items() if value is not None
        ]
        if words:
            yield group, " ".join(words)
    # Of a loop of the user's own: keys that no group of condexp's has.
    others = {k: v for k, v in run.config.items() if k not in {*GROUPS, *NOT_SETTING}}
    for key, value in flatten(others):
        yield key, setting_text(value)


SYMBOLS = {
    "input": "Σx",
    "grad_output": "Σ∇h",
    "kfac": "KFAC",
    "ekfac": "EKFAC",
    "weight": "WWᵀ",
    "weight_grad": "∇W∇Wᵀ",
    "fisher": "Fisher",
    "hessian": "Hessian",
    "ggn": "GGN",
}
ERRORS = {f"{each}_relative_error": f"{each.upper()}\nerror" for each in ("kfac", "ekfac")}
HEADERS = {**ERRORS, "domination": "domi-\nnation"}
# What an infinity meant before intervals were stored.
INFINITE_1 = "∞: the matrix is rank-deficient, or its eigenvalue is under the noise floor"
EXPLANATIONS = {
    Mark.ROWS: "rows: infinite by construction, fewer rows than p·d were measured",
    Mark.AT_LEAST: "≥: the eigenvalue cannot be told from 0 at this precision",
    Mark.ESTIMATED: "≈: estimated, as the matrix is wide, within kappa_low and kappa_high",
    Mark.INFINITE: "∞: the matrix is rank-deficient",
    Mark.ZERO: "zero: the matrix is zero (a dead layer)",
    Mark.UNRELIABLE: "unreliable: rounding exceeds the noise floor",
    Mark.NONFINITE: "nonfinite: NaN or Inf in the data",
    Mark.INCOMPLETE: "incomplete: rows are missing or of unknown samples; run.log says why",
}


def summary(run: Run) -> RenderableType:
    """Lay out what a run is and how far it came: its setting and its metrics.

    Args:
        run: The run, finished or running.

    Returns:
        Something rich can print.
    """
    head = Text.assemble((headline(run), "bold"), "  ", (str(run.path), "dim"))
    return Group(head, setting_table(run), metrics_table(run))


def metrics_table(run: Run) -> RenderableType:
    """Lay out how far a run is, and its loss and error at the last evaluation.

    Args:
        run: The run.

    Returns:
        A line with state, step and time, a table of the training and the test set, and the last
        sharpness where it was measured.
    """
    metrics = run.metrics
    evals = metrics.dropna(subset=["train_loss", "test_loss"], how="all")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for header in ("loss", "error %", "best error %"):
        table.add_column(header, justify="right")
    for split in ("train", "test"):
        errors = evals[f"{split}_error"]
        values = [_last(evals[f"{split}_loss"]), _last(errors), float(errors.min())]
        table.add_row(split, *map(format_number, values))
    below = [Text(line)] if (line := sharpness_line(run, metrics)) else []
    return Group(Text(_progress(run, metrics)), table, *below)


def layer_table(
    run: Run,
    step: int | None = None,
    measures: Sequence[str] | None = None,
    p: float | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> RenderableType:
    """Lay out every analysed layer at one snapshot.

    By default λ_max and κ_p (the first p measured) of both factors and of their Kronecker product,
    and the domination; where Fisher blocks were measured, of the product and of them, with the
    errors of its approximations, and one line below on the network's. What is no number says why:
    ``rows`` where κ_p is infinite for want of rows (docs/theory.md §1), ``∞`` where the matrix is
    rank-deficient, or the spectrum's status. ``≥``: a κ_p that is known from below only.

    Args:
        run: The run.
        step: Training step of the snapshot; the last where ``None``.
        measures: Names of the measures to show, such as ``input_kappa_0.9`` or ``weight_norm``;
            ``input_kappa`` means all fractions, ``input_kappa_low`` and ``input_kappa_high`` the
            ends of its interval.
        p: Fraction of the condition numbers, in place of those that were measured.
        sort: Measure by which layers are sorted, the largest first; what is infinite is larger than
            all numbers, what is unknown comes last.
        top: Number of layers that are shown, all where None.

    Returns:
        A table, one row a layer in execution order or sorted, with the notes below it; a
        line of text where there is nothing to show.

    Raises:
        InputError: If the run has no such snapshot or measure, and names the nearest; or if κ at
            this p was not measured and spectra were not saved.
    """
    fractions = () if p is None else (p,)
    data = LayerMeasures.read(run, fractions)
    names = _usual(data) if not measures else [n for name in measures for n in _expand(data, name)]
    if not data.layers:
        return Text("no layer was analysed", style="dim")
    if not len(data.steps) and step is None:
        return Text(f"{len(data.layers)} layers, no snapshot yet", style="dim")
    if top is not None and top < 1:
        raise InputError(f"--top={top}: give the number of layers to show, from 1 on.")
    row = _row(data, step)
    table = Table(
        title=f"layers at step {data.steps[row]}",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,  # so that the usual columns fit a terminal of 80 columns
    )
    table.add_column("layer", overflow="fold")
    table.add_column("type")
    for header in ("d_in", "d_out", *(_header(data, name) for name in names)):
        table.add_column(header, justify="right")
    columns, seen = [], set()
    for name in names:
        marks = data.marks(name)[row]
        columns.append(list(map(format_number, data.values(name)[row], marks)))
        seen |= set(marks.tolist())
    sizes = [data.arrays[name] for name in ("type", "d_in", "d_out")]
    for layer in _order(data, row, sort)[:top] if columns else ():
        cells = [column[layer] for column in columns]
        table.add_row(Text(data.layers[layer]), *(Text(str(size[layer])) for size in sizes), *cells)
    below = []
    if "fisher" in data.matrices:
        network = LayerMeasures.read_network(run, fractions)
        below.append(network_line(network, row))
        seen |= {network.marks(name)[row, 0] for name in short_measures(network, ("fisher",))}
    if run.curvature:
        below += curvature_lines(LayerMeasures.read_network(run), row)
    texts = EXPLANATIONS if data.has_intervals else EXPLANATIONS | {Mark.INFINITE: INFINITE_1}
    notes = [Text(text, style="dim") for mark, text in texts.items() if mark in seen]
    return Group(*([Fitted(table)] if names else []), *below, *notes)


def _order(data: LayerMeasures, row: int, sort: str | None) -> list[int]:
    """Return the layers' places in the order to show them."""
    if sort is None:
        return list(range(len(data.layers)))
    return _largest_first(data.values(sort)[row])


def _largest_first(values: NDArray[np.float64]) -> list[int]:
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    return [int(layer) for layer in order]


def worst_first(data: LayerMeasures) -> tuple[str | None, list[int]]:
    """Sort the layers by a condition number at the last snapshot, the largest first.

    Args:
        data: The measures.

    Returns:
        The measure they are sorted by: κ of ``kfac``, ``fisher`` or the first matrix there is, at
        the first p; None where there is none. The layers' places; what is unknown comes last.
    """
    for matrix in dict.fromkeys(("kfac", "fisher", *data.matrices)):
        for p in data.fractions[:1]:
            name = f"{matrix}_kappa_{p}"
            if name in data.measures and len(data.steps):
                return name, _largest_first(data.values(name)[-1])
    return None, list(range(len(data.layers)))


def _usual(data: LayerMeasures) -> list[str]:
    # More columns do not fit a terminal; the blocks are there to be compared.
    usual: tuple[str, ...] = ("input", "grad_output", "kfac")
    if {"fisher", "ekfac"} & set(data.matrices):
        usual = ("kfac", "fisher" if "fisher" in data.matrices else "ekfac")
    names = short_measures(data, [m for m in usual if m in data.matrices])
    names += [name for name in ERRORS if name in data.measures]
    if not names:
        few = ("lambda_max", "trace", "negative_share")
        wanted = (f"{matrix}_{measure}" for matrix in CURVATURE_MATRICES for measure in few)
        names = [name for name in wanted if name in data.measures]
    return [*names, "domination"] if SINGULAR_VALUES & set(data.matrices) else names


def _expand(data: LayerMeasures, name: str) -> list[str]:
    fractions = [f"{name}_{p}" for p in data.fractions if f"{name}_{p}" in data.measures]
    if not fractions:
        data.find(name)
    return fractions or [name]


def _row(data: LayerMeasures, step: int | None) -> int:
    if step is None:
        return len(data.steps) - 1
    found = np.flatnonzero(data.steps == step)
    if not len(found):
        steps = data.steps.tolist()
        nearest = min(steps, key=lambda other: abs(other - step), default=None)
        hint = "" if nearest is None else f" The nearest is {nearest}."
        raise InputError(
            f"no snapshot at step {step}: there are snapshots at {_shortened(steps)}.{hint}"
        )
    return int(found[0])


def _header(data: LayerMeasures, name: str) -> str:
    measure = data.find(name)
    if measure.matrix is None:
        return HEADERS.get(name, name.replace("_", "\n", 1))
    suffix = name.removeprefix(f"{measure.matrix}_")
    if measure.p is not None:
        end = measure.array.removeprefix(f"{measure.matrix}_kappa").lstrip("_")
        suffix = f"κ {data.fractions[measure.p]} {end}".rstrip()
    return f"{SYMBOLS.get(measure.matrix, measure.matrix)}\n{suffix.replace('lambda_', 'λ ')}"


def _progress(run: Run, metrics: pd.DataFrame) -> str:
    status = run.status
    parts = []
    if status:
        # A live run's status may be seconds behind its results.
        step = max(int(status["step"]), len(metrics.dropna(subset="lr")))
        parts.append(f"{status['state']}, step {step} of {status['num_steps']}")
        threads = describe_threads(run.path)
        where = f" on {threads}" if threads else ""
        parts.append(f"time {format_seconds(status['seconds'])}{where}")
    losses = metrics["loss"].dropna()
    if len(losses):
        parts.append(f"batch loss {format_number(float(losses.iloc[-1]))}")
    if status.get("error"):
        parts.append(str(status["error"]))
    return ", ".join(parts)


def _last(values: pd.Series) -> float:
    return float(values.iloc[-1]) if len(values) else float("nan")


def _shortened(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps]
    if len(shown) > 12:
        shown = [*shown[:6], "…", *shown[-3:]]
    return ", ".join(shown) or "no step yet"
