"""``status.json``: how far a run is. It also marks the folders that are runs."""

import hashlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

from condexp.errors import DamageError, InputError, near_path, visible
from condexp.store.disk import Owner, plain_values, write_json
from condexp.store.files import read_json
from condexp.store.schema.layout import FILE_NAME

STATUS_NAME = "status.json"
CONFIG_NAME = "config.yaml"
logger = logging.getLogger("condexp")
CHECKSUM = "sha256"  # of the other keys
SHOWN = 3  # runs, in a message
MANY = 10**12  # more steps, and more seconds, than any run has
LINK_LEVELS = 2  # a link leads to a run, to an experiment or to a folder of experiments


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
    content = plain_values(asdict(status))  # texts as they are read, for the checksum
    content = {k: visible(v) if isinstance(v, str) else v for k, v in content.items()}
    write_json(folder / STATUS_NAME, content | {CHECKSUM: _checksum(content)}, owner)


def read_status(folder: Path) -> Status:
    """Read ``status.json``.

    Args:
        folder: The run's folder.

    Returns:
        Its content; unknown keys, of a later version, are left out.

    Raises:
        InputError: If there is none.
        DamageError: If it is no status.
    """
    path = folder / STATUS_NAME
    content = read_json(path)
    stored = content.pop(CHECKSUM, None)  # a person's own may have none
    if stored is not None and stored != _checksum(content):
        raise DamageError(f"{path} is damaged: it does not match its checksum")
    try:
        given: dict[str, Any] = {"state": State(content["state"])}
    except (KeyError, ValueError) as error:
        raise DamageError(f"{path} names no state of a run: {error}") from error
    for field in fields(Status)[1:]:
        if field.name in content:
            value = content[field.name]
            if not _fits(value, field.type):
                kind = getattr(field.type, "__name__", field.type)
                raise DamageError(f"{path}: {field.name} is {str(value)[:40]!r}, not {kind}")
            given[field.name] = value
    return Status(**given)


def last_known(folder: Path) -> Status:
    """Read the status of a run that is to go on.

    Args:
        folder: The run's folder, with a status.

    Returns:
        Its content. One that is damaged says nothing: its lock then tells whether a process is at
        the run, and its checkpoint how far it came.
    """
    try:
        return read_status(folder)
    except InputError as damage:
        logger.warning("%s; it says nothing of the run", damage)
        return Status(State.RUNNING)


def _fits(value: object, kind: Any) -> bool:
    """Return whether a value can be that of a field; counts and times are not negative."""
    kinds = get_args(kind) or (kind,)
    if value is None or isinstance(value, bool | str):
        return type(value) in kinds
    if not isinstance(value, int | float) or not math.isfinite(value):
        return False
    counted = int in kinds or kind is float
    in_range = 0 <= value < MANY if counted else True
    return in_range and (float in kinds or (int in kinds and isinstance(value, int)))


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
    found: dict[object, Path] = {}
    for path in map(Path, paths):
        there = Path(path).exists()
        runs = _runs_under(path if path.is_dir() else path.parent) if there else {}
        if not runs:
            what = "holds no run." if there else f"does not exist.{near_path(path)}"
            raise InputError(f"no run found: {path} {what} Runs are made by 'condexp run'.")
        found = runs | found
    return tuple(sorted(found.values()))


def find_results(given: Path) -> Path:
    """Find the results file of one run.

    Args:
        given: The run's folder, or the file.

    Returns:
        The file.

    Raises:
        InputError: If there is none: which runs are there, or what was probably meant.
        DamageError: If there is a run without one.
    """
    file = given / FILE_NAME if given.is_dir() else given
    if os.path.lexists(file):
        return file
    if not given.is_dir():
        raise InputError(f"no run at {given}: it does not exist.{near_path(given)}")
    if os.path.lexists(given / STATUS_NAME):
        raise DamageError(
            f"no run at {given}: {file} does not exist; 'condexp status {given}' and "
            f"run.log there say what became of the run."
        )
    runs = [str(run) for run in sorted(_runs_under(given).values())]
    if not runs:
        raise InputError(f"no run at {given}: it holds none. Runs are made by 'condexp run'.")
    more = f", … ({len(runs)} runs: condexp status {given})" if len(runs) > SHOWN else ""
    raise InputError(
        f"no run at {given}: it is a folder of runs; give one of them: "
        f"{', '.join(runs[:SHOWN])}{more}"
    )


def _runs_under(folder: Path) -> dict[object, Path]:
    """Return the run folders, without walking into them: a sweep may have thousands.

    Links are followed a few levels deep, for they may lead anywhere. A folder that cannot be read
    may be a run, and is taken for one.
    """
    found: dict[object, Path] = {}
    seen: set[object] = set()
    waiting = deque([(folder, -1)])  # links at the front: a run is called by its own name
    while waiting:
        current, levels = waiting.pop()
        try:
            there = current.stat()
            inode = there.st_dev, there.st_ino
            if inode in seen:
                continue
            seen.add(inode)
            entries = list(os.scandir(current))
        except OSError:
            found[current] = current
            continue
        if any(entry.name == STATUS_NAME for entry in entries):
            found[inode] = current
        elif levels != 0:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir():
                    if levels < 0 and entry.is_symlink():
                        waiting.appendleft((Path(entry.path), LINK_LEVELS))
                    else:
                        waiting.append((Path(entry.path), levels - 1))
    return found
