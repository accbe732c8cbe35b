"""The door through which every file of a run is read: anybody may have written it.

What comes through is a regular file of a bounded size, and plain values whose control characters
are text.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from condexp.errors import DamageError, InputError, visible

TEXT_BYTES = 1 << 18  # config.yaml has a few thousand bytes, and the layers that were named
JSON_BYTES = 1 << 24  # of status.json and provenance.json, which quotes a difference to a commit
MAX_VALUES = 100_000
MAX_DEPTH = 20
INT_LIMIT = 1 << 63
# libyaml, ten times faster over a thousand runs, where PyYAML was built with it.
SAFE_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
GROUP = re.compile(r"[A-Za-z_]\w*:(?: .*)?\n(?: .*\n)*")


def open_regular(path: Path) -> int:
    """Open a file for reading, if it is one: a device, a pipe or a socket could wait for ever.

    Args:
        path: The file, or a link to it.

    Returns:
        Its descriptor.

    Raises:
        OSError: If it is missing, cannot be read, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return handle


@contextmanager
def saving(path: Path) -> Iterator[BinaryIO]:
    """Write a file that a command was asked for, whole or not at all.

    Args:
        path: The file; its folder is made. A regular file there is replaced, and nothing else.

    Yields:
        Where to write.

    Raises:
        OSError: If it is no regular file; told as the next.
        InputError: If it cannot be written, to its close.
    """
    partial = path.with_name(f"{path.name}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "it is no regular file, and nothing else is replaced")
        try:
            with os.fdopen(os.open(partial, flags, 0o666), "wb") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def read_text(path: Path, max_bytes: int = TEXT_BYTES) -> str:
    """Read a text file of a run.

    Args:
        path: The file.
        max_bytes: What it may have at most.

    Returns:
        Its content.

    Raises:
        InputError: If there is none.
        DamageError: If it cannot be read, is larger, or is no text.
    """
    content = read_bytes(path, max_bytes)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DamageError(f"{path} is no text: {error.reason}") from error


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a file of a run.

    Args:
        path: The file.
        max_bytes: What it may have at most.

    Returns:
        Its content.

    Raises:
        InputError: If there is none.
        DamageError: If it cannot be read, or is larger.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}") from error
    except OSError as error:
        raise DamageError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise DamageError(f"{path} is larger than the {max_bytes >> 10} KiB it may have")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        InputError: If there is no such file.
        DamageError: If it holds something else.
    """
    text = read_text(path, JSON_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} is not JSON: {error}") from error
    return _plain_object(path, content)


def parse_yaml(path: Path, text: str) -> dict[str, Any]:
    """Parse a mapping in YAML.

    Args:
        path: Where it stands, for messages.
        text: The YAML.

    Returns:
        The mapping.

    Raises:
        DamageError: If it is something else.
    """
    try:
        content = _by_group(text) or yaml.load(text, Loader=SAFE_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamageError(f"{path} is damaged: {reason}") from error
    return _plain_object(path, content)


def _by_group(text: str) -> dict[str, Any]:
    """Return a mapping in YAML, each group parsed once: a grid's runs differ in a few of them.

    Returns:
        The mapping; empty where it has to be parsed as a whole.
    """
    found: dict[str, Any] = {}
    place = 0
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        while group := GROUP.match(text, place):
            found |= _loaded(group.group())
            place = group.end()
    return found if place == len(text) else {}


@lru_cache(maxsize=1 << 7)
def _loaded(group: str) -> Any:
    return yaml.load(group, Loader=SAFE_LOADER)


def _plain_object(path: Path, content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DamageError(f"{path} does not hold an object")
    num_left = [MAX_VALUES]
    return {str(key): _plain(path, value, num_left) for key, value in content.items()}


def _plain(path: Path, value: object, num_left: list[int], depth: int = 0) -> Any:
    """Return a copy of plain values; YAML's references can make a few bytes endless.

    Raises:
        DamageError: If they are too many, or others.
    """
    num_left[0] -= 1
    if num_left[0] < 0 or depth > MAX_DEPTH:
        raise DamageError(f"{path} holds more than {MAX_VALUES} values, or {MAX_DEPTH} levels")
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {
            visible(str(key)): _plain(path, each, num_left, depth + 1)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_plain(path, each, num_left, depth + 1) for each in value]
    if isinstance(value, int) and abs(value) >= INT_LIMIT:
        raise DamageError(f"{path} holds a whole number of more than 64 bits")
    if value is None or isinstance(value, int | float):
        return value
    raise DamageError(f"{path} holds a value of type {type(value).__name__}, no plain one")
