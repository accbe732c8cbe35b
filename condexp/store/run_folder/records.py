"""The results file of a loop that is recorded again: is it the same record?"""

import hashlib
from pathlib import Path

from condexp.errors import InputError
from condexp.store.hdf5.offsets import by_axis
from condexp.store.hdf5.open import open_file
from condexp.store.schema.layout import SEALED, STEPS
from condexp.training.events import RowCounts


def refuse_other_record(path: Path, config_yaml: str, rows: RowCounts) -> None:
    """Refuse a results file that a loop cannot go on with; changes nothing.

    Args:
        path: The file.
        config_yaml: The configuration of the loop.
        rows: The rows of a whole file of this loop.

    Raises:
        InputError: If the file is of another configuration, length or schedule, or sealed.
    """
    wanted, config_sha256 = by_axis(rows), hashlib.sha256(config_yaml.encode()).hexdigest()
    with open_file(path) as file:
        same, sealed = file.attrs.get("config_sha256") == config_sha256, SEALED in file.attrs
        found = {axis: file[name].shape[0] for axis, name in STEPS.items()}
    if sealed:  # whatever its status says, or does not say any more
        raise InputError(
            f"{path.parent} holds a record that is finished: give another folder, or "
            "on_existing='restart' to record it anew."
        )
    if not same or found != wanted:
        raise InputError(
            f"{path.parent} holds the record of another configuration, length or schedule: give "
            "another folder, or on_existing='restart' to record it anew."
        )
