"""One experiment from its checked configuration to its complete run folder."""

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
from condexp.store.runs import State, Status, read_status, write_status
from condexp.store.writer import ResultsWriter
from condexp.training.checkpoint import save_checkpoint
from condexp.training.events import Sink
from condexp.training.loop import Outcome, RunState, Source, train

logger = logging.getLogger("condexp")


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
    result = _stored(prepared) or _run(prepared, observer)
    observer.finished(result)
    return result


def _stored(prepared: Prepared) -> JobResult | None:
    # The result that is there already, if it is to be shown instead of run again.
    folder, on_existing = prepared.folder, prepared.config.run.on_existing
    if not (folder / "status.json").exists() or on_existing == "restart":
        return None
    if on_existing == "fail":
        raise InputError(
            f"{folder} exists already, and run.on_existing=fail: leave that out to show or finish "
            "it, or give run.on_existing=restart to run it anew."
        )
    state = read_status(folder).state
    finished = state in {State.COMPLETE, State.DIVERGED}
    return JobResult(folder, state, stored=True) if finished else None


def _run(prepared: Prepared, observer: Observer) -> JobResult:
    folder, config = prepared.folder, prepared.config
    results = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(results):  # a kill from here on leaves no older "complete" behind
            write_status(folder, Status(State.PENDING, num_steps=prepared.plan.num_steps))
        create_results(results, prepared.spec)
        writer = ResultsWriter(results, config.store.durability)
    except (OSError, ResultsError) as error:  # another process is at it, or the disk is full
        return JobResult(folder, State.FAILED, str(error))
    keeper = StatusKeeper(folder, prepared.plan)
    # The writer is the lock: it is kept until the last file of the folder is written.
    with _log_file(folder / "run.log"), writer:
        try:
            _write_setting(prepared)
            keeper.write(State.RUNNING)
            observer.started(prepared)
            outcome = _train(prepared, [writer, keeper, observer], writer)
        except KeyboardInterrupt:
            logger.warning("interrupted")
            keeper.write(State.INTERRUPTED)
            raise
        except Exception as error:
            logger.exception("failed")
            message = "".join(traceback.format_exception_only(error)).strip()
            keeper.write(State.FAILED, message)
            return JobResult(folder, State.FAILED, message)
        state = State.COMPLETE if outcome.state is RunState.COMPLETE else State.DIVERGED
        logger.info("%s after %d steps", state, outcome.num_steps_done)
        _draw(folder)
        keeper.write(state)
    return JobResult(folder, state)


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


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    # This package's log goes to the run's own file, a new one for each attempt.
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
