"""A model or a data set is one file and one YAML: nothing else knows its name or its keys."""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from condexp import data, models
from condexp.cli.main import main
from condexp.config.by_name import PACKAGES, find, names
from condexp.config.presets import conf_dir
from condexp.errors import InputError

MODEL = """
from dataclasses import dataclass

from torch import nn

from condexp.errors import one_of, within
from condexp.models.choices import Init
from condexp.models.init import initialise
from condexp.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    width: int = within(1, 64)
    init: str = one_of(Init)


def build(spec, input_shape, num_outputs):
    model = nn.Sequential(nn.Linear(input_shape[0], spec.width), nn.Linear(spec.width, num_outputs))
    initialise(model, spec.init)
    return model
"""
DATASET = """
from dataclasses import dataclass

import torch

from condexp.data.dataset import Dataset, Split, Task, checksum_of
from condexp.data.spec import DatasetSpec
from condexp.errors import within


@dataclass(frozen=True, kw_only=True)
class Spec(DatasetSpec):
    period: float = within(0, open_low=True)


def load(spec):
    inputs = torch.linspace(0, 1, 40)[:, None]
    split = Split(inputs, (inputs / spec.period).sin())
    return Dataset(
        spec.name, Task.REGRESSION, split, split, (0.0,), (1.0,), 1, checksum_of(split, split)
    )
"""
FILES = {
    "models/narrow.py": MODEL,
    "data/wave.py": DATASET,
    "conf/model/narrow.yaml": "name: narrow\nwidth: 3  # hidden units\ninit: he\n",
    "conf/dataset/wave.yaml": "name: wave\nperiod: 0.1\n",
}
TINY = ["trainer.steps=2", "trainer.batch_size=20", "analysis.schedule.log_spaced=null"]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def condexp(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Run the command line with a model and a data set more, whose files lie in a folder."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path / "models")])
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path / "data")])
    importlib.invalidate_caches()

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["--config-dir", "conf", "model=narrow", "dataset=wave", *TINY, *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    for module in ("condexp.models.narrow", "condexp.data.wave"):
        sys.modules.pop(module, None)


def test_a_file_and_a_yaml_make_a_run(condexp: Command, tmp_path: Path) -> None:
    code, out, err = condexp("model.width=5")
    assert (code, err) == (0, "")
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["state"] == "complete"
    assert status.parent.name.startswith("narrow-wave-s1-")
    stored = yaml.safe_load((status.parent / "config.yaml").read_text())
    assert stored["model"] == {"name": "narrow", "width": 5, "init": "he"}
    assert stored["dataset"] == {"name": "wave", "period": 0.1}
    assert "narrow on wave" in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.width=65", "model.width=65: it must be at least 1 and at most 64"),
        ("model.init=hee", "unknown model.init 'hee': allowed are .*Did you mean 'he'"),
        ("dataset.period=0", "dataset.period=0.0: it must be greater than 0"),
        ("model.width=wide", "model.width: Value 'wide'.*Integer"),
        ("+model.depth=2", "unknown key 'model.depth': allowed here are model.name, model.width"),
        ("model.name=narow", "unknown model.name 'narow': allowed are .*Did you mean 'narrow'"),
    ],
)
def test_its_keys_are_checked_as_all_are(condexp: Command, override: str, message: str) -> None:
    code, out, err = condexp(override)
    assert (code, out) == (2, "")
    assert re.search(message, err), err


@pytest.mark.parametrize("group", PACKAGES)
def test_a_yaml_says_what_its_keys_may_hold(group: str) -> None:
    for name in names(group):
        lines = (conf_dir() / group / f"{name}.yaml").read_text().splitlines()
        for item in fields(find(group, name).Spec):
            # free_keys@kwargs: a key that takes any keys of its own.
            starts = (f"{item.name}:", f"  - /free_keys@{item.name} ")
            (line,) = (line for line in lines if line.startswith(starts))
            told = set(re.findall(r"\w+", line))
            assert told >= {str(choice) for choice in item.metadata.get("choices", ())}, line


def test_parts_are_no_models() -> None:
    assert {"mlp", "import"} <= set(names("model"))
    assert not {"norm", "spec", "choices", "import_"} & set(names("model"))
    assert not {"dataset", "loaders", "spec", "transforms"} & set(names("dataset"))
    for name in ("norm", "import_", "mlp.Spec", "../cli", ""):
        with pytest.raises(InputError, match=r"unknown model\.name .*: allowed are cnn, import"):
            find("model", name)
