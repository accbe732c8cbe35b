"""Weights scaled and released: the same function, another training."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from condexp.training.rescale import Release, cancels_rescaling, rescale
from tests.from_conf import build

SHAPE = (1, 8, 8)
Build = Callable[[], nn.Module]


def normalised(**options: object) -> nn.Module:
    """An MLP in float64 whose normalisations have an eps without effect."""
    torch.manual_seed(0)
    model = build("mlp", SHAPE, 3, depth=4, width=6, norm="batch", **options).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-60
    return model


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, *SHAPE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_function_is_the_same_in_training_and_evaluation(position: str) -> None:
    model = normalised(norm_position=position)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.bias)
    model(inputs())  # running statistics that are not 0 and 1
    evaluated = model.eval()(inputs())
    fc, norm = model.get_parameter("fc.weight").clone(), model.get_parameter("layers.0.norm.weight")
    rescale(model, 100.0)
    # A product of rounding errors of some 1e-16 each.
    torch.testing.assert_close(model(inputs()), evaluated, rtol=1e-12, atol=0)
    again = normalised(norm_position=position)
    again.load_state_dict(model.state_dict())
    trained = again.train()(inputs())
    rescale(again, 1 / 100.0)
    torch.testing.assert_close(again(inputs()), trained, rtol=1e-12, atol=0)
    assert torch.equal(model.get_parameter("fc.weight"), fc)
    assert torch.equal(norm, torch.ones_like(norm))


def test_hidden_gradients_shrink_by_the_factor() -> None:
    """Theory §6: so ‖∂L/∂W‖/‖W‖ shrinks by its square."""
    gradients = []
    for factor in (1.0, 10.0):
        model = normalised()
        rescale(model, factor)
        nn.functional.cross_entropy(model(inputs()), torch.arange(16) % 3).backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for n, p in model.named_parameters() if n.endswith("r.weight")])
    assert len(gradients[0]) == 3
    for plain, scaled in zip(*gradients, strict=True):
        torch.testing.assert_close(10 * scaled, plain, rtol=1e-9, atol=1e-15)


def test_a_factor_of_one_leaves_every_bit() -> None:
    model = normalised()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rescale(model, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_release_is_at_its_step_alone() -> None:
    model = normalised()
    weight = model.get_parameter("layers.1.linear.weight")
    start = weight.clone()
    rescale(model, 8.0)
    release = Release(model, 8.0, step=3)
    for step, factor in enumerate([8, 8, 8, 1, 1]):
        release(step)
        assert torch.equal(weight, factor * start)
    Release(model, 8.0, step=None)(0)
    assert torch.equal(weight, start)


mlp = partial(build, "mlp", SHAPE, 10, depth=5, width=16)
CANCELS: dict[str, Build] = {
    "batch": partial(mlp, norm="batch"),
    "after": partial(mlp, norm="batch", norm_position="after"),
    "deep": partial(build, "mlp", SHAPE, 10, depth=50, width=64, norm="batch"),
    "scale": partial(mlp, norm="scale"),
    "cnn": partial(build, "cnn", SHAPE, 10, depth=4, width=8, norm="batch"),
    "vgg": partial(build, "vgg", SHAPE, 10, depth=11),
    "resnet": partial(build, "resnet", SHAPE, 10, depth=20, shortcut="B"),
    "dropout": partial(build, "resnet_imagenet", SHAPE, 10, depth=18, dropout=0.3),
}
CHANGES: dict[str, Build] = {
    "none": partial(mlp, norm="none"),
    "last_bn alone": partial(mlp, norm="none", last_bn=True),
    "center": partial(mlp, norm="center"),
    "tanh between": partial(mlp, norm="batch", norm_position="after", activation="tanh"),
    "preresnet": partial(build, "preresnet", SHAPE, 10, depth=8),
}


@pytest.mark.parametrize(
    ("make", "cancels"),
    [
        *(pytest.param(make, True, id=name) for name, make in CANCELS.items()),
        *(pytest.param(make, False, id=name) for name, make in CHANGES.items()),
    ],
)
def test_a_net_that_would_change_is_known(make: Build, cancels: bool) -> None:
    state = torch.get_rng_state()
    assert cancels_rescaling(make, SHAPE) is cancels
    assert torch.equal(torch.get_rng_state(), state)
