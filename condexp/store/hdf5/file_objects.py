"""Files as Python objects, for libraries that must not write, lock or buffer one themselves."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from condexp.store.disk import write_at
from condexp.store.files import open_regular

PAGE_BYTES = 1 << 12
READ_BYTES = 1 << 28  # no array of a run that can be shown is read in a larger piece


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
            content = self.pages.get(page) or self._absent(page)
            chunk[:] = content[start : start + len(chunk)]
        return len(view)

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes written at the position."""
        view = memoryview(data).cast("B")
        for page, start, chunk in self._pieces(view):
            content = self.pages.get(page)
            if content is None:
                content = self.pages[page] = self._absent(page)
            content[start : start + len(chunk)] = chunk
        self.size = max(self.size, self._position)
        return len(view)

    def _absent(self, _page: int) -> bytearray:
        """Return what a page that is not in memory holds."""
        return bytearray(PAGE_BYTES)

    def _pieces(self, view: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Yield a buffer cut at the borders of the pages, and move the position along."""
        while view:
            page, start = divmod(self._position, PAGE_BYTES)
            chunk = view[: PAGE_BYTES - start]
            self._position += len(chunk)
            view = view[len(chunk) :]
            yield page, start, chunk


class DiskFile(SparseFile):
    """A file on the disk that never fails its writer; what went wrong is said when it is asked for.

    A failing write takes the process down inside libhdf5, and loses its reason inside torch's
    archive. From the first one on the pages stay in memory, so that the writer ends in good order.

    Args:
        handle: File descriptor of an empty file, open for reading and writing.
    """

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle = handle
        self._error: OSError | None = None

    def check(self) -> None:
        """Say what went wrong so far.

        Raises:
            OSError: The first failure.
        """
        if self._error is not None:
            raise self._error

    def truncate(self, size: int | None = None, /) -> int:
        """Return the size set."""
        result = super().truncate(size)
        self._attempt(lambda: os.ftruncate(self._handle, result))
        return result

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes taken."""
        view = memoryview(data).cast("B")
        start = self._position
        if not self._attempt(lambda: write_at(self._handle, view, start)):
            return super().write(view)
        self._position += len(view)
        self.size = max(self.size, self._position)
        return len(view)

    def _attempt(self, act: Callable[[], None]) -> bool:
        """Return whether nothing has failed, this included."""
        if self._error is None:
            try:
                act()
            except OSError as error:
                self._error = error
        return self._error is None

    def _absent(self, page: int) -> bytearray:
        content = super()._absent(page)
        with suppress(OSError):
            stored = os.pread(self._handle, PAGE_BYTES, page * PAGE_BYTES)
            content[: len(stored)] = stored
        return content


class ExactFile(io.FileIO):
    """A file read without a buffer: nothing before it is asked for, and nothing short.

    A buffer could hold a row from before its commit beside a counter from after it.

    Args:
        file: Path of the file, or a descriptor.
        mode: ``"r"``.
        closefd: Whether a descriptor is closed with it.
    """

    def __init__(self, file: Path | int, mode: str = "r", *, closefd: bool = True) -> None:
        super().__init__(file, mode, closefd, opener=lambda name, _flags: open_regular(Path(name)))

    def readinto(self, buffer, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes read into a buffer, in as many reads as it takes.

        Raises:
            OSError: If so many are asked for that the file must be damaged, or made to be.
        """
        view, total = memoryview(buffer).cast("B"), 0
        if len(view) > READ_BYTES:
            raise OSError(errno.EFBIG, f"{len(view)} bytes are to be read at once")
        while total < len(view) and (count := super().readinto(view[total:])):
            total += count
        return total
