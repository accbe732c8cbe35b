import csv
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml

from condexp.cli.main import main
from condexp.store.hdf5.file_objects import ExactFile
from condexp.store.hdf5.structure import StructuredArray
from condexp.store.last_rows import DESCRIPTIONS
from condexp.store.run_folder.status import State
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import COUNTERS
from tests.results.stored import make_config, write_run

GRID = ["--rows", "model.depth", "--cols", "model.last_bn"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    for last_bn in (False, True):
        for seed in (1, 2):
            write_run(
                root / f"{last_bn}{seed}",
                state=State.DIVERGED if seed == 2 and not last_bn else State.COMPLETE,
                model__last_bn=last_bn,
                seed=seed,
                profile="cpu" if seed == 1 else "smoke",
                test_errors=(50.0, 40.0, 12.0 + seed - 4 * last_bn),
            )
    return root


def test_a_table_in_each_format(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output_format, word in {
        "rich": "9.50 ± 0.71 (2)",
        "markdown": "9.50 ± 0.71 (2)",
        "latex": r"$9.50 \pm 0.71$ (2)",
        "csv": "cell,3,true,test_error,9.5,",
    }.items():
        assert main(["table", str(sweep), *GRID, "--format", output_format]) == 0
        out = capsys.readouterr().out
        assert word in out
        assert "1 diverged" in out


def test_all_formats_are_saved_under_one_stem(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem = tmp_path / "new" / "kappa_0.5"  # a stem with a point
    assert main(["table", str(sweep), *GRID, "--save", str(stem), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    names = ["kappa_0.5.csv", "kappa_0.5.md", "kappa_0.5.tex", "kappa_0.5.txt"]
    assert sorted(path.name for path in stem.parent.iterdir()) == names
    assert all(f"{stem}{suffix}" in err for suffix in (".txt", ".md", ".tex", ".csv"))
    # Standard output may be sent to a file: it holds the table and nothing else.
    assert Path(f"{stem}.csv").read_text() == out
    assert len(list(csv.reader(out.splitlines()))) == 3
    for name in names:
        assert "9.5" in (stem.parent / name).read_text()


def test_only_some_runs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--where", "profile=cpu", "--where", "model.last_bn=true"]
    assert main(["table", str(sweep), "--rows", "profile,model.last_bn", *where]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if "(1)" in line] == [
        ["cpu", "true", "9.00", "(1)"]
    ]
    assert main(["table", str(sweep), *GRID, "--where", "profile=paper"]) == 2
    assert "profile is cpu, smoke" in capsys.readouterr().err


def test_paired_differences_below(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--paired", "model.last_bn", "--published", "--title", "Mine"]
    assert main(["table", str(sweep), *GRID, *options]) == 0
    out = capsys.readouterr().out
    assert "Mine: paired differences" in out
    assert "model.last_bn: true − false" in out
    assert "-4.00 (1 of 2 pairs)" in out
    assert "no published value is at hand" in out
    assert main(["table", str(sweep), *GRID, "--paired", "model.last_bn=yes"]) == 2
    assert "model.last_bn is false, true" in capsys.readouterr().err


def test_a_wrong_format_is_found_before_runs_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "nowhere", *GRID, "--format", "latx"]) == 2
    assert "Did you mean 'latex'?" in capsys.readouterr().err


def test_of_each_run_only_what_the_table_shows_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = write_run(tmp_path / "one")
    for index in range(20):
        folder = tmp_path / "sweep" / f"resnet-cifar10-s{index}"
        shutil.copytree(original, folder)
        config = make_config(seed=index // 4, model__depth=index % 2, model__last_bn=index % 4 > 1)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["table", str(tmp_path / "sweep"), *GRID, "--paired", "model.last_bn", "--published"]
    options = ["--value", "last_linear.input_kappa_0.5", "--where", "model.name=mlp"]
    files, datasets = Counter[str](), Counter[str]()
    opening, reading = ExactFile.__init__, StructuredArray.__getitem__

    def open_file(file: ExactFile, path: Path, mode: str) -> None:
        files[path.parent.name] += 1
        opening(file, path, mode)

    def read(dataset: h5py.Dataset, *arguments: Any, **options: Any) -> Any:
        datasets[dataset.name] += 1
        return reading(dataset, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ExactFile, "__init__", open_file)
        patch.setattr(StructuredArray, "__getitem__", read)
        assert main([*command, *options, "--format", "csv"]) == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert sum(int(line["of"]) for line in lines if line["kind"] == "cell") == 20
    assert sum(int(line["n"]) for line in lines if line["kind"] == "difference") == 10
    # Its end, its counters (it is not sealed, and said to be complete), and its numbers.
    assert set(files.values()) == {3}
    assert len(files) == 20
    # Opening a dataset is what takes time: those of the measure, and what describes the layers.
    of_layers = {"input_kappa", "input_kappa_high", "n_input", *DESCRIPTIONS}
    counters = {f"/{COUNTERS[axis]}" for axis in Axis}
    checks = {"/column", "/crc32"}  # of the rows that are read
    assert set(datasets) == {*counters, *checks, *(f"/layers/{name}" for name in of_layers)}
    of_numbers = {name: count for name, count in datasets.items() if name.startswith("/layers/")}
    assert set(of_numbers.values()) == {20}
    assert max(datasets.values()) <= 60  # counters: also to see whether the run is finished
