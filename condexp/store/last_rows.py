"""The end of a results file as plain arrays: what a table over many runs can afford to read."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condexp.analysis.linalg.ratios import is_wide
from condexp.store.hdf5.open import open_file
from condexp.store.hdf5.row_checks import RowChecker, read_plain_rows
from condexp.store.hdf5.structure import (
    MAX_READ,
    count,
    num_selected,
    refuse_large,
    texts,
)
from condexp.store.schema.fields import EVAL_NAMES, PLAIN_NAMES, Axis
from condexp.store.schema.layout import COUNTERS
from condexp.store.schema.matrices import CURVATURE_SCALES, NETWORK, is_curvature_row

# What describes the layers at every step; n_<matrix> does as well.
SIZES = frozenset({"p", "d_in", "d_out", "groups", "num_rows"})
DESCRIPTIONS = SIZES | {"layer", "type", "step"}


@dataclass(frozen=True)
class LastRows:
    """The end of a run so far.

    Attributes:
        layers: The arrays of ``/layers``: those with steps cut to the last snapshot, ``[1, L, …]``
            (``[0, L, …]`` before the first), the others whole; no snapshot where no key needs one.
        network: The arrays of ``/network``, likewise; empty where there are none.
        num_signals: Gradients that each row of an input comes with.
        evals: The columns of ``/eval`` that are asked for, every committed evaluation.
        sharpness: The last λ_max of the Hessian between snapshots; None where it was not measured.
    """

    layers: Mapping[str, NDArray[Any]]
    network: Mapping[str, NDArray[Any]]
    num_signals: int
    evals: Mapping[str, NDArray[np.float64]]
    sharpness: float | None = None


def read_last_rows(file: Path, keys: Collection[str] | None = None) -> LastRows:
    """Read the last snapshot and the evaluations of a run, finished or not.

    Args:
        file: The results file.
        keys: ``<layer>.<measure>`` and names of evaluations that are enough; all where ``None``.
            Arrays that describe the layers come with any of their measures.

    Returns:
        The rows.

    Raises:
        InputError: If it is not a results file.
    """
    with open_file(file) as opened:
        num_snapshots = int(opened[COUNTERS[Axis.SNAPSHOT]][()])
        last = slice(max(0, num_snapshots - 1), num_snapshots)
        arrays = _layers(opened["layers"], keys, last)
        network = {}
        if keys is None or any(key.startswith(f"{NETWORK}.") for key in keys):
            network = _network(opened, last)
        names = [name for name in EVAL_NAMES if keys is None or name in keys]
        evals = {}
        if names:  # for their checksum, all of them
            counter = opened[COUNTERS[Axis.EVAL]]
            found = read_plain_rows(opened, Axis.EVAL, EVAL_NAMES, lambda: int(counter[()]))
            evals = {name: found[name] for name in names}
        sharpness = None
        if (keys is None or "sharpness" in keys) and "train/sharpness" in opened:
            sharpness = _last_sharpness(opened)
        checker = RowChecker(opened, num_snapshots) if num_snapshots else None
        for group, rows in (("layers", arrays), (NETWORK, network)):
            for name, values in rows.items():
                if checker is not None:
                    checker.check(f"{group}/{name}", values, last.start)
        num_signals = count(opened, "num_signals") if "num_signals" in opened.attrs else 1
    return LastRows(arrays, network, num_signals, evals, sharpness)


def _last_sharpness(file: Any) -> float:
    counter, names = file[COUNTERS[Axis.TRAIN]], PLAIN_NAMES[Axis.TRAIN]
    found = read_plain_rows(file, Axis.TRAIN, names, lambda: int(counter[()]))["sharpness"]
    measured = found[~np.isnan(found)]
    return float(measured[-1]) if len(measured) else np.nan


def _layers(group: Any, keys: Collection[str] | None, last: slice) -> dict[str, NDArray[Any]]:
    wanted = None if keys is None else " ".join(keys)

    def asked(start: str) -> bool:
        return wanted is None or f".{start}" in wanted

    # Opening a dataset is what takes time, so those that are not needed stay closed.
    left_out = {*DESCRIPTIONS, *CURVATURE_SCALES}
    names = [name for name in group if name not in left_out and not is_curvature_row(name)]
    sides = {name for name in names if name.startswith("n_")}
    sizes = {name: group[name] for name in names if name in sides and asked(f"{name[2:]}_")}
    refuse_large(group.name, 8 * sum(array.size for array in sizes.values()), MAX_READ)
    lengths = {name: array[:] for name, array in sizes.items()}
    # The high end of an interval says whether its number is a bound, and where a matrix may have
    # been too wide to be solved for, its rank whether it is an estimate.
    wide = any(is_wide(int(values.max(initial=0))) for values in lengths.values())
    also = re.compile("_high$|(?<=_)rank$" if wide else "_high$")
    measures = [n for n in names if n not in sides and (asked(n) or asked(also.sub("", n)))]
    if not measures:
        return {"step": np.empty(0)}
    stored = {name: group[name] for name in ("step", *measures)}
    size = sum(array.dtype.itemsize * num_selected(array.shape, last) for array in stored.values())
    refuse_large(group.name, size, MAX_READ)
    arrays = {name: array[last] for name, array in stored.items()}
    arrays |= {name: np.array(texts(group[name])) for name in ("layer", "type")}
    whole = {name: group[name] for name in SIZES}
    refuse_large(group.name, 8 * sum(array.size for array in whole.values()), MAX_READ)
    return arrays | {name: array[:] for name, array in whole.items()} | lengths


def _network(file: Any, last: slice) -> dict[str, NDArray[Any]]:
    if NETWORK not in file:
        return {}
    left_out = {"eig", "fisher_eigenvalue", *CURVATURE_SCALES}
    names = [n for n in file[NETWORK] if n not in left_out and not is_curvature_row(n)]
    return {name: file[NETWORK][name][slice(None) if name == "p" else last] for name in names}
