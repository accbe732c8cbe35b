"""Limits of a configuration field: declared where it is typed, checked in one place."""

import math
from collections.abc import Iterable
from dataclasses import field, fields, is_dataclass
from typing import Any

from condexp.errors import InputError, choose


def one_of(choices: Iterable[str]) -> Any:
    """A field that holds one of these names.

    Args:
        choices: The allowed names.

    Returns:
        The dataclass field.
    """
    return field(metadata={"choices": tuple(choices)})


def within(low: float, high: float = math.inf, *, open_low: bool = False) -> Any:
    """A number, or a list of numbers, in an interval; ``null`` passes where the type admits it.

    Args:
        low: The smallest value.
        high: The largest value.
        open_low: Whether ``low`` itself is excluded.

    Returns:
        The dataclass field.
    """
    return field(metadata={"low": low, "high": high, "open_low": open_low})


def check_limits(record: Any, path: str) -> None:
    """Check every field of a typed record, nested ones too.

    Args:
        record: The dataclass instance.
        path: The key of the record itself, for messages.

    Raises:
        InputError: At the first value outside its choices or its interval.
    """
    for item in fields(record):
        value, key = getattr(record, item.name), f"{path}.{item.name}"
        if is_dataclass(value):
            check_limits(value, key)
        for single in value if isinstance(value, (list, tuple)) else [value]:
            if "choices" in item.metadata:
                choose(key, str(single), [str(choice) for choice in item.metadata["choices"]])
            if "low" in item.metadata and isinstance(single, (int, float)):
                _check_number(key, single, **item.metadata)


def _check_number(key: str, value: float, *, low: float, high: float, open_low: bool) -> None:
    inside = low <= value <= high and not (open_low and value == low) and math.isfinite(value)
    if not inside:
        bounds = f"{'greater than' if open_low else 'at least'} {low:g}"
        bounds += f" and at most {high:g}" if math.isfinite(high) else ""
        raise InputError(f"{key}={value!r}: it must be {bounds}.")
