"""HDF5 through Python file objects: one in memory, page by page, and one read without locks."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import DTypeLike

from condexp.analysis.options import Matrix
from condexp.errors import InputError
from condexp.store.fields import FORMAT, VERSION, DatasetSpec, Extent, Kind

PAGE_BYTES = 1 << 12


class SparseFile(io.RawIOBase):
    """A file in memory of which only the written pages exist.

    HDF5 writes descriptions, not the arrays, when a skeleton is built: a file of many gigabytes
    takes a few hundred kilobytes here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self._position = 0

    def readable(self) -> bool:
        """Return whether it can be read."""
        return True

    def writable(self) -> bool:
        """Return whether it can be written."""
        return True

    def seekable(self) -> bool:
        """Return whether it has positions."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Return the position moved to."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        """Return the size set; what is added is zeros that take no memory."""
        self.size = self._position if size is None else size
        return self.size

    # A buffer's type has no name before Python 3.12.
    def readinto(self, buffer, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes read into a buffer; pages that do not exist are zeros."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self.size - self._position)]
        for page, start, chunk in self._pieces(view):
            content = self.pages.get(page)
            chunk[:] = content[start : start + len(chunk)] if content else bytes(len(chunk))
        return len(view)

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes written at the position."""
        view = memoryview(data).cast("B")
        for page, start, chunk in self._pieces(view):
            content = self.pages.setdefault(page, bytearray(PAGE_BYTES))
            content[start : start + len(chunk)] = chunk
        self.size = max(self.size, self._position)
        return len(view)

    def _pieces(self, view: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Yield a buffer cut at the borders of the pages, and move the position along."""
        while view:
            page, start = divmod(self._position, PAGE_BYTES)
            chunk = view[: PAGE_BYTES - start]
            self._position += len(chunk)
            view = view[len(chunk) :]
            yield page, start, chunk


class ExactFile(io.FileIO):
    """A file read without a buffer: nothing before it is asked for, and nothing short.

    A buffer could hold a row from before its commit beside a counter from after it.
    """

    def readinto(self, buffer, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes read into a buffer, in as many reads as it takes."""
        view, total = memoryview(buffer).cast("B"), 0
        while total < len(view) and (count := super().readinto(view[total:])):
            total += count
        return total


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open a results file for reading, also while a run writes it; no HDF5 lock is taken.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        InputError: If it is not a results file of this format's version, or lacks a dataset.
    """
    try:
        stream = ExactFile(path, "r")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"no results file at {path}: {error.strerror}") from error
    with stream:
        try:
            file = h5py.File(stream, "r")
        except OSError as error:
            raise InputError(f"{path} is not an HDF5 file: {error}") from error
        with file:
            given = file.attrs.get("condexp_format"), file.attrs.get("condexp_format_version")
            if given != (FORMAT, VERSION):
                raise InputError(
                    f"{path} is not a results file of format {FORMAT!r}, version {VERSION}: "
                    f"it says {given[0]!r}, version {given[1]}"
                )
            try:
                yield file
            except KeyError as error:  # h5py's way to say that a dataset is missing
                raise InputError(f"{path} is damaged: {error.args[0]}") from error


def read_extent(file: h5py.File) -> Extent:
    """Read back what decides the names and shapes of a file's datasets.

    Args:
        file: An open results file.

    Returns:
        The extent it was created from; of a sealed file, the exact lengths.
    """
    layers = file["layers"]
    return Extent(
        layers=tuple(layers["layer"].asstr()[:]),
        lengths={
            matrix: tuple(int(length) for length in layers[f"n_{matrix}"][:])
            for matrix in Matrix
            if f"n_{matrix}" in layers
        },
        num_p=len(layers["p"]),
        save_spectra="spectra" in file,
        num_snapshots=len(file["step"]),
        num_train_steps=len(file["train/train_step"]),
        num_evals=len(file["eval/eval_step"]),
        num_not_analysed=len(file["not_analysed"]),
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
