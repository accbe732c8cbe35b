"""The provenance of a run's numbers: code, packages, machine, command, data."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from condexp.errors import InputError
from condexp.store.files import read_json

GIT_SECONDS = 20
PROVENANCE_NAME = "provenance.json"


def provenance(argv: Sequence[str], data_checksum: str | None, device: str) -> dict[str, Any]:
    """Collect what is needed to trace a run's numbers back.

    Args:
        argv: The command line.
        data_checksum: SHA-256 of the data set's arrays; None where that is not known.
        device: The device it runs on, ``cpu`` or ``cuda:0``.

    Returns:
        Plain values for ``provenance.json``; ``git`` is None where the code is no checkout.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "folder": str(Path.cwd()),
        "data_sha256": data_checksum,
        "git": _checkout(Path(__file__).resolve()),
        "python": sys.version,
        "packages": _packages(),
        "hardware": _hardware(device),
    }


def refuse_other_data(folder: Path, data_checksum: str) -> None:
    """Refuse a stored result of other data than those of this configuration.

    Args:
        folder: The run's folder.
        data_checksum: SHA-256 of the data set as it is now.

    Raises:
        InputError: If the result says that it is of others.
    """
    path = folder / PROVENANCE_NAME
    stored = read_json(path).get("data_sha256") if path.exists() else None
    if stored not in {None, data_checksum}:
        raise InputError(
            f"{folder} holds the result of other data than dataset.root has now (SHA-256 "
            f"{str(stored)[:8]}… there, {data_checksum[:8]}… here): set dataset.root to the data "
            "that it is of, or give run.on_existing=restart to run it anew."
        )


def _checkout(source: Path) -> dict[str, str] | None:
    """Return the checkout that a source file is a tracked part of."""
    # An installed package may lie in someone else's repository, untracked there.
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = _git(source.parent, "rev-parse", "HEAD")
    diff = _git(source.parent, "diff", "HEAD", "--", ":/")
    return {"commit": commit.strip(), "diff": diff or ""} if commit else None


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's answer; git may be missing, slow, or not in charge of this folder."""
    try:
        answer = subprocess.run(
            ("git", "-C", str(folder), *arguments),
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace")


@cache
def _packages() -> Mapping[str, str]:
    """Return every installed package with its version, read once: it takes half of a tiny run."""
    every = (distribution.metadata for distribution in importlib.metadata.distributions())
    found = {metadata["Name"]: metadata["Version"] for metadata in every if metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _hardware(device: str) -> dict[str, Any]:
    """Return what the machine is."""
    cuda = torch.device(device).type == "cuda"
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
    }


def _processor() -> str:
    """Return the processor's name; Linux alone says it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
