"""Every YAML of conf/ composes, validates and can be prepared: adding one adds its test."""

import csv
import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig
from torchvision import datasets

from condexp.config import GROUPS, Config
from condexp.config.by_name import PACKAGES, names
from condexp.config.presets import chosen_presets, conf_dir, own_profiles
from condexp.config.validation import parse_config
from condexp.errors import InputError
from condexp.runs.build import _loaded
from condexp.runs.execute import run_experiment
from condexp.runs.prepare import prepare
from condexp.store.hdf5.validate import validate_results
from condexp.store.run_folder.identity import run_folder
from condexp.store.run_folder.status import State
from tests import in_process
from tests.data.archives import (
    publish_idx,
    write_arrays,
    write_cifar,
    write_imagenet,
    write_mnist_like,
    write_svhn,
)
from tests.observer import Silent

CONF = conf_dir()
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PROFILES = sorted(path.stem for path in (CONF / "profile").glob("*.yaml"))
# One choice of one group; experiments, with and without their profiles, are combinations.
PRESETS = sorted(
    path
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and CONF / "experiment" not in path.parents
)
# What the presets were when they were last changed on purpose: their sweeps and the run folders of
# their first and last jobs, whose names hold the hash of the whole configuration.
RECORDED = list(
    csv.DictReader(Path(__file__).with_name("preset_jobs.csv").read_text().splitlines())
)
NEEDS = {
    "model/linear": ["dataset=gaussian"],
    "dataset/gaussian": ["model=linear"],
    "dataset/folder": ["dataset.root=data/imagenet", "dataset.image_size=32"],
    "dataset/arrays": ["dataset.root=arrays.npz"],
    "dataset/cifar_batches": ["dataset.root=data"],
    "dataset/import": ["dataset.target=tests.data.tiny:load"],
    "optimizer/import": ["optimizer.target=torch.optim:RMSprop"],
    "scheduler/import": [
        "scheduler.target=torch.optim.lr_scheduler:ExponentialLR",
        "scheduler.kwargs.gamma=0.9",
    ],
    "logger/wandb": ["logger.wandb.mode=offline"],
    "loss/import": ["loss.target=torch.nn:CrossEntropyLoss"],
    "model/torchvision": ["dataset.channels=3"],
    "model/import": [
        "model.target=tests.from_conf:build",
        "model.kwargs.name=mlp",
        "model.kwargs.depth=2",
        "model.kwargs.width=4",
    ],
}


def choice(path: Path) -> tuple[str, str]:
    return path.parent.relative_to(CONF).as_posix(), path.stem


def composed(*overrides: str) -> DictConfig:
    return in_process.composed(*overrides)


def validated(*overrides: str) -> Config:
    config = composed(*overrides)
    return parse_config(config, **chosen_presets(config.hydra))


def sweep(config: DictConfig) -> dict[str, list[str]]:
    """The values of each swept key."""
    params = config.hydra.sweeper.params or {}
    return {key: str(values).split(",") for key, values in params.items()}


def in_place(kind: str, write: Callable[[Path], object]) -> Callable[..., None]:
    """Write the IDX files of a data set, and make them the published ones."""

    def files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(root)
        publish_idx(monkeypatch, kind, root)

    return files


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "mnist": in_place("mnist", write_mnist_like),
    "fashion_mnist": in_place("fashion_mnist", write_mnist_like),
    "cifar10": lambda root, patch: write_cifar(root, patch, datasets.CIFAR10),
    "cifar100": lambda root, patch: write_cifar(root, patch, datasets.CIFAR100),
    "svhn": write_svhn,
    "imagenet": lambda root, _: write_imagenet(root),
    "folder": lambda root, _: write_imagenet(root / "imagenet", splits=("train", "test")),
    "arrays": lambda root, _: write_arrays(root.parent / "arrays.npz"),
    "cifar_batches": lambda root, patch: write_cifar(root, patch, datasets.CIFAR10),
}
OWN = {
    "folder": "no such folder",
    "arrays": "no such file",
    "cifar_batches": "has no data_batch_1, …",
}
# One training step and one snapshot, of two layers: some nets have sides of 4608.
BRIEF = ["trainer.steps=1", "trainer.batch_size=4", "analysis.schedule.log_spaced=null",
         "analysis.schedule.at_end=false", "analysis.layers.include=[first,last_linear]",
         "analysis.probe.size=4"]  # fmt: skip
