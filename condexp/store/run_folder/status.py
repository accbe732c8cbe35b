"""Run folders: where a configuration's run lives, what state it is in, and how runs are found."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from condexp.errors import InputError, suggestion
from condexp.store.disk import read_json, write_json

STATUS_NAME = "status.json"
CONFIG_NAME = "config.yaml"

# What decides neither a number nor what is measured: where, how fast and how safely a run runs.
NOT_IDENTITY = (
    ("run",),
    ("store",),
    ("hydra",),
    ("profile",),
    ("dataset", "root"),
    ("dataset", "download"),
    ("trainer", "device"),
    ("trainer", "num_threads"),
    ("trainer", "checkpoint"),
)
OF_SEVERAL = (("trainer", "num_processes"), ("trainer", "sync_batchnorm"))
"""Keys that one process alone makes nothing of."""


class State(StrEnum):
    """How far a run is."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIVERGED = "diverged"
    COMPLETE = "complete"


@dataclass(frozen=True)
class Status:
    """The content of ``status.json``; what is not known, or not a number, is None.

    Attributes:
        state: How far the run is.
        step: Finished optimizer steps.
        num_steps: Steps of the whole run.
        epoch: Finished epochs.
        test_error: Of the last evaluation, in percent.
        best_test_error: The smallest so far, in percent.
        train_loss: Of the last evaluation.
        started: ISO 8601 time, UTC.
        updated: ISO 8601 time, UTC.
        seconds: Time spent so far.
        pid: The process that runs it.
        host: The machine it runs on.
        error: Message of what ended it, if something did.
        attempts: How often it was begun: anew, or after a failure; an interruption is none.
    """

    state: State
    step: int = 0
    num_steps: int = 0
    epoch: float | None = None
    test_error: float | None = None
    best_test_error: float | None = None
    train_loss: float | None = None
    started: str = ""
    updated: str = ""
    seconds: float = 0.0
    pid: int | None = None
    host: str = ""
    error: str | None = None
    attempts: int = 1


def identity_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that decides a run's numbers.

    Args:
        config: The whole configuration, as plain dicts, lists, strings and numbers.

    Returns:
        A copy without the keys of :data:`NOT_IDENTITY`, and of :data:`OF_SEVERAL` for one process.

    >>> identity_config({"seed": 1, "run": {"root": "x"}, "dataset": {"name": "a", "root": "b"}})
    {'seed': 1, 'dataset': {'name': 'a'}}
    """
    alone = config.get("trainer", {}).get("num_processes") == 1
    return _without(config, NOT_IDENTITY + OF_SEVERAL if alone else NOT_IDENTITY)


def identity_yaml(config: Mapping[str, Any]) -> str:
    """Write the identity configuration as text: one spelling, sorted, the same on every machine.

    Args:
        config: The whole configuration.

    Returns:
        YAML.
    """
    return yaml.dump(
        identity_config(config), Dumper=_PlainDumper, sort_keys=True, allow_unicode=True
    )


def identity_hash(config: Mapping[str, Any]) -> str:
    """Return 8 hexadecimal digits that name the identity configuration.

    Args:
        config: The whole configuration.

    Returns:
        The first digits of the SHA-256 of :func:`identity_yaml`; ``results.h5`` holds all of it.
    """
    return hashlib.sha256(identity_yaml(config).encode()).hexdigest()[:8]


def slug(config: Mapping[str, Any]) -> str:
    """Name a run for people.

    Args:
        config: The whole configuration.

    Returns:
        ``<model>-<dataset>-s<seed>``.

    >>> slug({"model": {"name": "mlp"}, "dataset": {"name": "digits"}, "seed": 1})
    'mlp-digits-s1'
    """
    return f"{config['model']['name']}-{config['dataset']['name']}-s{config['seed']}"


def run_folder(config: Mapping[str, Any]) -> Path:
    """Return where a configuration's run lives, on every machine and under every launcher.

    Args:
        config: The whole configuration.

    Returns:
        ``<run.root>/<experiment>/<slug>-<hash8>``.
    """
    experiment = config.get("experiment") or "default"
    return Path(config["run"]["root"]) / experiment / f"{slug(config)}-{identity_hash(config)}"


def write_status(folder: Path, status: Status) -> None:
    """Replace ``status.json``; a reader finds the old one or the new one, never a part.

    Args:
        folder: The run's folder.
        status: What to say.

    Raises:
        OSError: If it cannot be written.
    """
    write_json(folder / STATUS_NAME, asdict(status))


def read_status(folder: Path) -> Status:
    """Read ``status.json``.

    Args:
        folder: The run's folder.

    Returns:
        Its content; unknown keys, of a later version, are left out.

    Raises:
        InputError: If there is none, or it is no status.
    """
    content = read_json(folder / STATUS_NAME)
    known = {field.name for field in fields(Status)}
    try:
        given = {key: value for key, value in content.items() if key in known}
        return Status(**given | {"state": State(content["state"])})
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder / STATUS_NAME} names no state of a run: {error}") from error


def find_runs(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """Find the run folders, those with a ``status.json``, in and under some folders.

    Args:
        paths: Folders, or files of a run's folder.

    Returns:
        The folders, sorted, each once.

    Raises:
        InputError: If there is no run under one of the paths.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        runs = _runs_under(path if path.is_dir() else path.parent) if path.exists() else set()
        if not runs:
            parent = path.parent
            names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
            near = suggestion(path.name, (name for name in names if name != path.name))
            what = "holds no run" if path.exists() else "does not exist"
            raise InputError(f"no run found: {path} {what}.{near} Runs are made by 'condexp run'.")
        found |= runs
    return tuple(sorted(found))


def _runs_under(folder: Path) -> set[Path]:
    """Return the run folders, without walking into them: a grid may have thousands."""
    found = set()
    for current, folders, files in os.walk(folder):
        if STATUS_NAME in files:
            found.add(Path(current))
            folders.clear()
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]
    return found


def _without(config: Mapping[str, Any], excluded: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """Return a copy of nested mappings without some of their paths."""
    heads = {path[0] for path in excluded if len(path) == 1}
    copy = {}
    for key, value in config.items():
        if key not in heads:
            inner = tuple(path[1:] for path in excluded if path[0] == key)
            copy[key] = _without(value, inner) if isinstance(value, Mapping) else value
    return copy


class _PlainDumper(yaml.SafeDumper):
    """Equal values have equal texts: no anchors, and an enumeration is its name."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (the base class names it)
        """Return that a value is written again where it occurs again."""
        return True


_PlainDumper.add_multi_representer(StrEnum, lambda dumper, data: dumper.represent_str(str(data)))
