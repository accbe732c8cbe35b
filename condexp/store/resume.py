"""Whether a run can go on from a checkpoint: the results file has to be the one it counts on."""

from dataclasses import fields
from pathlib import Path

from condexp.errors import InputError
from condexp.store.hdf5.offsets import by_axis
from condexp.store.hdf5.open import open_file, read_extent
from condexp.store.hdf5.validate import validate_results
from condexp.store.run_folder.checkpoints import Origin
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import COUNTERS, FILE_NAME, SEALED, FileSpec, datasets
from condexp.training.checkpoint import Checkpoint
from condexp.training.events import EvalRecord
from condexp.training.loop import RunState


def check_resumable(folder: Path, spec: FileSpec, origin: Origin, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that this run cannot go on from; changes nothing.

    Args:
        folder: The run's folder.
        spec: What its results file is created from.
        origin: What the run is of.
        checkpoint: The checkpoint.

    Raises:
        InputError: If the checkpoint is of another experiment or other data, or the results file is
            missing, damaged, of another shape, or behind the checkpoint.
    """
    here = f"the checkpoint of step {checkpoint.step}"
    if checkpoint.config_sha256 != origin.config_sha256:
        raise InputError(f"{here} is of another configuration")
    if checkpoint.data_sha256 != origin.data_sha256:
        raise InputError(f"{here} was trained on other data than dataset.root holds now")
    path = folder / FILE_NAME
    counts = by_axis(checkpoint.committed)
    with open_file(path) as file:
        committed = {axis: int(file[name][()]) for axis, name in COUNTERS.items()}
        sealed = SEALED in file.attrs
        same_shape = sealed or datasets(read_extent(file)) == datasets(spec)
        config_sha256 = file.attrs.get("config_sha256")
    if config_sha256 != origin.config_sha256:
        raise InputError(f"{path} is of another configuration than {here}")
    if not same_shape:
        raise InputError(f"{path} has another shape than this experiment's results have")
    if behind := [str(axis) for axis in Axis if committed[axis] < counts[axis]]:
        raise InputError(f"{path} has fewer {', '.join(behind)} rows than {here}")
    if sealed and (checkpoint.state is RunState.UNFINISHED or committed != counts):
        raise InputError(f"{path} is sealed, but {here} is not of the end of a run")
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
