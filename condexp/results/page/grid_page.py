"""The page of a sweep: a row a run, means over seeds, curves by condition."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from condexp.errors import InputError
from condexp.results.collect import collect, measured_columns
from condexp.results.config_keys import setting_text
from condexp.results.layer_measures import LayerMeasures
from condexp.results.page.run_page import Cell
from condexp.results.page.thinning import thinned
from condexp.results.run_view import EXPLANATIONS
from condexp.results.select import leaving_out_unreadable
from condexp.results.tables.cells import Layout, lay_out
from condexp.results.tables.keys import describe, key_text, keys_of
from condexp.results.tables.numbers import Mark, format_number, format_seconds, kappa_mark
from condexp.results.tables.table import make_table
from condexp.store.reader import Run
from condexp.store.run_folder.completeness import read_statuses
from condexp.store.schema.layout import FILE_NAME

logger = logging.getLogger("condexp")
Row = pd.Series  # of `collect`'s frame
MOST_RUNS = 2_000  # rows of the table
MOST_CURVES = 60  # runs that are drawn
ERRORS = ("test_error", "train_error", "test_loss", "train_loss")
RESULTS = ("path", "state", "step", "seconds", *ERRORS, "best_test_error")


def grid_page(folders: Sequence[Path], target: Path, page_name: str) -> dict[str, Any]:
    """Gather what the page of a sweep shows.

    Args:
        folders: Its runs' folders.
        target: Where the page will be, for links that go from there.
        page_name: What a run's own page is called.

    Returns:
        What the template ``grid.html`` takes.
    """
    value = _kappa(folders)
    frame = collect(folders, [*RESULTS, *([value, _low(value)] if value else [])])
    keys = varied_keys(frame)
    values = [name for name in (*ERRORS[:1], value) if name in frame and frame[name].notna().any()]
    notes = []
    if len(frame) > MOST_RUNS:
        notes.append(f"Of {len(frame)} runs the first {MOST_RUNS} are in the table.")
    conditions = pd.Series(_conditions(frame, [k for k in keys if k != "seed"]), frame.index)
    # The first run of each condition, then the second of each.
    turn = conditions.groupby(conditions).cumcount().sort_values(kind="stable").index
    drawn = turn[:MOST_CURVES].sort_values()
    if len(frame) > len(drawn):
        notes.append(f"Of {len(frame)} runs {len(drawn)} are drawn, of each condition some.")
    states = frame["state"].value_counts().sort_index()
    return {
        "num": len(frame),
        "states": ", ".join(f"{num} {state}" for state, num in states.items()),
        "head": keys,
        "value": value,
        "rows": [
            _row(row, keys, value, target, page_name)
            for _, row in _shown(frame.head(MOST_RUNS), keys, value).iterrows()
        ],
        "tables": [table for name in values for table in _tables(frame, keys, name)],
        "explanations": list(EXPLANATIONS.values()),
        "data": {"digits": 6, **_curves(frame.loc[drawn, "path"], conditions[drawn], value)},
        "notes": notes,
    }


def _shown(frame: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """Return the columns that a row needs, of maybe a hundred thousand."""
    stem, _, p = value.rpartition("_kappa_")
    about = [value, _low(value), f"{stem}_kappa_high_{p}", f"{stem}_p_limit", f"{stem}_rank"]
    wanted = dict.fromkeys([*RESULTS, *keys, *about])
    return frame[[name for name in wanted if name in frame]].astype(object)


def _low(value: str) -> str:
    return "_kappa_low_".join(value.rsplit("_kappa_", 1))


def varied_keys(frame: pd.DataFrame) -> list[str]:
    """Find the configuration keys that tell runs apart.

    Args:
        frame: One row a run, from `collect`.

    Returns:
        Their names, those with few values first, the seed last.
    """
    keys = [key for key in frame.attrs.get("identity_keys", ()) if key in frame]
    num = {key: frame[key].map(setting_text).nunique() for key in keys}
    varied = sorted((key for key in keys if num[key] > 1 and key != "seed"), key=num.__getitem__)
    return [*varied, *(key for key in ("seed",) if key in keys)]


def _conditions(frame: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    return [", ".join(describe(keys, key)) or "all runs" for key in keys_of(frame, keys)]


def _kappa(folders: Sequence[Path]) -> str:
    """Return the condition number of a run that tables and curves show; empty where none has.

    It is one of the first run that has any: of each other run that alone is read.
    """
    for folder, status in read_statuses(folders).items():
        names: tuple[str, ...] = ()
        with suppress(Exception):  # said of every run where all are read
            names = measured_columns(folder, status)
        for layer, matrix in itertools.product(("last_linear", "first"), ("input", "kfac")):
            start = f"{layer}.{matrix}_kappa_0."
            found = sorted(name for name in names if name.startswith(start))
            if found:
                return found[0]
    return ""


def _row(row: Row, keys: Sequence[str], value: str, target: Path, page_name: str) -> dict[str, Any]:
    folder = Path(str(row["path"]))
    page = folder / page_name
    place = page if page.is_file() else folder
    link = Path(os.path.relpath(place.absolute(), target.parent.absolute())).as_posix()
    return {
        "name": folder.name,
        "link": link if page.is_file() else f"{link}/",
        "state": row["state"],
        "keys": [key_text(_known(row.get(key))) for key in keys],
        "cells": [
            Cell(_number(row, "test_error")),
            Cell(_number(row, "best_test_error")),
            Cell(_number(row, "train_loss")),
            *([_kappa_cell(row, value)] if value else []),
        ],
        "step": row["step"],
        "time": format_seconds(row["seconds"]),
    }


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


def _number(row: Row, name: str) -> str:
    return format_number(float(row.get(name, np.nan)))


def _kappa_cell(row: Row, name: str) -> Cell:
    stem, _, p = name.rpartition("_kappa_")
    low, high = (float(row.get(f"{stem}_kappa_{end}_{p}", np.nan)) for end in ("low", "high"))
    value, limit = float(row.get(name, np.nan)), float(row.get(f"{stem}_p_limit", np.nan))
    # Rows of runs have no statuses; the rank of an estimated spectrum alone is not known.
    status = "estimated" if np.isnan(row.get(f"{stem}_rank", 0.0)) else "ok"
    mark = kappa_mark(value, status, float(p), limit, high)
    known = np.isfinite(value) and not np.isnan(low)
    interval = f"[{format_number(low)}, {format_number(high)}]" if known else ""
    return Cell(format_number(value, mark), interval)


def _tables(frame: pd.DataFrame, keys: Sequence[str], value: str) -> Iterator[Layout]:
    """Yield the means over seeds."""
    rows = [key for key in keys if key != "seed"] or ["state"]
    try:
        yield from lay_out(make_table(frame, rows, (), value))
    except InputError as reason:  # values that are no numbers: a person's own run
        logger.warning("%s", reason)


def _curves(paths: Iterable[str], conditions: Iterable[str], value: str) -> dict[str, Any]:
    """Return what is drawn of each run: its evaluations, and a condition number over training."""
    conditions = list(conditions)
    names = list(dict.fromkeys(conditions))
    curves, found = [], set[str]()
    for path, condition in zip(paths, conditions, strict=True):
        with leaving_out_unreadable(Path(path)):
            run = Run(Path(path) / FILE_NAME)
            if not os.path.lexists(run.file):
                continue
            own = dict(_run_curves(run, value))
            found |= own.keys()
            curves.append({"run": Path(path).name, "condition": names.index(condition), "of": own})
    words = {"test_error": "test error (%)", "train_error": "training error (%)"}
    words |= {"test_loss": "test loss", "train_loss": "training loss"}
    drawn = [name for name in (*ERRORS, value) if name in found]
    choices = [{"key": name, "name": words.get(name, name)} for name in drawn]
    return {"conditions": names, "curves": curves, "choices": choices}


def _run_curves(run: Run, value: str) -> Iterator[tuple[str, dict[str, Any]]]:
    metrics = run.metrics
    for name in ERRORS:
        column = metrics[name].dropna()
        steps, values = thinned(column.index.to_numpy(), column.to_numpy(dtype=float))
        if len(steps):
            yield name, _curve(steps, values, [])
    layer, _, measure = value.partition(".")
    if not value:
        return
    array, matrix = measure.rpartition("_")[0], measure.partition("_kappa_")[0]
    needed = (array, f"{array}_high", f"{matrix}_status", f"{matrix}_rank")
    data = LayerMeasures.read(run, only=needed)
    linear = np.flatnonzero(data.arrays["type"] == "Linear")
    place = 0 if layer == "first" else int(linear[-1]) if len(linear) else None
    if place is None or measure not in data.measures or not len(data.steps):
        return
    values, marks = data.values(measure)[:, place], data.marks(measure)[:, place]
    finite = np.isfinite(values)
    bounds = np.flatnonzero(marks[finite] == Mark.AT_LEAST).tolist()
    yield value, _curve(data.steps[finite], values[finite], bounds)


def _curve(steps: Any, values: Any, bounds: list[int]) -> dict[str, Any]:
    rounded = [float(f"{v:.6g}") for v in values]
    return {"step": [int(step) for step in steps], "value": rounded, "bounds": bounds}
