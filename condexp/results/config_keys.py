"""What a run is: its configuration in a few lines, and in one."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from condexp.errors import suggestion
from condexp.store.reader import Run

# The groups that say what was computed; where and on what it ran stands in provenance.json.
GROUPS = ("model", "dataset", "optimizer", "scheduler", "trainer", "analysis")


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """Read a key of a nested configuration.

    Args:
        config: The configuration.
        key: Names joined by dots, such as ``model.depth``.

    Returns:
        The value; ``None`` where the configuration has no such key.

    >>> lookup({"model": {"depth": 20}}, "model.depth")
    20
    """
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk through a nested configuration.

    Args:
        config: The configuration.
        prefix: What to put before each key.

    Yields:
        Each key joined by dots, with its value; lists as tuples, which can be compared and sorted.

    >>> dict(flatten({"seed": 1, "model": {"depth": 20, "sizes": [1, 2]}}))
    {'seed': 1, 'model.depth': 20, 'model.sizes': (1, 2)}
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


def setting_text(value: object) -> str:
    """Write a value of the configuration as it is given on the command line.

    Args:
        value: A value, as `flatten` yields it.

    Returns:
        ``"true"``, ``"null"``, ``"0.1"``, ``"[1,2]"``.

    >>> [setting_text(value) for value in (True, None, 0.1, (1, 2), "relu")]
    ['true', 'null', '0.1', '[1,2]', 'relu']
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"[{','.join(map(setting_text, value))}]" if isinstance(value, tuple) else str(value)


def key_hint(key: str, names: Iterable[str]) -> str:
    """Name the key that was probably meant: one that ends so (``depth``), else the nearest.

    Args:
        key: What was given.
        names: The keys that there are.

    Returns:
        A sentence with a space before it; empty where none is near.
    """
    names = list(names)
    ending = [name for name in names if name.endswith(f".{key}")]
    return f" Did you mean {ending[0]!r}?" if ending else suggestion(key, names)


def headline(run: Run) -> str:
    """Say in one line what was trained, and how far where that is not to the end.

    It goes by the steps that are stored, not by the state, as a run draws its figure before it is
    called complete.

    Args:
        run: The run.

    Returns:
        ``"resnet on digits, seed 1"``, and ``"diverged at step 17"`` or ``"40 of 300 steps"``.
    """
    title = str(run.attrs.get("title") or run.path.name)
    steps = run.metrics.dropna(subset="lr")
    num_steps = run.status.get("num_steps") or len(steps)
    if len(steps) and not math.isfinite(steps["loss"].iloc[-1]):
        return f"{title}, diverged at step {steps.index[-1]}"
    return title if len(steps) >= num_steps else f"{title}, {len(steps)} of {num_steps} steps"


def setting_table(run: Run) -> Table:
    """Lay out a run's configuration, one line a group.

    Args:
        run: The run.

    Returns:
        A table without borders; keys that are not set are left out.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for group in GROUPS:
        options = dict(flatten(lookup(run.config, group) or {}))
        name = options.pop("name", None)
        words = [] if name is None else [str(name)]
        words += [
            f"{key}={setting_text(value)}" for key, value in options.items() if value is not None
        ]
        if words:
            table.add_row(group, Text(" ".join(words)))
    seed = lookup(run.config, "seed")
    if seed is not None:
        table.add_row("seed", str(seed))
    return table
