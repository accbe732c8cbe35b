"""Models and data sets as ``conf/`` has them, but for the keys that are changed."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from condexp.config.by_name import find
from condexp.config.presets import conf_dir
from condexp.config.validation import typed
from condexp.data.dataset import Dataset


def make_spec(group: str, name: str, **changes: object) -> Any:
    values = OmegaConf.load(conf_dir() / group / f"{name}.yaml")
    assert isinstance(values, DictConfig)
    values.pop("defaults", None)  # Hydra's own
    merged = OmegaConf.merge(values, changes)
    return typed(find(group, name).Spec, merged, group)  # type: ignore[arg-type]


def build(name: str, input_shape: Sequence[int], num_outputs: int, **changes: object) -> nn.Module:
    spec = make_spec("model", name, **changes)
    model: nn.Module = find("model", name).build(spec, input_shape, num_outputs)
    return model


def load(name: str, **changes: object) -> Dataset:
    dataset: Dataset = find("dataset", name).load(make_spec("dataset", name, **changes))
    return dataset
