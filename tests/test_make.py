"""The paper from nothing by make, as a user types it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from condexp.results.claims import CLAIMS
from condexp.results.report import EXPERIMENTS
from condexp.store.run_folder.status import State, find_runs, read_status

ROOT = Path(__file__).resolve().parent.parent


def make(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Call make in a folder, with the environment that the tests run in."""
    command = ["make", f"VENV={sys.prefix}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_paper_at_smoke_size_and_again_from_what_is_stored(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    done = make(tmp_path, "paper", "PROFILE=smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = tmp_path / "outputs"
    runs = {name: find_runs([outputs / name]) for name in EXPERIMENTS}
    for name, folders in runs.items():
        assert 0 < len(folders) <= 8, name
        assert {read_status(folder).state for folder in folders} <= {State.COMPLETE, State.DIVERGED}
    for table in ("table1", "table2", "table3"):
        for value in ("test_error", "kappa_0.5"):
            for suffix in ("txt", "md", "tex", "csv"):
                assert (outputs / table / f"{value}.{suffix}").stat().st_size > 100
    pictures = [outputs / f"fig_{name}" / f"{name}.png" for name in CLAIMS]
    report = (outputs / "REPORT.md").read_text()
    for claim, picture in zip(CLAIMS.values(), pictures, strict=True):
        assert f"### Claim {claim.number}: " in report
        assert f"]({picture.relative_to(outputs)})" in report
    assert "Missing" not in report

    bytes_before = [picture.read_bytes() for picture in pictures]
    again = make(tmp_path, "paper", "PROFILE=smoke")
    assert again.returncode == 0, again.stdout + again.stderr
    assert [picture.read_bytes() for picture in pictures] == bytes_before
    assert (outputs / "REPORT.md").read_text() == report
    assert {name: find_runs([outputs / name]) for name in EXPERIMENTS} == runs


def test_the_list_of_targets_names_them_all() -> None:
    listed = make(ROOT).stdout
    for target in ("run", "test", "table1", "table3", "paper", "bench", "fig-last-layer"):
        assert f"\n{target} " in f"\n{listed}"
