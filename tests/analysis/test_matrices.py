"""Every matrix against brute force: explicit patches, a backward pass a sample, loops."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.snapshot import LayerSnapshot
from tests import cases
from tests.analysis import oracles

ALL = ("input", "grad_output", "kfac", "weight", "weight_grad")
HEIGHT, WIDTH = 5, 6
LOSS = nn.CrossEntropyLoss()
Pair = int | tuple[int, int]


def analysed(model: nn.Module, inputs: Tensor, targets: Tensor, **options: object) -> LayerSnapshot:
    snapshot = condexp.analyze(model, LOSS, inputs, targets, ALL, **options)  # type: ignore[arg-type]
    return snapshot["0"]


def check_convolution(conv: nn.Conv2d, num_samples: int) -> None:
    """All matrices, with patches and channels, centered or not, with and without the bias."""
    model = cases.conv_net(conv, HEIGHT, WIDTH)
    inputs = cases.normal(num_samples, conv.in_channels, HEIGHT, WIDTH) + 0.3
    targets = cases.labels(num_samples, 3)
    _, grads = oracles.per_sample(model, "0", LOSS, inputs, targets)
    grad_rows = oracles.pixel_rows(grads[:, 0], conv.groups)
    patches = oracles.conv_rows(conv, inputs)
    pixels = oracles.pixel_rows(inputs, conv.groups)
    weight_blocks = conv.weight.reshape(conv.groups, conv.out_channels // conv.groups, -1)
    expected_grad = oracles.weight_grad(patches, grad_rows)
    sigma_gs = [oracles.grad_output_matrices(grad_rows, center=center) for center in (False, True)]
    for rows, center, bias in itertools.product((patches, pixels), (False, True), (False, True)):
        conv_input = "patches" if rows is patches else "channels"
        record = analysed(model, inputs, targets, conv_input=conv_input, center=center, bias=bias)
        extended = oracles.with_ones(rows) if bias and conv.bias is not None else rows
        sigma_x, sigma_g = oracles.input_matrices(extended, center=center), sigma_gs[center]
        oracles.close(record.input, oracles.united(sigma_x))
        oracles.close(record.grad_output, oracles.united(sigma_g))
        oracles.kronecker_close(record.kfac, sigma_x, sigma_g)
        oracles.close(record.weight, oracles.squared_singular_values(weight_blocks))
        oracles.close(record.weight_grad, oracles.squared_singular_values(expected_grad))
        assert record.info.d_in == sigma_x.shape[-1]
        assert record.info.positions == grad_rows.shape[2]


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, (3, 2), 3])
def test_convolution(
    kernel_size: int | tuple[int, int], groups: int, bias: bool, num_samples: int
) -> None:
    geometries: list[tuple[Pair, Pair | str, Pair]] = [
        (1, 0, 1),
        (1, 1, 1),
        (1, "same", 2),
        (1, "valid", 2),
        (2, 1, 1),
        ((2, 1), (1, 0), 2),
        (3, 2, (1, 2)),
    ]
    for stride, padding, dilation in geometries:
        conv = nn.Conv2d(2, 4, kernel_size, stride, padding, dilation, groups=groups, bias=bias)
        check_convolution(conv, num_samples)


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(1, 2), "same"])
def test_convolution_with_padding_modes(padding_mode: str, padding: tuple[int, int] | str) -> None:
    conv = nn.Conv2d(2, 2, 3, padding=padding, padding_mode=padding_mode)  # type: ignore[arg-type]
    check_convolution(conv, 2)


def test_depthwise_convolution_with_a_multiplier() -> None:
    check_convolution(nn.Conv2d(4, 8, 3, stride=2, groups=4), 2)


def test_convolution_on_channels_last_memory() -> None:
    conv = nn.Conv2d(2, 4, 3, padding=1)
    model = cases.conv_net(conv, HEIGHT, WIDTH)
    inputs, targets = cases.normal(3, 2, HEIGHT, WIDTH), cases.labels(3, 3)
    strided = inputs.contiguous(memory_format=torch.channels_last)
    record, other = analysed(model, inputs, targets), analysed(model, strided, targets)
    oracles.same(record.input, other.input)
    oracles.same(record.grad_output, other.grad_output)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("num_samples", [1, 2, 9])
def test_mlp_in_eval_mode(num_samples: int, batch_norm: bool, bias: bool) -> None:
    """Every layer of a net: fewer rows than units, as many, more; centered or not; ones or not."""
    model = cases.mlp(bias=bias, batch_norm=batch_norm).eval()
    inputs, targets = cases.normal(num_samples, 4), cases.labels(num_samples, 3)
    for center, ones in itertools.product((False, True), (False, True)):
        snapshot = condexp.analyze(
            model, LOSS, inputs, targets, ALL, precision="float64", center=center, bias=ones
        )
        assert snapshot.layers == (("0", "3", "6") if batch_norm else ("0", "2", "4"))
        for name in snapshot.layers:
            record, layer = snapshot[name], model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            seen, grads = oracles.per_sample(model, name, LOSS, inputs, targets)
            rows, grad_rows = oracles.linear_rows(seen), oracles.linear_rows(grads)
            extended = oracles.with_ones(rows) if ones and bias else rows
            sigma_x = oracles.input_matrices(extended, center=center)
            sigma_g = oracles.grad_output_matrices(grad_rows, center=center)
            # One centered sample is exactly 0, and so is its Kronecker product.
            if not (center and num_samples == 1):
                oracles.kronecker_close(record.kfac, sigma_x, sigma_g)
            oracles.close(record.input, oracles.united(sigma_x))
            oracles.close(record.grad_output, oracles.united(sigma_g))
            oracles.close(record.weight, oracles.squared_singular_values([layer.weight]))
            expected = oracles.weight_grad(rows, grad_rows)
            oracles.close(record.weight_grad, oracles.squared_singular_values(expected))


def test_batch_norm_in_training_mode_carries_the_paths_through_the_batch() -> None:
    """g = N·∂L/∂h of the whole batch: what the paper measures, not a sum over separate samples."""
    model = cases.mlp(batch_norm=True)
    inputs, targets = cases.normal(7, 4), cases.labels(7, 3)
    snapshot = condexp.analyze(model, LOSS, inputs, targets, precision="float64")
    assert snapshot.bn_mode == "train"
    for name in snapshot.layers:
        ((seen, grad),) = oracles.calls(model, name, LOSS, inputs, targets)
        sigma_x = oracles.input_matrices(oracles.linear_rows(seen))
        sigma_g = oracles.grad_output_matrices(oracles.linear_rows(7 * grad))
        oracles.close(snapshot[name].input, oracles.united(sigma_x))
        oracles.close(snapshot[name].grad_output, oracles.united(sigma_g))


@pytest.mark.parametrize("model", [cases.vgg(), cases.resnet()], ids=["vgg", "resnet"])
def test_in_place_activations_and_sums_are_safe(model: nn.Module) -> None:
    """Every layer of nets whose outputs are overwritten by what follows."""
    model = model.eval()
    inputs, targets = cases.normal(3, 2, 8, 8), cases.labels(3, 3)
    snapshot = condexp.analyze(model, LOSS, inputs, targets, ALL, precision="float64")
    for name in snapshot.layers:
        layer = model.get_submodule(name)
        seen, grads = oracles.per_sample(model, name, LOSS, inputs, targets)
        if isinstance(layer, nn.Conv2d):
            rows = oracles.conv_rows(layer, seen[:, 0])
            grad_rows = oracles.pixel_rows(grads[:, 0], 1)
        else:
            rows, grad_rows = oracles.linear_rows(seen), oracles.linear_rows(grads)
        record, expected = snapshot[name], oracles.weight_grad(rows, grad_rows)
        oracles.close(record.input, oracles.united(oracles.input_matrices(rows)))
        oracles.close(record.grad_output, oracles.united(oracles.grad_output_matrices(grad_rows)))
        oracles.close(record.weight_grad, oracles.squared_singular_values(expected))


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 2)])
def test_reused_module_unites_its_rows_on_any_leading_shape(shape: tuple[int, ...]) -> None:
    model = cases.reused()
    inputs, targets = cases.normal(*shape, 4), cases.normal(*shape, 3, seed=3)
    loss = nn.MSELoss()
    snapshot = condexp.analyze(model, loss, inputs, targets, ALL, precision="float64")
    for name, uses in {"first": 1, "shared": 3, "last": 1}.items():
        record = snapshot[name]
        seen, grads = oracles.per_sample(model, name, loss, inputs, targets)
        rows, grad_rows = oracles.linear_rows(seen), oracles.linear_rows(grads)
        assert record.info.uses == uses
        assert record.info.positions * uses == rows.shape[2]
        sigma_x = oracles.input_matrices(rows)
        sigma_g = oracles.grad_output_matrices(grad_rows)
        oracles.close(record.input, oracles.united(sigma_x))
        oracles.close(record.grad_output, oracles.united(sigma_g))
        oracles.kronecker_close(record.kfac, sigma_x, sigma_g)
        expected = oracles.weight_grad(rows, grad_rows)
        oracles.close(record.weight_grad, oracles.squared_singular_values(expected))


def test_linear_on_flattened_positions_equals_linear_on_a_leading_shape() -> None:
    """[N·T, d] inside a net whose input is [N, T, d] is the same measurement."""

    class Flattened(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return out

    layer = cases.randomised(nn.Linear(4, 3))
    inputs, targets = cases.normal(5, 6, 4), cases.normal(5, 6, 3, seed=4)
    flat = condexp.analyze(Flattened(layer), nn.MSELoss(), inputs, targets)["layer"]
    plain = condexp.analyze(layer, nn.MSELoss(), inputs, targets)["Linear"]
    assert flat.info.positions == plain.info.positions == 6
    oracles.same(flat.input, plain.input)
    oracles.same(flat.grad_output, plain.grad_output)
