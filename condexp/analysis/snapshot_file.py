"""A snapshot as one file: nested records as plain values, which reading builds again."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_type_hints

import torch

from condexp.errors import InputError, near_path

VERSION = 1
KIND = "record"  # the key that says which record a dictionary is
LAZY = "domination_of"  # a function that is costly to call: its number is stored


def save_record(record: object, path: Path) -> None:
    """Write a record to a file of torch's.

    Args:
        record: A dataclass of numbers, texts, tensors and further records.
        path: The file.

    Raises:
        InputError: If it cannot be written; what was there before is still there.
    """
    partial = path.with_name(f"{path.name}.partial")
    content = {"condexp_snapshot": VERSION, "content": _plain(record)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise InputError(
                f"{path} cannot be written: it is no regular file, and nothing else is replaced"
            )
        try:
            torch.save(content, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch has errors of its own for missing folders
        raise InputError(f"{path} cannot be written: {error}") from error


def load_record(path: Path, kinds: Sequence[type]) -> object:
    """Read what ``save_record`` wrote (``weights_only=True``).

    Args:
        path: The file.
        kinds: The records that it may hold.

    Returns:
        The record.

    Raises:
        InputError: If there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise InputError(f"there is no snapshot {path}.{near_path(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["condexp_snapshot"]
    except Exception as error:  # a file of anybody's can make torch fail in any way
        raise InputError(f"{path} is no file that Snapshot.save wrote, or is damaged") from error
    if version != VERSION:
        raise InputError(f"{path} has version {version}; this condexp reads version {VERSION}")
    try:
        return _built(content["content"], {kind.__name__: kind for kind in kinds})
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    if is_dataclass(value):
        values = {item.name: getattr(value, item.name) for item in fields(value)}
        if LAZY in values:
            values[LAZY] = values[LAZY]()
        return {KIND: type(value).__name__, **{name: _plain(v) for name, v in values.items()}}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _built(value: Any, kinds: Mapping[str, type]) -> Any:
    if isinstance(value, tuple):
        return tuple(_built(each, kinds) for each in value)
    if not isinstance(value, dict):
        return value
    values = {key: _built(each, kinds) for key, each in value.items() if key != KIND}
    if KIND not in value:
        return values
    kind = kinds[value[KIND]]
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            values[name] = hint(values[name])
    if LAZY in values:
        values[LAZY] = _constant(values[LAZY])
    return kind(**values)


def _constant(number: float) -> Callable[[], float]:
    return lambda: number
