"""Damaged files of a run folder: an error or the same numbers, never others, never a hang."""

import random
import re
import signal
from collections.abc import Callable
from contextlib import suppress
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
from condexp.store.hdf5 import structure
from condexp.store.hdf5.open import open_file
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
    """Everything that is read of a results file, but for what is told to be damaged."""
    run = open_run(path)
    found: Numbers = {}
    with suppress(InputError):
        found |= {str(name): each for name, each in measures(run).variables.items()}
    for name, read in (
        *(("metrics", lambda: run.metrics), ("attrs", lambda: run.attrs)),
        *(("steps", lambda: run.steps), ("not analysed", lambda: run.not_analysed)),
        *(("layers", lambda: run.layers), ("last", lambda: read_last_rows(path))),
    ):
        with suppress(InputError):
            found[name] = read()
    for layer in found.get("layers", ()):
        with suppress(InputError):
            found[f"input of {layer}"] = run.spectrum(Matrix.INPUT, layer)
    last = found.pop("last", None)
    for group in (last.layers, last.evals) if last else ():
        found |= {f"last {name}": values for name, values in group.items()}
    return found


def measures(run: Run) -> xr.Dataset:
    """The measures, without those that are damaged."""
    try:
        return run.measures()
    except DamageError as damage:
        way_out = re.search(r"measures\(drop_variables=\[(.*)\]\) reads the others", str(damage))
        if way_out is None:
            raise
        return run.measures(drop_variables=re.findall("'(.*?)'", way_out[1]))


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
    if isinstance(one, xr.Variable | xr.DataArray):
        return bool(
            one.identical(two.isel(step=slice(one.sizes.get("step")), missing_dims="ignore"))
        )
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
        prefix = kind == "live" and found.get("steps") != golden["steps"]
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


@pytest.mark.parametrize("kind", ["sealed", "live"])
def test_what_a_damaged_header_does_not_describe_is_read(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    whole, path = folders[kind] / "results.h5", tmp_path / "results.h5"
    golden, variables = numbers(whole), set(open_run(whole).measures().variables)
    with h5py.File(whole) as file:
        names = [*[f"layers/{name}" for name in file["layers"]][::3], "train/loss", "spectra"]
        places = {name: h5py.h5o.get_info(file[name].id).addr for name in names}
    num_read = 0
    for name, place in places.items():
        content = bytearray(whole.read_bytes())
        content[place + 5] ^= 4
        path.write_bytes(content)
        (problem,) = validate_results(path)
        if "none can be trusted" in problem:  # what leads to all arrays begins there as well
            continue
        lost = problem.partition("Damaged: ")[2].partition(";")[0].split(", ")
        assert any(f"/{name}/".startswith(f"{each}/") for each in lost)  # or all of its group
        found = numbers(path)
        assert all(same(value, golden[key]) for key, value in found.items())
        parts = {each.split("/")[1] for each in lost}
        assert parts & {"train", "eval"} or "metrics" in found
        scales = {"/layers", "/layers/step", "/layers/layer", "/layers/p"}
        if not scales & {*lost} and not parts & {"column", "epoch", "step"}:
            gone = {each.removeprefix("/layers/") for each in lost}
            gone |= {each.replace("_rank", "_status") for each in gone}
            assert variables - set(found) == variables & gone
            num_read += 1
    assert num_read >= 5  # elsewhere a block is shared with a scale, or with a whole group


def test_measures_say_how_the_undamaged_ones_are_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "results.h5"
    content = bytearray((folders["live"] / "results.h5").read_bytes())
    with h5py.File(folders["live"] / "results.h5") as file:
        content[file["layers/weight_norm"].id.get_offset() + 6] ^= 0x10
    path.write_bytes(content)
    run = open_run(path)
    told = r"measures\(drop_variables=\['weight_norm'\]\) reads the others"
    with pytest.raises(DamageError, match=told):
        run.measures()
    golden = open_run(folders["live"]).measures()
    kept = run.measures(drop_variables=["weight_norm"])
    assert kept.identical(golden.drop_vars("weight_norm"))
    assert "input_status" not in run.measures(drop_variables=["weight_norm", "input_rank"])
    with pytest.raises(InputError, match=r"unknown variable 'weight_norn'.*'weight_norm'"):
        run.measures(drop_variables=["weight_norn"])
    with pytest.raises(InputError, match="give one"):
        run.measures(p=[0.7], drop_variables=["weight_norm"])


@pytest.mark.parametrize("name", ["train/loss", "eval/test_error", "layers/input_lambda_max"])
def test_a_row_of_a_running_run_is_compared(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "results.h5"
    content = bytearray((folders["live"] / "results.h5").read_bytes())
    with h5py.File(folders["live"] / "results.h5") as file:
        content[file[name].id.get_offset() + 6] ^= 0x10
    path.write_bytes(content)
    run = open_run(path)
    with pytest.raises(DamageError, match=rf"damaged.*{name.partition('/')[0]}"):
        _ = run.measures() if name.startswith("layers") else run.metrics
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


def test_texts_are_read_at_once_where_their_lengths_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path / "results.h5", SPEC)
    with open_file(path) as file:
        names = texts(file["column"])
        assert len(names) > 10
        monkeypatch.setattr(structure, "MAX_READ", 2000)  # a file of any size is larger
        assert structure._num_letters(file["column"]) == sum(map(len, names))
        assert texts(file["column"]) == names
        monkeypatch.setattr(structure, "_num_letters", lambda _: 2001)  # then one after the other
        assert texts(file["column"]) == names
