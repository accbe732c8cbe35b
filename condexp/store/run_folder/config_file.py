"""``config.yaml``: the whole configuration of a run, under a checksum."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condexp.errors import DamageError
from condexp.store.disk import Owner, write_text
from condexp.store.files import parse_yaml, read_text

SEAL = "# sha256 of the lines below: "
OUTSIDE_GROUPS = frozenset({"experiment", "profile", "seed"})
GROUPS = frozenset({"model", "dataset", "optimizer", "scheduler", "trainer", "analysis"})
MAX_KEYS = 500


def write_config(path: Path, text: str, owner: Owner) -> None:
    """Write the configuration, its checksum in the first line.

    Args:
        path: The file.
        text: The configuration as YAML.
        owner: The owner of the folder.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
        OSError: If it cannot be written.
    """
    write_text(path, f"{SEAL}{_digest(text)}\n{text}", owner)


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a run.

    Args:
        path: The file; one that a person wrote may have no checksum.

    Returns:
        The configuration.

    Raises:
        DamageError: If there is none, it is not what was written, or it is no configuration.
    """
    text = read_text(path)
    first, _, rest = text.partition("\n")
    is_sealed = first.startswith(SEAL) or re.search("[0-9a-f]{64}$", first)  # or was, once
    if is_sealed and first != f"{SEAL}{_digest(rest)}":
        raise DamageError(f"{path} is damaged: it does not match its checksum")
    return parse_config(path, rest if is_sealed else text)


def parse_config(path: Path, text: str) -> dict[str, Any]:
    """Parse the configuration of a run.

    Args:
        path: The file that holds it, for messages.
        text: The configuration in YAML.

    Returns:
        The configuration.

    Raises:
        DamageError: If it is none.
    """
    config = parse_yaml(path, text)
    for key, value in config.items():
        if key not in GROUPS | OUTSIDE_GROUPS:
            continue  # of a loop of somebody's own
        name = value.get("name", "") if isinstance(value, dict) and key in GROUPS else value
        if not isinstance(name, int if key == "seed" else str | None):
            raise DamageError(f"{path} is no configuration: {key} is {str(name)[:40]!r}")
    if _num_keys(config) > MAX_KEYS:
        raise DamageError(f"{path} is no configuration: it has more than {MAX_KEYS} keys")
    return config


def _num_keys(values: Mapping[str, Any]) -> int:
    return sum(_num_keys(v) if isinstance(v, dict) else 1 for v in values.values())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
