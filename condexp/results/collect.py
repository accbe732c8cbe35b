"""One row a run: its configuration, its errors, and the last measures of every layer."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condexp.errors import DamageError
from condexp.results.config_keys import flatten, lookup
from condexp.results.layer_measures import LayerMeasures
from condexp.results.select import leaving_out_unreadable
from condexp.store.last_rows import LastRows, read_last_rows
from condexp.store.reader import Run
from condexp.store.run_folder.completeness import Lost, Unreadable, read_statuses
from condexp.store.run_folder.identity import identity_config
from condexp.store.run_folder.status import CONFIG_NAME, State, Status
from condexp.store.schema.layout import FILE_NAME
from condexp.store.schema.matrices import NETWORK

logger = logging.getLogger("condexp")


def collect(
    paths: str | Path | Iterable[str | Path], keys: Collection[str] | None = None
) -> pd.DataFrame:
    """Gather runs in one table, finished or not.

    Args:
        paths: Run folders, or folders that hold run folders at any depth.
        keys: Columns that are enough, for speed over many runs: results and measures that are none
            of them may be left out. All columns where ``None``, or where no run has one of them.

    Returns:
        One row a run, sorted by path. Columns: ``path``, ``state``; every configuration key, joined
        by dots (``model.depth``, ``seed``); ``step``, ``seconds``, ``train_loss``, ``train_error``,
        ``test_loss``, ``test_error`` of the last evaluation and ``best_test_error``, errors in
        percent; ``sharpness``, the last λ_max of the Hessian that was measured between snapshots;
        and of the last snapshot ``<layer>.<measure>``, such as ``fc.domination`` or
        ``fc.input_kappa_0.5``, with ``<layer>.<matrix>_p_limit``: κ_p past it is infinite for want
        of rows. The layer may also be called ``first`` or ``last_linear``, where all layers were
        analysed or that one was asked for by this name; ``network.fisher_<measure>`` is of all
        layers together. What a run does not have is NaN. A run that cannot be read is ``failed``,
        and the log says why.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    # The best error is found in all of them.
    needed = {*keys, "test_error"} if keys and "best_test_error" in keys else keys
    described: list[dict[str, Any]] = []
    identity_keys: dict[str, None] = {}
    measured: dict[tuple[str, ...], dict[int, NDArray[np.float64]]] = {}
    for index, (folder, status) in enumerate(read_statuses(paths).items()):
        read = _Read()
        with leaving_out_unreadable(folder):
            read = _read(folder, status, needed)
        if isinstance(status, Lost) and read.whole:
            logger.error("%s is %s", folder, status.error)
        if not read.whole:
            status = replace(status, state=State.FAILED)
        identity_keys |= dict.fromkeys(key for key, _ in flatten(identity_config(read.config)))
        described.append(_describe(folder, status, read.config, read.rows, needed))
        if read.measures is not None:
            columns, values = read.measures
            measured.setdefault(columns, {})[index] = values
    # Runs of one architecture share their columns: a frame each, not a dictionary a run.
    blocks = [
        pd.DataFrame(np.stack(list(runs.values())), index=list(runs), columns=list(columns))
        for columns, runs in measured.items()
    ]
    parts = [pd.DataFrame(described), *([pd.concat(blocks)] if blocks else [])]
    frame = pd.concat(parts, axis=1)
    if not frame.columns.is_unique:  # a layer may be called as a group of the configuration
        frame = frame.loc[:, ~frame.columns.duplicated()]
    if not set(keys or ()) <= set(frame.columns):
        return collect(paths)  # whoever asked for what is not there can be told the nearest name
    if keys and (ranks := _ranks_of_some(measured) - set(keys)):
        return collect(paths, [*keys, *sorted(ranks)])
    frame.attrs["identity_keys"] = tuple(identity_keys)
    frame.attrs["num_measured"] = sum(map(len, measured.values()))
    return frame


