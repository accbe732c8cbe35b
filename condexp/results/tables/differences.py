"""Paired differences between the values of one key, seed by seed, for each cell of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from condexp.errors import InputError
from condexp.results.tables.keys import Key, key_text, keys_of, require_key, sort_keys
from condexp.results.tables.numbers import is_kappa
from condexp.results.tables.paired import PairedDifference, paired_difference


@dataclass(frozen=True)
class Contrast:
    """One value of the paired key against the first, in one cell.

    Attributes:
        difference: Of the pairs whose two runs are complete with a value; of condition numbers in
            decades, log₁₀ κ.
        num_pairs: Number of seeds that either of the two values has a run of.
    """

    difference: PairedDifference
    num_pairs: int


@dataclass(frozen=True)
class Differences:
    """What changing one key does to a value, by the other keys of a table.

    Attributes:
        key: The key whose values are compared.
        reference: The value that is subtracted.
        others: The values it is subtracted from.
        rows: Names of the keys that make the rows.
        cols: Names of the keys that make the columns.
        row_keys: Values of ``rows``, sorted.
        col_keys: Values of ``cols``, sorted.
        cells: By row key, column key and one of ``others``.
    """

    key: str
    reference: object
    others: tuple[object, ...]
    rows: tuple[str, ...]
    cols: tuple[str, ...]
    row_keys: tuple[Key, ...]
    col_keys: tuple[Key, ...]
    cells: Mapping[tuple[Key, Key, object], Contrast]

    def name(self, other: object) -> str:
        """Write a contrast.

        Args:
            other: One of ``others``.

        Returns:
            ``"model.last_bn: true − false"``.
        """
        return f"{self.key}: {key_text(other)} − {key_text(self.reference)}"


def paired_key(paired: str) -> str:
    """Return the key of ``key`` or ``key=reference``.

    Args:
        paired: What ``--paired`` was given.

    Returns:
        The key.
    """
    return paired.partition("=")[0].strip()


def make_differences(
    frame: pd.DataFrame, rows: Sequence[str], cols: Sequence[str], value: str, paired: str
) -> Differences:
    """Compare the values of a key, in runs of the same seed and the same other keys.

    Args:
        frame: One row a run, from `collect`.
        rows: Keys of the table's rows; the compared key is left out of them.
        cols: Keys of the table's columns, likewise.
        value: What is compared, such as ``test_error``.
        paired: The compared key, as ``model.last_bn``: all its values against the first in order;
            or with the value that the others are compared with, as ``model.norm=none``.

    Returns:
        The differences.

    Raises:
        InputError: If there is no such key or value, the key has one value only, or two runs of one
            seed could both be a member of the same pair.
    """
    key, _, wanted = (part.strip() for part in paired.partition("="))
    require_key(frame, key)
    values = [part for (part,) in sort_keys(keys_of(frame, [key])) if part is not None]
    reference = _reference(key, wanted, values)
    rows, cols = (tuple(name for name in names if name != key) for names in (rows, cols))
    row_of, col_of = keys_of(frame, rows), keys_of(frame, cols)
    places: dict[tuple[Key, Key], list[int]] = {}
    for index, place in enumerate(zip(row_of, col_of, strict=True)):
        places.setdefault(place, []).append(index)
    others = tuple(other for other in values if other != reference)
    cells = {}
    for place, indices in places.items():
        cell = frame.iloc[indices]
        of_value = {part: _by_seed(cell, key, part, value) for part in values}
        for other in others:
            cells[*place, other] = _contrast(of_value[reference], of_value[other])
    row_keys, col_keys = sort_keys(row_of), sort_keys(col_of)
    return Differences(key, reference, others, rows, cols, row_keys, col_keys, cells)


def _reference(key: str, wanted: str, values: Sequence[object]) -> object:
    texts = [key_text(part) for part in values]
    if len(values) < 2:
        only = f"{key} is {texts[0]} in all runs" if texts else f"no run has {key}"
        raise InputError(f"no paired difference: {only}, and two values of it are needed.")
    if wanted and wanted not in texts:
        raise InputError(f"no run has {key}={wanted}: {key} is {', '.join(texts)}.")
    return values[texts.index(wanted)] if wanted else values[0]


def _by_seed(cell: pd.DataFrame, key: str, part: object, value: str) -> dict[object, float]:
    # NaN where a run is not complete.
    runs = cell[cell[key].astype(object) == part]
    twice = runs[runs["seed"].duplicated(keep=False)]
    if len(twice):
        seed = twice["seed"].iloc[0]
        same = twice[twice["seed"] == seed]
        names = [name for name in cell.attrs.get("identity_keys", ()) if name in same]
        differing = [name for name in names if same[name].nunique(dropna=False) > 1]
        raise InputError(
            f"no paired difference: {len(same)} runs have {key}={key_text(part)} and "
            f"seed={key_text(seed)} in one cell. They differ in {', '.join(differing) or 'path'}: "
            "put it in --rows or --cols, or choose with --where."
        )
    numbers = runs[value].to_numpy(dtype=float, na_value=float("nan"))
    if is_kappa(value):
        numbers = np.log10(numbers)
    numbers = np.where(runs["state"] == "complete", numbers, np.nan)
    return dict(zip(runs["seed"], numbers.tolist(), strict=True))


def _contrast(first: Mapping[object, float], second: Mapping[object, float]) -> Contrast:
    seeds = list(dict.fromkeys([*first, *second]))
    members = ([of.get(seed, float("nan")) for seed in seeds] for of in (first, second))
    return Contrast(paired_difference(*members), len(seeds))
