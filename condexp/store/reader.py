"""Read a run, finished or running: labelled arrays of what is committed."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from condexp.analysis.vocabulary import Matrix
from condexp.errors import DamageError, InputError, choose
from condexp.store.hdf5.open import open_file, read_file_shape
from condexp.store.hdf5.row_checks import RowChecker, check_all_rows, read_plain_rows
from condexp.store.hdf5.structure import attributes, count, texts
from condexp.store.hdf5.validate import check_structure
from condexp.store.labelled_arrays import num_committed, read_table
from condexp.store.other_fractions import with_fractions
from condexp.store.run_folder.completeness import read_checked_status
from condexp.store.run_folder.config_file import parse_config, read_config
from condexp.store.run_folder.status import CONFIG_NAME, STATUS_NAME, find_results
from condexp.store.schema.fields import (
    COVERAGE_NAMES,
    PLAIN_NAMES,
    WITHOUT_SPECTRA,
    Axis,
)
from condexp.store.schema.layout import STEPS, columns
from condexp.store.schema.matrices import NETWORK, spectra_group

NO_SPECTRA = "{} holds no spectra: they are kept with analysis.save_spectra=true"
BOOLEAN_ATTRIBUTES = ("center", "bias")


def open_run(path: str | Path) -> "Run":
    """Open a run for reading, also while it runs.

    Args:
        path: The run's folder, or its ``results.h5``.

    Returns:
        The run; each of its properties reads the file as it is at that moment.

    Raises:
        InputError: If there is no run.
        DamageError: If its results file is missing or damaged, or lacks an array.
    """
    file = find_results(Path(path))
    check_structure(file)
    return Run(file)


class Run:
    """One run's stored results, cut to the committed rows. Made by :func:`open_run`.

    Args:
        file: Its results file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.path = file.parent

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration; without the run's folder, the part that decides its numbers.

        Raises:
            InputError: If ``config.yaml`` is damaged.
        """
        whole = self.path / CONFIG_NAME
        if os.path.lexists(whole):
            return read_config(whole)
        with open_file(self.file) as file:
            (text,) = texts(file["config"])
        return parse_config(self.file, text)

    @property
    def status(self) -> dict[str, Any]:
        """The content of ``status.json``; empty if there is none.

        A run that is said to be finished, and whose results are not whole, is ``failed``.

        Raises:
            InputError: If it is damaged.
        """
        there = os.path.lexists(self.path / STATUS_NAME)
        return asdict(read_checked_status(self.path)) if there else {}

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """The attributes of the file."""
        with open_file(self.file) as file:
            found = attributes(file)
        for name in BOOLEAN_ATTRIBUTES:
            if name in found:
                found[name] = bool(found[name])
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in found.items()}

    @property
    def _netcdf_attrs(self) -> dict[str, Any]:
        # netCDF has no booleans: as a byte, which is how the file has them.
        return {k: np.int8(v) if isinstance(v, bool) else v for k, v in self.attrs.items()}

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the analysed layers in execution order."""
        with open_file(self.file) as file:
            return read_file_shape(file).layers

    @cached_property
    def not_analysed(self) -> tuple[str, ...]:
        """Modules with weights that are not measured, each with the reason."""
        with open_file(self.file) as file:
            return texts(file["not_analysed"])

    @cached_property
    def curvature(self) -> tuple[str, ...]:
        """Those of ``hessian`` and ``ggn`` that were measured of the network."""
        with open_file(self.file) as file:
            return tuple(map(str, read_file_shape(file).curvature))

    @property
    def steps(self) -> tuple[int, ...]:
        """Training steps of the committed snapshots."""
        with open_file(self.file) as file:
            num = num_committed(file, Axis.SNAPSHOT)
            return tuple(int(step) for step in file["step"][:num])

    @property
    def metrics(self) -> pd.DataFrame:
        """Losses and errors, committed rows only.

        Returns:
            Index ``step``; columns ``loss``, ``lr`` (of the update at that step), ``epoch``, and
            ``train_loss``, ``train_error``, ``test_loss``, ``test_error`` (in percent; after that
            many updates), NaN where a step has no such record; and where it was measured
            ``sharpness``, λ_max of the Hessian before that update, with ``sharpness_error``.
        """
        with open_file(self.file) as file:
            steps = _frame(file, Axis.TRAIN)
            evals = _frame(file, Axis.EVAL).drop(columns="epoch")
            steps_per_epoch = count(file, "steps_per_epoch")
        joined = steps.join(evals, how="outer").rename_axis("step")
        joined.insert(2, "epoch", joined.index.to_numpy() / steps_per_epoch)
        return joined

    def measures(
        self,
        p: Sequence[float] = (),
        only: Collection[str] = (),
        drop_variables: Collection[str] = (),
    ) -> xr.Dataset:
        """Return every measure of every layer at the committed snapshots.

        Args:
            p: Fractions of condition numbers, in place of the measured ones; others than these are
                computed from the stored spectra.
            only: Variables that are enough, for speed over many runs: of what has a row a step,
                others are not read. All where empty.
            drop_variables: Arrays that are not read, such as damaged ones; with a ``<matrix>_rank``
                its ``<matrix>_status`` is left out as well.

        Returns:
            Dimensions ``step``, ``layer`` and, for ``<matrix>_kappa`` and the ends of its interval,
            ``<matrix>_kappa_low`` and ``_high``, ``p``; variables as in the file
            (``input_lambda_max``, ``kfac_kappa``, ``domination``, ``type``, ``d_in``, …), statuses
            and dtypes by name; ``epoch``, ``coverage_parameters`` and ``coverage_gradient``
            coordinates of ``step``. A file of version 1 has neither intervals,
            ``gradient_residual`` nor coverage.

        Raises:
            InputError: If a fraction is none, or was not measured and spectra were not saved; if a
                variable to drop is none, or both are given.
            DamageError: If an array is damaged; names it, and how the others are read.
        """
        if p and drop_variables:
            raise InputError(
                "measures: p needs every variable, and drop_variables leaves out some: give one"
            )
        table = self._layers(only, drop_variables).assign_attrs(self._netcdf_attrs)
        if not p:
            return table

        def spectrum(matrix: Matrix, layer: int) -> NDArray[np.float64]:
            return self.spectrum(matrix, self.layers[layer]).to_numpy()[: table.sizes["step"]]

        return with_fractions(table, p, spectrum, int(self.attrs.get("num_signals", 1)))

    def _layers(self, only: Collection[str], dropped: Collection[str]) -> xr.Dataset:
        """Return the arrays of ``/layers``.

        Raises:
            DamageError: If one is damaged; says how the others are read.
        """
        try:
            with open_file(self.file) as file:
                return read_table(file, "layers", only, dropped)
        except DamageError as damage:
            beside = {"epoch", *COVERAGE_NAMES}
            lost = [each for each in damage.arrays if each.startswith("layers/") or each in beside]
            names = [path.removeprefix("layers/") for path in lost]
            needed = any("/" not in each and each not in beside for each in damage.arrays)
            if needed or not names or {*names} & {*dropped}:
                raise  # leaving them out would be of no use
            kept = ", ".join(map(repr, [*dropped, *names]))
            way_out = f"measures(drop_variables=[{kept}]) reads the others"
            raise DamageError(f"{damage}: {way_out}", damage.arrays) from damage

    def network(self, p: Sequence[float] = ()) -> xr.Dataset:
        """Return the matrices of all layers together at the committed snapshots.

        ``fisher`` is of all analysed layers, ``hessian`` and ``ggn`` are of all trained parameters.

        Args:
            p: Fractions of condition numbers, as for :meth:`measures`.

        Returns:
            Dimensions ``step``, ``eig`` and, for ``fisher_kappa``, ``p``; variables as in the file:
            ``fisher_eigenvalue``, descending, unless spectra were not saved, and its measures
            (``fisher_lambda_max``, …); ``hessian_eigenvalue`` and its errors along ``top``,
            ``hessian_density`` along ``point``; ``epoch`` a coordinate of ``step``.

        Raises:
            InputError: If it was not measured.
        """
        with open_file(self.file) as file:
            if NETWORK not in file:
                raise InputError(
                    f"{self.file} holds no matrix of the network: it is measured where "
                    "analysis.matrices has fisher (as with analysis=fisher), hessian or ggn"
                )
            table = read_table(file, NETWORK).assign_attrs(self._netcdf_attrs)
        if not p:
            return table

        def spectrum(_matrix: Matrix, _layer: int) -> NDArray[np.float64]:
            if "fisher_eigenvalue" not in table:
                raise InputError(NO_SPECTRA.format(self.file))
            return table["fisher_eigenvalue"].to_numpy()

        return with_fractions(table, p, spectrum, 1)

    def spectrum(self, matrix: str, layer: str) -> xr.DataArray:
        """Return the eigenvalues of a matrix of one layer at the committed snapshots.

        Args:
            matrix: ``input``, ``grad_output``, ``fisher``, ``weight`` or ``weight_grad``; of
                ``hessian`` and ``ggn`` the largest eigenvalues.
            layer: The layer's name.

        Returns:
            Dimensions ``step`` and ``eig``, descending along ``eig``.

        Raises:
            InputError: If there is no such matrix or layer, or its spectrum was not saved.
        """
        with open_file(self.file) as file:
            num, extent = num_committed(file, Axis.SNAPSHOT), read_file_shape(file)
            measured = [str(other) for other in extent.lengths if other not in WITHOUT_SPECTRA]
            measured += map(str, extent.curvature if extent.layer_blocks else ())
            kind = Matrix(choose("matrix with a spectrum", matrix, measured))
            index = extent.layers.index(choose("layer", layer, extent.layers))
            if kind in extent.curvature:
                path = f"layers/{kind}_eigenvalue"
                check_all_rows(file, path, num)
                values = file[path][:num, index, :]
                coordinates = {"step": file["layers/step"][:num], "eig": file["layers/top"][:]}
                read = xr.DataArray(values, coordinates, ("step", "eig"), f"{matrix} of {layer}")
                return read.isel(step=slice(num_committed(file, Axis.SNAPSHOT)))
            path = spectra_group(kind, extent.lengths[kind][index])
            if path not in file:
                raise InputError(NO_SPECTRA.format(self.file))
            group = file[path]
            member = int(np.flatnonzero(group["layer_index"][:] == index)[0])
            check_all_rows(file, f"{path}/eigenvalue", num)
            values = group["eigenvalue"][:num, member, :]
            coordinates = {"step": group["step"][:num], "eig": group["eig"][:]}
            read = xr.DataArray(values, coordinates, ("step", "eig"), f"{matrix} of {layer}")
            return read.isel(step=slice(num_committed(file, Axis.SNAPSHOT)))

    def spectra(
        self, matrix: str, rows: Sequence[int], keep: Callable[[int], NDArray[np.int64]]
    ) -> Iterator["Spectra"]:
        """Yield some eigenvalues of a matrix of all layers, each snapshot read once.

        Args:
            matrix: As for :meth:`spectrum`.
            rows: Places of the snapshots among the committed ones.
            keep: Returns the 0-based indices of the eigenvalues wanted of a spectrum so long.

        Yields:
            Those of the layers whose spectra have one length; none where they were not saved.

        Raises:
            DamageError: If the file is damaged.
        """
        with open_file(self.file) as file:
            checker = RowChecker(file, max(rows, default=-1) + 1)
            for column in columns(read_file_shape(file), Axis.SNAPSHOT):
                if column.measure != "eigenvalue" or column.matrix != matrix or not column.members:
                    continue
                array, kept = file[column.path], keep(column.shape[-1])
                values = np.empty((len(rows), len(column.members), len(kept)))
                for place, row in enumerate(rows):
                    whole = array[row : row + 1]
                    checker.check(column.path, whole, row)
                    values[place] = whole[0][:, kept]
                yield Spectra(column.members, column.shape[-1], kept, values)


@dataclass(frozen=True)
class Spectra:
    """Some eigenvalues of the layers whose spectra have one length.

    Attributes:
        layers: Places of the layers among all layers.
        length: Number of eigenvalues of each.
        kept: 0-based indices of the eigenvalues that are here, ascending.
        values: ``[snapshots, layers, kept]``.
    """

    layers: tuple[int, ...]
    length: int
    kept: NDArray[np.int64]
    values: NDArray[np.float64]


def _frame(file: h5py.File, axis: Axis) -> pd.DataFrame:
    """Return the committed rows of a group of columns."""
    names = [name for name in PLAIN_NAMES[axis] if name in file[str(axis)]]
    columns = read_plain_rows(file, axis, names, lambda: num_committed(file, axis))
    num = min(map(len, columns.values()))
    return pd.DataFrame(columns, index=file[STEPS[axis]][:num])
