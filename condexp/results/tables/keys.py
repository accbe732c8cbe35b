"""The keys of a table's rows and columns: found in the runs, sorted, and written."""

from collections.abc import Iterable, Sequence
from typing import TypeGuard

import pandas as pd

from condexp.errors import InputError
from condexp.results.config_keys import key_hint, setting_text
from condexp.results.tables.numbers import Mark

Key = tuple[object, ...]


def require_key(frame: pd.DataFrame, key: str) -> None:
    """Refuse a key that no run has.

    Args:
        frame: One row a run, from `collect`.
        key: Name of a column.

    Raises:
        InputError: If there is no such column; names the nearest.
    """
    if key in frame.columns:
        return
    if frame.attrs.get("identity_keys") == ():
        raise InputError(
            f"none of {len(frame)} runs can be read, so there is nothing to tabulate: 'condexp "
            "status' says of each what is wrong."
        )
    # Not `choose`: it would list thousands of measures.
    hint = key_hint(key, map(str, frame.columns))
    if not hint and frame.attrs.get("num_measured") == 0:
        hint = " None of these runs has a snapshot, so there are no measures."
    raise InputError(
        f"unknown table key {key!r}: a key is a configuration key (model.depth, seed), a result "
        f"(test_error) or <layer>.<measure> (last_linear.input_kappa_0.5).{hint}"
    )


def keys_of(frame: pd.DataFrame, names: Sequence[str]) -> list[Key]:
    """Return the values of some keys.

    Args:
        frame: One row a run.
        names: Names of columns.

    Returns:
        One tuple a run; ``None`` where a run does not have the key.
    """
    # As objects: a run without the key must not turn other runs' integers into floats.
    columns = [frame[name].astype(object) for name in names]
    values = [column.where(column.notna(), None).tolist() for column in columns]
    return list(zip(*values, strict=True)) if values else [()] * len(frame)


def sort_keys(keys: Iterable[Key]) -> tuple[Key, ...]:
    """Sort keys by size where they are numbers, by spelling where they are not.

    Args:
        keys: The keys.

    Returns:
        Each once; numbers come before text.
    """
    return tuple(sorted(set(keys), key=_order))


def key_text(part: object) -> str:
    """Write the value of a key.

    Args:
        part: The value.

    Returns:
        As on the command line (``true``, ``0.1``); ``–`` where there is none.
    """
    if part is None:
        return str(Mark.MISSING)
    # A frame keeps integers as floats where another run lacks the key.
    return str(int(part)) if _is_whole(part) else setting_text(part)


def describe(names: Sequence[str], key: Key) -> tuple[str, ...]:
    """Write the parts of a key with their names.

    Args:
        names: The names.
        key: Their values.

    Returns:
        ``("model.depth=20", "model.last_bn=true")``.
    """
    return tuple(f"{name}={key_text(part)}" for name, part in zip(names, key, strict=True))


def _is_whole(part: object) -> TypeGuard[float]:
    return isinstance(part, float) and part.is_integer()


def _order(key: Key) -> tuple[tuple[bool, float, str], ...]:
    return tuple(
        (False, float(part), "") if isinstance(part, int | float) else (True, 0.0, key_text(part))
        for part in key
    )
