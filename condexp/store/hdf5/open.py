"""Open a results file without locks, and read back what it was made from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import DTypeLike

from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError
from condexp.store.disk import ResultsError
from condexp.store.hdf5.file_objects import ExactFile
from condexp.store.hdf5.structure import CheckedFile, attribute, texts
from condexp.store.schema.fields import FORMAT, READABLE, DatasetSpec, FileShape, Kind


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open a results file for reading, also while a run writes it; no HDF5 lock is taken.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        ResultsError: What is raised while it is read.
        InputError: If it is not a results file of a version that is read, lacks a dataset, or what
            is read of it is damaged or foreign.
    """
    try:
        stream = ExactFile(path, "r")
    except OSError as error:
        raise InputError(f"no results file at {path}: {error.strerror}") from error
    with stream:
        try:
            file = CheckedFile(stream, "r")
        except Exception as error:
            raise InputError(f"{path} is not an HDF5 file: {error}") from error
        with file:
            try:
                given = attribute(file, "condexp_format"), attribute(file, "condexp_format_version")
                if given[0] != FORMAT or given[1] not in READABLE:
                    versions = " or ".join(map(str, READABLE))
                    raise InputError(
                        f"{path} is not a results file of format {FORMAT!r}, version {versions}: "
                        f"it says {given[0]!r}, version {given[1]}"
                    )
                yield file
            except (InputError, ResultsError):
                raise
            # What is damaged, or made to be, can make HDF5 and numpy fail in any way.
            except Exception as error:
                missing = isinstance(error, KeyError)  # as text it would be in quotes
                reason = error.args[0] if missing else error
                raise InputError(f"{path} is damaged: {reason or type(error).__name__}") from error


def read_file_shape(file: h5py.File) -> FileShape:
    """Read back what decides the names and shapes of a file's datasets.

    Args:
        file: An open results file.

    Returns:
        The extent it was created from; of a sealed file, the exact lengths.
    """
    layers = file["layers"]
    return FileShape(
        layers=texts(layers["layer"]),
        lengths={
            matrix: tuple(int(length) for length in layers[f"n_{matrix}"][:])
            for matrix in Matrix
            if f"n_{matrix}" in layers
        },
        network_length=len(file["network/eig"]) if "network" in file else 0,
        num_p=len(layers["p"]),
        save_spectra="spectra" in file,
        num_snapshots=len(file["step"]),
        num_train_steps=len(file["train/train_step"]),
        num_evals=len(file["eval/eval_step"]),
        num_not_analysed=len(file["not_analysed"]),
        version=int(attribute(file, "condexp_format_version")),
    )


def storage_type(dataset: DatasetSpec) -> np.dtype[np.generic]:
    """Return the HDF5 type of a dataset's elements, as h5py spells it.

    Args:
        dataset: The dataset.

    Returns:
        A little-endian number, an enumeration on one byte, or text.
    """
    spelling: DTypeLike = dataset.kind.value
    if dataset.kind is Kind.TEXT:
        spelling = h5py.string_dtype()
    elif dataset.kind.codes is not None:
        spelling = h5py.enum_dtype(dataset.kind.codes, basetype="i1")
    return np.dtype(spelling)
