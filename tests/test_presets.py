"""Every YAML of conf/ composes, validates and can be prepared: adding one adds its test."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from condexp.config import GROUPS
from condexp.errors import InputError
from condexp.launch import conf_dir
from condexp.prepare import prepare
from condexp.validation import validate

CONF = conf_dir()
PRESETS = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF)
NEEDS = {"model/linear": ["dataset=gaussian"], "dataset/gaussian": ["model=linear"]}


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def choice(path: Path) -> tuple[str, str]:
    return path.parent.relative_to(CONF).as_posix(), path.stem


def composed(*overrides: str) -> DictConfig:
    return compose("config", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: "/".join(choice(path)))
def test_every_preset_can_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condexp.data.vision.DEBIAN_FASHION_MNIST", tmp_path)
    group, name = choice(path)
    needed = NEEDS.get(f"{group}/{name}", [])
    config = validate(composed(f"{group}={name}", *needed, f"run.root={tmp_path}"))
    if name == "fashion_mnist":  # the one preset whose data is not in a wheel
        with pytest.raises(InputError, match="dataset-fashion-mnist"):
            prepare(config)
        return
    prepared = prepare(config)
    assert bool(prepared.plan.snapshot_steps) == (name != "none")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("profile", [p.stem for p in PRESETS if choice(p)[0] == "profile"])
@pytest.mark.parametrize("experiment", [p.stem for p in PRESETS if choice(p)[0] == "experiment"])
def test_every_experiment_in_every_profile(experiment: str, profile: str, tmp_path: Path) -> None:
    config = composed(f"experiment={experiment}", f"profile={profile}", f"run.root={tmp_path}")
    prepared = prepare(validate(config, experiment))
    assert prepared.folder.parent == tmp_path / experiment


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
