"""A model that cannot run on the data is one message, before anything starts."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from condexp.analysis.options import AnalysisOptions
from condexp.data.dataset import Dataset
from condexp.errors import InputError
from condexp.runs.model_trace import ModelTrace, trace_model
from tests.in_process import validated

Try = Callable[..., ModelTrace]

MODELS = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.fc = nn.Linear(input_shape[-1] ** 2, num_outputs)

    def forward(self, inputs):
        return self.fc(inputs.flatten(1))

class FixedSize(Net):
    def __init__(self, num_outputs):
        super().__init__((1, 28, 28), num_outputs)

class NeedsValues(Net):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.gain = float(self.fc.weight.abs().max())
        self.constant = torch.from_numpy(np.ones(1, dtype=np.float32))

    def forward(self, inputs):
        if inputs.sum() > 1e9:
            raise ValueError("too large")
        return super().forward(inputs) * self.gain + self.constant

class WrongInside(Net):
    def __init__(self, **kwargs):
        super().__init__(depth=3)

class Pair(Net):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        return (outputs, outputs) if self.training else outputs

class Detached(Net):
    def forward(self, inputs):
        return super().forward(inputs).detach()

class Asserts(Net):
    def forward(self, inputs):
        assert inputs.ndim == 2
        return super().forward(inputs)

class Leaves(Net):
    def forward(self, inputs):
        raise SystemExit(3)

def transposed(input_shape, num_outputs):
    return Net(input_shape, num_outputs + 1)

def frozen(input_shape, num_outputs):
    model = Net(input_shape, num_outputs)
    model.fc.weight.requires_grad_(False)
    return model
"""


@pytest.fixture(scope="module", autouse=True)
def my_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("nets")
    (folder / "rehearsed_models.py").write_text(MODELS)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def attempt(
    *overrides: str, shape: tuple[int, ...] = (1, 8, 8), num_outputs: int = 10
) -> ModelTrace:
    dataset = cast(
        "Dataset", SimpleNamespace(input_shape=shape, num_outputs=num_outputs, train=range(9))
    )
    return trace_model(validated(*overrides), dataset, AnalysisOptions())


def imported(name: str) -> list[str]:
    return ["model=import", f"model.target=rehearsed_models:{name}"]


@pytest.mark.parametrize(
    "model", ["mlp", "linear", "vgg", "resnet", "preresnet", "resnet_imagenet"]
)
def test_own_models_need_no_memory(model: str) -> None:
    found = attempt(f"model={model}")
    assert all(parameter.is_meta for parameter in found.model.parameters())
    assert found.catalogue.layers[-1].name == "fc"
    assert found.catalogue.layers[-1].d_out == 10


def test_trying_an_own_model_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    attempt("model=mlp")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "shufflenet_v2_x0_5", "regnet_y_400mf"])
@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_torchvision_takes_the_size_or_says_why_not(arch: str, size: int) -> None:
    """squeezenet pools below one pixel at 8 px; regnet cannot be built without values."""
    args, shape = ("model=torchvision", f"model.arch={arch}"), (3, size, size)
    if (arch, size) == ("squeezenet1_1", 8):
        message = (
            rf"model=torchvision {arch} fails on inputs \[2, 3, 8, 8\] of dataset=digits with 10 "
            r"outputs: RuntimeError: .*[Oo]utput size is too small"
        )
        with pytest.raises(InputError, match=message):
            attempt(*args, shape=shape)
    else:
        assert attempt(*args, shape=shape).catalogue.layers[-1].d_out == 10


def test_torchvision_needs_colour() -> None:
    with pytest.raises(InputError, match="takes images of 3 channels, these have 1"):
        attempt("model=torchvision")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_users_model(channels: int) -> None:
    if channels == 1:
        assert [layer.name for layer in attempt(*imported("Net")).catalogue.layers] == ["fc"]
        return
    message = (
        r"model=import rehearsed_models:Net fails on inputs \[2, 3, 8, 8\] of dataset=digits with "
        r"10 outputs: RuntimeError: mat1 and mat2 shapes cannot be multiplied \(2x192 and 64x10\) "
        r"\(.*rehearsed_models.py, line 12\)\. Mend it there"
    )
    with pytest.raises(InputError, match=message):
        attempt(*imported("Net"), shape=(3, 8, 8))


def test_a_model_that_needs_values_gets_them() -> None:
    found = attempt(*imported("NeedsValues"))
    assert not any(parameter.is_meta for parameter in found.model.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FixedSize", r"mat1 and mat2 shapes cannot be multiplied \(2x64 and 784x10\)"),
        ("WrongInside", r"fails on .*TypeError: .*unexpected keyword argument 'depth'"),
        ("Pair", r"returns tuple in training mode for inputs \[2, 1, 8, 8\]: .*\[2, 10\]"),
        ("transposed", r"returns \[2, 11\] in training mode .*one tensor \[2, 10\]"),
        ("Asserts", r"AssertionError: assert inputs.ndim == 2 \(.*rehearsed_models.py, line \d+\)"),
        ("Leaves", r"SystemExit: 3 \(.*rehearsed_models.py, line \d+\)\. Mend it there"),
        ("Detached", "no parameter of it can be trained"),
        ("frozen", r"'fc': frozen .requires_grad=False"),
    ],
)
def test_a_users_mistake_is_one_message(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attempt(*imported(name))


def test_batch_statistics_of_one_sample_are_refused() -> None:
    message = r"and trainer.batch_size=1: .*more than 1 value per channel.*trainer.batch_size=2"
    with pytest.raises(InputError, match=message) as refused:
        attempt("model=mlp", "trainer.batch_size=1")
    assert "image_size" not in str(refused.value)
    attempt("model=mlp", "model.norm=none", "trainer.batch_size=1")


def test_a_refusal_on_the_meta_device_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def refuse(*_: Any, **__: Any) -> nn.Module:
        calls.append(torch.empty(0).device.type)
        raise InputError("no")

    monkeypatch.setattr("condexp.runs.model_trace.build_model", refuse)
    with pytest.raises(InputError, match="no"):
        attempt()
    assert calls == ["meta"]


def test_a_net_whose_function_a_rescaling_would_change_is_refused() -> None:
    scaled = "trainer.rescale.factor=10"
    attempt("model=mlp", "model.norm=batch", scaled)
    message = r"trainer.rescale.factor=10: .* what model=mlp computes.* Take a model with"
    with pytest.raises(InputError, match=message):
        attempt("model=mlp", "model.norm=none", scaled)
    with pytest.raises(InputError, match="what model=preresnet computes"):
        attempt("model=preresnet", "model.depth=8", scaled)
    with pytest.raises(InputError, match="TypeError"):
        attempt(*imported("WrongInside"), scaled)  # its own mistake comes first
