"""One process's attempt at a run: from its last checkpoint, or from nothing, to its last file."""

import hashlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

import yaml

from condexp.errors import InputError
from condexp.results.figures.overview import overview
from condexp.runs.checkpointer import Checkpointer, CheckpointSchedule
from condexp.runs.extension import MARK
from condexp.runs.prepare import PreparedRun
from condexp.runs.result import RunResult
from condexp.runs.status_writer import StatusWriter
from condexp.runs.stop_signals import Stopped, StopRequests
from condexp.runs.trainer import build_trainer
from condexp.runs.workers.group import WorkerGroup
from condexp.store.disk import LostFolderError, Owner, as_results_error, write_json
from condexp.store.files import read_json
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.offsets import by_axis
from condexp.store.hdf5.seal import is_sealed, seal_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.reader import open_run
from condexp.store.run_folder.checkpoints import (
    RunFingerprint,
    check_resumable,
    find_checkpoint,
    read_evaluations,
    remove_checkpoints,
    save_checkpoint,
)
from condexp.store.run_folder.completeness import check_finished
from condexp.store.run_folder.config_file import write_config
from condexp.store.run_folder.kept_checkpoints import remove_kept
from condexp.store.run_folder.provenance import PROVENANCE_NAME, provenance
from condexp.store.run_folder.status import CONFIG_NAME, State
from condexp.training.checkpoint import Checkpoint
from condexp.training.choices import RunState
from condexp.training.events import RowCounts, Sink
from condexp.training.loop import MeasurementEnded

logger = logging.getLogger("condexp")
INTACT = "All committed results are intact; make room and start the run again"
DAMAGED_NAME = "results.damaged.h5"
STALE = ("overview.png", "overview.pdf", "overview.svg", "overview.csv")


class Observer(Sink, Protocol):
    """Follows a run from outside: the terminal, or a test."""

    def started(self, prepared: PreparedRun, /) -> None:
        """Take note that training begins."""

    def measuring(self, what: str, num_done: int, num: int, /) -> None:
        """Take note of how far a snapshot is."""

    def finished(self, result: RunResult, /) -> None:
        """Take note of how it ended."""


