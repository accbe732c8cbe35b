"""One experiment from its checked configuration to its complete run folder."""

import errno
import logging
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from condexp.config import Config
from condexp.errors import InputError
from condexp.runs.attempt import Attempt, run_log
from condexp.runs.prepare import PreparedRun, prepare
from condexp.runs.result import RunResult
from condexp.runs.status_writer import StatusWriter
from condexp.runs.stop_signals import Stopped, stop_requests
from condexp.runs.workers.group import WorkerGroup
from condexp.runs.workers.main import run_worker
from condexp.store.disk import ResultsError, as_results_error, locked
from condexp.store.reader import open_run
from condexp.store.run_folder.provenance import refuse_other_data
from condexp.store.run_folder.status import STATUS_NAME, State, Status, read_status
from condexp.store.schema.layout import FILE_NAME
from condexp.training.events import Sink

logger = logging.getLogger("condexp")
HELD_BY_ANOTHER = {errno.EAGAIN, errno.EWOULDBLOCK}


class Observer(Sink, Protocol):
    """Follows a run from outside: the terminal, or a test."""

    def started(self, prepared: PreparedRun, /) -> None:
        """Take note that training begins."""

    def finished(self, result: RunResult, /) -> None:
        """Take note of how it ended."""


def run_experiment(config: Config, observer: Observer) -> RunResult:
    """Run one experiment, resume it, or find that its result is stored.

    Whatever happens after the checks ends in ``status.json`` and ``run.log``.

    Args:
        config: The validated configuration.
        observer: Follows the run.

    Returns:
        How it ended; an exception of the training is a failed result, its traceback in the log.

    Raises:
        InputError: If the experiment cannot run as configured, or the run that is there cannot be
            resumed; nothing was written.
        Stopped: If a signal asked for it, after the checkpoint and the state ``interrupted`` were
            written.
        KeyboardInterrupt: At a second Ctrl-C, after the state ``interrupted`` was stored.
    """
    prepared = prepare(config)
    with WorkerGroup(prepared) as workers:
        if workers.env is not None and workers.env.rank > 0:
            return run_worker(prepared, workers)
        checksum = prepared.dataset.checksum
        stored = stored_result(prepared.folder, config.run.on_existing, checksum)
        result = stored or _run(prepared, observer, workers)
    observer.finished(result)
    return result


def stored_result(
    folder: Path, on_existing: str, data_checksum: str | None = None
) -> RunResult | None:
    """Find the result that is there already, if it is to be shown instead of run again.

    Args:
        folder: The run folder.
        on_existing: ``resume``, ``restart`` or ``fail``.
        data_checksum: SHA-256 of the data set as it is now; None: that is not compared.

    Returns:
        The stored result; None where the experiment is to be run.

    Raises:
        InputError: If the folder exists and must not, or says it is complete and is damaged,
            or is of other data.
    """
    if not (folder / STATUS_NAME).exists() or on_existing == "restart":
        return None
    if on_existing == "fail":
        raise InputError(
            f"{folder} exists already, and run.on_existing=fail: leave that out to show or finish "
            "it, or give run.on_existing=restart to run it anew."
        )
    try:
        state = read_status(folder).state
        if state not in {State.COMPLETE, State.DIVERGED}:
            return None
        open_run(folder)
    except InputError as damage:
        raise InputError(
            f"{folder} is damaged: {damage} Give run.on_existing=restart to run it anew."
        ) from damage
    if data_checksum is not None:
        refuse_other_data(folder, data_checksum)
    return RunResult(folder, state, stored=True)


def _run(prepared: PreparedRun, observer: Observer, workers: WorkerGroup) -> RunResult:
    folder, results = prepared.folder, prepared.folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run.root: {folder} cannot be made: {error.strerror}.") from error
    earlier = _earlier_status(prepared)
    status_writer = StatusWriter(folder, prepared.plan, earlier)
    with stop_requests() as stop, ExitStack() as log:
        attempt = Attempt(prepared, status_writer, stop, workers)
        try:
            with as_results_error(results, "Nothing was changed"), locked(results):
                log.enter_context(run_log(folder / "run.log", append=earlier is not None))
                attempt.begin()
        except ResultsError as error:
            return _failed(folder, status_writer, error)
        observer.started(prepared)
        try:
            return RunResult(folder, attempt.run(observer))
        except (KeyboardInterrupt, Stopped):
            logger.warning("interrupted")
            status_writer.write(attempt.final or State.INTERRUPTED)
            raise
        except (Exception, SystemExit) as error:  # a library's exit must not end a sweep
            logger.exception("failed")
            dead = workers.dead_worker(error)
            workers.give_up()
            return _failed(folder, status_writer, InputError(dead) if dead else error)


def _earlier_status(prepared: PreparedRun) -> Status | None:
    """Return what an earlier attempt left, if this one resumes its run."""
    anew = prepared.config.run.on_existing == "restart"
    there = (prepared.folder / STATUS_NAME).exists()
    return read_status(prepared.folder) if there and not anew else None


def _failed(folder: Path, status_writer: StatusWriter, error: BaseException) -> RunResult:
    known = isinstance(error, (OSError, ResultsError, InputError))
    said = [str(error)] if known else traceback.format_exception_only(error)
    message = "".join(said).strip()
    # What another process holds is that one's to describe.
    if not (isinstance(error, ResultsError) and error.errno in HELD_BY_ANOTHER):
        status_writer.write(State.FAILED, message)
    return RunResult(folder, State.FAILED, message)
