"""A results file as one long table of numbers, written block by block."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condexp.errors import DamageError, InputError
from condexp.store.csv_text import write_frame
from condexp.store.files import saving
from condexp.store.hdf5.open import open_file, read_file_shape
from condexp.store.hdf5.row_checks import is_live
from condexp.store.hdf5.structure import count, refuse_large, texts
from condexp.store.hdf5.validate import validate_results
from condexp.store.reader import Run
from condexp.store.schema.fields import (
    COVERAGE_NAMES,
    EVAL_NAMES,
    SHARPNESS_NAMES,
    TRAIN_NAMES,
    Axis,
    DatasetSpec,
)
from condexp.store.schema.layout import COUNTERS, STEPS, columns
from condexp.store.schema.matrices import NETWORK, is_curvature_row

COLUMNS = ("step", "epoch", "layer", "measure", "p", "value")
COLUMNS_WITH_SPECTRA = ("step", "epoch", "layer", "measure", "p", "eig", "value")
COLUMNS_WITH_DENSITIES = ("step", "epoch", "layer", "measure", "p", "eig", "point", "value")
BLOCK_ROWS = 100_000
MAX_ROW_BYTES = 1 << 25  # as text, with the names of its layers, many times that

File = Any  # an open results file; the name of its type belongs to the store
Numbers = NDArray[Any]


def write_csv(run: Run, stream: TextIO, *, spectra: bool = False) -> None:
    """Write every committed number of a run as CSV, a header first.

    Args:
        run: A run, finished or not.
        stream: Where to write; a file opened with ``newline=""``.
        spectra: See :func:`long_form`.

    Raises:
        InputError: If spectra are asked for and the file has none; nothing was written.
    """
    with_spectra = COLUMNS_WITH_DENSITIES if run.curvature else COLUMNS_WITH_SPECTRA
    names = list(with_spectra if spectra else COLUMNS)
    blocks = long_form(run, spectra=spectra)
    first = next(blocks, pd.DataFrame())
    write_frame(first.reindex(columns=names), stream)
    for block in blocks:
        write_frame(block.reindex(columns=names), stream, header=False)


def save_csv(run: Run, path: Path, *, spectra: bool = False) -> None:
    """Write the same to a file, whole or not at all.

    Args:
        run: A run, finished or not.
        path: The file; one that exists is replaced.
        spectra: See :func:`long_form`.

    Raises:
        InputError: If the file cannot be written, or as for :func:`write_csv`.
    """
    with saving(path) as file:
        stream = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        write_csv(run, stream, spectra=spectra)
        stream.flush()
        stream.detach()


def long_form(run: Run, *, spectra: bool = False) -> Iterator[pd.DataFrame]:
    """Yield every committed number of a run, a row each, in frames of about 100,000 rows.

    First the training steps (measures ``loss``, ``lr``, and ``sharpness``, ``sharpness_error`` of
    those where it was measured), then the evaluations (``train_loss``,
    ``train_error``, ``test_loss``, ``test_error``, after ``step`` updates), both without a layer;
    then every measure of every layer, snapshot by snapshot, by the file's names
    (``input_lambda_max``, ``domination``), and of all layers together as the layer ``network``;
    ``<matrix>_kappa`` has its p. ``<matrix>_status`` and
    ``<matrix>_dtype`` are the file's codes (status: 0 absent, 1 ok, 2 zero, 3 unreliable,
    4 nonfinite, 5 incomplete), so that every value is a number. The ends of the intervals of κ are
    ``<matrix>_kappa_low`` and ``_high``; ``coverage_parameters`` and ``coverage_gradient`` have no
    layer.

    Args:
        run: A run, finished or not.
        spectra: Also the eigenvalues, measure ``<matrix>_eigenvalue``, after the measures; they
            have a column ``eig``, the 0-based index, the largest first. Of ``hessian`` and ``ggn``
            also ``<matrix>_eigenvalue_error`` and ``<matrix>_density``, whose column ``point`` is
            the place in units of ``<matrix>_density_scale``.

    Yields:
        Frames with the columns step, epoch, layer, measure, p, value, and eig and point between the
        last two where there are such rows; what a row does not have is NaN or absent.

    Raises:
        InputError: If spectra are asked for and the file has none.
        DamageError: If the file is damaged.
    """
    with open_file(run.file) as file:
        if is_live(file) and (problems := validate_results(run.file)):
            raise DamageError(problems[0])
        snapshots = columns(read_file_shape(file), Axis.SNAPSHOT)
        rows = [c for c in snapshots if c.measure == "eigenvalue" or is_curvature_row(c.name)]
        if spectra and not rows:
            raise InputError(
                f"{run.file} holds no spectra: they are kept with analysis.save_spectra=true"
            )
        yield from _metrics(file, Axis.TRAIN, tuple(TRAIN_NAMES))
        if "train/sharpness" in file:
            for block in _metrics(file, Axis.TRAIN, tuple(SHARPNESS_NAMES)):
                yield block.dropna(subset="value")  # steps between
        evals = tuple(name for name in EVAL_NAMES if name != "epoch")
        yield from _metrics(file, Axis.EVAL, evals)
        yield from _coverage(file, [c for c in snapshots if c.name in COVERAGE_NAMES])
        for group in ("layers", NETWORK):
            own = [c for c in snapshots if c.group == group and c not in rows]
            yield from _measures(file, group, own)
        for column in rows if spectra else ():
            yield from _rows_of_numbers(file, column)


def _metrics(file: File, axis: Axis, names: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    """Yield the columns of the training steps or of the evaluations."""
    steps_per_epoch = count(file, "steps_per_epoch")
    for rows in _blocks(file, axis, len(names)):
        steps = file[STEPS[axis]][rows]
        values = np.stack([file[axis.value][name][rows] for name in names], axis=1)
        yield _frame(steps, steps / steps_per_epoch, values, measure=names)


def _coverage(file: File, shares: list[DatasetSpec]) -> Iterator[pd.DataFrame]:
    """Yield the measured shares of the network, which a file of version 1 does not have."""
    for rows in _blocks(file, Axis.SNAPSHOT, len(shares)):
        values = np.stack([file[share.path][rows] for share in shares], axis=1)
        names = [share.name for share in shares]
        yield _frame(file["step"][rows], file["epoch"][rows], values, measure=names)


def _measures(file: File, group: str, measures: list[DatasetSpec]) -> Iterator[pd.DataFrame]:
    """Yield the measures of all layers, or of the network, snapshot by snapshot."""
    layers = [NETWORK] if group == NETWORK else texts(file["layers/layer"])
    fractions = file["layers/p"][:]
    names: list[str] = []
    p: list[float] = []
    for measure in measures:
        own = fractions if "p" in measure.dims else [np.nan]
        names += [measure.name] * len(own)
        p += list(own)
    for rows in _blocks(file, Axis.SNAPSHOT, len(layers) * len(names)):
        parts = [file[measure.path][rows].astype(np.float64) for measure in measures]
        # [snapshots, layers, measures]; a kappa brings one for each p.
        cells = [part.reshape(len(part), len(layers), -1) for part in parts]
        values = np.concatenate(cells, axis=2)
        yield _frame(
            file["step"][rows],
            file["epoch"][rows],
            values.reshape(len(values), -1),
            layer=np.repeat(layers, len(names)),
            measure=np.tile(names, len(layers)),
            p=np.tile(p, len(layers)),
        )


def _rows_of_numbers(file: File, column: DatasetSpec) -> Iterator[pd.DataFrame]:
    """Yield the spectra, or what else has many numbers of a matrix, layer by layer."""
    names, length = texts(file["layers/layer"]), column.shape[-1]
    layers = [names[index] for index in column.members] or list(names)
    if column.group == NETWORK:
        layers = [NETWORK]
    numbers = {"eig": np.arange(length)}
    if column.dims[-1] == "point":
        numbers = {"point": file[f"{column.group}/point"][:]}
    for member, layer in enumerate(layers):
        for rows in _blocks(file, Axis.SNAPSHOT, length):
            yield _frame(
                file["step"][rows],
                file["epoch"][rows],
                file[column.path][rows if column.group == NETWORK else (rows, member)],
                layer=[layer] * length,
                measure=[f"{column.matrix}_{column.measure}"] * length,
                **numbers,
            )


def _blocks(file: File, axis: Axis, values_each: int) -> Iterator[slice]:
    """Yield the committed rows of the file, as many at a time as make a frame."""
    refuse_large(f"a row of /{axis}", 8 * values_each, MAX_ROW_BYTES)
    num, size = int(file[COUNTERS[axis]][()]), max(1, BLOCK_ROWS // max(1, values_each))
    yield from (slice(i, min(i + size, num)) for i in range(0, num, size) if values_each)


def _frame(
    steps: Numbers, epochs: Numbers, values: Numbers, **labels: Sequence[object] | Numbers
) -> pd.DataFrame:
    """Return values ``[steps, k]`` as rows; each label names the k values of a step."""
    num_steps, num_values = values.shape
    return pd.DataFrame({
        "step": np.repeat(steps, num_values),
        "epoch": np.repeat(epochs, num_values),
        **{name: np.tile(np.asarray(each), num_steps) for name, each in labels.items()},
        "value": values.ravel(),
    })
