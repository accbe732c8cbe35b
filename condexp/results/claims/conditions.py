"""The conditions of a claim: runs of one condition differ in the seed alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from condexp.errors import InputError
from condexp.results.config_keys import flatten, setting_text
from condexp.store.reader import Run
from condexp.store.run_folder.identity import identity_config, identity_hash
from condexp.store.run_folder.status import State

ENDED = (State.COMPLETE, State.DIVERGED)
CHOOSING_SEEDS = frozenset({101, 102})
"""Settings are chosen on these seeds, so a verdict on them would be on the choice: not judged."""


def describe(runs: Sequence[Run], factors: Collection[str] = ()) -> list[dict[str, Any]]:
    """Say of each run what every row of a claim's measurements begins with.

    Args:
        runs: The runs.
        factors: Configuration keys whose effect is looked at: they are no part of the condition.

    Returns:
        For each run ``condition`` (its network and data, and each other key that differs among the
        runs of this network on these data, by the last part of its name where that is the key's
        alone), ``seed`` and ``state``. A key that says nothing which one before it does not say
        is left out.

    Raises:
        InputError: If two runs are the same experiment, so that a pair would count twice.
    """
    known: dict[str, Run] = {}
    for run in runs:
        other = known.setdefault(identity_hash(run.config), run)
        if other is not run:
            raise InputError(f"{other.path} and {run.path} are the same experiment: name one.")
    configs = [dict(flatten(identity_config(run.config))) for run in runs]
    names = [f"{config.get('model.name')} on {config.get('dataset.name')}" for config in configs]
    found = []
    for run, config, name in zip(runs, configs, names, strict=True):
        family = [other for other, its in zip(configs, names, strict=True) if its == name]
        words = [name, *_words(config, family, {"seed", *factors})]
        state = run.status.get("state", State.COMPLETE)
        found.append({
            "condition": ", ".join(words),
            "seed": config.get("seed"),
            "state": str(state),
        })
    return found


def judged(frame: pd.DataFrame) -> pd.DataFrame:
    """Take the runs that a verdict may rest on.

    Args:
        frame: A claim's measurements, with the columns ``seed`` and ``state``.

    Returns:
        Those of runs that have ended, of seeds on which no setting was chosen.
    """
    ended = frame["state"].isin([str(state) for state in ENDED])
    return frame[ended & ~frame["seed"].isin(CHOOSING_SEEDS)]


def at_most(frame: pd.DataFrame, name: str, high: str) -> pd.Series[float]:
    """Return condition numbers as what they may be at most, against a claim that they are small.

    Args:
        frame: A claim's measurements.
        name: The column of the numbers.
        high: The column of the high ends of their intervals; it may be missing.

    Returns:
        The numbers, infinite where they are known from below only.
    """
    if high not in frame:
        return frame[name]
    return frame[name].mask(np.isposinf(frame[high]), np.inf)


def lacking(frame: pd.DataFrame, present: pd.DataFrame) -> dict[str, list[Any]]:
    """Find the seeds that one condition lacks and another of its network and data has.

    How many seeds there are is fixed beforehand: a condition that has fewer waits for the others.

    Args:
        frame: The runs of the whole grid, with the columns ``condition`` and ``seed``.
        present: The runs that can be compared, likewise.

    Returns:
        The seeds by condition; conditions that lack none are left out.
    """
    family = frame["condition"].map(_family)
    found = {}
    for condition in frame["condition"].unique():
        wanted = frame.loc[family == _family(condition), "seed"]
        have = set(present.loc[present["condition"] == condition, "seed"])
        if missing := sorted(set(wanted) - have, key=str):
            found[str(condition)] = missing
    return found


def unfinished(frame: pd.DataFrame) -> Iterator[str]:
    """Say which runs did not complete, and which are not judged.

    Args:
        frame: A claim's measurements, with the columns ``run``, ``seed`` and ``state``.

    Yields:
        A remark for each state, and one for runs whose seeds chose the settings.
    """
    runs = frame.drop_duplicates("run")
    states = runs["state"]
    for state, num in states[states != State.COMPLETE].value_counts().sort_index().items():
        yield f"{num} of {len(states)} runs {'is' if num == 1 else 'are'} {state}"
    if num := int(runs["seed"].isin(CHOOSING_SEEDS).sum()):
        seeds = " and ".join(map(str, sorted(CHOOSING_SEEDS)))
        yield f"{num} of {len(states)} runs are of seeds {seeds}, which choose settings: not judged"


def _words(
    config: dict[str, Any], family: Sequence[dict[str, Any]], left_out: Collection[str]
) -> Iterator[str]:
    """Yield what sets a run apart from the others of its network and data."""
    varied = [key for key in _varied(family) if key not in left_out]
    texts = {key: [setting_text(each.get(key)) for each in family] for key in varied}
    said: list[str] = []
    for key in varied:  # but not analysis.probe.mode, where each analysis.fisher_type has its own
        if not any(_pairs_off(texts[key], texts[other]) for other in said):
            said.append(key)
    last_parts = [key.rpartition(".")[2] for key in said]
    for key, short in zip(said, last_parts, strict=True):
        name = short if last_parts.count(short) == 1 else key
        yield f"{name}={setting_text(config.get(key))}"


def _pairs_off(one: Sequence[str], other: Sequence[str]) -> bool:
    # Whether each value of one key goes with one value of the other, and the reverse.
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def _family(condition: str) -> str:
    return condition.partition(", ")[0]


def _varied(configs: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({setting_text(each.get(key)) for each in configs}) > 1]
