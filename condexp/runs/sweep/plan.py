"""The plan of a sweep: every job is checked, and what is to be done with it, before any starts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import fmean

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig

from condexp.config import Config
from condexp.config.presets import chosen_presets
from condexp.config.validation import parse_config
from condexp.errors import InputError
from condexp.runs.build import identified, load_dataset
from condexp.runs.execute import stored_result
from condexp.runs.extension import MARK
from condexp.runs.prepare import prepare
from condexp.runs.result import RunResult
from condexp.store.run_folder.identity import identity_yaml, run_folder
from condexp.store.run_folder.liveness import Liveness, left_alone, liveness_of
from condexp.store.run_folder.status import STATUS_NAME, State, Status, last_known


class JobAction(StrEnum):
    """What is to be done with a job."""

    RUN = "to run"
    RESUME = "to resume"
    RETRY = "to try again"
    RESTART = "to run anew"
    SHOW = "stored already"
    REPEATED = "repeated"
    LEAVE = "runs elsewhere"
    GIVE_UP = "failed too often"


@dataclass(frozen=True)
class JobCost:
    """What a job will take.

    Attributes:
        num_steps: Training steps of the whole run.
        steps_left: Training steps still to be done.
        num_bytes: Disk space that it takes at most.
        seconds: From finished jobs of the sweep that differ in the seed alone; None: there is none.
    """

    num_steps: int
    steps_left: int
    num_bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class PlannedJob:
    """A job as it was planned.

    Attributes:
        overrides: Its own.
        config: Its configuration.
        folder: Its run folder.
        number: Its number in the sweep, from 1.
        todo: What is to be done with it.
        result: Where nothing is to be run: how it stands; None too where ``original`` is given.
        original: Place in the sweep, from 0, of an earlier job that is the same.
        cost: What it will take; None where nothing is to be run.
    """

    overrides: tuple[str, ...]
    config: Config
    folder: Path
    number: int
    todo: JobAction
    result: RunResult | None = None
    original: int | None = None
    cost: JobCost | None = None

    @property
    def settings(self) -> tuple[str, ...]:
        """Its overrides without Hydra's own, as a person would write them."""
        plain = filter_overrides(self.overrides)
        return tuple(setting.replace("\\:", ":") for setting in plain)


def plan_sweep(
    overrides: Sequence[Sequence[str]], composed: Iterable[DictConfig]
) -> tuple[PlannedJob, ...]:
    """Validate every job, check those to be run, and say what is to be done with each.

    Args:
        overrides: Of each job.
        composed: The configuration of each job, with its ``hydra`` node.

    Returns:
        The plan; nothing was written.

    Raises:
        InputError: At the first job that could not run.
    """
    if not overrides:
        raise InputError("the sweep is empty: a swept key has no values.")
    planner = SweepPlanner()
    for number, (given, config) in enumerate(zip(overrides, composed, strict=True), start=1):
        try:
            planner.add(given, parse_config(config, **chosen_presets(config.hydra)))
        except (InputError, SystemExit) as error:  # a user's module may call sys.exit
            name = f"job {number} of {len(overrides)} ({' '.join(filter_overrides(given))})"
            how = "" if isinstance(error, InputError) else "its code called sys.exit: "
            what = f"{name}: {how}{error}".rstrip(".")
            raise InputError(f"{what}. Nothing was run.") from error
    return planner.jobs


