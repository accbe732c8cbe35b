"""Jobs of sweeps, as tests need them."""

from pathlib import Path
from typing import Any

from condexp.runs.sweep.job_spec import JobSpec


def job_spec(folder: Path, name: str = "1/1 (seed=1)", **changes: Any) -> JobSpec:
    """A job that nobody plans to run."""
    given: dict[str, Any] = {
        "config": "seed: 1\n",
        "argv": ("condexp", "-m"),
        "fail_fast": True,
        "timeout": None,
    }
    return JobSpec(name=name, folder=folder, **(given | changes))
