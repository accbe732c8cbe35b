"""A configuration has one folder everywhere, and what is in it says how far the run is."""

import json
import math
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import yaml

from condexp.errors import InputError
from condexp.store.run_folder.identity import (
    identity_config,
    identity_hash,
    identity_yaml,
    run_folder,
    slug,
)
from condexp.store.run_folder.status import State, Status, find_runs, read_status, write_status


def make_config() -> dict[str, Any]:
    return {
        "model": {"name": "mlp", "depth": 3},
        "dataset": {"name": "digits", "root": "data", "download": False, "image_size": None},
        "optimizer": {"name": "sgd", "lr": 1e-5},
        "trainer": {
            "epochs": 2,
            "device": "cpu",
            "num_threads": 2,
            "checkpoint": {"every_steps": 10},
        },
        "analysis": {"kappa_p": [0.5, 1.0]},
        "run": {"root": "outputs"},
        "store": {"durability": "kill"},
        "hydra": {"verbose": True},
        "profile": "smoke",
        "experiment": None,
        "seed": 1,
    }


def set_key(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return change


def test_the_folder_is_the_same_on_every_machine() -> None:
    config = make_config()
    folder = run_folder(config)
    assert slug(config) == "mlp-digits-s1"
    # Pinned: a later version must find the runs of this one.
    assert folder == Path("outputs/default/mlp-digits-s1-b4633daa")
    shuffled = dict(reversed([*config.items()]))
    shuffled["model"] = dict(reversed([*config["model"].items()]))
    assert run_folder(shuffled) == folder


@pytest.mark.parametrize(
    "path",
    [
        "run.root",
        "store.durability",
        "hydra.verbose",
        "profile",
        "dataset.root",
        "dataset.download",
        "trainer.device",
        "trainer.num_threads",
        "trainer.checkpoint",
    ],
)
def test_where_and_how_a_run_runs_is_not_its_identity(path: str) -> None:
    config = make_config()
    set_key(path, "elsewhere")(config)
    assert identity_hash(config) == identity_hash(make_config())
    assert config != make_config()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 2),
        ("optimizer.lr", 1.0000000000000002e-5),
        ("dataset.image_size", 8),
        ("analysis.kappa_p", [1.0, 0.5]),
        ("model.depth", "3"),
        ("experiment", "table1"),
    ],
)
def test_different_numbers_have_different_folders(path: str, value: object) -> None:
    config = make_config()
    set_key(path, value)(config)
    assert identity_hash(config) != identity_hash(make_config())


@pytest.mark.parametrize(
    ("key", "before", "other"),
    [
        ("analysis.network_precision", "as_trained", "float64"),
        ("analysis.weight_sharing", "expand", "reduce"),
    ],
)
def test_a_later_key_renames_no_run_that_is_as_before(key: str, before: str, other: str) -> None:
    config = make_config()
    set_key(key, before)(config)
    assert identity_hash(config) == identity_hash(make_config())
    set_key(key, other)(config)
    assert identity_hash(config) != identity_hash(make_config())


def test_the_identity_is_readable_and_has_one_spelling() -> None:
    class Color(StrEnum):
        RED = "red"

    config = make_config()
    assert yaml.safe_load(identity_yaml(config)) == identity_config(config)
    assert identity_config(config)["trainer"] == {"epochs": 2}
    shared = [0.5, 1.0]
    same = {"a": shared, "b": shared, "c": Color.RED, "d": (1, "λ")}
    assert identity_yaml(same) == identity_yaml({
        "d": [1, "λ"],
        "c": "red",
        "b": [0.5, 1.0],
        "a": [0.5, 1.0],
    })
    assert "λ" in identity_yaml(same)


def test_the_experiment_is_a_folder() -> None:
    config = make_config() | {"experiment": "paper/table1"}
    assert run_folder(config).parent == Path("outputs/paper/table1")


def test_status_comes_back_as_it_was_and_what_is_no_number_is_none(tmp_path: Path) -> None:
    status = Status(State.FAILED, 3, 10, 0.5, 12.5, 11.0, 0.25, "a", "b", 1.5, 7, "host", "no λ", 2)
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status
    write_status(tmp_path, Status(State.DIVERGED, train_loss=math.nan, test_error=math.inf))
    assert read_status(tmp_path) == Status(State.DIVERGED)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no "),
        ("{", "is not JSON"),
        ("[1]", "does not hold an object"),
        ("{}", "names no state of a run"),
        ('{"state": "asleep"}', "names no state of a run"),
    ],
)
def test_a_broken_status_is_one_message(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_status(tmp_path)


VALUES = {bool: True, int: 3, float: 0.5, str: "text", list: [1], dict: {"a": 1}}


@pytest.mark.parametrize("given", VALUES.values(), ids=[kind.__name__ for kind in VALUES])
@pytest.mark.parametrize("field", [field.name for field in fields(Status)[1:]])
def test_no_field_is_of_another_type(tmp_path: Path, field: str, given: object) -> None:
    """A number for a text, say: what prints it would end in a traceback."""
    kinds = typing.get_args(typing.get_type_hints(Status)[field])
    kinds = kinds or (typing.get_type_hints(Status)[field],)
    fits = type(given) in kinds or (type(given) is int and float in kinds)
    (tmp_path / "status.json").write_text(json.dumps({"state": "complete", field: given}))
    if fits:
        assert getattr(read_status(tmp_path), field) == given
    else:
        with pytest.raises(InputError, match=f"{field} is "):
            read_status(tmp_path)


def test_a_status_of_a_later_version_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "complete", "step": 4, "mood": "good"}')
    assert read_status(tmp_path) == Status(State.COMPLETE, step=4)


def test_runs_are_found_under_folders(tmp_path: Path) -> None:
    for name in ("b/run-2", "b/run-1", "a/deep/er/run-3", "b/.sweep/run-4"):
        (tmp_path / name).mkdir(parents=True)
        write_status(tmp_path / name, Status(State.PENDING))
    (tmp_path / "empty").mkdir()
    found = find_runs([tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a/deep/er/run-3",
        "b/run-1",
        "b/run-2",
    ]
    assert find_runs([tmp_path / "b", tmp_path / "b/run-1"]) == found[1:]
    assert find_runs([tmp_path / "b/run-1/status.json"]) == found[1:2]
    with pytest.raises(InputError, match=r"empty holds no run\."):
        find_runs([tmp_path, tmp_path / "empty"])
    with pytest.raises(InputError, match=r"empti does not exist\. Did you mean '.*empty'\?"):
        find_runs([tmp_path / "empti"])


def test_finding_runs_needs_no_torch() -> None:
    code = "import sys, condexp.store.run_folder.status; sys.exit('torch' in sys.modules)"
    subprocess.run((sys.executable, "-c", code), check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("key", ["error", "host", "started"])
@pytest.mark.parametrize("value", [-1, 7, 0.5, True])
def test_a_number_is_no_text(tmp_path: Path, key: str, value: object) -> None:
    content = json.dumps({"state": "complete", key: value})
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(InputError, match=key):
        read_status(tmp_path)
