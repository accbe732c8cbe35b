"""One experiment from its checked configuration to its complete run folder."""

import logging
import traceback
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from condexp.config import Config
from condexp.errors import InputError
from condexp.models.user_code import where
from condexp.results.console import say
from condexp.runs.attempt import Attempt, Observer, run_log
from condexp.runs.loggers import Loggers
from condexp.runs.objective import check_objective, read_objective
from condexp.runs.prepare import PreparedRun, prepare
from condexp.runs.result import RunResult
from condexp.runs.status_writer import StatusWriter
from condexp.runs.stop_signals import Stopped, StopRequests, stop_requests
from condexp.runs.workers.group import WorkerGroup
from condexp.runs.workers.main import run_worker
from condexp.store.disk import LostFolderError, Owner, ResultsError, as_results_error, locked
from condexp.store.run_folder.completeness import missing_results
from condexp.store.run_folder.liveness import refuse_beside_another
from condexp.store.run_folder.provenance import refuse_other_data
from condexp.store.run_folder.status import FINISHED, STATUS_NAME, State, Status, last_known
from condexp.store.schema.layout import FILE_NAME

logger = logging.getLogger("condexp")


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
    check_objective(prepared)
    with WorkerGroup(prepared) as workers:
        if workers.env is not None and workers.env.rank > 0:
            return run_worker(prepared, workers)
        # Without the lock: what is stored may lie where nothing can be written.
        checksum = prepared.dataset.checksum
        stored = stored_result(prepared.folder, config.run.on_existing, checksum)
        if stored:
            let_loggers_catch_up(prepared.config, prepared.folder)
        result = stored or _own_and_run(prepared, observer, workers)
    if config.run.objective is not None and result.folder and result.state in FINISHED:
        value = read_objective(result.folder, result.state, config.run.objective)
        result = replace(result, objective=value)
    observer.finished(result)
    return result


def stored_result(
    folder: Path,
    on_existing: str,
    data_checksum: str | None = None,
    status: Status | None = None,
) -> RunResult | None:
    """Find the result that is there already, if it is to be shown instead of run again.

    Args:
        folder: The run folder.
        on_existing: ``resume``, ``restart`` or ``fail``.
        data_checksum: SHA-256 of the data set as it is now; None: that is not compared.
        status: The run's status; None: it is read.

    Returns:
        The stored result; None where the experiment is to be run, or run on: also where it says
        that it is finished, and its results do not hold all of it.

    Raises:
        InputError: If the folder exists and must not, or it is of other data.
    """
    if not (folder / STATUS_NAME).exists() or on_existing == "restart":
        return None
    if on_existing == "fail":
        raise InputError(
            f"{folder} exists already, and run.on_existing=fail: leave that out to show or finish "
            "it, or give run.on_existing=restart to run it anew."
        )
    status = status or last_known(folder)
    if status.state not in FINISHED or missing_results(folder, status):
        return None
    if data_checksum is not None:
        refuse_other_data(folder, data_checksum)
    return RunResult(folder, status.state, stored=True)


def _own_and_run(prepared: PreparedRun, observer: Observer, workers: WorkerGroup) -> RunResult:
    """Decide under the lock what is to be done with the folder, and do it.

    Returns:
        How it ended.

    Raises:
        InputError: If the folder cannot be made, or must not be there.
    """
    folder, results = prepared.folder, prepared.folder / FILE_NAME
    on_existing = prepared.config.run.on_existing
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run.root: {folder} cannot be made: {error.strerror}.") from error
    with stop_requests(prepared.config.run.timeout) as stop, ExitStack() as held:
        try:
            with as_results_error(results, "Nothing was changed"):
                owner = held.enter_context(locked(results))
            if not owner.has_lock:
                refuse_beside_another(folder, restart=on_existing == "restart")
        except ResultsError as error:  # the folder is another's, or cannot be written
            return RunResult(folder, State.FAILED, str(error))
        # Another process may have begun or finished it since it was looked at.
        stored = stored_result(folder, on_existing, prepared.dataset.checksum)
        return stored or _run(prepared, observer, workers, stop, owner)


def _run(
    prepared: PreparedRun,
    observer: Observer,
    workers: WorkerGroup,
    stop: StopRequests,
    owner: Owner,
) -> RunResult:
    earlier = _earlier_status(prepared)
    status_writer = StatusWriter(owner, prepared.plan, earlier)
    attempt = Attempt(prepared, owner, status_writer, stop, workers)
    with ExitStack() as resources:
        try:
            log_file = owner.folder / "run.log"
            with as_results_error(log_file, "Nothing was changed"):
                resources.enter_context(run_log(log_file, append=earlier is not None))
            lost = missing_results(owner.folder, earlier) if earlier else None
            loggers = Loggers(prepared.config, owner.folder)
            if earlier and lost:
                logger.warning("status.json says %s, but %s", earlier.state, lost)
                say(f"{prepared.folder} says {earlier.state}, but {lost}: it is run on")
            attempt.begin(may_begin_anew=lost is not None)
            observer.started(prepared)
            if prepared.config.run.on_existing == "restart":
                loggers.forget()
            resources.enter_context(loggers)
            return RunResult(prepared.folder, attempt.run(observer, loggers))
        except (KeyboardInterrupt, Stopped):
            logger.warning("interrupted")
            with suppress(LostFolderError):
                status_writer.write(attempt.final or State.INTERRUPTED)
            raise
        except (Exception, SystemExit) as error:  # a library's exit must not end a sweep
            if not attempt.begun and isinstance(error, InputError):
                raise  # refused, and nothing was changed
            logger.exception("failed")
            dead = workers.dead_worker(error)
            workers.give_up()
            failure = InputError(dead) if dead else error
            return _failed(prepared.folder, status_writer, failure)


def let_loggers_catch_up(config: Config, folder: Path) -> None:
    """Tell loggers of a finished run what they lack: they failed then, or are new.

    Args:
        config: Its configuration, with the loggers.
        folder: Its folder.
    """
    loggers = Loggers(config, folder)
    if not loggers.behind:
        return
    with (
        suppress(ResultsError, OSError),  # another is at it, or nothing can be written there
        locked(folder / FILE_NAME),
        run_log(folder / "run.log", append=True),
        loggers,
    ):
        pass


def _earlier_status(prepared: PreparedRun) -> Status | None:
    """Return what an earlier attempt left, if this one resumes its run."""
    anew = prepared.config.run.on_existing == "restart"
    there = (prepared.folder / STATUS_NAME).exists()
    return last_known(prepared.folder) if there and not anew else None


def _failed(folder: Path, status_writer: StatusWriter, error: BaseException) -> RunResult:
    known = isinstance(error, (OSError, ResultsError, InputError))
    said = [str(error)] if known else traceback.format_exception_only(error)
    message = "".join(said).strip() + ("" if known else where(error))
    with suppress(LostFolderError):  # what lies there now is another's to describe
        status_writer.write(State.FAILED, message)
    return RunResult(folder, State.FAILED, message)