def measured_columns(folder: Path, status: Status) -> tuple[str, ...]:
    """Name the measures of one run, as the columns of `collect`.

    Args:
        folder: The run's folder.
        status: Its status.

    Returns:
        Their names; none before the first snapshot.

    Raises:
        DamageError: If it is damaged.
    """
    read = _read(folder, status, None)
    return read.measures[0] if read.measures else ()


def _ranks_of_some(measured: Collection[tuple[str, ...]]) -> set[str]:
    """Return the ranks that were read of the runs with wide matrices, and not of the others.

    A rank that is NaN says that a spectrum is estimated: it must not be so for want of reading.
    """
    ranks = [{name for name in columns if name.endswith("_rank")} for columns in measured]
    some = {name for own in ranks for name in own}
    return {name for name in some if not all(name in own for own in ranks)}


@dataclass(frozen=True)
class _Read:
    """What was read of a run, as far as that was possible."""

    config: Mapping[str, Any] = field(default_factory=dict)
    rows: LastRows | None = None
    measures: tuple[tuple[str, ...], NDArray[np.float64]] | None = None
    whole: bool = False


def _read(folder: Path, status: Status, keys: Collection[str] | None) -> _Read:
    """Read one run.

    Returns:
        All of it.

    Raises:
        DamageError: If it is damaged.
    """
    if isinstance(status, Unreadable):
        raise DamageError(str(status.error))
    run = Run(folder / FILE_NAME)
    # A run that failed early may have no results, and one that is pending no configuration.
    stored = os.path.lexists(run.file)
    config = run.config if stored or os.path.lexists(folder / CONFIG_NAME) else {}
    rows = read_last_rows(run.file, keys) if stored else None
    measured = rows is not None and len(rows.layers["step"]) > 0
    return _Read(config, rows, _measures(rows, config) if rows and measured else None, whole=True)


def _describe(
    folder: Path,
    status: Status,
    config: Mapping[str, Any],
    rows: LastRows | None,
    keys: Collection[str] | None,
) -> dict[str, Any]:
    row = {"path": str(folder), "state": status.state.value, **dict(flatten(config))}
    row |= {"step": status.step, "seconds": status.seconds}
    for name in ("train_loss", "train_error", "test_loss", "test_error"):
        if keys is None or name in keys:
            evals = rows.evals[name] if rows else np.empty(0)
            row[name] = float(evals[-1]) if len(evals) else np.nan
    if "test_error" in row:
        errors = rows.evals["test_error"] if rows else np.empty(0)
        row["best_test_error"] = np.fmin.reduce(errors, initial=np.nan)
    if rows is not None and rows.sharpness is not None:
        row["sharpness"] = rows.sharpness
    return row


def _measures(
    rows: LastRows, config: Mapping[str, Any]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    data = LayerMeasures.of(rows.layers, config, rows.num_signals)
    parts = [_last(data, {name: i for i, name in enumerate(data.layers)} | _aliases(rows, config))]
    if rows.network:
        parts.append(_last(LayerMeasures.of_network(rows.network), {NETWORK: 0}))
    names = tuple(name for columns, _ in parts for name in columns)
    return names, np.concatenate([values for _, values in parts])


def _last(
    data: LayerMeasures, layers: Mapping[str, int]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return ``<layer>.<measure>`` and the value at the last snapshot, for each layer's name."""
    names = [*data.measures, *(f"{matrix}_p_limit" for matrix in data.limits)]
    table = np.array([
        *(data.values(name)[-1] for name in data.measures),
        *data.limits.values(),
    ]).reshape(len(names), len(data.layers))
    columns = tuple(f"{layer}.{name}" for layer in layers for name in names)
    return columns, table[:, list(layers.values())].T.ravel()


def _aliases(rows: LastRows, config: Mapping[str, Any]) -> dict[str, int]:
    # Where only some layers were analysed, the first of them need not be the network's.
    include = lookup(config, "analysis.layers.include") or ["all"]
    linear = np.flatnonzero(rows.layers["type"] == "Linear")
    found = {"first": 0, "last_linear": int(linear[-1]) if len(linear) else None}
    return {
        alias: index
        for alias, index in found.items()
        if index is not None and {"all", alias} & set(include)
    }
