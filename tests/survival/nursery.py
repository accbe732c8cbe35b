"""A process that has everything imported, and forks runs that may be killed at once.

Forking beside torch's threads can hang: this one has a single thread, before anything is computed.
Questions and answers are lines of JSON on its standard input and output.
"""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tests.waiting import GUARD_SECONDS

if TYPE_CHECKING:
    from condexp.config import Config

ROOT = Path(__file__).resolve().parents[2]
WRITES = ("pwrite",)
OTHERS = ("fsync", "fdatasync", "replace", "posix_fallocate", "ftruncate")


class Nursery:
    """Starts runs, each in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.survival.nursery"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # At the end of its input it kills what is left, and ends.
        self._process.communicate(timeout=GUARD_SECONDS)

    def warm(self, overrides: list[str]) -> None:
        """Let it read the configuration and the data set: runs start at once from then on."""
        self._ask({"warm": overrides})

    def start(self, overrides: list[str], root: Path, **more: Any) -> int:
        """Start a run; its process.

        ``call`` and ``how`` make it end, ``told`` and ``seen`` are files of its observer.
        """
        return self._ask({"overrides": overrides, "root": str(root), "more": more})

    def read(self, what: str, path: Path, reference: Path, seen: Path) -> int:
        """Start a reader of a run's results; its process."""
        places = {"path": str(path), "reference": str(reference), "seen": str(seen)}
        return self._ask({"read": what, **places})

    def wait(self, process: int) -> int:
        """The exit code of a process, or minus the signal that ended it."""
        return self._ask({"wait": process})

    def run(self, overrides: list[str], root: Path, **more: Any) -> int:
        """Run to the end; the exit code."""
        return self.wait(self.start(overrides, root, **more))

    def _ask(self, question: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def count_calls(count: list[int], fails_at: int, how: str) -> None:
    """Count this process's writes, and make one of them the last, or the first that fails."""
    from condexp.runs import status_writer as status_keeper
    from condexp.store.hdf5 import writer

    # What is written for its age would make another number of calls each time.
    writer.FLUSH_SECONDS = status_keeper.STATUS_SECONDS = math.inf

    def patched(name: str, genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number = count[0]
            count[0] += 1
            if how == "full" and number >= fails_at and name not in {"replace", "ftruncate"}:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if how == "full once" and number == fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if number == fails_at and how in {"before", "half"}:
                if how == "half" and name in WRITES:
                    handle, data, offset = arguments
                    genuine(handle, memoryview(data)[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return genuine(*arguments, **options)
            finally:  # some calls fail by themselves: there is no earlier checkpoint to rename
                if number == fails_at and how == "after":
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in (*WRITES, *OTHERS):
        setattr(os, name, patched(name, getattr(os, name)))


@lru_cache
def _prepare(overrides: tuple[str, ...]) -> "Config":
    """Read the configuration and the data set once: children find both in their memory."""
    from hydra import compose, initialize_config_dir

    from condexp.config.presets import conf_dir
    from condexp.config.validation import parse_config
    from condexp.runs.prepare import prepare

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = parse_config(compose("config", [*overrides], return_hydra_config=True))
    prepare(config)
    return config


def _run(config: "Config", root: str, more: dict[str, Any]) -> int:
    from condexp.runs import attempt
    from condexp.runs.execute import run_experiment
    from condexp.runs.stop_signals import Stopped
    from tests.observer import Silent, Telling, Watched
    from tests.survival.readers import READERS

    # What is written beside the results takes a second, which is not what is to be killed.
    attempt.draw_overview = lambda folder: None
    attempt.provenance = lambda *arguments: {}  # type: ignore[attr-defined]
    config.run.root = config.plain["run"]["root"] = root
    count = [0]
    if "call" in more:
        count_calls(count, more["call"], more["how"])
    observer = Silent()
    if "told" in more:
        observer = Telling(Path(more["told"]))
    if "seen" in more:
        observer = Watched(Path(more["seen"]), len(READERS))
    try:
        result = run_experiment(config, observer)
    except Stopped as stopped:
        return stopped.exit_code
    if "count" in more:
        Path(more["count"]).write_text(str(count[0]))
    if result.message and "call" not in more:
        sys.stderr.write(f"{result.message}\n")
    return result.exit_code


def _fork(work: Callable[[], int]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(2, 1)  # the answers are the parent's
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve() -> None:
    import torch

    torch.set_num_threads(1)

    from tests.survival.readers import READERS

    living: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
            living.discard(question["wait"])
        elif "warm" in question:
            _prepare(tuple(question["warm"]))
            answer = 0
        elif "read" in question:
            places = [Path(question[name]) for name in ("path", "reference", "seen")]
            answer = _fork(partial(READERS[question["read"]], *places))
            living.add(answer)
        else:
            config = _prepare(tuple(question["overrides"]))
            given = config, question["root"], question["more"]
            answer = _fork(partial(_run, *given))
            living.add(answer)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    for child in living:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
