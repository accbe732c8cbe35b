"""``logger=mlflow``: a run of MLflow's, by its client."""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from condexp.results.config_keys import flatten
from condexp.results.loggers.follow import FollowedRun

STORE = "mlruns"  # in the current folder
MOST_METRICS, MOST_PARAMS, MOST_LETTERS = 1000, 100, 500  # of one request


class Logger:
    """Logs to a run, of the experiment that is named as the run's own.

    Args:
        run: The run.
        run_id: MLflow's id, where it goes on with an earlier attempt.
    """

    def __init__(self, run: FollowedRun, run_id: str | None) -> None:
        uri = run.options["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI")
        uri = uri or Path(STORE).absolute().as_uri()
        folder = _folder(uri)
        if folder is not None:  # MLflow 3 asks for a word before it uses a folder
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=uri)
        if run_id is None:
            with _locked(folder):  # the jobs of a sweep begin at once
                experiment = self._experiment(run.options["experiment"] or run.experiment)
            made = self._client.create_run(experiment, run_name=run.path.name)
            self.run_id: str = made.info.run_id
            settings = [
                Param(key, str(value)[:MOST_LETTERS]) for key, value in flatten(run.hyperparameters)
            ]
            for first in range(0, len(settings), MOST_PARAMS):
                self._client.log_batch(self.run_id, params=settings[first : first + MOST_PARAMS])
        else:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log metrics."""
        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in numbers.items()]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + MOST_METRICS])

    def flush(self) -> None:
        """Do nothing: each request was answered."""

    def finish(self, step: int, picture: Path | None) -> None:  # noqa: ARG002 - artifacts have none
        """Log the picture as an artifact, and end the run."""
        if picture is not None:
            self._client.log_artifact(self.run_id, str(picture))
        self._client.set_terminated(self.run_id)

    def close(self) -> None:
        """Mark the run as stopped."""
        self._client.set_terminated(self.run_id, status="KILLED")


def _folder(uri: str) -> Path | None:
    """Return the folder of a store that is one."""
    address = urlsplit(uri)
    return Path(url2pathname(address.path)) if address.scheme in {"", "file"} else None


@contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """Hold a lock on a store that is a folder; servers keep order themselves."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
