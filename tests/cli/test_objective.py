"""Searching for settings: ``run.objective`` is what a sweeper that optimises gets of each run."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

import condexp
from condexp.errors import InputError
from condexp.results.collect import collect
from condexp.store.run_folder.status import State

TINY = [
    "trainer.steps=2", "dataset.subset.train=40", "dataset.subset.test=20", "trainer.batch_size=20",
    "model.depth=2", "model.width=8", "analysis.schedule.log_spaced=null",
]  # fmt: skip
LAST = "run.objective=last_linear.input_kappa_0.5"
Command = Callable[..., tuple[int, str, str]]


class StubSweeper(Sweeper):
    """Tries two learning rates, and reads each job's number as Optuna's sweeper does."""

    numbers: tuple[float, ...] = ()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        jobs = [[*arguments, f"optimizer.lr={rate}"] for rate in (0.1, 0.2)]
        assert self.launcher is not None
        done = self.launcher.launch(jobs, initial_job_idx=0)
        type(self).numbers = tuple(float(job.return_value) for job in done)


StubSweeper.__module__ = "hydra_plugins.stub_sweeper"  # Hydra takes plugins from nowhere else


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None) -> None:
    """A folder to run in, and Hydra with one sweeper more."""
    monkeypatch.chdir(tmp_path)
    target = "hydra_plugins.stub_sweeper.StubSweeper"
    ConfigStore.instance().store(
        group="hydra/sweeper", name="stub", node={"_target_": target}, provider="tests"
    )
    module = ModuleType("hydra_plugins.stub_sweeper")
    module.StubSweeper = StubSweeper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    Plugins.instance().register(StubSweeper)
    StubSweeper.numbers = ()


def test_a_sweeper_gets_a_number_of_each_run(condexp: Command) -> None:
    stub = ["run", "-m", "hydra/sweeper=stub", *TINY]
    code, _, err = condexp(*stub, LAST)
    assert code == 0, err
    first = StubSweeper.numbers
    assert len(first) == 2
    assert condexp(*stub, "run.objective=best_test_error")[0] == 0  # the stored runs
    errors = StubSweeper.numbers
    rows = collect("outputs").sort_values("optimizer.lr")
    assert list(first) == rows["last_linear.input_kappa_0.5"].tolist()
    assert list(errors) == rows["best_test_error"].tolist()


def test_a_sweeper_that_optimises_is_told_what_it_needs(condexp: Command, tmp_path: Path) -> None:
    code, _, err = condexp("run", "-m", "hydra/sweeper=stub", *TINY)
    assert code == 2
    assert "hydra/sweeper=stub asks each run for one number: give run.objective=NAME" in err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best_tst_error", r"allowed are best_test_error, .* Did you mean 'best_test_error'"),
        ("last_linear.input_kapa_0.5", r"Did you mean 'last_linear.input_kappa_0.5'"),
        ("network.fisher_kappa_0.5", r"unknown run.objective"),
    ],
)
def test_what_the_run_will_not_have_is_refused_before_it(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        condexp.run([*TINY, f"run.objective={name}"])
    assert not Path("outputs").exists()


def test_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    result = condexp.run([*TINY, LAST, "seed=3"])
    assert result.state is State.COMPLETE
    assert result.folder is not None
    assert result.folder.name.startswith("mlp-digits-s3-")
    table = condexp.collect(result.folder)
    assert result.objective == table["last_linear.input_kappa_0.5"].item()
    assert condexp.run([*TINY, "seed=3"]).stored  # the objective is no part of the experiment
    with pytest.raises(InputError, match=r"unknown key 'model\.dpth'.*'model\.depth'"):
        condexp.run(["model.dpth=3"])


def test_a_run_that_diverged_is_as_bad_as_can_be() -> None:
    result = condexp.run([
        *TINY,
        "trainer.steps=6",
        "optimizer.lr=1e38",
        "run.objective=best_test_error",
    ])
    assert result.state is State.DIVERGED
    assert result.objective == float("inf")


def test_a_regression_has_no_error() -> None:
    few = ["trainer.steps=2", "analysis=none"]
    with pytest.raises(InputError, match="has no number there"):
        condexp.run(["model=linear", "dataset=gaussian", "run.objective=test_error", *few])


@pytest.mark.filterwarnings("ignore")  # Optuna 2's own, of its age
def test_optuna_makes_a_number_small(tmp_path: Path, condexp: Command) -> None:
    code, out, err = condexp(
        "run", "-m", *TINY, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1",
        "optimizer.lr=tag(log,interval(0.001,1))", "run.objective=best_test_error",
    )  # fmt: skip
    assert code == 0, (out, err)
    found = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    runs = collect([tmp_path / "outputs"]).set_index("optimizer.lr")["best_test_error"]
    assert len(runs) == 3
    assert found["best_value"] == runs.min() == runs[found["best_params"]["optimizer.lr"]]
