"""The process of one job of a sweep, which :mod:`condexp.runs.sweep.job_process` starts.

The job is a line of JSON on standard input, its result is JSON on the file descriptor that
is named by the first argument. Standard input then stays open for as long as the sweep lives.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from condexp.runs.sweep.job_spec import JobSpec

if TYPE_CHECKING:
    from condexp.runs.result import RunResult

ORPHAN_SECONDS = 60.0  # for the last step and the checkpoint of a job whose sweep was killed


def main() -> int:
    """Run the job that standard input describes.

    Returns:
        0; what became of the job is in its result.
    """
    # Until a run watches for signals there is nothing to save: Ctrl-C ends it without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    channel = int(sys.argv[1])
    os.set_inheritable(channel, False)
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        job = JobSpec.from_json(stdin.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.argv = list(job.argv)
    result = _run(job)
    content = {
        "folder": result.folder and str(result.folder),
        "state": result.state,
        "message": result.message and result.message[:4000],  # what a pipe takes whole
        "stored": result.stored,
    }
    os.write(channel, json.dumps(content).encode())
    return 0


def _run(job: JobSpec) -> "RunResult":
    # Only now: the import takes seconds, and until here none may pass.
    import yaml
    from omegaconf import DictConfig

    from condexp.config.validation import parse_config
    from condexp.errors import InputError
    from condexp.results.console import go_on_without_output
    from condexp.runs.execute import run_experiment
    from condexp.runs.progress import ProgressReporter
    from condexp.runs.result import RunResult
    from condexp.runs.stop_signals import Stopped
    from condexp.store.run_folder.status import State

    signal.signal(signal.SIGINT, signal.default_int_handler)
    go_on_without_output()
    reporter = ProgressReporter(job.name, bar=job.draws_bar)
    try:
        values = yaml.safe_load(job.config)
        presets = {key: values.pop(key) for key in ("experiment", "profile")}
        config = parse_config(DictConfig(values), **presets)
        return run_experiment(config, reporter)
    except (Stopped, KeyboardInterrupt) as stop:
        return RunResult(job.folder, State.INTERRUPTED, str(stop) or "stopped by Ctrl-C")
    except (InputError, SystemExit) as error:  # it was well when the sweep was planned
        lost = RunResult.lost(str(error))
        reporter.finished(lost)
        return lost
    finally:
        reporter.close()


def _stop_with_parent() -> None:
    """Stop as if asked to when the process that waits for this one is gone."""
    # Not through sys.stdin, whose lock a waiting thread would hold as the interpreter ends.
    while os.read(0, 1):
        pass
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # nobody reads it any more
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
