"""The identity of a run: the part of its configuration that decides its numbers and its folder."""

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

# What decides neither a number nor what is measured: where, how fast and how safely a run runs.
NOT_IDENTITY = (
    ("run",),
    ("store",),
    ("hydra",),
    ("logger",),
    ("profile",),
    ("dataset", "root"),
    ("dataset", "download"),
    ("dataset", "checksum"),  # its value is part of it, as data_sha256
    ("trainer", "device"),
    ("trainer", "num_threads"),
    ("trainer", "checkpoint"),
)
OF_SEVERAL = (("trainer", "num_processes"), ("trainer", "sync_batchnorm"))
"""Keys that mean nothing to one process alone."""
LATER = {
    ("analysis", "top_k"): 5,
    ("analysis", "eigenvalue_tolerance"): 1e-3,
    ("analysis", "num_random_vectors"): 8,
    ("analysis", "num_lanczos_steps"): 16,
    ("analysis", "layer_blocks"): True,
    ("analysis", "sharpness"): {"every_steps": None},
    ("analysis", "network_precision"): "as_trained",
    ("analysis", "weight_sharing"): "expand",
    ("dataset", "channels"): None,
    ("loss",): {"name": "task"},
}
"""Keys that earlier versions did not have, with the value that is what these did: at that value
they are left out, so that everybody's runs keep their folders."""


def identity_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that decides a run's numbers.

    Args:
        config: The whole configuration, as plain dicts, lists, strings and numbers.

    Returns:
        A copy without the keys of :data:`NOT_IDENTITY`, of :data:`OF_SEVERAL` for one process, and
        of :data:`LATER` at their first values.

    >>> identity_config({"seed": 1, "run": {"root": "x"}, "dataset": {"name": "a", "root": "b"}})
    {'seed': 1, 'dataset': {'name': 'a'}}
    """
    alone = config.get("trainer", {}).get("num_processes") == 1
    as_before = [path for path, value in LATER.items() if _value(config, path) == value]
    return _without(config, [*NOT_IDENTITY, *(OF_SEVERAL if alone else ()), *as_before])


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


def _value(config: Mapping[str, Any], path: tuple[str, ...]) -> object:
    """Return what nested mappings hold at a path; None where they do not have it."""
    *groups, key = path
    for group in groups:
        config = config.get(group, {})
    return config.get(key)


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
