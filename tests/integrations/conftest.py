"""What the tests of other trainers share."""

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the libraries warn, of few workers, pinned memory and torch's deprecations."""
    monkeypatch.setattr("condexp.runs.attempt.draw_overview", lambda folder: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
