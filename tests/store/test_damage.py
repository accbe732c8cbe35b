"""Damaged files of a run folder: an error or the same numbers, never others, never a hang."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from condexp.analysis.vocabulary import Matrix
from condexp.errors import DamageError, InputError
from condexp.store.disk import locked
from condexp.store.hdf5.seal import seal_results
from condexp.store.hdf5.structure import MAX_READ, texts
from condexp.store.hdf5.validate import validate_results
from condexp.store.last_rows import read_last_rows
from condexp.store.reader import Run, open_run
from condexp.store.run_folder.checkpoints import save_checkpoint
from condexp.store.run_folder.config_file import write_config
from condexp.store.run_folder.status import State, Status, read_status, write_status
from condexp.training.checkpoint import Checkpoint, read_checkpoint
from condexp.training.choices import RunState
from condexp.training.events import RowCounts
from tests.memory import limit_growth
from tests.store.hdf5.processes import exit_code, forked
from tests.store.records import few_columns, write_run

GUARD_SECONDS = 60  # what takes a moment has this long
MEMORY = 1 << 30
SPEC = few_columns()
STATUS = Status(State.DIVERGED, 7, 24, 1.75, 12.5, 11.25, 0.375, seconds=3.5, pid=1)
CONFIG = "model: {name: mlp, depth: 3}\nseed: 1\noptimizer: {lr: 0.125}\n"
Numbers = dict[str, Any]


def numbers(path: Path) -> Numbers:
    """Everything that is read of a results file."""
    run = open_run(path)
    found: Numbers = {"measures": run.measures(), "metrics": run.metrics, "attrs": run.attrs}
    found |= {layer: run.spectrum(Matrix.INPUT, layer) for layer in run.layers}
    last = read_last_rows(path)
    found |= {f"last {name}": values for name, values in last.layers.items()}
    found |= {f"last {name}": values for name, values in last.evals.items()}
    return found | {"steps": run.steps, "not analysed": run.not_analysed}


def checkpoint_numbers(path: Path) -> Numbers:
    found = read_checkpoint(path)
    weights = {name: value.numpy() for name, value in found.model.items()}
    return weights | {"step": found.step, "committed": found.committed, "random": found.random}


READ: dict[str, tuple[str, Callable[[Path], Numbers]]] = {
    "sealed": ("results.h5", numbers),
    "live": ("results.h5", numbers),
    "checkpoint": ("checkpoint.pt", checkpoint_numbers),
    "status": ("status.json", lambda path: vars(read_status(path.parent))),
    "config": ("config.yaml", lambda path: Run(path.with_name("results.h5")).config),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind, with the file that is to be damaged."""
    root = tmp_path_factory.mktemp("damage")
    found = {kind: root / kind for kind in READ}
    for kind, folder in found.items():
        folder.mkdir()
        write_run(folder / "results.h5", SPEC, None if kind == "sealed" else 16)
    seal_results(found["sealed"] / "results.h5")
    state = {"w": torch.arange(300.0), "b": torch.ones(3)}
    checkpoint = Checkpoint(
        state, {}, {"cpu": 1}, 7, 1, 3, RowCounts(3, 7, 1), "a", "b", RunState.UNFINISHED
    )
    save_checkpoint(found["checkpoint"], checkpoint)
    write_status(found["status"], STATUS)
    with locked(found["config"] / "results.h5") as owner:
        write_config(found["config"] / "config.yaml", CONFIG, owner)
    return found


def damaged(content: bytes, noise: random.Random) -> bytes:
    """The content with a bit flipped, its end cut off, or a page zeroed."""
    changed = bytearray(content)
    way = noise.randrange(6)
    if way == 0:
        return bytes(changed[: noise.randrange(len(changed))])
    if way == 1:
        start = noise.randrange(-(-len(changed) // 4096)) * 4096
        changed[start : start + 4096] = bytes(len(changed[start : start + 4096]))
    else:
        changed[noise.randrange(len(changed))] ^= 1 << noise.randrange(8)
    return bytes(changed)


def same(one: Any, two: Any) -> bool:
    """Whether they are equal, NaN to NaN, or the first is the beginning of the second."""
    if isinstance(one, xr.Dataset | xr.DataArray):
        return bool(one.identical(two.isel(step=slice(one.sizes["step"]))))
    if isinstance(one, pd.DataFrame):
        both = one.index.intersection(two.index)
        return len(both) == len(one) and all(
            np.array_equal(column[column.notna()], two.loc[both, name][column.notna()])
            for name, column in one.items()
        )
    if isinstance(one, np.ndarray) and one.dtype.kind == "f":
        return bool(np.array_equal(one, two, equal_nan=True))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, two))
    if isinstance(one, tuple):
        return bool(one == two[: len(one)])
    return bool(one == two)


