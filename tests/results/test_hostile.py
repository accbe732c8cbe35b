"""Folders that somebody else wrote: reading commands say what is wrong, and show the rest."""

import contextlib
import io
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from condexp.cli.main import main
from condexp.errors import InputError
from condexp.results.collect import collect
from condexp.store.reader import open_run
from tests.memory import peak_kilobytes
from tests.results.hostile import make_hostile
from tests.results.stored import write_run
from tests.store.hdf5.processes import exit_code, forked

GUARD_SECONDS = 300
GOOD = (901, 902, 903)
GIGABYTE = 1 << 20  # in the unit of ru_maxrss


def in_child(act: Callable[[], None], said: Path) -> None:
    """Do something in a process of its own, which a crash, a hang or much memory ends."""

    def watched() -> None:
        signal.alarm(3000)
        before = peak_kilobytes()
        try:
            act()
            used = peak_kilobytes() - before
            assert used < GIGABYTE, f"{used} kB"
        except BaseException:
            said.write_text(traceback.format_exc(chain=True), errors="replace")
            raise

    with forked(watched) as child:
        code = exit_code(child)
        assert code == 0, said.read_text() if said.exists() else code


def output(*args: str) -> tuple[int, str]:
    """Exit code, and all that a command prints; no traceback and nothing that a terminal obeys."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            code = main([*args])
        except BaseException as error:
            raise AssertionError(args) from error
    said = text.getvalue()
    assert "Traceback" not in said
    wrong = {letter for letter in said if not letter.isprintable() and letter != "\n"}
    assert not wrong, (args, wrong, said)
    return code, said


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("good") / "run")


def test_good_runs_are_shown_beside_two_hundred_hostile_ones(good: Path, tmp_path: Path) -> None:
    root = tmp_path / "table1"
    for seed in GOOD:
        write_run(root / f"good-{seed}", seed=seed, model__last_bn=seed == GOOD[0])
    hostile = [make_hostile(root / f"bad-{seed}", good, seed) for seed in range(200)]

    def read() -> None:
        with contextlib.chdir(tmp_path):  # a long path would be folded, at any letter
            code, said = output("status", root.name)
        assert code == 1, said
        assert all(f"good-{seed}" in said for seed in GOOD)
        for form in ("rich", "csv"):
            code, said = output("table", str(root), "--rows", "seed,model.name", "--format", form)
            assert code == 1, said
            assert all(str(seed) in said for seed in GOOD), said
        code, said = output(
            "figure", "conditioning", str(root), "--output", str(tmp_path / "drawn")
        )
        assert code == 1, said
        assert "wrote" in said
        assert all(
            (tmp_path / "drawn" / f"conditioning.{kind}").exists() for kind in ("png", "csv")
        )
        code, said = output("report", str(tmp_path))
        assert code == 1, said
        page = (tmp_path / "REPORT.md").read_text()
        assert all(letter.isprintable() or letter == "\n" for letter in page)
        assert "<script" not in page
        code, said = output("report", str(root), "--format", "html")
        assert code == 1, said
        page = (root / "report.html").read_text()
        assert all(f">good-{seed}</a>" in page for seed in GOOD)
        assert "<script>alert" not in page
        for number, folder in enumerate(hostile):
            verb = ("show", "validate", "export", "report", "watch")[number % 5]
            assert output(verb, str(folder))[0] in {0, 1, 2}

    in_child(read, tmp_path / "said")


def read_all(folder: Path) -> None:
    """Read whatever a run holds by the functions that every verb reads it by."""
    collect(folder)
    with contextlib.suppress(InputError):
        run = open_run(folder)
        for read in (
            *(lambda: run.config, lambda: run.status, lambda: run.attrs, lambda: run.not_analysed),
            *(lambda: run.metrics, run.measures, lambda: run.spectrum("input", run.layers[0])),
        ):
            with contextlib.suppress(InputError):
                read()


def test_a_figure_of_one_damaged_run_is_one_line(good: Path, tmp_path: Path) -> None:
    for name in ("status.json", "config.yaml", "results.h5"):
        folder = tmp_path / name
        shutil.copytree(good, folder)
        (folder / name).write_bytes(b"\xff" * 3000)
        for figure in ("conditioning", "overview"):
            code, said = output("figure", figure, str(folder))
            assert code == 1
            assert len(said.splitlines()) == 1, said


@pytest.mark.slow
def test_ten_thousand_crafted_runs(good: Path, tmp_path: Path) -> None:
    verbs = ("status", "show", "validate", "export")

    def read() -> None:
        for seed in range(1000, 11_000):
            signal.alarm(GUARD_SECONDS)  # from here on: a hang is a case's, all take many minutes
            folder = make_hostile(tmp_path / f"run-{seed}", good, seed)
            try:
                read_all(folder)
                if seed % 10 < len(verbs):
                    output(verbs[seed % 10], str(folder))
            except BaseException as error:
                raise AssertionError(seed) from error
            shutil.rmtree(folder)

    in_child(read, tmp_path / "said")
