"""The keys of a configuration that tell runs apart."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from condexp.errors import suggestion


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
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _frozen(value)


def _frozen(value: Any) -> Any:
    """Return lists as tuples, nested ones too; a mapping within one as text."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return str(value) if isinstance(value, Mapping) else value


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


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how configurations differ, as overrides of the command line.

    Args:
        configs: The configurations.

    Returns:
        For each one its values of the keys of which there is more than one value among them.

    >>> two = {"model": {"name": "mlp"}, "seed": 1}, {"model": {"name": "vgg"}, "seed": 1}
    >>> differences(two)
    ['model=mlp', 'model=vgg']
    """
    flat = [dict(flatten(config)) for config in configs]
    found: dict[str, set[str]] = {}
    for config in flat:
        for key, value in config.items():
            found.setdefault(key, set()).add(setting_text(value))
    varied = [key for key, values in found.items() if len(values) > 1]
    return [
        " ".join(
            f"{key.removesuffix('.name')}={setting_text(config[key])}"
            for key in varied
            if key in config
        )
        for config in flat
    ]


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
