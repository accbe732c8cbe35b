from pathlib import Path
from typing import Any

import pytest

from condexp.errors import InputError
from condexp.results.select import select
from condexp.store.run_folder.status import State, Status, write_status
from tests.results.stored import make_config, write_early_failure, write_run


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    configs: dict[str, dict[str, Any]] = {
        "a": {"profile": "smoke"},
        "b": {"profile": "cpu", "model__last_bn": True, "seed": 2},
        "c": {"profile": "cpu", "model__width": 64, "optimizer__lr": 1e-5},
    }
    for name, config in configs.items():
        write_run(root / name, state=State.DIVERGED, steps_done=0, **config)
    return root


def names(grid: Path, *where: str) -> list[str]:
    return [folder.name for folder in select([grid], where)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([], "abc"),
        (["profile=cpu"], "bc"),
        (["model.last_bn=true"], "b"),
        (["model.last_bn=false", "profile=cpu"], "c"),
        (["seed=1"], "ac"),
        (["model.width=64"], "c"),  # the others have no such key
        (["dataset.subset.train=null"], "abc"),
        (["optimizer.lr=1e-5"], "c"),  # YAML writes 1.0e-05
        (["optimizer.lr=0.1"], "ab"),
        (["optimizer.betas=[0.9,0.999]"], "abc"),
        ([" seed = 2 "], "b"),
    ],
)
def test_runs_with_these_values(grid: Path, where: list[str], expected: str) -> None:
    assert "".join(names(grid, *where)) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("profil=cpu", r"no run has the configuration key 'profil'.*Did you mean 'profile'\?"),
        ("depth=3", r"Did you mean 'model.depth'\?"),
        ("profile", "form key=value, such as model.depth=20; 'profile' has not"),
        ("=cpu", "form key=value"),
        ("profile=paper", "none of 3 runs has profile=paper: in these runs profile is cpu, smoke"),
        ("model.last_bn=True", r"model\.last_bn is false, true"),
        ("model.last_bn=1", r"model\.last_bn is false, true"),
    ],
)
def test_what_cannot_be_chosen(grid: Path, where: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select([grid], [where])


def test_values_that_no_run_has_together(grid: Path) -> None:
    with pytest.raises(InputError, match=r"has profile=smoke and seed=2: .* seed is 1, 2"):
        select([grid], ["profile=smoke", "seed=2"])


def test_a_run_that_cannot_be_read_is_not_left_out_in_silence(tmp_path: Path) -> None:
    write_early_failure(tmp_path / "a")
    write_early_failure(tmp_path / "b")
    (tmp_path / "b" / "config.yaml").write_text("{damaged")
    (tmp_path / "c").mkdir()
    write_status(tmp_path / "c", Status(State.PENDING))
    assert names(tmp_path, "seed=9") == ["a", "b", "c"]
    with pytest.raises(InputError, match="none of 1 runs has seed=1: in these runs seed is 9"):
        select([tmp_path], ["seed=1"])
    assert make_config()["seed"] == 1