class Attempt:
    """One process's work on a run, whose folder it owns.

    Attributes:
        begun: Whether anything was changed in the folder.
        final: The state that the run ended in.

    Args:
        prepared: The checked experiment.
        owner: The owner of the folder, until the last file is written.
        status_writer: Says how far the run is.
        stop: What it was asked to stop for.
        workers: The other ranks of the run.
    """

    def __init__(
        self,
        prepared: PreparedRun,
        owner: Owner,
        status_writer: StatusWriter,
        stop: StopRequests,
        workers: WorkerGroup,
    ) -> None:
        self._prepared, self._status_writer, self._stop = prepared, status_writer, stop
        self._workers, self._owner = workers, owner
        self._folder, self._results = owner.folder, owner.path
        config_sha256 = hashlib.sha256(prepared.spec.config_yaml.encode()).hexdigest()
        self._fingerprint = RunFingerprint(config_sha256, prepared.dataset.checksum)
        self._checkpoint: Checkpoint | None = None
        self.begun = False
        self.final: State | None = None

    def begin(self, *, may_begin_anew: bool = False) -> None:
        """Find the checkpoint to resume from, or clear what an earlier run left.

        Args:
            may_begin_anew: Whether to train from the start where there is a checkpoint and it
                cannot be used: of a run that was finished, and whose results are lost. What is left
                of these is kept under another name.

        Raises:
            InputError: If there is a checkpoint, and the run cannot resume from it.
            LostFolderError: If the folder is no longer its owner's.
        """
        if self._prepared.config.run.on_existing != "restart":
            self._checkpoint = self._find_checkpoint(may_begin_anew)
        self.begun = True
        for left in self._folder.glob("*.partial"):
            self._owner.unlink(left.name)
        if self._checkpoint is None:
            # First of all, that a kill from here on leaves no older "complete" behind.
            self._status_writer.write(State.PENDING)
            remove_checkpoints(self._owner)
            remove_kept(self._owner)
            for name in STALE:
                self._owner.unlink(name)

    def _find_checkpoint(self, may_begin_anew: bool) -> Checkpoint | None:
        try:
            found = find_checkpoint(self._folder, self._check)
            if found is None:
                _refuse_to_replace(self._results)
            return found
        except InputError as unusable:
            if not may_begin_anew:
                raise
            logger.warning("%s It is run anew; %s keeps what there was", unusable, DAMAGED_NAME)
        with suppress(FileNotFoundError):
            self._results.replace(self._results.with_name(DAMAGED_NAME))
        return None

    def run(self, observer: Observer, *others: Sink) -> State:
        """Train what is left to train, and finish the run's files.

        Args:
            observer: Told of what is trained.
            *others: Told of what is committed.

        Returns:
            Complete or diverged, which ``status.json`` says by then.

        Raises:
            LostFolderError: If the folder is no longer its owner's.
            ResultsError: If the results cannot be written, or do not hold all of the run.
            Stopped: If the run was asked to stop; its checkpoint and its status are written.
        """
        if self._checkpoint is None:
            create_results(self._results, self._prepared.spec, self._owner)
        elif is_sealed(self._results):  # all but the last files are there
            self._take_over(self._checkpoint)
            return self._finish(self._checkpoint.state, self._checkpoint.committed)
        durability = self._prepared.config.store.durability
        with ResultsWriter(self._results, durability, self._owner) as writer:
            extended = self._prepared.extended
            if self._checkpoint is None and extended is not None:
                self._checkpoint = extended.begin(writer, self._fingerprint)
                save_checkpoint(self._folder, self._checkpoint, self._owner)
                self._take_over(self._checkpoint)
                self._write_setting(resumes=False)
            elif self._checkpoint is not None:
                writer.rewind(self._checkpoint.committed)
                self._take_over(self._checkpoint)
                self._write_setting(resumes=True)
            else:
                self._write_setting(resumes=False)
            self._status_writer.write(State.RUNNING)
            state = self._train(writer, observer, others)
            if state is RunState.UNFINISHED:
                asked = self._stop.signal or signal.SIGTERM  # another of its processes was asked
                logger.warning("%s", stopped := Stopped(asked))
                raise stopped
            writer.flush()
            seal_or_log(self._owner)
            return self._finish(state, writer.committed)

    def _check(self, checkpoint: Checkpoint) -> None:
        check_resumable(self._folder, self._prepared.spec, self._fingerprint, checkpoint)

    def _take_over(self, checkpoint: Checkpoint) -> None:
        self._status_writer.resume(checkpoint.committed.steps, read_evaluations(self._results))
        logger.info("resuming: going on from step %d", checkpoint.step)

    def _train(self, writer: ResultsWriter, observer: Observer, others: Sequence[Sink]) -> RunState:
        prepared, checkpoint = self._prepared, self._checkpoint
        if checkpoint is not None and checkpoint.state is not RunState.UNFINISHED:
            return checkpoint.state
        communicator = self._workers.start(checkpoint, self._report_death)
        trainer, start = build_trainer(prepared, communicator), 0
        if checkpoint is not None:
            checkpoint.restore(trainer.model, trainer.optimizer)
            trainer.eigenvectors.update(checkpoint.eigenvectors)
            start = checkpoint.step
        setting, steps_per_epoch = prepared.config.trainer.checkpoint, prepared.plan.steps_per_epoch
        checkpointer = Checkpointer(
            self._folder,
            writer,
            trainer.model,
            trainer.optimizer,
            fingerprint=self._fingerprint,
            schedule=CheckpointSchedule(setting.every_steps, setting.every_epochs, steps_per_epoch),
            stop=self._stop,
            start=start,
            communicator=communicator,
            keep=setting.keep,
            eigenvectors=trainer.eigenvectors,
        )
        sinks: list[Sink] = [writer, self._status_writer, observer, *others]

        def watch(what: str, num_done: int, num: int) -> None:
            if self._stop:
                raise MeasurementEnded
            observer.measuring(what, num_done, num)

        outcome = trainer.train(sinks, start=start, pause=checkpointer.pause, watch=watch)
        checkpointer.save(outcome.num_steps_done, outcome.state)
        self._workers.mark_finished()
        return outcome.state

    def _finish(self, state: RunState, committed: RowCounts) -> State:
        whole = state is RunState.COMPLETE
        # Read again, by the path where everybody will look.
        check_finished(self._results, self._prepared.spec.num_rows if whole else by_axis(committed))
        remove_checkpoints(self._owner, previous_only=True)
        final = State.COMPLETE if whole else State.DIVERGED
        self._status_writer.write(final)
        self.final = final
        logger.info("%s", final)
        self._owner.verify()
        draw_overview(self._folder)
        return final

    def _report_death(self, message: str) -> None:
        with suppress(LostFolderError):  # the process has to end all the same
            self._status_writer.write(State.FAILED, message)

    def _write_setting(self, *, resumes: bool) -> None:
        prepared = self._prepared
        content = provenance(sys.argv, prepared.dataset.checksum, str(prepared.device))
        if prepared.extended is not None:
            content[MARK] = prepared.extended.provenance
        write_setting(self._owner, prepared.config.plain, content, resumes=resumes)


