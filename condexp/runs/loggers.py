"""A run's loggers, each a process that reads what the run has committed."""

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from condexp.config import Config
from condexp.results.console import say
from condexp.results.loggers.follow import FollowedRun, Told, state_file
from condexp.runs.workers.interpreter import START
from condexp.store.run_folder.identity import identity_config
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord

COMMAND = (sys.executable, "-P", "-c", START.format("condexp.results.loggers.follow"))
CLOSE_SECONDS = 60.0  # that a logger has at the end of a run, to send what is left
STOP_SECONDS = 10.0  # the same where the run was stopped: a scheduler may kill it soon
NAMES = ("tensorboard", "mlflow", "wandb")
EVENT_FILES = "tensorboard/events.out.tfevents.*"
logger = logging.getLogger("condexp")


class Loggers:
    """The loggers of a run: a sink, in a ``with`` around the run and what it writes at its end.

    A logger that fails, or does not end, costs a warning.

    Args:
        config: The run's configuration.
        folder: The run's folder.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder.absolute()
        self._processes: list[_LoggerProcess] = []

    @property
    def behind(self) -> bool:
        """Whether a logger was not told all of the run, which is finished."""
        chosen = self._config.logger.chosen
        return not all(Told.read(self._folder, name).finished for name in chosen)

    def forget(self) -> None:
        """Let loggers begin anew, as the run does."""
        written = [state_file(self._folder, name) for name in NAMES]
        for path in (*written, *self._folder.glob(EVENT_FILES)):
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        config = self._config
        for name, options in config.logger.chosen.items():
            run = FollowedRun(
                str(self._folder),
                config.experiment,
                name,
                options,
                config.logger.layers,
                config.logger.measures,
                identity_config(config.plain),
            )
            self._processes.append(_LoggerProcess(run))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.end()
        try:
            for process in self._processes:
                process.wait(CLOSE_SECONDS if kind is None else STOP_SECONDS)
        finally:
            for process in self._processes:
                process.kill()

    def on_step(self, _record: StepRecord, /) -> None:
        """Leave steps to the evaluations."""

    def on_eval(self, _record: EvalRecord, /) -> None:
        """Wake the loggers."""
        self._wake()

    def on_snapshot(self, _record: SnapshotRecord, /) -> None:
        """Wake the loggers."""
        self._wake()

    def _wake(self) -> None:
        for process in self._processes:
            process.wake()


class _LoggerProcess:
    """One logger's process, seen from the run."""

    def __init__(self, run: FollowedRun) -> None:
        self._name, self._warned = run.logger, False
        self._channel, writing = os.pipe()
        os.set_blocking(self._channel, False)
        self._process = subprocess.Popen(
            [*COMMAND, str(writing), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writing],
            # Ctrl-C is the run's; and what it starts itself can be ended with it.
            start_new_session=True,
        )
        os.close(writing)
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        with suppress(BrokenPipeError):
            self._stdin.write(f"{run.to_json()}\n".encode())
            self._stdin.flush()
        os.set_blocking(self._stdin.fileno(), False)

    def wake(self) -> None:
        if self._process.poll() is not None:
            self._warn_if_failed()
            return
        # A full pipe has woken it already.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._stdin.fileno(), b"\n")

    def end(self) -> None:
        with suppress(BrokenPipeError):
            self._stdin.close()

    def wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            left = "may lack the last numbers, which the same command tells it again"
            self._warn(f"it did not end within {seconds:g} s, and {left}")
        self._warn_if_failed()

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._channel >= 0:
            os.close(self._channel)
            self._channel = -1

    def _warn_if_failed(self) -> None:
        code = self._process.poll()
        if code:
            with suppress(BlockingIOError):
                said = os.read(self._channel, 1 << 16).decode(errors="replace")
                self._warn(said or f"its process ended with code {code}")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("logger %s failed: %s", self._name, what)
            say(f"warning: logger {self._name} failed, and the run goes on without it: {what}")
