"""The end of a results file as plain arrays: what a table over many runs can afford to read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condexp.store.fields import EVAL_NAMES, Axis
from condexp.store.hdf5 import open_file
from condexp.store.layout import COUNTERS
from condexp.store.matrices import NETWORK

# What describes the layers at every step; n_<matrix> does as well.
SIZES = frozenset({"p", "d_in", "d_out", "groups", "num_rows"})


@dataclass(frozen=True)
class LastRows:
    """The end of a run so far.

    Attributes:
        layers: The arrays of ``/layers``: those with steps cut to the last snapshot, ``[1, L, …]``
            (``[0, L, …]`` before the first), the others whole.
        network: The arrays of ``/network``, likewise; empty where there are none.
        num_signals: Gradients that each row of an input comes with.
        evals: The columns of ``/eval``, every committed evaluation.
    """

    layers: Mapping[str, NDArray[Any]]
    network: Mapping[str, NDArray[Any]]
    num_signals: int
    evals: Mapping[str, NDArray[np.float64]]


def read_last_rows(file: Path, keys: Collection[str] | None = None) -> LastRows:
    """Read the last snapshot and the evaluations of a run, finished or not.

    Args:
        file: The results file.
        keys: ``<layer>.<measure>`` keys whose arrays are enough; all arrays where ``None``. The
            arrays that describe the layers are always read.

    Returns:
        The rows.

    Raises:
        InputError: If it is not a results file.
    """
    with open_file(file) as opened:
        num_evals = int(opened[COUNTERS[Axis.EVAL]][()])
        num_snapshots = int(opened[COUNTERS[Axis.SNAPSHOT]][()])
        last = slice(max(0, num_snapshots - 1), num_snapshots)
        group, arrays = opened["layers"], {}
        for name in group:
            # Opening a dataset is what takes time, so those that are not needed stay closed.
            if name in {"layer", "type"}:
                arrays[name] = group[name].asstr()[:]
            elif name in SIZES or name.startswith("n_"):
                arrays[name] = group[name][:]
            elif keys is None or name == "step" or any(f".{name}" in key for key in keys):
                arrays[name] = group[name][last]
        network = {}
        if keys is None or any(key.startswith(f"{NETWORK}.") for key in keys):
            network = _network(opened, last)
        evals = {name: opened["eval"][name][:num_evals] for name in EVAL_NAMES}
        num_signals = int(opened.attrs.get("num_signals", 1))
    return LastRows(arrays, network, num_signals, evals)


def _network(file: Any, last: slice) -> dict[str, NDArray[Any]]:
    if NETWORK not in file:
        return {}
    names = [name for name in file[NETWORK] if name not in {"eig", "fisher_eigenvalue"}]
    return {name: file[NETWORK][name][slice(None) if name == "p" else last] for name in names}
