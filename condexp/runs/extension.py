"""A run that goes on where a complete one ended, in a folder of its own: ``run.extend_from``."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from condexp.errors import InputError, near_path
from condexp.results.config_keys import flatten, setting_text
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.reader import Run
from condexp.store.run_folder.checkpoints import (
    CHECKPOINT_NAME,
    RunFingerprint,
    read_evaluations,
)
from condexp.store.run_folder.completeness import read_checked_status
from condexp.store.run_folder.config_file import read_config
from condexp.store.run_folder.identity import identity_config, identity_yaml
from condexp.store.run_folder.status import CONFIG_NAME, STATUS_NAME, State
from condexp.store.schema.layout import FILE_NAME
from condexp.training.checkpoint import Checkpoint, read_checkpoint
from condexp.training.choices import RunState
from condexp.training.events import RowCounts
from condexp.training.learning_rate import LearningRate
from condexp.training.loop import Plan

LENGTH = ("trainer.epochs", "trainer.steps")
MARK = "extended_from"  # of the identity: these snapshots are not those of one long run
SHOWN = 3  # keys that differ, in a message


@dataclass(frozen=True)
class ExtendedRun:
    """The complete run that another one goes on from.

    Args:
        folder: Its folder.

    Raises:
        InputError: If there is no complete run.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / STATUS_NAME).exists():
            raise InputError(
                f"run.extend_from={self.folder} is no folder of a run.{near_path(self.folder)}"
            )
        status = read_checked_status(self.folder)
        if status.state is not State.COMPLETE:
            raise InputError(
                f"run.extend_from={self.folder}: that run is {status.state}, and only a complete "
                "one can be extended; its own command resumes it."
            )

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""
        return read_config(self.folder / CONFIG_NAME)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of its end."""
        return read_checkpoint(self.folder / CHECKPOINT_NAME)

    @property
    def step(self) -> int:
        """Its updates."""
        return self.checkpoint.step

    @property
    def results(self) -> Path:
        """Its results file."""
        return self.folder / FILE_NAME

    @property
    def mark(self) -> dict[str, Any]:
        """What the identity of the longer run holds of it."""
        text = identity_yaml(self.config)
        return {"config_sha256": hashlib.sha256(text.encode()).hexdigest(), "step": self.step}

    @property
    def provenance(self) -> dict[str, Any]:
        """What ``provenance.json`` says of it."""
        with (self.folder / CHECKPOINT_NAME).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"folder": str(self.folder.absolute()), **self.mark, "checkpoint_sha256": digest}

    def check(self, config: Mapping[str, Any], data_checksum: str) -> None:
        """Refuse a configuration that is of more than a longer run.

        Args:
            config: The configuration of the longer run, plain.
            data_checksum: SHA-256 of its data set.

        Raises:
            InputError: If it is; names what differs.
        """
        new, old = (dict(flatten(identity_config(each))) for each in (config, self.config))
        differing = [
            f"{key} is {setting_text(old.get(key))} there and {setting_text(new.get(key))} here"
            for key in sorted({*new, *old})
            if new.get(key) != old.get(key) and not _may_differ(key)
        ]
        if self.checkpoint.data_sha256 != data_checksum:
            differing.append("the data are others (SHA-256)")
        if differing:
            more = f", and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            raise InputError(
                f"run.extend_from={self.folder} is of another experiment: "
                f"{'; '.join(differing[:SHOWN])}{more}. Only {' and '.join(LENGTH)} and "
                "analysis.schedule may be others."
            )
        if self.checkpoint.config_sha256 != self.mark["config_sha256"]:
            raise InputError(f"{self.folder}: its checkpoint is of another configuration.")

    def plan(self, plan: Plan, rate: LearningRate) -> Plan:
        """Let the longer run have the shorter one's snapshots and evaluations, then its own.

        Args:
            plan: The plan of the longer run.
            rate: Its learning rate at each step.

        Returns:
            The plan of both.

        Raises:
            InputError: If it is no longer than the shorter one, or its learning rates are others.
        """
        if plan.num_steps <= self.step:
            raise InputError(
                f"run.extend_from={self.folder} has {self.step} steps already, and this run would "
                f"have {plan.num_steps}: give a larger trainer.epochs or trainer.steps."
            )
        run = Run(self.results)
        rates = run.metrics["lr"].loc[: self.step - 1].to_numpy()
        wanted = np.array([rate(step) for step in range(self.step)])
        other = np.flatnonzero(rates != wanted)
        if len(other):
            step = int(other[0])
            raise InputError(
                f"run.extend_from={self.folder}: the learning rate of step {step} was "
                f"{rates[step]:.6g} there, and over {plan.num_steps} steps it is "
                f"{wanted[step]:.6g}: this schedule depends on the length of the run, so the "
                "longer one is another run from its start on; leave out run.extend_from."
            )
        # One of the trained network is measured again, for the next step's learning rate.
        later = {step for step in plan.snapshot_steps if step >= self.step}
        evaluated = {record.step for record in read_evaluations(run.file)}
        evaluated |= {step for step in plan.eval_steps if step > self.step}
        return replace(
            plan,
            snapshot_steps=tuple(sorted({*run.steps, *later})),
            eval_steps=tuple(sorted(evaluated)),
        )

    def begin(self, writer: ResultsWriter, fingerprint: RunFingerprint) -> Checkpoint:
        """Copy the rows of the shorter run.

        Args:
            writer: The writer of the longer run's results, which are empty.
            fingerprint: What the longer run is of.

        Returns:
            The checkpoint that it goes on from.
        """
        there, done = self.checkpoint.committed, Run(self.results).steps
        snapshots = sum(step < self.step for step in done)
        counts = RowCounts(snapshots, there.steps, there.evaluations)
        writer.copy_rows(self.results, counts)
        return replace(
            self.checkpoint,
            state=RunState.UNFINISHED,
            committed=writer.sync(),
            config_sha256=fingerprint.config_sha256,
        )


def extended_run(folder: str | None) -> ExtendedRun | None:
    """Find the run that is extended.

    Args:
        folder: ``run.extend_from``.

    Returns:
        The run; None where there is no such key.

    Raises:
        InputError: If there is no complete run.
    """
    return None if folder is None else ExtendedRun(Path(folder).expanduser())


def _may_differ(key: str) -> bool:
    return key in {"experiment", *LENGTH} or key.startswith(("analysis.schedule.", f"{MARK}."))
