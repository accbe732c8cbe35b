"""The page of every configuration key: none is missing, and what it says is what is checked."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from condexp.config import GROUPS
from condexp.config.presets import conf_dir
from docs.extensions.config_keys import Key, choices, keys, meanings, page

FILES = [(group, file) for group, files in choices().items() for file in files]
files = pytest.mark.parametrize(("group", "file"), FILES, ids=lambda x: getattr(x, "stem", x))


def leaves(values: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}.{key}")
        elif key != "tensorboard":  # which has none
            yield f"{path}.{key}"


def test_all_groups_and_their_files_are_there() -> None:
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    assert set(GROUPS) == folders - {"experiment", "profile", "hydra"}
    presets = set((conf_dir() / "analysis").glob("*.yaml")) - {file for _, file in FILES}
    text = page()
    assert presets
    assert all(f"`analysis={file.stem}`" in text for file in presets)


@files
def test_no_key_is_missing_and_each_is_explained(group: str, file: Path) -> None:
    listed = {key.name: key for key in keys(group, file) if not key.name.endswith(".*")}
    values = yaml.safe_load(file.read_text())
    values = values[group] if file.parent == conf_dir() else values
    for name in ("defaults", "_target_", *(["name"] if group != "hydra.launcher" else [])):
        values.pop(name, None)
    free = {f"{group}.kwargs"}
    assert set(listed) - free == set(leaves(values, group))
    assert [key.name for key in listed.values() if not key.meaning] == []
    text = page()
    assert all(f"| `{name}` | `{key.default}` |" in text for name, key in listed.items())


def test_limits_defaults_and_meanings_are_those_of_types_and_files() -> None:
    found = {key.name: key for key in keys("trainer", conf_dir() / "trainer" / "default.yaml")}
    assert found["trainer.steps"].allowed == "integer ≥ 1 or `null`"
    assert found["trainer.precision"].allowed == "`fp32`, `bf16`"
    assert found["trainer.checkpoint.every_epochs"].default == "1"
    assert found["trainer.checkpoint.*"].meaning.startswith("What a killed run goes on from")
    found = {key.name: key for key in keys("dataset", conf_dir() / "dataset" / "digits.yaml")}
    assert found["dataset.subset.test"] == Key(
        "dataset.subset.test",
        "null",
        "integer ≥ 1 or `null`",
        "number of images, class-balanced; null: all",
    )


def test_comments_go_to_their_keys() -> None:
    text = "# head\na: 1  # one\n      # and more\nb:  # both\n  c: 2\n# of d\nd: {e: 3}  # e's\n"
    assert meanings(text) == {
        ("a",): "one and more",
        ("b",): "both",
        ("b", "c"): "",
        ("d",): "of d e's",
        ("d", "e"): "of d e's",
    }