def _refuse_to_replace(results: Path) -> None:
    """Refuse to begin anew over the results of a run that came to its end.

    Raises:
        InputError: If they are there.
    """
    sealed = False
    with suppress(InputError):  # missing or damaged
        sealed = is_sealed(results)
    if sealed:
        raise InputError(
            f"{results} holds a whole run, but neither its status nor a checkpoint is there to say "
            "so. Give run.on_existing=restart to run it anew."
        )


def write_setting(
    owner: Owner, config: Mapping[str, Any], content: dict[str, Any], *, resumes: bool
) -> None:
    """Write ``config.yaml`` and ``provenance.json``.

    Args:
        owner: The owner of the run's folder.
        config: The whole configuration, plain.
        content: The provenance of this attempt.
        resumes: Whether it goes on with an earlier one, whose provenance is kept.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
        ResultsError: If they cannot be written.
    """
    path = owner.folder / PROVENANCE_NAME
    if resumes:
        content["earlier"] = _earlier_provenance(path, content)
    text = yaml.safe_dump(config, sort_keys=True, allow_unicode=True)
    with as_results_error(owner.folder / CONFIG_NAME, INTACT):
        write_config(owner.folder / CONFIG_NAME, text, owner)
    with as_results_error(path, INTACT):
        write_json(path, content, owner)


def seal_or_log(owner: Owner) -> None:
    """Seal a complete results file; a failure is logged: the unsealed file has the same numbers.

    Args:
        owner: The owner of the file.

    Raises:
        LostFolderError: If the folder is no longer its owner's.
    """
    try:
        seal_results(owner.path, owner)
    except LostFolderError:
        raise
    except Exception:
        logger.exception("results.h5 was not sealed; it is complete all the same")


def _earlier_provenance(path: Path, content: Mapping[str, Any]) -> list[Any]:
    """Return what earlier attempts at the run were made of, as far as it was something else."""
    try:
        before = read_json(path)
    except InputError:  # killed before it was written
        return []
    found = before.pop("earlier", [])
    return [*found, {key: value for key, value in before.items() if value != content.get(key)}]


def draw_overview(folder: Path) -> None:
    """Draw the picture of a finished run; a failure is logged.

    Args:
        folder: The run's folder.
    """
    try:
        overview([open_run(folder)], folder)
    except InputError as error:
        logger.warning("overview.png was not drawn: %s", error)
    except Exception:  # a picture can be drawn again: it must not cost the run its result
        logger.exception("overview.png was not drawn; try: condexp figure overview %s", folder)


class _PatientHandler(logging.FileHandler):
    # In place of logging's: a link is not written through.
    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_TRUNC if self.mode == "w" else 0
        return os.fdopen(os.open(self.baseFilename, flags, 0o666), "a", encoding=self.encoding)

    def handleError(self, _record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Lose a line rather than fill the terminal with tracebacks, on a full disk say."""


@contextmanager
def run_log(path: Path, *, append: bool) -> Iterator[None]:
    """Send this package's log to a run's own file.

    Args:
        path: The file.
        append: Whether it holds an earlier attempt's log, which is kept.

    Yields:
        Nothing.
    """
    if path.is_symlink():  # it may lead anywhere
        path.unlink()
    handler = _PatientHandler(path, mode="a" if append else "w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
