"""Every YAML of conf/ composes, validates and can be prepared: adding one adds its test."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torchvision import datasets

from condexp.assemble import _load, load_dataset
from condexp.config import GROUPS, Config
from condexp.config.datasets import StoredImagesConfig
from condexp.data.dataset import Dataset
from condexp.errors import InputError
from condexp.experiment import run_experiment
from condexp.launch import conf_dir
from condexp.prepare import prepare
from condexp.store.runs import State
from condexp.store.validate import validate_results
from condexp.validation import validate
from tests.data.archives import (
    publish_idx,
    write_cifar,
    write_imagenet,
    write_mnist_like,
    write_svhn,
)
from tests.observer import Silent

CONF = conf_dir()
PRESETS = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF)
NEEDS = {
    "model/linear": ["dataset=gaussian"],
    "dataset/gaussian": ["model=linear"],
    "model/import": [
        "model.target=condexp.models.mlp:build_mlp",
        "++model.kwargs.depth=2",
        "++model.kwargs.width=4",
    ],
}
NEEDS_COLOUR = {"model/torchvision"}


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def choice(path: Path) -> tuple[str, str]:
    return path.parent.relative_to(CONF).as_posix(), path.stem


def composed(*overrides: str) -> DictConfig:
    return compose("config", list(overrides), return_hydra_config=True)


def in_colour(config: Config) -> Dataset:
    """The digits with three equal channels: the data set in a wheel has one."""
    digits = load_dataset(config)
    train, test = (
        replace(split, inputs=split.inputs.expand(-1, 3, -1, -1))
        for split in (digits.train, digits.test)
    )
    return replace(digits, train=train, test=test, mean=3 * digits.mean, std=3 * digits.std)


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
}
# One training step and one snapshot, of two layers: some nets have sides of 4608.
BRIEF = ["trainer.steps=1", "trainer.batch_size=4", "analysis.schedule.log_spaced=null",
         "analysis.schedule.at_end=false", "analysis.layers.include=[first,last_linear]",
         "analysis.probe.size=4"]  # fmt: skip


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: "/".join(choice(path)))
def test_every_preset_trains_a_step_and_takes_a_snapshot(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("condexp.attempt._draw", lambda _: None)  # seconds a picture
    _load.cache_clear()
    group, name = choice(path)
    overrides = [f"{group}={name}", *NEEDS.get(f"{group}/{name}", []), *BRIEF]
    if f"{group}/{name}" in NEEDS_COLOUR:
        monkeypatch.setattr("condexp.prepare.load_dataset", in_colour)
    if group == "dataset" and name in WRITERS:
        WRITERS[name](tmp_path / "data", monkeypatch)
        overrides.append(f"dataset.root={tmp_path / 'data'}")
    elif f"{group}/{name}" != "dataset/gaussian" and "dataset=gaussian" not in overrides:
        overrides += ["dataset.subset.train=20", "dataset.subset.test=10"]
    if name == "imagenet":
        overrides += ["dataset.image_size=32", "model=linear", "model.bias=true"]
    config = validate(composed(*overrides))
    observer = Silent()
    result = run_experiment(config, observer)
    assert (result.state, result.message) == (State.COMPLETE, None)
    assert observer.told.count("snapshot") == int(name != "none")
    assert result.folder is not None
    assert validate_results(result.folder / "results.h5") == []


def absent(config: Config) -> bool:
    """Whether preparing says that the data are not here, and how to fetch them."""
    if not isinstance(config.dataset, StoredImagesConfig):
        prepare(config)
        return False
    with pytest.raises(InputError, match=f"condexp data fetch {config.dataset.name}"):
        prepare(config)
    return True


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: "/".join(choice(path)))
def test_every_preset_as_it_is_can_be_prepared(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no data are
    monkeypatch.setattr("condexp.data.sources.DEBIAN_FASHION_MNIST", tmp_path)
    _load.cache_clear()
    group, name = choice(path)
    if f"{group}/{name}" in NEEDS_COLOUR:
        monkeypatch.setattr("condexp.prepare.load_dataset", in_colour)
    needed = NEEDS.get(f"{group}/{name}", [])
    config = validate(composed(f"{group}={name}", *needed))
    assert absent(config) == (f"{group}/{name}" in {f"dataset/{stored}" for stored in WRITERS})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("profile", [p.stem for p in PRESETS if choice(p)[0] == "profile"])
@pytest.mark.parametrize("experiment", [p.stem for p in PRESETS if choice(p)[0] == "experiment"])
def test_every_experiment_in_every_profile(
    experiment: str, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("condexp.data.sources.DEBIAN_FASHION_MNIST", tmp_path)
    config = validate(composed(f"experiment={experiment}", f"profile={profile}"), experiment)
    assert absent(config) or prepare(config).folder.parent == Path("outputs", experiment)


def test_names_in_files_are_the_files_names() -> None:
    for path in PRESETS:
        group, name = choice(path)
        if isinstance(GROUPS.get(group), Mapping):
            assert yaml.safe_load(path.read_text())["name"] == name


def test_every_typed_name_has_a_file() -> None:
    for group, schema in GROUPS.items():
        if isinstance(schema, Mapping):
            assert {p.stem for p in PRESETS if choice(p)[0] == group} == set(schema)


def test_a_profile_has_the_last_word() -> None:
    config = composed("experiment=table1", "profile=smoke")
    assert config.dataset.name == "digits"
    assert config.trainer.epochs == 6
    assert config.model.name == "resnet"
    assert set(config.hydra.sweeper.params) == {"model.last_bn", "model.depth", "seed"}
