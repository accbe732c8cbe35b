"""Where a run's numbers come from is written down, also where there is no git."""

import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from condexp.store.disk import write_json
from condexp.store.run_folder import provenance as module
from condexp.store.run_folder.provenance import provenance
from tests.waiting import GUARD_SECONDS


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    subprocess.run(
        ("git", *identity, "-C", str(folder), *arguments), check=True, capture_output=True
    )


def test_everything_is_said_and_can_be_stored(tmp_path: Path) -> None:
    told = provenance(["condexp", "seed=1"], "abc", "cpu")
    write_json(tmp_path / "provenance.json", told)
    stored = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert stored == told
    assert stored["argv"] == ["condexp", "seed=1"]
    assert stored["data_sha256"] == "abc"
    # The installed version has no local part (+cu130) on every index.
    assert torch.__version__.startswith(stored["packages"]["torch"])
    assert stored["hardware"]["device"] == "cpu"
    assert stored["hardware"]["gpu"] is None
    assert stored["hardware"]["num_cores"] >= 1
    assert stored["started"].endswith("+00:00")


def test_commit_and_diff_of_the_codes_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "package" / "provenance.py"
    source.parent.mkdir()
    source.write_text("one\n")
    monkeypatch.setattr(module, "__file__", str(source))
    monkeypatch.setattr(module, "GIT_SECONDS", GUARD_SECONDS)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance([], "", "cpu")["git"] is None
    git(tmp_path, "init")
    # A package that was installed into someone's repository is not a part of it.
    assert provenance([], "", "cpu")["git"] is None
    git(tmp_path, "add", ".")
    assert provenance([], "", "cpu")["git"] is None
    git(tmp_path, "commit", "-m", "first")
    clean = provenance([], "", "cpu")["git"]
    assert len(clean["commit"]) == 40
    assert clean["diff"] == ""
    source.write_text("two\n")
    (tmp_path / "other.txt").write_text("new\n")
    git(tmp_path, "add", "other.txt")
    changed = provenance([], "", "cpu")["git"]
    assert changed["commit"] == clean["commit"]
    for line in ("-one", "+two", "+new"):
        assert line in changed["diff"].splitlines()


def test_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance([], "", "cpu")["git"] is None


def test_the_processor_is_named_or_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Path.read_text

    def read_text(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if path == Path("/proc/cpuinfo"):
            raise FileNotFoundError
        return genuine(path, encoding, errors)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "unknown chip")
    assert provenance([], "", "cpu")["hardware"]["processor"] == "unknown chip"