class SweepPlanner:
    """Plans jobs one after the other."""

    def __init__(self) -> None:
        self._jobs: list[PlannedJob] = []
        self._places: dict[Path, int] = {}
        self._prepared: dict[str, tuple[int, int]] = {}
        self._seconds: dict[str, list[float]] = {}

    @property
    def jobs(self) -> tuple[PlannedJob, ...]:
        """The jobs, with the times of their finished relatives."""
        return tuple(self._timed(job) for job in self._jobs)

    def add(self, overrides: Sequence[str], config: Config) -> None:
        """Check a job, and say what is to be done with it.

        Args:
            overrides: Its own.
            config: Its configuration.

        Raises:
            InputError: If it could not run.
        """
        identity = identified(config).plain
        folder = run_folder(identity)
        number = config.run.index or len(self._jobs) + 1
        job = PlannedJob(tuple(overrides), config, folder, number, JobAction.RUN)
        if folder in self._places:
            original = self._places[folder]
            self._jobs.append(replace(job, todo=JobAction.REPEATED, original=original))
            return
        todo, result, status = _classify(config, folder)
        cost = None
        if result is None:
            num_steps, num_bytes = self._size(config)
            begun = identity.get(MARK, {}).get("step", 0)  # of a run that goes on from another
            done = status.step if status is not None and todo is not JobAction.RESTART else begun
            cost = JobCost(num_steps, max(0, num_steps - done), num_bytes)
        elif status is not None and todo is JobAction.SHOW:
            self._seconds.setdefault(_identity_but_seed(config), []).append(status.seconds)
        self._places[folder] = len(self._jobs)
        self._jobs.append(replace(job, todo=todo, result=result, cost=cost))

    def _size(self, config: Config) -> tuple[int, int]:
        """Return a job's steps and bytes; those that differ in the seed alone are checked once."""
        key = str(config.plain | {"seed": None})
        if key not in self._prepared:
            prepared = prepare(config)
            self._prepared[key] = prepared.plan.num_steps, prepared.num_bytes
        return self._prepared[key]

    def _timed(self, job: PlannedJob) -> PlannedJob:
        known = self._seconds.get(_identity_but_seed(job.config))
        if job.cost is None or not known:
            return job
        share = job.cost.steps_left / job.cost.num_steps
        return replace(job, cost=replace(job.cost, seconds=share * fmean(known)))


def common_settings(jobs: Sequence[PlannedJob]) -> str:
    """Return the overrides that all jobs of a sweep share.

    Args:
        jobs: The plan.

    Returns:
        The overrides, in the first job's order; empty where there is one job.
    """
    shared = _shared(jobs)
    return " ".join(setting for setting in jobs[0].settings if setting in shared)


def own_settings(jobs: Sequence[PlannedJob]) -> list[str]:
    """Return the overrides of each job that not all share.

    Args:
        jobs: The plan.

    Returns:
        The overrides of each.
    """
    shared = _shared(jobs)
    return [" ".join(o for o in job.settings if o not in shared) for job in jobs]


def _shared(jobs: Sequence[PlannedJob]) -> set[str]:
    return set.intersection(*(set(job.settings) for job in jobs)) if len(jobs) > 1 else set()


def _identity_but_seed(config: Config) -> str:
    """Return what a job has in common with those that differ in the seed alone."""
    return identity_yaml(config.plain | {"seed": None})


def _classify(config: Config, folder: Path) -> tuple[JobAction, RunResult | None, Status | None]:
    """Return what an earlier call left to be done, how a job stands that is not to be run."""
    run = config.run
    if not (folder / STATUS_NAME).exists():
        return JobAction.RUN, None, None
    status = last_known(folder)
    # Refuses what is of other data, or must not be there.
    stored = stored_result(folder, run.on_existing, load_dataset(config).checksum, status)
    restart = run.on_existing == "restart"
    if stored is not None:
        return JobAction.SHOW, stored, status
    life = liveness_of(folder, status)
    if life is Liveness.ALIVE or (life is Liveness.SILENT and not restart):
        return JobAction.LEAVE, RunResult(folder, State.RUNNING, left_alone(status, life)), status
    if restart:
        return JobAction.RESTART, None, status
    if status.state is not State.FAILED:
        return JobAction.RESUME, None, status
    if status.attempts < run.max_attempts:
        return JobAction.RETRY, None, status
    why = (
        f"failed {status.attempts} times, and run.max_attempts={run.max_attempts}: {status.error} "
        f"(run.max_attempts={status.attempts + 1} tries again, run.on_existing=restart runs it "
        "anew)"
    )
    return JobAction.GIVE_UP, RunResult(folder, State.FAILED, why), status
