import pytest
import torch
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.models.choices import Norm
from condexp.models.norm import BatchCenter, BatchScale, make_norm, num_groups

SHAPES = [(7, 5), (4, 5, 3, 2)]


def batches(shape: tuple[int, ...], num: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(num)
    ]


def per_channel(values: Tensor, num_dims: int) -> Tensor:
    return values.reshape(1, -1, *[1] * (num_dims - 2))


def dims_of(inputs: Tensor) -> list[int]:
    return [0, *range(2, inputs.dim())]


@pytest.mark.parametrize("shape", SHAPES)
def test_halves_are_their_closed_form_in_train_mode(shape: tuple[int, ...]) -> None:
    inputs = batches(shape, 1)[0]
    mean = inputs.mean(dims_of(inputs), keepdim=True)
    variance = (inputs - mean).square().mean(dims_of(inputs), keepdim=True)
    gamma, beta = torch.arange(1.0, 6.0).double(), torch.arange(5.0).double()
    expected = {BatchCenter: inputs - mean, BatchScale: inputs / (variance + 1e-5).sqrt()}
    for kind, normalised in expected.items():
        module = kind(5).double()
        module.weight.data, module.bias.data = gamma, beta
        affine = normalised * per_channel(gamma, len(shape)) + per_channel(beta, len(shape))
        torch.testing.assert_close(module(inputs), affine, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_after_center_is_batchnorm(shape: tuple[int, ...]) -> None:
    """Outputs, gradients and running statistics, in train mode and then in eval mode."""
    halves = nn.Sequential(BatchCenter(5), BatchScale(5)).double()
    whole = (nn.BatchNorm2d(5) if len(shape) == 4 else nn.BatchNorm1d(5)).double()
    for training in (True, False):
        halves.train(training)
        whole.train(training)
        for inputs in batches(shape):
            ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
            outputs, expected = halves(ours), whole(theirs)
            outputs.square().mul(torch.arange(outputs.numel()).view(shape)).sum().backward()
            expected.square().mul(torch.arange(outputs.numel()).view(shape)).sum().backward()
            # Some 50 float64 roundings apart, gradients of size 10³.
            torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    center, scale = halves
    torch.testing.assert_close(center.running_mean, whole.running_mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(center.running_var, whole.running_var, rtol=1e-13, atol=0)
    torch.testing.assert_close(scale.running_var, whole.running_var, rtol=1e-13, atol=0)
    assert center.num_batches_tracked == scale.num_batches_tracked == 3


def test_eval_mode_uses_running_statistics_and_leaves_them() -> None:
    inputs = batches((7, 5), 1)[0]
    mean, variance = torch.arange(5.0).double(), torch.arange(1.0, 6.0).double()
    for kind, expected in (
        (BatchCenter, inputs - mean),
        (BatchScale, inputs / (variance + 1e-5).sqrt()),
    ):
        module = kind(5).double().eval()
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)
        torch.testing.assert_close(module(inputs), expected, rtol=1e-13, atol=1e-13)
        assert torch.equal(module.running_mean, mean)
        assert torch.equal(module.running_var, variance)
        assert module.num_batches_tracked == 0


@pytest.mark.parametrize("kind", [BatchCenter, BatchScale])
def test_halves_have_the_parameters_and_buffers_of_batchnorm(kind: type[BatchCenter]) -> None:
    assert kind(5).state_dict().keys() == nn.BatchNorm1d(5).state_dict().keys()
    assert isinstance(kind(5), nn.modules.batchnorm._BatchNorm)


@pytest.mark.parametrize("kind", [BatchCenter, BatchScale])
def test_halves_refuse_a_batch_of_one_value(kind: type[BatchCenter]) -> None:
    with pytest.raises(InputError, match="two samples"):
        kind(5)(torch.zeros(1, 5))
    assert kind(5).eval()(torch.zeros(1, 5)).shape == (1, 5)


def test_halves_keep_the_dtype_and_sum_in_float32() -> None:
    """In bfloat16 itself a mean of 300 ones and one 1.5 would be off by more than its precision."""
    inputs = torch.ones(301, 1, dtype=torch.bfloat16)
    inputs[0] = 1.5
    module = BatchCenter(1)
    assert module(inputs).dtype == torch.bfloat16
    # float32 keeps 7 digits of 0.1 × the mean.
    torch.testing.assert_close(
        module.running_mean, torch.tensor([0.1 * 301.5 / 301]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("shape", [(4, 16), (4, 16, 3, 3)])
def test_norms_keep_the_shape_and_start_standardised(norm: Norm, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2
    outputs = make_norm(norm, 16, spatial=len(shape) == 4).double()(inputs)
    assert outputs.shape == inputs.shape
    if norm in {Norm.BATCH, Norm.LAYER, Norm.GROUP, Norm.CENTER}:
        # Every one of them subtracts some mean of everything: over batch or within the sample.
        assert abs(outputs.mean().item()) < 1e-12
    if norm in {Norm.BATCH, Norm.LAYER, Norm.GROUP}:
        # Mean square v/(v + eps) with v of order 1 (0.05 at least in a group of four values).
        assert 1 - 1e-3 < outputs.square().mean().item() < 1


def test_group_count_divides_and_leaves_no_group_of_one_feature() -> None:
    for channels in range(2, 300):
        groups = num_groups(channels)
        assert channels % groups == 0
        assert channels // groups >= min(channels, 4)


@pytest.mark.parametrize("norm", [Norm.LAYER, Norm.GROUP])
def test_a_single_feature_is_refused(norm: Norm) -> None:
    with pytest.raises(InputError, match="single feature"):
        make_norm(norm, 1, spatial=False)