SMALL = ["dataset.subset.train=20", "dataset.subset.test=10"]


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: "/".join(choice(path)))
def test_every_preset_trains_a_step_and_takes_a_snapshot(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _loaded.clear()
    group, name = choice(path)
    overrides = [f"{group}={name}", *NEEDS.get(f"{group}/{name}", []), *BRIEF]
    data = composed(*overrides).dataset.name
    if data in WRITERS:
        WRITERS[data](tmp_path / "data", monkeypatch)
        if data not in OWN:
            overrides.append(f"dataset.root={tmp_path / 'data'}")
    if data == "digits" or group == "profile":
        overrides += SMALL
    if name == "imagenet":
        overrides += ["dataset.image_size=32", "model=linear", "model.bias=true"]
    config = parse_config(composed(*overrides))
    observer = Silent()
    result = run_experiment(config, observer)
    assert (result.state, result.message) == (State.COMPLETE, None)
    assert observer.told.count("snapshot") == int((group, name) != ("analysis", "none"))
    assert result.folder is not None
    assert validate_results(result.folder / "results.h5") == []


def absent(config: Config) -> bool:
    """Whether preparing says that the data are not here, and how to fetch them."""
    name = config.dataset.name
    if name not in WRITERS:
        prepare(config)
        return False
    with pytest.raises(InputError, match=OWN.get(name, f"condexp data fetch {name}")):
        prepare(config)
    return True


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: "/".join(choice(path)))
def test_every_preset_as_it_is_can_be_prepared(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no data are
    monkeypatch.setattr("condexp.data.sources.DEBIAN_FASHION_MNIST", tmp_path)
    _loaded.clear()
    group, name = choice(path)
    needed = NEEDS.get(f"{group}/{name}", [])
    config = parse_config(composed(f"{group}={name}", *needed))
    assert absent(config) == (config.dataset.name in WRITERS)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["preset"] or "none")
