"""What all tests share: how hypothesis searches, and runs started in the test's own process."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from condexp.cli.main import main
from tests.in_process import run_jobs_here

# The same examples every time, and however long they take.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs in this process draw no overview: it takes longer than all the rest of them."""
    monkeypatch.setattr("condexp.runs.attempt.draw_overview", lambda folder: None)


@pytest.fixture
def jobs_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run_jobs_here(monkeypatch)


@pytest.fixture
def condexp(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process: its arguments in, its exit code and what it printed out."""

    def run(*args: str) -> tuple[int, str, str]:
        code = main([*args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
