"""Bytes on a disk that may be full, read-only or shared: whole writes, one lock, one error."""

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

# What flock says where it is not offered (NFS, some clusters' file systems): no reason to stop.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
LOCK_NOT_OFFERED = frozenset({*NO_LOCKS, errno.EBADF})  # the last by NFS, of a folder
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


class LostFolderError(ResultsError):
    """A run's folder, its lock or its results file is no longer the one that its owner opened."""


class Owner:
    """The one process that may write a run's folder. Made by :func:`locked`.

    It holds the lock of the folder and of the lock file that it opened. A path may come to name
    others, where a folder is moved or removed while its run lives: then nothing more is written.

    Attributes:
        path: The results file, absolute.
        handle: Descriptor of the folder; what is written by it stays in this folder.
        has_lock: Whether a lock tells that nobody else writes: no, where the file system has none.

    Args:
        path: The results file.

    Raises:
        ResultsError: If another process holds the lock.
        OSError: If there is no such folder, or the lock's file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock_name = f"{path.name}.lock"
        self._resources = ExitStack()
        self._results: int | None = None
        try:
            self.handle = self._open(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
            # A lock file may be removed as stale; the folder's own lock lasts, where there are any.
            self._has_folder_lock = self._take(self.handle)
            self._lock = self._open(self._open_lock_file())
            self.has_lock = self._take(self._lock)
            self.verify()
        except BaseException:
            self.close()
            raise

    @property
    def folder(self) -> Path:
        """The run's folder, absolute."""
        return self.path.parent

    def close(self) -> None:
        """Let the folder go."""
        self._resources.close()

    def adopt(self, results: int) -> None:
        """Take a results file for this folder's own.

        Args:
            results: A descriptor of it.
        """
        self._results = self._open(os.dup(results))

    def verify(self) -> None:
        """Make sure that all is still this owner's; to be called before every write.

        Raises:
            LostFolderError: If the path names another folder, or the folder other files, or none.
        """
        own: list[tuple[int, Path | str, int | None]] = [
            (self.handle, self.folder, None),
            (self._lock, self._lock_name, self.handle),
        ]
        if self._results is not None:
            own.append((self._results, self.path.name, self.handle))
        for handle, name, folder in own:
            with suppress(FileNotFoundError, NotADirectoryError):
                if os.path.samestat(os.fstat(handle), os.stat(name, dir_fd=folder)):
                    continue
            if handle == self._lock and self._retake_lock_file():
                continue
            raise LostFolderError(
                f"{self.folder / name} was moved, removed or replaced while this process was "
                "writing the run: it stops, and writes nothing more there. If another process "
                "runs it now, leave it to that one; if not, the same command resumes it"
            )

    def unlink(self, name: str) -> None:
        """Remove a file of the folder, if it is there.

        Args:
            name: Its name.

        Raises:
            LostFolderError: If the folder is no longer this owner's.
            OSError: If it cannot be removed.
        """
        self.verify()
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.handle)

    def _open(self, handle: int) -> int:
        self._resources.callback(os.close, handle)
        return handle

    def _open_lock_file(self) -> int:
        flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:  # writable, as some file systems lock nothing else; the umask says by whom
            return os.open(self._lock_name, flags | os.O_RDWR, 0o666, dir_fd=self.handle)
        except PermissionError:  # a colleague's, of before
            return os.open(self._lock_name, flags, dir_fd=self.handle)

    def _retake_lock_file(self) -> bool:
        """Return whether a lock file that was removed is there again: the folder is still held."""
        with suppress(OSError, ResultsError):
            if self._has_folder_lock:
                self._lock = self._open(self._open_lock_file())
                return self._take(self._lock)
        return False

    def _take(self, handle: int) -> bool:
        """Lock a file.

        Returns:
            Whether it is locked: a file system may offer no locks.

        Raises:
            ResultsError: If another process has locked it.
            OSError: If that cannot be told.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResultsError(
                f"{self.path} is being written by another process, which holds "
                f"{self._lock_name}: wait for it or stop it",
                error.errno,
            ) from error
        except OSError as error:
            if error.errno not in LOCK_NOT_OFFERED:
                raise
            return False
        return True


@contextmanager
def locked(path: Path) -> Iterator[Owner]:
    """Own a run's folder, so that it has one writer; the lock dies with its process.

    Args:
        path: The results file to be written.

    Yields:
        The owner, while the lock is held.

    Raises:
        ResultsError: If another process holds the lock.
        OSError: If there is no such folder, or the lock's file cannot be made.
    """
    owner = Owner(path)
    try:
        yield owner
    finally:
        owner.close()


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


@contextmanager
def replacing(path: Path, *, older: str | None = None, owner: Owner | None = None) -> Iterator[int]:
    """Write a file that is there whole or not at all, also after a kill or a power cut.

    Args:
        path: The file. ``<name>.partial`` beside it is used on the way.
        older: The name that the file there is kept under; None: it is replaced.
        owner: The owner of the folder, for a file of a run; None: whoever writes, writes.

    Yields:
        The descriptor of an empty file, open for reading and writing.

    Raises:
        LostFolderError: If the folder is no longer its owner's; nothing was written.
        OSError: If it cannot be written, or not made sure of: the older file is there, or the new.
    """
    partial = f"{path.name}.partial"
    with ExitStack() as opened:
        if owner is None:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, folder)
        else:
            owner.verify()
            folder = owner.handle
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(partial, flags, 0o666, dir_fd=folder)
        opened.callback(os.close, handle)
        try:
            yield handle
            os.fsync(handle)
            if owner is not None:
                owner.verify()
            if older is not None:
                with suppress(FileNotFoundError):
                    os.replace(path.name, older, src_dir_fd=folder, dst_dir_fd=folder)
            os.replace(partial, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=folder)
            raise
        if owner is not None and path.name == owner.path.name:
            owner.adopt(handle)
        _sync_folder(folder)


def _sync_folder(handle: int) -> None:
    """Make a rename in a folder survive a power cut.

    Raises:
        OSError: If the disk fails.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise


def write_text(path: Path, text: str, owner: Owner | None = None) -> None:
    """Write a text file that is there whole or not at all.

    Args:
        path: The file; an older one is replaced.
        text: Its content.
        owner: The owner of the folder, for a file of a run.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
        OSError: If it cannot be written.
    """
    try:
        with replacing(path, owner=owner) as handle:
            write_at(handle, text.encode(), 0)
    except OSError as error:
        if error.errno != errno.ENOSPC or not path.exists() or path.is_symlink():
            raise
        # A full disk has no room for a second file, but for these bytes where the older ones are.
        folder = None if owner is None else owner.handle
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(path if folder is None else path.name, flags, dir_fd=folder)
        try:
            write_at(handle, text.encode(), 0)
            os.ftruncate(handle, len(text.encode()))
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any, owner: Owner | None = None) -> None:
    """Write a JSON file that is there whole or not at all; NaN and infinities become ``null``.

    Args:
        path: The file; an older one is replaced.
        content: Dicts, lists, strings, numbers, booleans, None.
        owner: The owner of the folder, for a file of a run.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
        OSError: If it cannot be written.
    """
    text = json.dumps(plain_values(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, f"{text}\n", owner)


def plain_values(content: Any) -> Any:
    """Return the same content without the numbers JSON has no word for.

    Args:
        content: Dicts, lists, strings, numbers, booleans, None.

    Returns:
        The content; NaN and infinities are None.
    """
    if isinstance(content, dict):
        return {key: plain_values(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain_values(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
