"""One row a run: its configuration, its errors, and the last measures of every layer."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condexp.results.layers import LayerMeasures
from condexp.results.setting import flatten, lookup
from condexp.store.layout import FILE_NAME
from condexp.store.reader import LastRows, Run, read_last_rows
from condexp.store.runs import Status, find_runs, identity_config, read_status

Row = dict[str, Any]


def collect(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Gather runs in one table, finished or not.

    Args:
        paths: Run folders, or folders that hold run folders at any depth.

    Returns:
        One row a run, sorted by path. Columns: ``path``, ``state``; every configuration key, joined
        by dots (``model.depth``, ``seed``); ``step``, ``seconds``, ``train_loss``, ``train_error``,
        ``test_loss``, ``test_error`` of the last evaluation and ``best_test_error``, errors in
        percent; and of the last snapshot ``<layer>.<measure>``, such as ``fc.domination`` or
        ``fc.input_kappa_0.5``, with ``<layer>.<matrix>_p_limit``: κ_p past it is infinite for want
        of rows. The layer may also be called ``first`` or ``last_linear``, where all layers were
        analysed or that one was asked for by this name. What a run does not have is NaN.
    """
    folders = find_runs([paths] if isinstance(paths, str | Path) else paths)
    described: list[Row] = []
    identity_keys: dict[str, None] = {}
    measured: dict[tuple[str, ...], dict[int, NDArray[np.float64]]] = {}
    for index, folder in enumerate(folders):
        run = Run(folder / FILE_NAME)
        config, rows = _read(run)
        identity_keys |= dict.fromkeys(key for key, _ in flatten(identity_config(config)))
        described.append(_describe(folder, read_status(folder), config, rows))
        if rows is not None:
            columns, values = _measures(rows, config)
            measured.setdefault(columns, {})[index] = values
    # Runs of one architecture share their columns: a frame each, not a dictionary a run.
    blocks = [
        pd.DataFrame(np.stack(list(runs.values())), index=list(runs), columns=list(columns))
        for columns, runs in measured.items()
        if columns
    ]
    frame = pd.concat([pd.DataFrame(described), *([pd.concat(blocks)] if blocks else [])], axis=1)
    frame.attrs["identity_keys"] = tuple(identity_keys)
    return frame


def _read(run: Run) -> tuple[Mapping[str, Any], LastRows | None]:
    # A run that failed early has no results file; one that is pending not even a configuration.
    rows = read_last_rows(run.file) if run.file.is_file() else None
    return (run.config if rows or run.has_config else {}), rows


def _describe(
    folder: Path, status: Status, config: Mapping[str, Any], rows: LastRows | None
) -> Row:
    row: Row = {"path": str(folder), "state": status.state.value, **dict(flatten(config))}
    row |= {"step": status.step, "seconds": status.seconds}
    for name in ("train_loss", "train_error", "test_loss", "test_error"):
        row[name] = rows.evals[name][-1] if rows and len(rows.evals[name]) else np.nan
    errors = rows.evals["test_error"] if rows else np.array([])
    errors = errors[~np.isnan(errors)]
    row["best_test_error"] = errors.min() if errors.size else np.nan
    return row
