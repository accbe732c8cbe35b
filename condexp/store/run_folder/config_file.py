"""``config.yaml``: the whole configuration of a run, under a checksum."""

import hashlib
from pathlib import Path

from condexp.errors import InputError
from condexp.store.disk import Owner, write_text

SEAL = "# sha256 of the lines below: "


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


def read_config(path: Path) -> str:
    """Read the configuration.

    Args:
        path: The file; one that a person wrote may have no checksum.

    Returns:
        The YAML.

    Raises:
        InputError: If it is not what was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is no UTF-8") from error
    first, _, rest = text.partition("\n")
    if first.startswith(SEAL) and first != f"{SEAL}{_digest(rest)}":
        raise InputError(f"{path} is damaged: it does not match its checksum")
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
