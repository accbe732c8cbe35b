"""Checkpoints are written when they are due, one older is kept, and a run goes on from its own."""

import errno
import hashlib
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import nn

from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError
from condexp.runs import checkpointer
from condexp.runs.checkpointer import Checkpointer, CheckpointSchedule
from condexp.runs.stop_signals import StopRequests
from condexp.store.disk import ResultsError, locked
from condexp.store.hdf5.checked_file import Trailer
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.seal import seal_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.checkpoints import (
    MIN_SECONDS,
    RunFingerprint,
    check_resumable,
    find_checkpoint,
    read_evaluations,
    remove_checkpoints,
    save_checkpoint,
)
from condexp.store.run_folder.liveness import LOCK_NAME
from condexp.store.schema.layout import FILE_NAME, FileSpec
from condexp.training.checkpoint import Checkpoint, read_checkpoint
from condexp.training.choices import RunState
from condexp.training.events import RowCounts
from tests.store.records import counters, eval_record, make_spec, step_record, write_run

ORIGIN = RunFingerprint("", "data")


def checkpoint_of(step: int, **changes: Any) -> Checkpoint:
    plain: dict[str, Any] = {"model": {"w": torch.ones(3)}, "optimizer": {}, "random": {}}
    numbers = {"step": step, "epoch": 0, "position": step, "committed": RowCounts(0, 0, 0)}
    fingerprint = {"config_sha256": "", "data_sha256": "data", "state": RunState.UNFINISHED}
    return Checkpoint(**plain | numbers | fingerprint | changes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_older_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint_of(step))
    assert names(tmp_path) == ["checkpoint.previous.pt", "checkpoint.pt"]
    steps = [read_checkpoint(tmp_path / name).step for name in names(tmp_path)]
    assert steps == [2, 3]
    with locked(tmp_path / FILE_NAME) as owner:
        remove_checkpoints(owner, previous_only=True)
        assert names(tmp_path) == ["checkpoint.pt", LOCK_NAME]
        remove_checkpoints(owner)
    assert names(tmp_path) == [LOCK_NAME]


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_without_room_the_older_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint_of(step))

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ResultsError, match=r"checkpoint.pt: No space.*older checkpoint.*intact"):
        save_checkpoint(tmp_path, checkpoint_of(3))
    assert [read_checkpoint(tmp_path / name).step for name in names(tmp_path)] == [1, 2]


