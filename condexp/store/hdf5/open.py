"""Open a results file without locks, and read back what it was made from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike

from condexp.analysis.vocabulary import Matrix
from condexp.errors import DamageError, InputError
from condexp.store.disk import ResultsError
from condexp.store.hdf5.checked_file import CheckedFile
from condexp.store.hdf5.row_checks import row_blocks
from condexp.store.hdf5.structure import StructuredFile, attribute, texts
from condexp.store.schema.fields import FORMAT, READABLE, DatasetSpec, FileShape, Kind
from condexp.store.schema.layout import SEALED


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open a results file for reading, also while a run writes it; no HDF5 lock is taken.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        InputError: What is raised while it is read.
        ResultsError: Likewise.
        DamageError: If it is not a results file of a version that is read, lacks a dataset, or what
            is read of it is foreign, or not what was written.
    """
    with _checked(path) as stream:
        try:
            file = StructuredFile(stream, "r")
        except Exception as error:
            raise DamageError(f"{path} is not an HDF5 file: {error}") from error
        file.content = stream
        with file:
            try:
                given = _stated_format(file)
                if given[0] != FORMAT or given[1] not in READABLE:
                    versions = " or ".join(map(str, READABLE))
                    raise DamageError(
                        f"{path} is not a results file of format {FORMAT!r}, version {versions}: "
                        f"it says {given[0]!r}, version {given[1]}"
                    )
                if given[1] > 2 and stream.trailer is None:
                    raise DamageError(f"{path} is damaged: its end, with the checksums, is missing")
                yield file
            except (InputError, ResultsError):
                raise
            # What is damaged, or made to be, can make HDF5 and numpy fail in any way.
            except Exception as error:
                missing = isinstance(error, KeyError)  # as text it would be in quotes
                reason = error.args[0] if missing else error
                raise DamageError(f"{path} is damaged: {reason or type(error).__name__}") from error


def _stated_format(file: h5py.File) -> tuple[Any, Any]:
    """Return format and version; what cannot be read states none."""
    try:
        return attribute(file, "condexp_format"), attribute(file, "condexp_format_version")
    except (KeyError, RuntimeError, OSError):
        return None, None


def check_blocks(path: Path) -> None:
    """Compare every byte of a results file that is final with its checksum.

    Args:
        path: The file; one of an earlier version has no such checksums, and passes.

    Raises:
        DamageError: If it is damaged; names the damaged arrays.
    """
    with _checked(path) as stream:
        stream.check_all()


@contextmanager
def _checked(path: Path) -> Iterator[CheckedFile]:
    """Open a file; tell of damage that is met, whatever HDF5 or h5py make of it.

    Yields:
        The file.

    Raises:
        DamageError: If there is none, or damage was met; names the damaged arrays.
    """
    try:
        stream = CheckedFile(path)
    except OSError as error:
        raise DamageError(f"no results file at {path}: {error.strerror}") from error
    cause: BaseException | None = None
    try:
        with stream:
            yield stream
    except OSError as raised:
        if stream.damage is None:
            raise DamageError(f"{path} cannot be read: {raised.strerror or raised}") from raised
        cause = raised
    except Exception as raised:
        if stream.damage is None:
            raise
        cause = raised
    if stream.damage is not None:
        arrays, rest = _look_through(stream.path)
        raise DamageError(f"{stream.damage}. {rest}", arrays) from cause


def _look_through(path: Path) -> tuple[list[str], str]:
    """Find which arrays of a damaged file are damaged, and that the others are not.

    Returns:
        Paths of those that are, a group's for all below it; none where others cannot be found. And
        a sentence.
    """
    found: dict[str, bool] = {}
    try:
        with CheckedFile(path) as stream, StructuredFile(stream, "r") as file:
            file.content = stream
            whole = SEALED in file.attrs
            _try_all(file, found, {h5py.h5o.get_info(file.id).addr})
    except Exception:  # what leads to its arrays is damaged
        return [], "What leads to its arrays is damaged: none can be trusted"
    bad = [name for name, good in found.items() if not good]
    if not bad:
        return [], "It is a place between the arrays: all of them are undamaged"
    kept = "undamaged" if whole else "undamaged but for their rows, which are compared when read"
    named = ", ".join(f"/{name}" for name in bad)
    return bad, f"Damaged: {named}; the other {len(found) - len(bad)} arrays are {kept}"


def _try_all(group: h5py.Group, found: dict[str, bool], seen: set[int], where: str = "") -> None:
    """Find out of each array below a group whether it can be read; of a group, where it cannot.

    Raises:
        DamageError: If what is in the group cannot be read.
    """
    for name in [*group]:
        path = where + name
        try:
            item = group[name]
            place = h5py.h5o.get_info(item.id).addr
            if place in seen:
                found[path] = False
                continue  # it would go on for ever
            seen.add(place)
            dict(item.attrs)
            if isinstance(item, h5py.Group):
                _try_all(item, found, seen, f"{path}/")
                continue
            if h5py.check_string_dtype(item.dtype) is not None:
                texts(item)
            else:
                for _ in row_blocks(item, len(item)) if item.ndim else [item[()]]:
                    pass
        except Exception:
            found[path] = False
        else:
            found[path] = True


def read_file_shape(file: h5py.File) -> FileShape:
    """Read back what decides the names and shapes of a file's datasets.

    Args:
        file: An open results file.

    Returns:
        The extent it was created from; of a sealed file, the exact lengths.
    """
    layers = file["layers"]
    network: Any = {}
    if "network" in file:
        network = file["network"]
    return FileShape(
        layers=texts(layers["layer"]),
        lengths={
            matrix: tuple(int(length) for length in layers[f"n_{matrix}"][:])
            for matrix in Matrix
            if f"n_{matrix}" in layers
        },
        network_length=len(network["eig"]) if "eig" in network else 0,
        num_p=len(layers["p"]),
        save_spectra="spectra" in file,
        num_snapshots=len(file["step"]),
        num_train_steps=len(file["train/train_step"]),
        num_evals=len(file["eval/eval_step"]),
        num_not_analysed=len(file["not_analysed"]),
        version=int(attribute(file, "condexp_format_version")),
        curvature=tuple(m for m in Matrix if f"{m}_density" in network),
        top_k=len(network["top"]) if "top" in network else 0,
        layer_blocks="top" in layers,
        sharpness="train/sharpness" in file,
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
