"""Choose runs by their configuration: the ``--where key=value`` of tables, figures and reports."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from condexp.errors import DamageError, InputError
from condexp.results.config_keys import flatten, key_hint, setting_text
from condexp.store.hdf5.validate import check_structure
from condexp.store.reader import Run
from condexp.store.run_folder.completeness import read_statuses
from condexp.store.run_folder.identity import identity_hash
from condexp.store.schema.layout import FILE_NAME

T = TypeVar("T")
logger = logging.getLogger("condexp")


def select(folders: Sequence[Path], where: Sequence[str] = ()) -> list[Path]:
    """Run folders below ``folders`` whose configuration has these values.

    Args:
        folders: Run folders, or folders that hold run folders at any depth.
        where: Conditions ``key=value``, such as ``model.last_bn=true``; a run must meet all. A
            value is compared as YAML writes it, numbers by what they are (``1e-1`` is ``0.1``).

    Returns:
        The folders, sorted. A run whose configuration cannot be read may be one of those that are
        wanted, so it is not left out in silence.

    Raises:
        InputError: If there is no run, a condition has no such form, no run has such a key, or no
            run meets all conditions.
        DamageError: If no run's configuration can be read.
    """
    runs = tuple(read_statuses(folders))
    conditions = [_split(condition) for condition in where]
    if not conditions:
        return list(runs)
    configs = {folder: _read(folder) for folder in runs}
    known = [config for config in configs.values() if config is not None]
    if not known:
        raise DamageError(f"none of {len(runs)} runs has a configuration that can be read")
    _require_keys([key for key, _ in conditions], known)
    met = [config is not None and _meets(config, conditions) for config in configs.values()]
    if not any(met):
        raise InputError(_nothing_left(conditions, known))
    return [run for run, is_met in zip(runs, met, strict=True) if is_met or configs[run] is None]


def common_folder(folders: Sequence[Path]) -> Path:
    """Find where a figure or a page of several folders of runs belongs.

    Args:
        folders: Folders, or files of a run's folder; at least one.

    Returns:
        The only one itself, else the deepest folder that holds them all.
    """
    own = [path if path.is_dir() else path.parent for path in folders]
    return own[0] if len(set(own)) == 1 else Path(os.path.commonpath([p.absolute() for p in own]))


def has_snapshots(run: Run) -> bool:
    """Return whether a run has measured something at a snapshot.

    Args:
        run: The run.
    """
    return bool(run.steps)


def with_snapshots(
    folders: Sequence[Path], measured: Callable[[Run], bool] = has_snapshots
) -> list[Run]:
    """Open the runs that have measured something.

    Args:
        folders: Run folders.
        measured: Whether a run has what is wanted.

    Returns:
        Those that have; a run that failed before its first snapshot has not. One that cannot be
        read is left out, and the log says so; so is a second run of one experiment, for a pair
        would count twice.
    """
    found: dict[str, Run] = {}
    for folder in folders:
        run = None
        with leaving_out_unreadable(folder):
            run = opened(folder, measured)
        if run is not None:
            other = found.setdefault(identity_hash(run.config), run)
            if other is not run:
                logger.warning(
                    "%s is the same experiment as %s, and counts once", run.path, other.path
                )
    return list(found.values())


def opened(folder: Path, measured: Callable[[Run], bool] = has_snapshots) -> Run | None:
    """Open a run if it has measured something.

    Args:
        folder: Its folder.
        measured: Whether a run has what is wanted.

    Returns:
        The run; None where it has not.

    Raises:
        InputError: If its status, its configuration or its results cannot be read.
    """
    run = Run(folder / FILE_NAME)
    if os.path.lexists(run.file):
        check_structure(run.file)
        return run if run.status is not None and run.config and measured(run) else None
    return None


@contextmanager
def leaving_out_unreadable(folder: Path) -> Iterator[None]:
    """Let one run that cannot be read hide no other: it is left out, with an error in the log.

    Args:
        folder: The run's folder.

    Yields:
        Nothing.
    """
    try:
        yield
    except InputError as damage:
        logger.error("left out: %s", damage)
    # Whatever somebody else's run holds, it is that run's own failure.
    except Exception as error:
        logger.error("left out: %s is damaged: %s: %s", folder, type(error).__name__, error)


def with_those_that_can(runs: Sequence[Run], act: Callable[[Sequence[Run]], T]) -> T:
    """Do something with runs, without those that somebody made so that it fails.

    Args:
        runs: The runs.
        act: What is done with all of them together.

    Returns:
        What it returns.

    Raises:
        InputError: What it raises.
    """
    try:
        return act(runs)
    except InputError:
        raise
    except Exception:
        able = []
        for run in runs:
            with leaving_out_unreadable(run.path):
                act([run])
                able.append(run)
        if len(able) in {0, len(runs)}:
            raise  # it is not a run's fault
        return act(able)


def _split(condition: str) -> tuple[str, str]:
    key, sign, text = condition.partition("=")
    if not (key.strip() and sign):
        raise InputError(
            f"a condition has the form key=value, such as model.depth=20; {condition!r} has not."
        )
    return key.strip(), text.strip()


def _read(folder: Path) -> Mapping[str, Any] | None:
    try:
        return dict(flatten(Run(folder / FILE_NAME).config)) or None
    except (InputError, OSError):
        return None


def _meets(config: Mapping[str, Any], conditions: Sequence[tuple[str, str]]) -> bool:
    return all(key in config and _is(config[key], text) for key, text in conditions)


def _is(value: object, text: str) -> bool:
    if text == setting_text(value):
        return True
    try:
        return not isinstance(value, bool | str) and float(text) == value
    except ValueError:
        return False


def _require_keys(keys: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> None:
    known = dict.fromkeys(key for config in configs for key in config)
    for key in keys:
        if key not in known:
            hint = key_hint(key, known)
            raise InputError(f"no run has the configuration key {key!r} of a condition.{hint}")


def _nothing_left(
    conditions: Sequence[tuple[str, str]], configs: Sequence[Mapping[str, Any]]
) -> str:
    wanted = " and ".join(f"{key}={text}" for key, text in conditions)
    values = {
        key: dict.fromkeys(setting_text(config[key]) for config in configs if key in config)
        for key, _ in conditions
    }
    given = "; ".join(f"{key} is {', '.join(sorted(texts))}" for key, texts in values.items())
    return f"none of {len(configs)} runs has {wanted}: in these runs {given}."
