"""The run folder of somebody else's training loop, as rank 0 writes it."""

import logging
import math
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.errors import InputError
from condexp.runs.attempt import STALE, draw_overview, run_log, seal_or_log, write_setting
from condexp.runs.build import file_attributes
from condexp.runs.status_writer import StatusWriter
from condexp.store.disk import as_results_error, locked
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.offsets import by_axis
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.checkpoints import read_evaluations, remove_checkpoints
from condexp.store.run_folder.completeness import check_finished
from condexp.store.run_folder.liveness import (
    LOCK_NAME,
    Liveness,
    describe_process,
    liveness_of,
    refuse_beside_another,
)
from condexp.store.run_folder.provenance import provenance
from condexp.store.run_folder.records import refuse_other_record
from condexp.store.run_folder.status import STATUS_NAME, State, Status, last_known
from condexp.store.schema.layout import FILE_NAME, FileSpec
from condexp.training.events import EvalRecord, RowCounts, SnapshotRecord, StepRecord
from condexp.training.loop import Plan

logger = logging.getLogger("condexp")


@dataclass(frozen=True)
class RecordSetting:
    """What a record is of.

    Attributes:
        title: What is trained, in words.
        config: The user's configuration with the analysis's own, plain.
        options: What is measured.
        plan: When, and how long the loop is.
        on_existing: ``resume``, ``restart`` or ``fail``.
        device: Where the model is.
        data_checksum: SHA-256 of the data set; None: it is not known.
    """

    title: str
    config: Mapping[str, Any]
    options: AnalysisOptions
    plan: Plan
    on_existing: str
    device: str
    data_checksum: str | None = None

    @property
    def yaml(self) -> str:
        """The configuration as the results file holds it."""
        return yaml.safe_dump(dict(self.config), sort_keys=True, allow_unicode=True)

    @property
    def rows(self) -> RowCounts:
        """The rows of a record that came to its end."""
        plan = self.plan
        return RowCounts(len(plan.snapshot_steps), plan.num_steps, len(plan.eval_steps))

    def file_spec(self, snapshot: Snapshot) -> FileSpec:
        """Describe the results file; its layers are known from a first pass.

        Args:
            snapshot: Any snapshot of the network.

        Returns:
            What the file is created from.
        """
        options, plan = self.options, self.plan
        return FileSpec(
            layers=tuple(layer.info for layer in snapshot.records),
            not_analysed=snapshot.not_analysed,
            matrices=options.matrices,
            kappa_p=options.kappa_p,
            save_spectra=True,
            snapshot_steps=plan.snapshot_steps,
            eval_steps=plan.eval_steps,
            num_train_steps=plan.num_steps,
            steps_per_epoch=plan.steps_per_epoch,
            num_samples=snapshot.num_samples,
            config_yaml=self.yaml,
            attributes=file_attributes(
                self.title, options, source="train_batch", bn_mode=str(snapshot.bn_mode)
            ),
        )


