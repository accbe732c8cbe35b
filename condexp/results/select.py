"""Choose runs by their configuration: the ``--where key=value`` of tables, figures and reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from condexp.errors import InputError
from condexp.results.config_keys import flatten, key_hint, setting_text
from condexp.store.reader import Run
from condexp.store.run_folder.status import find_runs
from condexp.store.schema.layout import FILE_NAME


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
    """
    runs = find_runs(folders)
    conditions = [_split(condition) for condition in where]
    if not conditions:
        return list(runs)
    configs = {folder: _read(folder) for folder in runs}
    known = [config for config in configs.values() if config is not None]
    _require_keys([key for key, _ in conditions], known)
    met = [config is not None and _meets(config, conditions) for config in configs.values()]
    if not any(met):
        raise InputError(_nothing_left(conditions, known))
    return [run for run, is_met in zip(runs, met, strict=True) if is_met or configs[run] is None]


def with_snapshots(folders: Sequence[Path]) -> list[Run]:
    """Open the runs that have measured something.

    Args:
        folders: Run folders.

    Returns:
        Those with a snapshot; a run that failed before its first has none.
    """
    runs = [Run(folder / FILE_NAME) for folder in folders if (folder / FILE_NAME).is_file()]
    return [run for run in runs if run.steps]


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
