"""``status.json``: how far a run is. It also marks the folders that are runs."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from condexp.errors import InputError, suggestion
from condexp.store.disk import Owner, plain_values, read_json, write_json

STATUS_NAME = "status.json"
CONFIG_NAME = "config.yaml"
CHECKSUM = "sha256"  # of the other keys


class State(StrEnum):
    """How far a run is."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIVERGED = "diverged"
    COMPLETE = "complete"


FINISHED = frozenset({State.COMPLETE, State.DIVERGED})


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


def write_status(folder: Path, status: Status, owner: Owner | None = None) -> None:
    """Replace ``status.json``; a reader finds the old one or the new one, never a part.

    Args:
        folder: The run's folder.
        status: What to say.
        owner: The owner of the folder; None where no process runs the run.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
        OSError: If it cannot be written.
    """
    content = plain_values(asdict(status))
    write_json(folder / STATUS_NAME, content | {CHECKSUM: _checksum(content)}, owner)


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
    stored = content.pop(CHECKSUM, None)  # a person's own may have none
    if stored is not None and stored != _checksum(content):
        raise InputError(f"{folder / STATUS_NAME} is damaged: it does not match its checksum")
    known = {field.name for field in fields(Status)}
    try:
        given = {key: value for key, value in content.items() if key in known}
        return Status(**given | {"state": State(content["state"])})
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder / STATUS_NAME} names no state of a run: {error}") from error


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    """Return the run folders, without walking into them: a sweep may have thousands."""
    found = set()
    for current, folders, files in os.walk(folder):
        if STATUS_NAME in files:
            found.add(Path(current))
            folders.clear()
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]
    return found
