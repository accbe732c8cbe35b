"""Runs as the command line configures them, in this process and without a terminal."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from condexp.config import Config
from condexp.config.presets import conf_dir
from condexp.config.validation import parse_config
from condexp.runs.execute import run_experiment
from condexp.runs.result import RunResult
from condexp.runs.sweep import job as jobs
from condexp.runs.sweep import job_main
from condexp.runs.sweep.job_spec import JobSpec
from tests.observer import Silent


@cache
def composed(*overrides: str) -> DictConfig:
    """What Hydra composes, its own part included; shared by all who ask for the same."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def validated(*overrides: str, root: Path | None = None) -> Config:
    """The typed configuration, with a folder for its runs."""
    config = deepcopy(_validated(*overrides))
    if root is not None:
        config.run.root = config.plain["run"]["root"] = str(root)
    return config


@cache
def _validated(*overrides: str) -> Config:
    return parse_config(composed(*overrides))


def run(
    root: Path, *overrides: str, observer: Silent | None = None, picture: bool = False
) -> RunResult:
    """Run an experiment, or go on with it; the picture takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        if not picture:
            patch.setattr("condexp.runs.attempt.draw_overview", lambda folder: None)
        return run_experiment(validated(*overrides, root=root), observer or Silent())


def run_jobs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sweep's jobs run in this process: one of their own needs seconds to start."""

    def run_here(job: JobSpec, *_: object) -> RunResult:
        return job_main._run(job)

    monkeypatch.setattr(jobs, "run_in_process", run_here)


def contents(folder: Path) -> list[bytes]:
    """The files of a run that are the same however often it was stopped."""
    return [(folder / name).read_bytes() for name in ("results.h5", "checkpoint.pt")]
