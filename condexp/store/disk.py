"""Bytes on a disk that may be full, read-only or shared: whole writes, one lock, one error."""

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# What flock says where it is not offered (NFS, some clusters' file systems): no reason to stop.
LOCK_NOT_OFFERED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
# The same of reserving space and of syncing a folder.
NOT_OFFERED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


class ResultsError(RuntimeError):
    """A results file could not be written; what was committed before is intact.

    Args:
        message: The whole message.
        errno: The operating system's number for the reason, if it gave one.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


@contextmanager
def as_results_error(path: Path, outcome: str) -> Iterator[None]:
    """Turn whatever the operating system refuses into one clear error.

    Args:
        path: The file that is written.
        outcome: What the failure means (``"3 committed snapshots are intact"``).

    Yields:
        Nothing.

    Raises:
        ResultsError: If the body raised an ``OSError``; names reason, path and free space.
    """
    try:
        yield
    except OSError as error:
        free = "unknown free space"
        with suppress(OSError):
            free = f"{shutil.disk_usage(path.parent).free / 2**20:.1f} MiB free"
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise ResultsError(
            f"cannot write {path}: {error.strerror or error} ({name}; {free}). {outcome}.",
            error.errno,
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``<path>.lock``, so that a file has one writer.

    The lock dies with its process. Where the file system offers no locks, the work is done without.

    Args:
        path: The file to be written.

    Yields:
        Nothing, while the lock is held.

    Raises:
        ResultsError: If another process holds the lock.
        OSError: If the lock's file cannot be made.
    """
    lock = path.with_name(f"{path.name}.lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResultsError(
                f"{path} is being written by another process, which holds {lock.name}: "
                "wait for it or stop it",
                error.errno,
            ) from error
        except OSError as error:
            if error.errno not in LOCK_NOT_OFFERED:
                raise
        yield
    finally:
        os.close(handle)


def write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at a place in a file, however little a call takes.

    Args:
        handle: File descriptor.
        data: The bytes.
        offset: Where they begin.

    Raises:
        OSError: If the file cannot take them.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view, offset = view[written:], offset + written


def reserve(handle: int, size: int) -> None:
    """Make a file that long and take its space now, so that a full disk shows before the work.

    Args:
        handle: File descriptor of an empty file.
        size: Length in bytes.

    Raises:
        OSError: If there is no room for it.
    """
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
        os.ftruncate(handle, size)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut.

    Args:
        folder: The folder.

    Raises:
        OSError: If the disk fails.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, *, older: Path | None = None) -> Iterator[int]:
    """Write a file that is there whole or not at all, also after a kill or a power cut.

    Args:
        path: The file. ``<name>.partial`` beside it is used on the way.
        older: The name that the file there is kept under; None: it is replaced.

    Yields:
        The descriptor of an empty file, open for reading and writing.

    Raises:
        OSError: If it cannot be written, or not made sure of: the older file is there, or the new.
    """
    partial = path.with_name(f"{path.name}.partial")
    handle = os.open(
        partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
    )
    try:
        try:
            yield handle
            os.fsync(handle)
        finally:
            os.close(handle)
        if older is not None and path.exists():
            path.replace(older)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file that is there whole or not at all.

    Args:
        path: The file; an older one is replaced.
        text: Its content.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        with replacing(path) as handle:
            write_at(handle, text.encode(), 0)
    except OSError as error:
        if error.errno != errno.ENOSPC or not path.exists() or path.is_symlink():
            raise
        # A full disk has no room for a second file, but for these bytes where the older ones are.
        with path.open("r+b", buffering=0) as older:
            write_at(older.fileno(), text.encode(), 0)
            older.truncate(len(text.encode()))
            os.fsync(older.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is there whole or not at all; NaN and infinities become ``null``.

    Args:
        path: The file; an older one is replaced.
        content: Dicts, lists, strings, numbers, booleans, None.

    Raises:
        OSError: If it cannot be written.
    """
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, f"{text}\n")


def _finite(content: Any) -> Any:
    """Return the content without the numbers JSON has no word for."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