class RecordFolder:
    """Writes a run folder while a loop trains.

    Args:
        folder: The folder.
        setting: What is recorded.

    Raises:
        InputError: If the folder holds another run, a finished one, or one that goes on elsewhere.
        ResultsError: If it cannot be written.
    """

    def __init__(self, folder: Path, setting: RecordSetting) -> None:
        self._folder, self._setting, self._results = folder, setting, folder / FILE_NAME
        self._writer: ResultsWriter | None = None
        self._waiting: list[StepRecord] = []  # until the file's layers are known
        self._whole = by_axis(setting.rows)
        self._resources = ExitStack()
        self._resumes()  # so that nothing is made where it must not be
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with as_results_error(self._results, "Nothing was changed"):
                self._owner = self._resources.enter_context(locked(self._results))
            if not self._owner.has_lock:
                refuse_beside_another(folder, restart=setting.on_existing == "restart")
            self._open(resumes=self._resumes(owned=True))
        except BaseException:
            self._resources.close()
            raise

    def _open(self, *, resumes: bool) -> None:
        folder, setting = self._folder, self._setting
        earlier = last_known(folder) if (folder / STATUS_NAME).exists() and resumes else None
        self._status = StatusWriter(self._owner, setting.plan, earlier)
        log = run_log(folder / "run.log", append=earlier is not None)
        self._resources.enter_context(log)
        if not resumes:
            self._clear()
        elif self._results.is_file():
            self._writer = self._write_results()
        content = provenance(sys.argv, setting.data_checksum, setting.device)
        write_setting(self._owner, setting.config, content, resumes=earlier is not None)
        self._status.write(State.RUNNING)

    def _write_results(self) -> ResultsWriter:
        writer = ResultsWriter(self._results, owner=self._owner)
        return self._resources.enter_context(writer)

    @property
    def has_file(self) -> bool:
        """Whether the results file is there, which needs the layers."""
        return self._writer is not None

    @property
    def num_steps(self) -> int:
        """Number of steps that the file holds."""
        return 0 if self._writer is None else self._writer.committed.steps

    def begin(self, step: int) -> None:
        """Take back what the file holds of this step and later ones.

        Args:
            step: The step that the loop begins with.
        """
        if self._writer is None:
            return
        plan, committed = self._setting.plan, self._writer.committed
        snapshots = sum(s < step for s in plan.snapshot_steps[: committed.snapshots])
        evaluations = sum(s <= step for s in plan.eval_steps[: committed.evaluations])
        self._writer.rewind(RowCounts(snapshots, step, evaluations))
        self._status.resume(step, read_evaluations(self._results))
        logger.info("resuming: going on from step %d", step)

    def create(self, spec: FileSpec) -> None:
        """Make the results file.

        Args:
            spec: What it is created from.

        Raises:
            ResultsError: If it cannot be made.
        """
        create_results(self._results, spec, self._owner)
        self._whole, self._writer = spec.num_rows, self._write_results()
        for record in self._waiting:
            self._writer.on_step(record)
        self._waiting.clear()

    def on_step(self, record: StepRecord) -> None:
        """Write a step."""
        if self._writer is None:
            self._waiting.append(record)
        else:
            self._writer.on_step(record)
        self._status.on_step(record)

    def on_checkpoint(self, number: int) -> None:
        """Count a checkpoint that was measured, of a training that was made elsewhere."""
        self._status.on_step(StepRecord(number, math.nan, math.nan))

    def on_eval(self, record: EvalRecord) -> None:
        """Write an evaluation."""
        assert self._writer is not None
        self._writer.on_eval(record)
        self._status.on_eval(record)

    def on_snapshot(self, record: SnapshotRecord) -> None:
        """Write a snapshot."""
        assert self._writer is not None
        self._writer.on_snapshot(record)
        self._status.on_snapshot(record)

    def finish(self, state: State, message: str | None = None) -> None:
        """Write how the loop ended, and let the folder go.

        Args:
            state: Its state; a complete or diverged record is sealed, and its picture drawn.
            message: What ended it, where something did.
        """
        with self._resources:
            if self._writer is not None:
                self._writer.flush()
                committed = by_axis(self._writer.committed)
                if state is State.COMPLETE and committed != self._whole:
                    state, message = State.INTERRUPTED, "not all evaluations were recorded"
            ended = state in {State.COMPLETE, State.DIVERGED}
            if ended and self._writer is not None:
                seal_or_log(self._owner)
                check_finished(self._results, committed)
            logger.log(logging.INFO if ended else logging.WARNING, "%s %s", state, message or "")
            self._status.write(state, message)
            if ended and self._writer is not None:
                draw_overview(self._folder)

    def abandon(self) -> None:
        """Let the folder go after an error of its own, as far as it still can be."""
        self._resources.close()

    def _clear(self) -> None:
        self._status.write(State.PENDING)
        remove_checkpoints(self._owner)
        for name in (*STALE, FILE_NAME):
            self._owner.unlink(name)

    def _resumes(self, *, owned: bool = False) -> bool:
        # Whether an earlier record goes on; refuses what must not be written over. Whose lock this
        # process holds is nobody else's, whatever a status says.
        folder, on_existing = self._folder, self._setting.on_existing
        if not (folder / STATUS_NAME).exists():
            if folder.is_dir() and any(path.name != LOCK_NAME for path in folder.iterdir()):
                raise InputError(f"{folder} is no run and not empty: give a folder of its own.")
            return False
        if on_existing == "fail":
            raise InputError(
                f"{folder} exists already, and on_existing='fail': give 'resume', or 'restart' to "
                "record it anew."
            )
        status = last_known(folder)
        alive = not owned and liveness_of(folder, status) is Liveness.ALIVE
        if alive and not _is_own(status):
            raise InputError(f"{folder}: {describe_process(status)} is at it; wait, or stop it.")
        if on_existing == "restart":
            return False
        if status.state in {State.COMPLETE, State.DIVERGED}:
            raise InputError(
                f"{folder} holds a record that is {status.state}: give another folder, or "
                "on_existing='restart' to record it anew."
            )
        if self._results.is_file():
            refuse_other_record(self._results, self._setting.yaml, self._setting.rows)
        return True


def _is_own(status: Status) -> bool:
    return status.pid == os.getpid() and status.host == socket.gethostname()
