"""Check a composed configuration: one clear message for the first key that is wrong.

Hydra composes; this module validates the *composed* configuration, so a typo that was added with
``+`` is found like any other.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from condexp.config import GROUPS, Config
from condexp.config.by_name import PACKAGES, find
from condexp.errors import InputError, check_limits, choose, suggestion

T = TypeVar("T")
MAX_CHECKED = 1 << 10
_checked: dict[tuple[str, str], tuple[Any, Any]] = {}


def parse_config(
    composed: DictConfig, experiment: str = "default", profile: str | None = None
) -> Config:
    """Check a composed configuration key by key.

    Args:
        composed: What Hydra composed; ``hydra`` itself is ignored.
        experiment: The name of the experiment preset.
        profile: The name of the profile, if one was chosen.

    Returns:
        The typed configuration.

    Raises:
        InputError: At the first key that is unknown, missing, of the wrong type or out of range.
    """
    try:
        raw = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"the configuration cannot be resolved: {error}") from error
    values = {str(key): value for key, value in cast("dict[Any, Any]", raw).items()}
    values.pop("hydra", None)
    _refuse_unknown("", values, [*GROUPS, "seed"])
    seed = values.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise InputError(f"seed={seed!r}: give a whole number from 0 to 2^31 - 1.")
    checked = {key: _checked_group(key, values.get(key)) for key in GROUPS}
    groups = {key: group for key, (group, _) in checked.items()}
    config = Config(experiment=experiment, profile=profile, seed=seed, plain={}, **groups)
    _check_together(config)
    plain = {key: values for key, (_, values) in checked.items()}
    config.plain = {"experiment": experiment, "profile": profile, "seed": seed, **plain}
    return config


def _checked_group(group: str, values: object) -> tuple[Any, Any]:
    """Return a group as its dataclass and as plain values, its own each time.

    A sweep's jobs have most groups in common: what was checked once is copied.
    """
    key = group, repr(values)
    if key not in _checked:
        if len(_checked) >= MAX_CHECKED:
            _checked.clear()
        made = _typed_group(group, values)
        if group == "run":
            made.root = str(Path(made.root).expanduser())  # no shell saw a file's ~
        _checked[key] = made, OmegaConf.to_container(OmegaConf.structured(made))
    return deepcopy(_checked[key])


def _typed_group(group: str, values: object) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{group}={values!r}: choose a file of conf/{group}/ by {group}=NAME.")
    schema, name = GROUPS[group], str(values.get("name"))
    if group in PACKAGES:
        schema = find(group, name).Spec
    elif isinstance(schema, Mapping):
        schema = schema[choose(f"{group}.name", name, schema)]
    return typed(schema, values, group)


def typed(schema: type[T], values: Mapping[str, Any], path: str) -> T:
    """Convert a mapping to its dataclass, with limits and choices checked.

    Args:
        schema: The dataclass.
        values: The values.
        path: The key of the mapping itself, for messages.

    Returns:
        An instance of the dataclass.

    Raises:
        InputError: At the first key that is unknown, missing, of the wrong type or out of range.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(values))
    except ConfigKeyError as error:
        raise InputError(_unknown(f"{path}.{error.full_key}", _keys(schema, path))) from error
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        if "ListConfig" in reason:
            reason = "give a list: [a,b]"
        raise InputError(f"{path}.{error.full_key}: {reason}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise InputError(
            f"{path}.{missing[0]} has no value: set it, or start from a file of conf/."
        )
    result = OmegaConf.to_object(merged)
    check_limits(result, path)
    return cast("T", result)


def _keys(schema: type, path: str) -> list[str]:
    keys = []
    for item in fields(schema):
        full = f"{path}.{item.name}"
        nested = next(filter(is_dataclass, get_args(item.type)), item.type)  # of one or None too
        keys += _keys(cast("type", nested), full) if is_dataclass(nested) else [full]
    return keys


def unknown_key(given: str, conf: Path) -> str:
    """Say that a key exists nowhere, and which one is nearest.

    Args:
        given: The key, with dots.
        conf: The folder of the configuration files, which have all keys there are.

    Returns:
        The message.
    """
    texts = [(group, p.read_text()) for group in GROUPS for p in (conf / group).glob("*.yaml")]
    keys = {key for group, text in texts for key in _leaves(yaml.safe_load(text), group)}
    common = yaml.safe_load((conf / "config.yaml").read_text())  # what all choices of a group have
    keys |= {key for group in GROUPS if group in common for key in _leaves(common[group], group)}
    group = given.split(".")[0]
    if given in keys:
        return f"{given!r} is no key of the {group} that was chosen: see conf/{group}/."
    return _unknown(given, sorted({*keys, *GROUPS, "seed"}))


def _leaves(values: object, path: str) -> list[str]:
    if not isinstance(values, Mapping) or not values:
        return [path]
    keys = [key for key in values if key != "defaults"]  # Hydra's own
    return [leaf for key in keys for leaf in _leaves(values[key], f"{path}.{key}")]


def _unknown(given: str, allowed: list[str]) -> str:
    group = given.rpartition(".")[0]
    here = [key for key in allowed if group and key.startswith(f"{group}.")]
    here = here or sorted({key.split(".")[0] for key in allowed})
    return f"unknown key {given!r}: allowed here are {', '.join(here)}.{suggestion(given, allowed)}"


def _refuse_unknown(path: str, values: Mapping[str, Any], allowed: list[str]) -> None:
    for key in values:
        if key not in allowed:
            raise InputError(_unknown(f"{path}{key}", allowed))


def _check_together(config: Config) -> None:
    trainer = config.trainer
    if trainer.epochs is None and trainer.steps is None:
        raise InputError("trainer.epochs and trainer.steps are both null: set one of them.")
    if isinstance(trainer.batch_size, str) and trainer.batch_size != "full":
        raise InputError(
            f"trainer.batch_size={trainer.batch_size!r}: give a whole number, or full."
        )
    if isinstance(trainer.checkpoint.keep, str) and trainer.checkpoint.keep != "all":
        raise InputError(
            f"trainer.checkpoint.keep={trainer.checkpoint.keep!r}: give a whole number, or all."
        )
    fractions = config.analysis.kappa_p
    twice = sorted({p for p in fractions if fractions.count(p) > 1})
    if twice:
        raise InputError(f"analysis.kappa_p={fractions} has {twice[0]} twice: give it once.")
