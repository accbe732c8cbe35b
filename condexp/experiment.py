"""One experiment from its checked configuration to its complete run folder."""

import errno
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from condexp.assemble import assemble
from condexp.config import Config
from condexp.errors import InputError
from condexp.prepare import Prepared, prepare
from condexp.results.figures.overview import overview
from condexp.status_keeper import StatusKeeper
from condexp.store.create import create_results
from condexp.store.disk import ResultsError, locked, write_json
from condexp.store.layout import FILE_NAME
from condexp.store.provenance import provenance
from condexp.store.reader import open_run
from condexp.store.runs import STATUS_NAME, State, read_status
from condexp.store.writer import ResultsWriter
from condexp.training.checkpoint import save_checkpoint
from condexp.training.events import Sink
from condexp.training.loop import Outcome, RunState, Source, train

logger = logging.getLogger("condexp")
HELD_BY_ANOTHER = {errno.EAGAIN, errno.EWOULDBLOCK}


@dataclass(frozen=True)
class JobResult:
    """How one experiment ended.

    Attributes:
        folder: The run folder; None where the job was lost before it had one.
        state: Complete, diverged or failed.
        message: The error of a failed job.
        stored: Whether the result was there already, and nothing was run.
    """

    folder: Path | None
    state: State
    message: str | None = None
    stored: bool = False

    @property
    def exit_code(self) -> int:
        """1 for a failed job; a diverged run is a result."""
        return int(self.state is State.FAILED)

    @classmethod
    def lost(cls, message: str) -> "JobResult":
        """A job that ended without a result.

        Args:
            message: What is known of it.

        Returns:
            A failed job without a folder.
        """
        return cls(None, State.FAILED, message)


class Observer(Sink, Protocol):
    """Who follows a run from outside: the console, or a test."""

    def started(self, prepared: Prepared, /) -> None:
        """Take note that training begins."""

    def finished(self, result: JobResult, /) -> None:
        """Take note of how it ended."""


def run_experiment(config: Config, observer: Observer) -> JobResult:
    """Run one experiment, or find that its result is stored.

    Whatever happens after the checks ends in ``status.json`` and ``run.log``.

    Args:
        config: The validated configuration.
        observer: Follows the run.

    Returns:
        How it ended; an exception of the training is a failed result, its traceback in the log.

    Raises:
        InputError: If the experiment cannot run as configured; nothing was written.
        KeyboardInterrupt: After the state ``interrupted`` was stored.
    """
    prepared = prepare(config)
    result = stored_result(prepared) or _run(prepared, observer)
    observer.finished(result)
    return result


def stored_result(prepared: Prepared) -> JobResult | None:
    """Find the result that is there already, if it is to be shown instead of run again.

    Args:
        prepared: The checked experiment.

    Returns:
        The stored result; None where the experiment is to be run.

    Raises:
        InputError: If the folder exists and must not, or says it is complete and is damaged.
    """
    folder, on_existing = prepared.folder, prepared.config.run.on_existing
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
    return JobResult(folder, state, stored=True)


def _run(prepared: Prepared, observer: Observer) -> JobResult:
    folder, results = prepared.folder, prepared.folder / FILE_NAME
    keeper = StatusKeeper(folder, prepared.plan)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run.root: {folder} cannot be made: {error.strerror}.") from error
    try:
        with locked(results):  # a kill from here on leaves no older "complete" behind
            keeper.write(State.PENDING)
        create_results(results, prepared.spec)
        writer = ResultsWriter(results, prepared.config.store.durability)
    except (OSError, ResultsError) as error:
        if error.errno not in HELD_BY_ANOTHER:
            keeper.write(State.FAILED, str(error))
        return JobResult(folder, State.FAILED, str(error))
    final: State | None = None
    with _log_file(folder / "run.log"):
        try:
            with writer:  # it is the lock: kept until the last file is written
                _write_setting(prepared)
                keeper.write(State.RUNNING)
                observer.started(prepared)
                outcome = _train(prepared, [writer, keeper, observer], writer)
                final = State.COMPLETE if outcome.state is RunState.COMPLETE else State.DIVERGED
                logger.info("%s after %d steps", final, outcome.num_steps_done)
                keeper.write(final)
                _draw(folder)
        except KeyboardInterrupt:
            logger.warning("interrupted")
            keeper.write(final or State.INTERRUPTED)
            raise
        except (Exception, SystemExit) as error:  # a library's exit must not end a grid
            logger.exception("failed")
            known = isinstance(error, (OSError, ResultsError))
            said = [str(error)] if known else traceback.format_exception_only(error)
            message = "".join(said).strip()
            keeper.write(State.FAILED, message)
            return JobResult(folder, State.FAILED, message)
    return JobResult(folder, final)


def _draw(folder: Path) -> None:
    try:
        overview(open_run(folder), folder)
    except Exception:  # a picture can be drawn again: it must not cost the run its result
        logger.exception("overview.png was not drawn; try: condexp figure overview %s", folder)


def _train(prepared: Prepared, sinks: Sequence[Sink], writer: ResultsWriter) -> Outcome:
    probed = prepared.source is Source.PROBE and bool(prepared.plan.snapshot_steps)
    parts = assemble(
        prepared.config, prepared.dataset, prepared.device, prepared.plan, probed=probed
    )
    outcome = train(
        parts.model,
        parts.loss_fn,
        parts.optimizer,
        parts.schedule,
        parts.batches,
        prepared.plan,
        sinks,
        options=prepared.options,
        source=prepared.source,
        probe=parts.probe,
        evaluate=parts.evaluate,
        compiled=parts.compiled,
    )
    writer.flush()
    save_checkpoint(
        prepared.folder / "checkpoint.pt", parts.model, parts.optimizer, step=outcome.num_steps_done
    )
    return outcome


def _write_setting(prepared: Prepared) -> None:
    config = yaml.safe_dump(prepared.config.plain, sort_keys=True, allow_unicode=True)
    (prepared.folder / "config.yaml").write_text(config)
    write_json(
        prepared.folder / "provenance.json",
        provenance(sys.argv, prepared.dataset.checksum, str(prepared.device)),
    )
    for stale in ("overview.png", "overview.pdf", "overview.csv", "checkpoint.pt"):
        (prepared.folder / stale).unlink(missing_ok=True)


class _PatientHandler(logging.FileHandler):
    def handleError(self, _record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Lose a line rather than fill the terminal with tracebacks, on a full disk say."""


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    # This package's log goes to the run's own file, a new one for each attempt.
    handler = _PatientHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
