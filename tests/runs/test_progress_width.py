"""The bar at 80 columns: its text is cut, the count and the time that is left are not."""

import io

import pytest
from rich.console import Console

from condexp.runs import progress
from condexp.training.events import EvalRecord


def test_the_count_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "make_console", lambda: console)
    reporter = progress.ProgressReporter()
    reporter._progress.reset(reporter._task, total=12345)
    reporter._progress.update(reporter._task, completed=234)
    reporter.on_eval(EvalRecord(3, 1.0, 0.12345, 12.3, 0.4567, 23.4))
    console.print(reporter._progress.get_renderable())
    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().strip().splitlines()
    assert "234/12345" in line
    assert "--:--" in line
    assert line.rstrip().endswith("…")


def test_the_plan_of_a_large_sweep_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SAID_EACH", 2)
    assert [*progress.planning(iter("abcde"), 5)] == [*"abcde"]
    assert capsys.readouterr().out.splitlines() == [
        "planning: 2 of 5 jobs",
        "planning: 4 of 5 jobs",
    ]
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "make_console", lambda: console)
    assert [*progress.planning(iter("abc"), 3)] == [*"abc"]
    assert isinstance(console.file, io.StringIO)
    assert "3/3" in console.file.getvalue()