def check(kind: str, folder: Path, golden: Numbers, content: bytes, noise: random.Random) -> None:
    name, read = READ[kind]
    path = folder / name
    changed = damaged(content, noise)
    path.write_bytes(changed)
    try:
        found = read(path)
    except InputError:
        pass
    else:
        prefix = kind == "live" and found["steps"] != golden["steps"]
        for key, value in found.items():
            # A counter that says less hides rows; the last row is another one then.
            if not (prefix and key.startswith("last ")):
                assert same(value, golden[key]), key
    if kind == "sealed" and changed != content:
        assert validate_results(path) != []
    path.write_bytes(content)


def fuzz(folders: dict[str, Path], num_cases: int, seed: int) -> None:
    originals = {kind: (folders[kind] / READ[kind][0]).read_bytes() for kind in READ}
    golden = {kind: READ[kind][1](folders[kind] / READ[kind][0]) for kind in READ}

    def work() -> None:
        limit_growth(MEMORY)
        for case in range(num_cases):
            kind = [*READ][case % len(READ)]
            noise = random.Random(seed + case)
            signal.alarm(GUARD_SECONDS)  # kills this process, and fails the test
            try:
                check(kind, folders[kind], golden[kind], originals[kind], noise)
            except BaseException as error:
                raise AssertionError(f"case {seed + case}, {kind}") from error
        signal.alarm(0)

    with forked(work) as child:
        assert exit_code(child) == 0


def test_200_damaged_files(folders: dict[str, Path]) -> None:
    fuzz(folders, 200, seed=0)


@pytest.mark.slow
def test_10000_damaged_files(folders: dict[str, Path]) -> None:
    fuzz(folders, 10_000, seed=1000)


def test_the_damaged_array_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "results.h5", few_columns(num_snapshots=4, every=400))
    seal_results(path)
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        content[file["train/loss"].id.get_offset() + 5000] ^= 1
    path.write_bytes(content)
    run = open_run(path)
    run.measures()  # what is undamaged is read
    told = r"do not match their checksum. Damaged: /train/loss; the other \d+ arrays are undamaged"
    with pytest.raises(InputError, match=told):
        _ = run.metrics
    (problem,) = validate_results(path)
    assert "/train/loss" in problem


@pytest.mark.parametrize("name", ["train/loss", "eval/test_error", "layers/input_lambda_max"])
def test_a_row_of_a_running_run_is_compared(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "results.h5"
    content = bytearray((folders["live"] / "results.h5").read_bytes())
    with h5py.File(folders["live"] / "results.h5") as file:
        content[file[name].id.get_offset() + 6] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        numbers(path)
    assert len(validate_results(path)) == 1


def test_what_a_compressed_array_expands_to_is_bounded(tmp_path: Path) -> None:
    path = write_run(tmp_path / "results.h5", SPEC)
    with h5py.File(path, "r+") as file:
        file.attrs["condexp_format_version"] = 2  # whose files have no checksums
        del file["train/loss"], file["train/train_step"]
        size = 2 * MAX_READ // 8
        for name, kind in (("loss", "f8"), ("train_step", "i8")):
            bomb = file["train"].create_dataset(
                name, (size,), kind, chunks=(1 << 18,), compression=1
            )
            bomb[:] = 0
        file["n_train_committed"][()] = size
    with pytest.raises(DamageError, match="too much to be read at once"):
        _ = Run(path).metrics


def test_one_long_text_many_times(tmp_path: Path) -> None:
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as file:
        array = file.create_dataset("texts", (1 << 16,), h5py.string_dtype())
        array[0] = "x" * 10_000
        offset = array.id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset : offset + (16 << 16)] = content[offset : offset + 16] * (1 << 16)
    path.write_bytes(content)
    with h5py.File(path) as file, pytest.raises(ValueError, match="too much to be read at once"):
        texts(file["texts"])