def test_where_a_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def found() -> int | None:
        checkpoint = find_checkpoint(tmp_path, lambda _: None)
        return checkpoint.step if checkpoint else None

    assert found() is None
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint_of(step))
    assert found() == 2
    # Killed between the two renames.
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint.pt.partial")
    assert found() == 1
    assert caplog.messages == []
    (tmp_path / "checkpoint.pt").write_bytes(b"cut short")
    with caplog.at_level(logging.WARNING):
        assert found() == 1
    assert "checkpoint.pt is damaged" in caplog.text
    assert "resuming from checkpoint.previous.pt, step 1" in caplog.text
    (tmp_path / "checkpoint.previous.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot resume: .*checkpoint\.pt is dam.*; .*previous"):
        found()
    with pytest.raises(InputError, match=r"Give run\.on_existing=restart to run it anew"):
        found()


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint_of(1))
    save_checkpoint(tmp_path, checkpoint_of(2, config_sha256="other"))

    def check(checkpoint: Checkpoint) -> None:
        if checkpoint.config_sha256:
            raise InputError("of another configuration")

    checkpoint = find_checkpoint(tmp_path, check)
    assert checkpoint is not None
    assert checkpoint.step == 1


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, FileSpec, Checkpoint]:
    """A run that came to step 10, with a checkpoint of step 7."""
    spec = make_spec(config_yaml="")
    write_run(tmp_path / "results.h5", spec, 10)
    fingerprint = RunFingerprint(_sha256(""), "data")
    counts = RowCounts(3, 7, 1)
    return (
        tmp_path,
        spec,
        checkpoint_of(7, committed=counts, config_sha256=fingerprint.config_sha256),
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def refusal(run: tuple[Path, FileSpec, Checkpoint], **changes: Any) -> str:
    """What is said against going on; empty where nothing is."""
    folder, spec, checkpoint = run
    fingerprint = RunFingerprint(_sha256(spec.config_yaml), "data")
    try:
        check_resumable(folder, spec, fingerprint, replace(checkpoint, **changes))
    except InputError as error:
        return str(error)
    return ""


def test_a_run_goes_on_from_its_own_checkpoint(run: tuple[Path, FileSpec, Checkpoint]) -> None:
    assert refusal(run) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_sha256": "0"}, "the checkpoint of step 7 is of another configuration"),
        ({"data_sha256": "0"}, "was trained on other data than dataset.root holds now"),
        ({"committed": RowCounts(5, 7, 1)}, "has fewer snapshot rows than the checkpoint of step"),
        ({"committed": RowCounts(3, 11, 2)}, "has fewer train, eval rows"),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    run: tuple[Path, FileSpec, Checkpoint], changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(run, **changes)


def test_a_foreign_file_is_refused(run: tuple[Path, FileSpec, Checkpoint]) -> None:
    folder, spec, _ = run
    path = folder / "results.h5"
    content = path.read_bytes()
    path.unlink()
    assert "no results file at" in refusal(run)
    path.write_bytes(b"not HDF5")
    assert "is not an HDF5 file" in refusal(run)
    path.write_bytes(content.replace(b"condexp_format_version", b"condexp_format_versiom"))
    assert "do not match their checksum" in refusal(run)
    trailer = Trailer.read(path)
    assert trailer is not None
    path.write_bytes(path.read_bytes()[: trailer.size])
    assert "is not a results file of format 'condexp', version 1 or 2" in refusal(run)
    create_results(path, make_spec(config_yaml="other"))
    assert "is of another configuration than the checkpoint" in refusal(run)
    write_run(path, make_spec(9, config_yaml=""), 10)
    assert "has another shape" in refusal(run)
    write_run(path, make_spec(config_yaml="", matrices=(Matrix.INPUT,)), 10)
    assert "has another shape" in refusal(run)
    write_run(path, spec, 10)
    assert refusal(run) == ""
    # What the checkpoint counts on has to be whole; what is taken back does not.
    damaged = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        offset = file["layers/weight_norm"].id.get_offset()
        row_bytes = 8 * len(spec.layers)
    damaged[offset + 3 * row_bytes] ^= 1
    path.write_bytes(damaged)
    assert refusal(run) == ""
    damaged[offset] ^= 1
    path.write_bytes(damaged)
    assert "/layers/weight_norm, snapshot 0 (step 0)" in refusal(run)


def test_a_sealed_file_goes_with_the_checkpoint_of_the_end(tmp_path: Path) -> None:
    spec = make_spec(config_yaml="")
    path = write_run(tmp_path / "results.h5", spec)
    whole = RowCounts(*counters(path))
    end = checkpoint_of(24, committed=whole, config_sha256=_sha256(""), state=RunState.COMPLETE)
    run = tmp_path, spec, end
    assert refusal(run) == ""
    seal_results(path)
    assert refusal(run) == ""
    for changes in ({"state": RunState.UNFINISHED}, {"committed": RowCounts(7, 24, 4)}):
        assert "is sealed, but the checkpoint of step 24 is not of the end" in refusal(
            run, **changes
        )


def test_evaluations_come_back(tmp_path: Path) -> None:
    spec = make_spec()
    path = write_run(tmp_path / "results.h5", spec, 13)
    assert read_evaluations(path) == [eval_record(spec, step) for step in (6, 12)]


@pytest.mark.parametrize(
    ("every_steps", "every_epochs", "expected"),
    [(3, None, [3, 6, 9]), (None, 1, [4, 8]), (3, 2, [3, 6, 8, 9]), (None, None, [])],
)
def test_schedule(every_steps: int | None, every_epochs: int | None, expected: list[int]) -> None:
    schedule = CheckpointSchedule(every_steps, every_epochs, steps_per_epoch=4)
    due, step = [], schedule.next_after(0)
    while 0 < step < 11:
        due.append(step)
        step = schedule.next_after(step)
    assert due == expected


def test_epochs_that_are_short_share_a_checkpoint() -> None:
    schedule = CheckpointSchedule(3, 1, steps_per_epoch=4)
    assert schedule.is_due(3, 0.0)
    assert not schedule.is_due(4, 0.9 * MIN_SECONDS)
    assert schedule.is_due(4, MIN_SECONDS)


class Training:
    """A writer at some step, a model, and the checkpointer between them."""

    def __init__(self, folder: Path, stop: StopRequests, start: int = 0) -> None:
        self.spec = make_spec()
        if not start:
            create_results(folder / "results.h5", self.spec)
        self.writer = ResultsWriter(folder / "results.h5")
        model = nn.Linear(2, 2)
        self.checkpointer = Checkpointer(
            folder,
            self.writer,
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            fingerprint=ORIGIN,
            schedule=CheckpointSchedule(5, None, self.spec.steps_per_epoch),
            stop=stop,
            start=start,
        )


def test_checkpoints_are_written_when_due_and_count_what_is_committed(tmp_path: Path) -> None:
    training = Training(tmp_path, stop=StopRequests())
    with training.writer:
        for step in range(13):
            assert not training.checkpointer.pause(step)
            training.writer.on_step(step_record(step))
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pt")
    assert (checkpoint.step, checkpoint.epoch, checkpoint.position) == (10, 1, 4)
    assert checkpoint.committed == RowCounts(0, 10, 0)
    assert read_checkpoint(tmp_path / "checkpoint.previous.pt").step == 5
    again = Training(tmp_path, stop=StopRequests(), start=10)
    with again.writer:
        assert not again.checkpointer.pause(10)
        assert read_checkpoint(tmp_path / "checkpoint.previous.pt").step == 5
        assert not again.checkpointer.pause(15)
    assert read_checkpoint(tmp_path / "checkpoint.pt").step == 15


def test_a_request_to_stop_is_heeded_at_once(tmp_path: Path) -> None:
    stop = StopRequests()
    training = Training(tmp_path, stop)
    with training.writer:
        assert not training.checkpointer.pause(0)
        stop.note(signal.SIGTERM, None)
        assert training.checkpointer.pause(1)
    assert not (tmp_path / "checkpoint.pt").exists()  # it is the caller's to write


def test_a_full_disk_between_the_steps_costs_a_checkpoint_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    training = Training(tmp_path, stop=StopRequests())
    with training.writer:
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(os, "fsync", full)
            assert not training.checkpointer.pause(5)
            with pytest.raises(ResultsError, match="ENOSPC"):
                training.checkpointer.save(5, RunState.COMPLETE)
        assert "cannot write" in caplog.text
        assert not training.checkpointer.pause(10)
    assert read_checkpoint(tmp_path / "checkpoint.pt").step == 10


class Asked(StopRequests):
    """Counts how often it is asked."""

    times = 0

    def __bool__(self) -> bool:
        self.times += 1
        return super().__bool__()


def test_between_the_steps_it_asks_once_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Asked()
    training = Training(tmp_path, stop)
    with training.writer, monkeypatch.context() as patch:
        # Neither the clock nor anything that a checkpoint is made of.
        patch.setattr(checkpointer, "time", None)
        patch.setattr(checkpointer, "random_state", None)
        for name in ("_folder", "_writer", "_model", "_optimizer", "_fingerprint"):
            patch.setattr(training.checkpointer, name, None)
        for step in (1, 2, 3, 4):
            assert not training.checkpointer.pause(step)
            assert stop.times == step
        with pytest.raises(AttributeError):  # due
            training.checkpointer.pause(5)
