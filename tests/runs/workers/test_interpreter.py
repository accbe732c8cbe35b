"""Interpreters that libraries start: a file of the user's named as Python's is not Python's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from condexp.runs.workers.interpreter import SAFE_PATH, python_started_safely, without_safe_path


def test_a_library_starts_python_beside_a_file_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SAFE_PATH, raising=False)
    (tmp_path / "types.py").write_text("raise SystemExit('not Python')")
    with python_started_safely():
        # As joblib does.
        subprocess.run([sys.executable, "-m", "this"], check=True, cwd=tmp_path, stdout=-3)
        assert SAFE_PATH in os.environ
        assert SAFE_PATH not in without_safe_path(dict(os.environ))
    assert SAFE_PATH not in os.environ


def test_what_the_user_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SAFE_PATH, "1")
    with python_started_safely():
        assert without_safe_path(dict(os.environ))[SAFE_PATH] == "1"
    assert os.environ[SAFE_PATH] == "1"
