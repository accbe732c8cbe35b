"""From records to the bytes of their rows: one column after the other, in file order."""

from collections.abc import Callable, Mapping
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from condexp.analysis.linalg.curvature_spectrum import CurvatureSpectrum
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.vocabulary import CURVATURE_MATRICES, SINGULAR_VALUES
from condexp.store.schema.fields import (
    DTYPE_CODES,
    ESTIMATED,
    STATUS_CODES,
    DatasetSpec,
    FileShape,
    Kind,
)
from condexp.store.schema.matrices import KAPPAS, NETWORK
from condexp.training.events import SnapshotRecord

Row = NDArray[np.generic]
AnySpectrum = Spectrum | KroneckerSpectrum | CurvatureSpectrum
OF_CURVATURE = {
    "eigenvalue": "eigenvalues",
    "eigenvalue_error": "eigenvalue_errors",
    "density": "density",
}
"""Attributes of a :class:`.CurvatureSpectrum` that are rows of numbers, by name in the file."""


def snapshot_row(
    columns: tuple[DatasetSpec, ...],
    extent: FileShape,
    kappa_p: tuple[float, ...],
    record: SnapshotRecord,
) -> list[bytes]:
    """Encode one snapshot.

    A layer that this snapshot does not have is NaN, its statuses ``absent``.

    Args:
        columns: The columns of snapshots, in file order.
        extent: The layers and the lengths of their spectra.
        kappa_p: The fractions p of the condition numbers.
        record: The snapshot.

    Returns:
        The bytes of each column's row.

    Raises:
        ValueError: If the snapshot has a layer, or a length of a spectrum, that the file has not.
    """
    found = {layer.info.name: layer for layer in record.snapshot.records}
    if unknown := found.keys() - set(extent.layers):
        raise ValueError(f"the results file has no layers {sorted(unknown)}")
    layers = [found.get(name) for name in extent.layers]
    coverage = record.snapshot.coverage
    own = {
        "step": record.step,
        "epoch": record.epoch,
        "coverage_parameters": coverage.parameters,
        "coverage_gradient": coverage.gradient,
    }
    readers = _readers(kappa_p)
    rows = []
    for column in columns:
        # A network's measures lie beside those of its layers, under the same names.
        measured = [record.snapshot] if column.group == NETWORK else layers
        if column.name in own:
            values = np.asarray(own[column.name])
        elif column.measure == "domination" and not SINGULAR_VALUES & extent.lengths.keys():
            # Its singular values would cost more than all else that was asked for.
            values = np.full(len(layers), np.nan)
        elif column.matrix is None:
            measure = column.measure
            values = np.array([getattr(each, measure, np.nan) for each in measured])
        else:
            spectra = [getattr(each, column.matrix, None) for each in measured]
            if column.matrix in CURVATURE_MATRICES and column.measure in OF_CURVATURE:
                values = np.stack([_numbers(column, each) for each in spectra])
            elif column.measure == "eigenvalue":
                chosen = [spectra[i] for i in column.members] or spectra
                values = _eigenvalues(column, chosen)
            else:
                values = _measure(column, spectra, readers, len(kappa_p))
        rows.append(_encode(column, values))
    return rows


def plain_rows(columns: tuple[DatasetSpec, ...], records: Mapping[str, list[float]]) -> list[bytes]:
    """Encode consecutive rows of plain numbers.

    Args:
        columns: The columns of training steps or of evaluations, in file order.
        records: For each measure, the numbers.

    Returns:
        The bytes of each column's rows.
    """
    return [np.asarray(records[c.measure], dtype=c.kind.value).tobytes() for c in columns]


def _measure(
    column: DatasetSpec,
    spectra: list[AnySpectrum | None],
    readers: Mapping[str, Callable[[AnySpectrum], object]],
    num_p: int,
) -> Row:
    """Return one measure of every spectrum."""
    # An absent spectrum is None; a spectrum's own truth would be that of its length.
    read = readers.get(column.measure, attrgetter(column.measure))
    shape = (num_p,) if column.measure in KAPPAS else ()
    absent: object = 0 if column.kind.codes else np.full(shape, np.nan)
    return np.array([absent if s is None else read(s) for s in spectra])


def _readers(kappa_p: tuple[float, ...]) -> dict[str, Callable[[AnySpectrum], object]]:
    """Return how the measures that are not a number of their own are read."""

    def intervals(spectrum: AnySpectrum) -> list[tuple[float, float]]:
        assert not isinstance(spectrum, CurvatureSpectrum)
        return [spectrum.kappa_interval(p) for p in kappa_p]

    return {
        "status": lambda s: STATUS_CODES["ok" if s.status == ESTIMATED else s.status],
        "dtype": lambda s: DTYPE_CODES[str(s.dtype).removeprefix("torch.")],
        "kappa": lambda s: [s.kappa(p) for p in kappa_p],
        "kappa_low": lambda s: [low for low, _ in intervals(s)],
        "kappa_high": lambda s: [high for _, high in intervals(s)],
    }


def _eigenvalues(column: DatasetSpec, spectra: list[AnySpectrum | None]) -> Row:
    values = np.full((len(spectra), column.shape[-1]), np.nan)
    for row, spectrum in zip(values, spectra, strict=True):
        if isinstance(spectrum, Spectrum):
            if len(spectrum) != len(row):
                raise ValueError(
                    f"{column.matrix} has {len(spectrum)} eigenvalues, "
                    f"its place in the results file is for {len(row)}"
                )
            row[:] = spectrum.eigenvalues.numpy()
    return values


def _numbers(column: DatasetSpec, spectrum: AnySpectrum | None) -> Row:
    """Return numbers of a matrix that is known by its products, NaN where there are fewer."""
    row = np.full(column.shape[-1], np.nan)
    if spectrum is not None:
        found = getattr(spectrum, OF_CURVATURE[column.measure]).numpy()
        row[: len(found)] = found
    return row


def _encode(column: DatasetSpec, values: Row) -> bytes:
    """Return the bytes that one row is stored as."""
    # A file without layers, or without fractions p, has rows of no elements and any dimensions.
    stored = Kind.FLAG if column.kind.codes else column.kind
    return values.reshape(column.shape[1:]).astype(stored.value).tobytes()
