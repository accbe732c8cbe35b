"""A sweep's jobs are composed as Hydra composes them, only sooner."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from condexp.config.presets import chosen_presets, conf_dir
from condexp.config.sweep_jobs import JobComposer
from condexp.config.validation import parse_config

EXPERIMENTS = sorted(
    str(path.relative_to(conf_dir() / "experiment").with_suffix(""))
    for path in (conf_dir() / "experiment").rglob("*.yaml")
)


class Both:
    """Hydra's composition of a job, and ours."""

    def __init__(self) -> None:
        loader = GlobalHydra.instance().config_loader()
        self.parser = OverridesParser.create(config_loader=loader)
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        self.hydras = partial(loader.load_sweep_config, master)
        self.calls: list[list[str]] = []
        self.ours = JobComposer(self._noting, self.parser.parse_overrides)

    def _noting(self, job: list[str]) -> DictConfig:
        self.calls.append(job)
        composed: DictConfig = self.hydras(job)
        return composed

    def jobs(self, *overrides: str) -> list[list[str]]:
        parsed = self.parser.parse_overrides([*overrides])
        ((jobs,)) = BasicSweeper.split_arguments(parsed, None)
        return [list(job) for job in jobs]


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield Both()


def content(composed: DictConfig) -> Any:
    found: Any = OmegaConf.to_container(composed, resolve=False)
    del found["hydra"]["job"]["override_dirname"]  # which no job of condexp's has
    return found


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_composed_as_by_hydra(both: Both, experiment: str) -> None:
    params = both.hydras([f"experiment={experiment}"]).hydra.sweeper.params or {}
    settings = [f"{key}={value}" for key, value in params.items()]
    jobs = both.jobs(f"experiment={experiment}", *settings, "optimizer.lr=0.25,0.5")
    for job in (jobs[0], jobs[-1]):
        mine, theirs = both.ours(job), both.hydras(job)
        assert content(mine) == content(theirs)
        one, two = (parse_config(each, **chosen_presets(each.hydra)) for each in (mine, theirs))
        assert one == two


def test_values_alone_are_set_without_another_composition(both: Both) -> None:
    settings = ("seed=1,2,3", "trainer.steps=4,5", "analysis.kappa_p=[0.5],[0.25,1]")
    jobs = both.jobs("optimizer=adam", "run.root=${oc.env:HOME}/${seed}", *settings)
    both.ours(jobs[0])
    both.calls.clear()
    for job in jobs:
        assert content(both.ours(job)) == content(both.hydras(job))
    assert len(jobs) == 12
    assert both.calls == []


@pytest.mark.parametrize(
    "job",
    [
        ["+trainer.steps=7"],
        ["++trainer.new=7"],
        ["~scheduler.warmup_steps"],
        ["seed=2", "model=resnet", "model.depth=20", "seed=3"],
        ["model=import", "model.target=a:B", "+model.kwargs.x=1", "model.kwargs.x=2"],
        ["analysis.schedule={every_steps: 3}"],
        ["analysis={kappa_p: [1.0]}"],
        ["hydra.job.chdir=true", "seed=2"],
        ["hydra/launcher=joblib", "seed=2"],
    ],
)
def test_any_job_is_composed_as_by_hydra(both: Both, job: list[str]) -> None:
    assert content(both.ours(job)) == content(both.hydras(job))


@pytest.mark.parametrize(
    "setting", ["trainer.stepz=1", "modle=mlp", "model=mpl", "optimizer.lr.x=1", "seeds=1"]
)
def test_what_hydra_refuses_is_refused_in_its_words(both: Both, setting: str) -> None:
    said = []
    for compose in (both.hydras, both.ours):
        with pytest.raises(HydraException) as refused:
            compose([setting, "seed=2"])
        said.append(str(refused.value))
    assert said[0] == said[1]
