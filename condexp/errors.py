"""The one error a user can mend, and the limits of what may be given: fields, and their checks.

This is the lowest floor: specs of models and data sets stand beside their builders, and declare
their limits with these fields.
"""

import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any

# As one letter each, so that nothing that was laid out moves; a new line and a tab stay.
VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    # C1 controls, marks that turn the direction of what follows, and bytes that were no UTF-8.
    **dict.fromkeys([*range(0x80, 0xA0), 0x200E, 0x200F, 0x2028, 0x2029], 0xFFFD),
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}


def visible(text: str) -> str:
    r"""Show control characters as text: a terminal would obey them.

    Args:
        text: A text of unknown origin.

    Returns:
        The text, of the same length.

    >>> visible("\x1b[2J")
    '␛[2J'
    """
    return text if text.isascii() and text.isprintable() else text.translate(VISIBLE)


class InputError(ValueError):
    """A mistake in what was asked for: the command line prints its message and exits with 2.

    Args:
        message: What is wrong, and the way out; names and file contents may stand in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


class DamageError(InputError):
    """What is stored cannot be read, or is not what was written: no argument would mend it.

    A command that reads runs exits with 1, as if one of several could not be read.

    Args:
        message: What is wrong, and what is still good.
        arrays: Paths of the arrays of a results file that are damaged where others are not; a
            group's stands for all below it.
    """

    def __init__(self, message: str, arrays: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.arrays = tuple(arrays)


def suggestion(given: str, allowed: Iterable[str]) -> str:
    """Say which allowed name is nearest, ready to append to a message.

    Args:
        given: The name that was not found.
        allowed: The valid names.

    Returns:
        ``" Did you mean 'x'?"``, or an empty string where nothing is near.
    """
    near = difflib.get_close_matches(given.lower(), map(str, allowed), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def near_path(path: Path) -> str:
    """Say which path is nearest to one that does not exist, ready to append to a message.

    Args:
        path: What was not found.

    Returns:
        ``" Did you mean 'outputs/default'?"``; empty where nothing is near. The part that is wrong
        is looked for in its own folder, what follows it is not compared.
    """
    parents = [path, *path.parents]
    wrong = next((p for p in reversed(parents) if not os.path.lexists(p)), None)
    if wrong is None or not wrong.parent.is_dir():
        return ""
    try:
        names = [other.name for other in wrong.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(wrong.name, names, n=1, cutoff=0.5)
    if not near:
        return ""
    meant = wrong.parent / near[0] / path.relative_to(wrong)
    return f" Did you mean '{meant if os.path.lexists(meant) else wrong.parent / near[0]}'?"


def choose(what: str, given: str, allowed: Iterable[str]) -> str:
    """Return ``given`` if it is allowed.

    Args:
        what: What is being chosen, for the message (``"model"``).
        given: The name that was given.
        allowed: The valid names, in the order to print them.

    Returns:
        The name itself.

    Raises:
        InputError: If the name is not allowed; names the nearest valid one.

    >>> choose("model", "resnett", ["mlp", "resnet"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    condexp.errors.InputError: unknown model ...: allowed are mlp, resnet. Did you mean 'resnet'?
    """
    names = [str(name) for name in allowed]  # an enumeration prints as its value
    if given in names:
        return given
    raise InputError(
        f"unknown {what} {given!r}: allowed are {', '.join(names)}.{suggestion(given, names)}"
    )


def one_of(choices: Iterable[object]) -> Any:
    """A field that holds one of these names or numbers; ``null`` passes where the type admits it.

    Args:
        choices: The allowed values.

    Returns:
        The dataclass field.
    """
    return field(metadata={"choices": tuple(choices)})


def within(
    low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> Any:
    """A number, or a list of numbers, in an interval; ``null`` passes where the type admits it.

    Args:
        low: The smallest value.
        high: The largest value.
        open_low: Whether ``low`` itself is excluded.
        open_high: Whether ``high`` itself is excluded.

    Returns:
        The dataclass field.
    """
    limits = {"low": low, "high": high, "open_low": open_low, "open_high": open_high}
    return field(metadata=limits)


LARGEST = 10**9  # no count of a configuration is larger: neither steps nor samples nor sizes


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
            if "choices" in item.metadata and single is not None:
                choose(key, str(single), [str(choice) for choice in item.metadata["choices"]])
            if "low" in item.metadata and isinstance(single, (int, float)):
                _check_number(key, single, **item.metadata)
                if isinstance(single, int) and single > LARGEST:
                    raise InputError(f"{key}={single}: it must be at most {LARGEST}.")


def _check_number(
    key: str, value: float, *, low: float, high: float, open_low: bool, open_high: bool
) -> None:
    excluded = (open_low and value == low) or (open_high and value == high)
    if not low <= value <= high or excluded or not math.isfinite(value):
        bounds = f"{'greater than' if open_low else 'at least'} {low:g}"
        if math.isfinite(high):
            bounds += f" and {'less than' if open_high else 'at most'} {high:g}"
        raise InputError(f"{key}={value!r}: it must be {bounds}.")
