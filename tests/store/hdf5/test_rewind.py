"""Rows that are taken back are as if they had never been written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condexp.store import labelled_arrays, reader
from condexp.store.disk import ResultsError
from condexp.store.hdf5.validate import validate_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.reader import open_run
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import FileSpec
from condexp.training.events import RowCounts
from tests.store.records import (
    counters,
    eval_record,
    few_columns,
    make_spec,
    run_bytes,
    snapshot_record,
    step_record,
    write_run,
)

PWRITE = os.pwrite


def counts_at(spec: FileSpec, step: int) -> RowCounts:
    """What is committed before a step, in the order of :func:`tests.store.records.feed`."""
    return RowCounts(
        sum(each < step for each in spec.snapshot_steps),
        step,
        sum(each <= step for each in spec.eval_steps),
    )


def finish(path: Path, spec: FileSpec, first: int) -> None:
    with ResultsWriter(path) as writer:
        for step in range(first, spec.num_train_steps):
            if step in spec.snapshot_steps:
                writer.on_snapshot(snapshot_record(spec, step))
            writer.on_step(step_record(step))
            if step + 1 in spec.eval_steps:
                writer.on_eval(eval_record(spec, step + 1))


@pytest.mark.parametrize("kept", [0, 1, 6, 7, 23, 24])
@pytest.mark.parametrize("reached", [24, 10])
def test_the_file_is_that_of_a_run_that_came_no_further(
    tmp_path: Path, reference: tuple[FileSpec, bytes], kept: int, reached: int
) -> None:
    spec, kept = reference[0], min(kept, reached)
    path = tmp_path / "results.h5"
    path.write_bytes(run_bytes(reached))
    with ResultsWriter(path) as writer:
        writer.rewind(counts_at(spec, kept))
        assert writer.committed == counts_at(spec, kept)
    assert path.read_bytes() == run_bytes(kept)
    finish(path, spec, kept)
    assert path.read_bytes() == reference[1]


def test_rows_of_a_commit_that_was_never_made_are_emptied_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    path = write_run(tmp_path / "results.h5", spec, 7)
    never = path.read_bytes()
    counts = RowCounts(*counters(path))

    def die(*arguments: Any) -> None:
        raise SystemExit

    with ResultsWriter(path) as writer:
        monkeypatch.setattr(writer, "_count", die)
        with pytest.raises(SystemExit):
            writer.on_snapshot(snapshot_record(spec, 9))
    assert path.read_bytes() != never
    with ResultsWriter(path) as writer:
        writer.rewind(counts)
    assert path.read_bytes() == never


class Broken:
    """Writes until a call, then none."""

    def __init__(self, fails_at: int) -> None:
        self.count, self.fails_at = 0, fails_at

    def __call__(self, handle: int, data: bytes, offset: int) -> int:
        self.count += 1
        if self.count > self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return PWRITE(handle, data, offset)


def test_the_counters_come_first_and_dying_inside_is_covered_by_doing_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = few_columns()
    whole = write_run(tmp_path / "whole.h5", spec).read_bytes()
    expected = write_run(tmp_path / "expected.h5", spec, 7).read_bytes()
    path, counts = tmp_path / "results.h5", counts_at(spec, 7)
    path.write_bytes(whole)
    with ResultsWriter(path) as writer:
        monkeypatch.setattr(os, "pwrite", counting := Broken(10**9))
        writer.rewind(counts)
        monkeypatch.undo()
    assert counting.count > 30
    for fails_at in (0, 1, 2, 3, *range(4, counting.count, 7)):
        path.write_bytes(whole)
        with ResultsWriter(path) as writer:
            monkeypatch.setattr(os, "pwrite", Broken(fails_at))
            with pytest.raises(ResultsError, match=r"EIO; .*committed snapshots are intact"):
                writer.rewind(counts)
            monkeypatch.undo()
        # What is still counted is still whole.
        assert validate_results(path) == []
        # The counters are the first three writes.
        before, after = (8, 24, 4), (3, 7, 1)
        assert counters(path) == (*after[:fails_at], *before[fails_at:3])
        with ResultsWriter(path) as again:
            again.rewind(counts)
        assert path.read_bytes() == expected


def test_what_is_empty_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    path = write_run(tmp_path / "results.h5", spec, 7)
    offsets: list[int] = []
    genuine = os.pwrite

    def noting(handle: int, data: bytes, offset: int) -> int:
        offsets.append(offset)
        return genuine(handle, data, offset)

    with ResultsWriter(path) as writer:
        monkeypatch.setattr(os, "pwrite", noting)
        writer.rewind(writer.committed)
    assert len(offsets) == 3  # the counters


def test_more_rows_than_there_are_cannot_stay(tmp_path: Path) -> None:
    path = write_run(tmp_path / "results.h5", make_spec(), 7)
    before = path.read_bytes()
    with ResultsWriter(path) as writer:
        for counts in ((4, 7, 1), (3, 8, 1), (3, 7, 2), (-1, 0, 0)):
            with pytest.raises(ValueError, match="too few for"):
                writer.rewind(RowCounts(*counts))
    assert path.read_bytes() == before


def test_secured_rows_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec()
    path = write_run(tmp_path / "results.h5", spec, 7)
    calls: list[str] = []
    with ResultsWriter(path, durability="kill") as writer:
        for name in ("pwrite", "fdatasync"):
            genuine = getattr(os, name)

            def noting(*arguments: Any, name: str = name, genuine: Any = genuine) -> Any:
                calls.append(name)
                return genuine(*arguments)

            monkeypatch.setattr(os, name, noting)
        writer.on_step(step_record(7))
        assert writer.sync() == RowCounts(3, 8, 1)
    assert calls[-1] == "fdatasync"
    assert "pwrite" in calls


def test_a_reader_that_looks_on_meanwhile_sees_no_empty_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    path = write_run(tmp_path / "results.h5", spec)
    whole, counts = path.read_bytes(), counts_at(spec, 7)
    genuine = labelled_arrays.num_committed
    looks: list[Callable[[], Any]] = [
        lambda: open_run(path).measures()["weight_norm"].to_numpy(),
        lambda: open_run(path).metrics["lr"].dropna().to_numpy(),
        lambda: open_run(path).spectrum("input", "fc").to_numpy(),
    ]
    for look, expected in zip(looks, (3, 7, 3), strict=True):
        path.write_bytes(whole)
        counted: list[int] = []

        def count(file: Any, axis: Axis, counted: list[int] = counted) -> int:
            counted.append(genuine(file, axis))
            if len(counted) == 1:
                # The run was killed, and goes on just after the reader has read the counter.
                with ResultsWriter(path) as writer:
                    writer.rewind(counts)
            return counted[-1]

        for module in (reader, labelled_arrays):
            monkeypatch.setattr(module, "num_committed", count)
        seen = look()
        monkeypatch.undo()
        assert len(counted) > 1
        assert len(seen) == expected
        assert not np.isnan(seen).all(axis=-1).any()