def test_every_preset_makes_the_jobs_it_made(
    recorded: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("condexp.data.sources.DEBIAN_FASHION_MNIST", tmp_path)
    given = [recorded["preset"]] if recorded["preset"] else []
    name = recorded["preset"].removeprefix("experiment=")
    grid = sweep(composed(*given))
    assert (
        " ".join(f"{key}={','.join(values)}" for key, values in grid.items()) == recorded["sweep"]
    )
    for job, folder in ((0, recorded["first"]), (-1, recorded["last"])):
        config = validated(*given, *(f"{key}={values[job]}" for key, values in grid.items()))
        assert run_folder(config.plain) == Path("outputs", folder)
        assert config.plain["profile"] == (re.split("[=/]", name)[1:] or [None])[0]
        assert absent(config) or prepare(config).folder == Path("outputs", folder)
    assert name not in own_profiles() or len(grid["seed"]) > 1  # claims are paired over seeds


def test_every_experiment_and_profile_is_recorded() -> None:
    experiments = {f"experiment={name}" for name in (*EXPERIMENTS, *own_profiles())}
    profiles = {f"profile={name}" for name in PROFILES}
    assert {recorded["preset"] for recorded in RECORDED} == {"", *experiments, *profiles}
    assert own_profiles() == [f"{name}/{profile}" for name in EXPERIMENTS for profile in PROFILES]


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("profile", ["smoke", "cpu"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_small_profiles_run(
    experiment: str, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _loaded.clear()
    given = [f"experiment={experiment}/{profile}", *BRIEF, *SMALL, "trainer.steps=2"]
    if composed(*given).dataset.name == "fashion_mnist":
        WRITERS["fashion_mnist"](tmp_path / "data", monkeypatch)
        given.append(f"dataset.root={tmp_path / 'data'}")
    result = run_experiment(validated(*given), Silent())
    assert (result.state, result.message) == (State.COMPLETE, None)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_profiles_share_no_run(experiment: str) -> None:
    """A run says one profile only: the other's tables would miss it."""
    configs = [validated(f"experiment={experiment}/{name}") for name in PROFILES]
    assert len({run_folder(config.plain) for config in configs}) == len(PROFILES)


# What a profile may change: sizes, data, lengths.
SIZES = ("dataset.", "model.depth", "model.width", "trainer.epochs", "trainer.batch_size",
         "trainer.eval.every_epochs", "trainer.rescale.release_epoch", "scheduler.milestones",
         "analysis.probe.", "analysis.schedule.log_spaced", "analysis.schedule.every_epochs",
         "trainer.steps")  # fmt: skip


def flat(values: Mapping[str, object], path: str = "") -> dict[str, object]:
    found = {}
    for key, value in values.items():
        inner = flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {path + key: value}
        found.update(inner)
    return found


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_profile_changes_sizes_data_and_lengths_only(experiment: str, profile: str) -> None:
    paper, own = f"experiment={experiment}", f"experiment={experiment}/{profile}"
    large, small = (flat(validated(given).plain) for given in (paper, own))
    changed = {key for key in large if small.get(key) != large[key]} - {"profile"}
    assert not [key for key in changed if not key.startswith(SIZES)]
    before, after = sweep(composed(paper)), sweep(composed(own))
    assert list(before) == list(after)
    for key, values in after.items():
        assert set(values) <= set(before[key]) or key == "model.depth"


def test_smoke_grids_are_small() -> None:
    """Eight jobs a make target, whose experiments begin with the same words; claim 1 has twelve.

    It is looked at in three networks and with two kinds of labels, each in two runs at least.
    """
    jobs = {
        name: prod(map(len, sweep(composed(f"experiment={name}/smoke")).values()))
        for name in EXPERIMENTS
    }
    for name in EXPERIMENTS:
        most = 12 if name == "fig_validation" else 8
        assert sum(jobs[other] for other in EXPERIMENTS if other.startswith(name)) <= most


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_headed_by_its_command_and_its_time(experiment: str) -> None:
    head = (CONF / "experiment" / f"{experiment}.yaml").read_text().split("defaults:")[0]
    (target,) = re.findall(r"#   make ([a-z0-9-]+) PROFILE=smoke\|cpu\|paper", head)
    assert experiment.replace("_", "-").startswith(target)
    assert f"\n{target}: ## " in (CONF.parent / "Makefile").read_text()
    assert re.search(r"smoke .*; cpu .*; paper ", head)


@pytest.mark.parametrize(
    ("given", "experiment", "profile"),
    [
        ([], "default", None),
        (["profile=smoke"], "default", "smoke"),
        (["experiment=table1"], "table1", None),
        (["experiment=table1/smoke"], "table1", "smoke"),
        (["experiment=mine"], "mine", None),
        (["experiment=mine", "profile=smoke"], "mine", "smoke"),
        (["experiment=mine/laptop"], "mine", "laptop"),
        (["experiment=folder/first"], "folder/first", None),  # there is no experiment=folder
    ],
)
def test_the_chosen_presets_are_named(
    given: list[str], experiment: str, profile: str | None, tmp_path: Path
) -> None:
    for name in ("mine", "mine/laptop", "folder/first"):
        path = tmp_path / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package _global_\nseed: 3\n")
    config = validated(f"hydra.searchpath=[file://{tmp_path}]", *given)
    assert (config.plain["experiment"], config.plain["profile"]) == (experiment, profile)
    assert run_folder(config.plain).parent == Path("outputs", experiment)
    if profile == "laptop":
        with pytest.raises(InputError, match="experiment=mine/laptop names its profile already"):
            validated(f"hydra.searchpath=[file://{tmp_path}]", *given, "profile=smoke")


def test_a_profile_decides_no_folder() -> None:
    own = validated("experiment=table1/smoke")
    assert run_folder(own.plain) == run_folder(own.plain | {"profile": "cpu"})


def test_names_in_files_are_the_files_names() -> None:
    for path in PRESETS:
        group, name = choice(path)
        if group in PACKAGES or isinstance(GROUPS.get(group), Mapping):
            assert yaml.safe_load(path.read_text())["name"] == name


def test_every_typed_name_has_a_file() -> None:
    typed = {group: set(names(group)) for group in PACKAGES}
    typed |= {group: set(table) for group, table in GROUPS.items() if isinstance(table, Mapping)}
    for group, found in typed.items():
        assert {p.stem for p in PRESETS if choice(p)[0] == group} == found


def test_a_profile_has_the_last_word() -> None:
    config = composed("experiment=table1/smoke")
    assert (config.dataset.name, config.dataset.augment) == ("digits", "none")
    assert config.trainer.epochs < 160
    assert config.model.name == "resnet"
    assert sweep(config)["model.last_bn"] == ["false", "true"]
