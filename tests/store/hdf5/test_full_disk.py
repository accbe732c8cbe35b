"""A write that fails at any point loses nothing, is one clear error, and can be repeated."""

import errno
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import pytest

from condexp.store.disk import ResultsError
from condexp.store.hdf5 import writer as writer_module
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.validate import validate_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.schema.layout import FileSpec
from tests.store.records import (
    counters,
    eval_record,
    make_spec,
    snapshot_record,
    step_record,
)

PWRITE, FDATASYNC = os.pwrite, os.fdatasync


class Calls:
    """Counts the writes, and makes one of them fail; the others take a few bytes at a time."""

    def __init__(self, fails_at: int | None = None, error: int = errno.ENOSPC) -> None:
        self.fails_at, self.error = fails_at, error
        self.seen: list[tuple[str, int]] = []

    def _count(self, name: str, offset: int) -> None:
        self.seen.append((name, offset))
        if len(self.seen) - 1 == self.fails_at:
            raise OSError(self.error, os.strerror(self.error))

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        self._count("pwrite", offset)
        return PWRITE(handle, data[: max(1, len(data) // 2)], offset)

    def fdatasync(self, handle: int) -> None:
        self._count("fdatasync", -1)
        FDATASYNC(handle)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Calls]]:
    def patch(*arguments: int) -> Calls:
        calls = Calls(*arguments)
        # Training steps that are committed for their age would make another number of calls.
        monkeypatch.setattr(writer_module, "FLUSH_SECONDS", math.inf)
        monkeypatch.setattr(os, "pwrite", calls.pwrite)
        monkeypatch.setattr(os, "fdatasync", calls.fdatasync)
        return calls

    yield patch
    monkeypatch.undo()


def test_the_counter_is_written_last_between_two_waits_for_the_disk(
    tmp_path: Path, fail: Callable[..., Calls]
) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    with h5py.File(path) as file:
        counter = file["n_committed"].id.get_offset()
    with ResultsWriter(path, durability="power") as writer:
        calls = fail()
        writer.on_snapshot(snapshot_record(spec, 0))
    names = [name for name, _ in calls.seen]
    first = names.index("fdatasync")
    rest = calls.seen[first:]
    assert set(names[:first]) == {"pwrite"}
    # Eight bytes in halves: 4, 2, 1, 1.
    offsets = [("pwrite", counter + done) for done in (0, 4, 6, 7)]
    assert rest == [("fdatasync", -1), *offsets, ("fdatasync", -1)]
    with ResultsWriter(path, durability="kill") as writer:
        calls = fail()
        writer.on_snapshot(snapshot_record(spec, 3))
    assert "fdatasync" not in [name for name, _ in calls.seen]


def test_a_full_disk_at_any_write_loses_nothing_and_the_call_can_be_repeated(
    tmp_path: Path, fail: Callable[..., Calls], reference: tuple[FileSpec, bytes]
) -> None:
    spec, expected = reference
    path = tmp_path / "results.h5"
    create_results(path, spec)
    path_of_step: list[int] = []
    with ResultsWriter(path, durability="power") as writer:
        for step in range(spec.num_train_steps):
            if step in spec.snapshot_steps:
                before = counters(path)[0]
                failures = _until_it_works(
                    partial(writer.on_snapshot, snapshot_record(spec, step)),
                    fail,
                    # Most columns of the first snapshot, and a few of each other.
                    stride=5 if step == 0 else 101,
                    message=f"{before} committed snapshots are intact",
                    path=path,
                )
                path_of_step.append(failures)
                assert counters(path)[0] == before + 1
                assert validate_results(path) == []
            writer.on_step(step_record(step))
            if step + 1 in spec.eval_steps:
                _until_it_works(
                    partial(writer.on_eval, eval_record(spec, step + 1)),
                    fail,
                    stride=7,
                    message="committed snapshots are intact",
                    path=path,
                )
    assert path_of_step[0] > 70  # more than one failure a column
    assert path.read_bytes() == expected


def _until_it_works(
    call: Callable[[], None], fail: Callable[..., Calls], stride: int, message: str, path: Path
) -> int:
    """Repeat a call that fails at a later and later write; the number of failures."""
    for failures, at in enumerate(range(0, 100_000, stride)):
        calls, caught = fail(at), None
        try:
            call()
        except ResultsError as error:
            caught = error
        if caught is None:
            assert len(calls.seen) <= at
            return failures
        assert caught.errno == errno.ENOSPC
        for part in (message, str(path), "No space left on device (ENOSPC; ", "MiB free"):
            assert part in str(caught)
    raise AssertionError("it never worked")


def test_steps_are_kept_while_the_disk_is_full(tmp_path: Path, fail: Callable[..., Calls]) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    writer = ResultsWriter(path)
    for step in range(4):
        writer.on_step(step_record(step))
    fail(0)
    with pytest.raises(ResultsError, match="0 committed snapshots are intact"):
        writer.close()
    writer.on_step(step_record(3))  # the same call again
    fail()
    writer.close()
    assert counters(path) == (0, 4, 0)
    assert validate_results(path) == []


def test_a_broken_file_handle_is_let_go_when_a_run_fails(
    tmp_path: Path, fail: Callable[..., Calls]
) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    writer = ResultsWriter(path)
    writer.on_step(step_record(0))
    fail(0, errno.EIO)
    with pytest.raises(ResultsError, match="EIO"):
        writer.__exit__(None, None, None)
    fail()
    with ResultsWriter(path) as writer:
        assert writer.num_committed == 0
