"""Checkpoints that stay: ``checkpoints/step-000123.pt`` in a run's folder."""

import os
import shutil
from pathlib import Path

from condexp.store.disk import Owner, as_results_error

FOLDER = "checkpoints"


def keep_checkpoint(owner: Owner, name: str, step: int, keep: int | str) -> None:
    """Let a checkpoint stay under the name of its step, and remove those that are too many.

    Args:
        owner: The owner of the run's folder.
        name: The checkpoint, just written there.
        step: Number of finished updates.
        keep: How many stay, the last ones; ``all``, or 0: none.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
        ResultsError: If it cannot be written.
    """
    if keep == 0:
        return
    path = owner.folder / name
    kept = owner.folder / FOLDER / f"step-{step:06}.pt"
    partial = kept.with_name(f"{kept.name}.partial")
    owner.verify()
    with as_results_error(kept, "The checkpoint itself and all committed results are intact"):
        kept.parent.mkdir(exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)  # takes no space, for the last one is never changed in place
        except OSError:  # a file system without links
            shutil.copyfile(path, partial)
        partial.replace(kept)
        if isinstance(keep, int):
            for old in kept_checkpoints(owner.folder)[:-keep]:
                old.unlink(missing_ok=True)


def kept_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints that stay.

    Args:
        folder: The run's folder.

    Returns:
        The files, in the order of their steps.
    """
    found = (folder / FOLDER).glob("step-*.pt")
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))


def remove_kept(owner: Owner) -> None:
    """Remove the checkpoints that stayed, as a run begins anew.

    Args:
        owner: The owner of the run's folder.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
    """
    owner.verify()
    for path in kept_checkpoints(owner.folder):
        path.unlink(missing_ok=True)
