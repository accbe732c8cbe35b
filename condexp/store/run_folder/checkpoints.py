"""The checkpoints in a run's folder: they are written whole, and a run resumes from the last."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from condexp.errors import InputError
from condexp.store.disk import Owner, as_results_error, replacing
from condexp.store.hdf5.file_objects import DiskFile
from condexp.store.hdf5.offsets import by_axis, older_version
from condexp.store.hdf5.open import open_file, read_file_shape
from condexp.store.hdf5.validate import validate_results
from condexp.store.schema.fields import WRITTEN, Axis
from condexp.store.schema.layout import COUNTERS, FILE_NAME, SEALED, FileSpec, datasets
from condexp.training.checkpoint import Checkpoint, read_checkpoint
from condexp.training.choices import RunState
from condexp.training.events import EvalRecord

CHECKPOINT_NAME, PREVIOUS_NAME = "checkpoint.pt", "checkpoint.previous.pt"
MIN_SECONDS = 10.0  # between the checkpoints of short epochs: a few milliseconds each
logger = logging.getLogger("condexp")


def save_checkpoint(folder: Path, checkpoint: Checkpoint, owner: Owner | None = None) -> None:
    """Write ``checkpoint.pt``, and keep the one before it.

    Args:
        folder: The run's folder.
        checkpoint: What to write.
        owner: The owner of the folder.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
        ResultsError: If it cannot be written; the one before is still there, if there was one.
    """
    path = folder / CHECKPOINT_NAME
    with (
        as_results_error(path, "The older checkpoint and all committed results are intact"),
        replacing(path, older=PREVIOUS_NAME, owner=owner) as handle,
    ):
        file = DiskFile(handle)
        checkpoint.write(file)
        file.check()


def find_checkpoint(folder: Path, check: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """Find the checkpoint that a run resumes from: its last, or else the one before.

    Args:
        folder: The run's folder.
        check: Raises ``InputError`` where the run cannot resume from a checkpoint.

    Returns:
        The checkpoint; None where there is no file of one.

    Raises:
        InputError: If there are checkpoints, and the run can resume from none.
    """
    problems: list[str] = []
    for path in (folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME):
        if not path.exists():
            continue
        try:
            checkpoint = read_checkpoint(path)
            check(checkpoint)
        except InputError as problem:
            problems.append(str(problem))
            continue
        for found in problems:
            logger.warning("%s; resuming from %s, step %d", found, path.name, checkpoint.step)
        return checkpoint
    if problems:
        raise InputError(
            f"the run cannot resume: {'; '.join(problems)}. Give run.on_existing=restart to run "
            "it anew."
        )
    return None


def remove_checkpoints(owner: Owner, *, previous_only: bool = False) -> None:
    """Remove the checkpoints that a folder holds, and what a kill left of one.

    Args:
        owner: The owner of the folder.
        previous_only: Whether ``checkpoint.pt`` stays.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
        OSError: If one cannot be removed.
    """
    names = (PREVIOUS_NAME, f"{CHECKPOINT_NAME}.partial", CHECKPOINT_NAME)
    for name in names[:2] if previous_only else names:
        owner.unlink(name)


@dataclass(frozen=True)
class RunFingerprint:
    """What a run's numbers come from, by checksum: a checkpoint of another one is refused.

    Attributes:
        config_sha256: Of the identity configuration as YAML.
        data_sha256: Of the data set.
    """

    config_sha256: str
    data_sha256: str


def check_resumable(
    folder: Path, spec: FileSpec, fingerprint: RunFingerprint, checkpoint: Checkpoint
) -> None:
    """Refuse a checkpoint that this run cannot resume from; changes nothing.

    Args:
        folder: The run's folder.
        spec: What its results file is created from.
        fingerprint: What the run is of.
        checkpoint: The checkpoint.

    Raises:
        InputError: If the checkpoint is of another experiment or other data, or the results file is
            missing, damaged, of another shape, or behind the checkpoint.
    """
    here = f"the checkpoint of step {checkpoint.step}"
    if checkpoint.config_sha256 != fingerprint.config_sha256:
        raise InputError(f"{here} is of another configuration")
    if checkpoint.data_sha256 != fingerprint.data_sha256:
        raise InputError(f"{here} was trained on other data than dataset.root holds now")
    path = folder / FILE_NAME
    counts = by_axis(checkpoint.committed)
    with open_file(path) as file:
        committed = {axis: int(file[name][()]) for axis, name in COUNTERS.items()}
        sealed = SEALED in file.attrs
        found = read_file_shape(file)
        same_shape = sealed or datasets(found) == datasets(spec)
        config_sha256 = file.attrs.get("config_sha256")
    if config_sha256 != fingerprint.config_sha256:
        raise InputError(f"{path} is of another configuration than {here}")
    if found.version not in WRITTEN and not sealed:
        raise InputError(older_version(path, found.version))
    if not same_shape:
        raise InputError(f"{path} has another shape than this experiment's results have")
    if behind := [str(axis) for axis in Axis if committed[axis] < counts[axis]]:
        raise InputError(f"{path} has fewer {', '.join(behind)} rows than {here}")
    if sealed and (checkpoint.state is RunState.UNFINISHED or committed != counts):
        raise InputError(f"{path} is sealed, but {here} is not of the end of a run")
    if checkpoint.state is RunState.COMPLETE and counts != spec.num_rows:
        raise InputError(f"{here} says the run is complete, but counts fewer rows than that")
    if problems := validate_results(path, counts):
        raise InputError(f"{path} is damaged: {problems[0]}")


def read_evaluations(path: Path) -> list[EvalRecord]:
    """Read the evaluations that are committed.

    Args:
        path: The results file.

    Returns:
        The records, in order.
    """
    names = [field.name for field in fields(EvalRecord)][1:]
    with open_file(path) as file:
        num, group = int(file[COUNTERS[Axis.EVAL]][()]), file["eval"]
        columns = [group[name][:num].tolist() for name in ("eval_step", *names)]
    return [EvalRecord(*row) for row in zip(*columns, strict=True)]
