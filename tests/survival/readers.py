"""Readers that look at a run's results again and again while it is written."""

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import xarray as xr

from condexp.store.reader import open_run

# One of each shape: (S, L), (S, L, P) and the spectra's (S, Lb, n).
MEASURES = ("weight_norm", "input_lambda_max", "kfac_kappa")
GROUP, SPECTRA = "layers", "spectra/weight"
PAUSE = threading.Event()

Columns = Mapping[str, np.ndarray[Any, Any]]


def with_h5py(path: Path) -> Columns:
    with h5py.File(path) as file:
        num = int(file["n_committed"][()])
        (group,) = file[SPECTRA].values()
        columns = {name: file[GROUP][name][:num] for name in MEASURES}
        return columns | {"eigenvalue": group["eigenvalue"][:num]}


def with_xarray(path: Path) -> Columns:
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        num = int(tree["n_committed"])
        (group,) = tree[SPECTRA].children.values()
        columns = {name: tree[GROUP].dataset[name][:num].values for name in MEASURES}
        return columns | {"eigenvalue": group.dataset["eigenvalue"][:num].values}


def with_netcdf4(path: Path) -> Columns:
    with netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        num = int(file["n_committed"][...])
        (group,) = file[SPECTRA].groups.values()
        columns = {name: file[GROUP][name][:num] for name in MEASURES}
        return columns | {"eigenvalue": group["eigenvalue"][:num]}


def with_open_run(path: Path) -> Columns:
    run = open_run(path)
    measures = run.measures()
    spectra = [run.spectrum("weight", layer).to_numpy() for layer in run.layers]
    # Each is read for itself: the run went on meanwhile, or back to its checkpoint.
    num = min(measures.sizes["step"], *map(len, spectra))
    columns = {name: measures[name].to_numpy()[:num] for name in MEASURES}
    return columns | {"eigenvalue": np.stack([values[:num] for values in spectra], 1)}


def _follow(
    name: str, look: Callable[[Path], Columns], path: Path, reference: Path, folder: Path
) -> int:
    """Look until told, and tell; no look may fail, and no row may differ from the reference's."""
    expected = with_h5py(reference)
    seen, last, parent = set(), False, os.getppid()
    while not last and os.getppid() == parent:  # nobody else ends it
        last = (folder / "end").exists()
        if path.exists():
            columns = look(path)
            num = len(columns["eigenvalue"])
            for measure, values in columns.items():
                np.testing.assert_array_equal(values, expected[measure][:num], strict=True)
            (folder / f"{name} {num}").touch()
            seen.add(num)
        PAUSE.wait(0.05)  # looks often, without taking the run's core from it
    # It really looked in between.
    assert len({num for num in seen if 0 < num < len(expected["eigenvalue"])}) >= 3, (look, seen)
    return 0


READERS = {
    name: partial(_follow, name, look)
    for name, look in {
        "h5py": with_h5py,
        "xarray": with_xarray,
        "netCDF4": with_netcdf4,
        "open_run": with_open_run,
    }.items()
}
