"""``logger=wandb``: a run of Weights & Biases, on its server or offline."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from condexp.results.loggers.follow import FollowedRun

LETTERS_OF_ID = 8


class Logger:
    """Logs to a run, of the group that is named as the run's experiment.

    It gets the run's numbers and hyperparameters alone: no console, code, hardware or git.

    Args:
        run: The run.
        run_id: Its id, where it goes on with an earlier attempt; offline that is another folder of
            the same id, which ``wandb sync`` puts together.
    """

    def __init__(self, run: FollowedRun, run_id: str | None) -> None:
        self.run_id = run_id or uuid.uuid4().hex[:LETTERS_OF_ID]
        given = {name: value for name, value in run.options.items() if value is not None}
        self._run: Any = wandb.init(
            **given,
            id=self.run_id,
            resume="allow",
            name=run.path.name,
            group=run.experiment,
            dir=run.folder,
            config=dict(run.hyperparameters),
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )
        # A step of our own: W&B drops what comes to one of its own that it has closed.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log a row."""
        self._run.log({**numbers, "step": step})

    def flush(self) -> None:
        """Do nothing: the service that wandb starts writes each row."""

    def finish(self, step: int, picture: Path | None) -> None:
        """Log the picture, and end the run."""
        if picture is not None:
            self._run.log({picture.stem: wandb.Image(str(picture)), "step": step})
        self._run.finish()

    def close(self) -> None:
        """Leave the run as one that was stopped."""
        self._run.finish(exit_code=1)
