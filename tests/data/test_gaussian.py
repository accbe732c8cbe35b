import math

import pytest
import torch
from torch import Tensor, nn

from condexp.data import gaussian
from condexp.data.dataset import Dataset, Task
from condexp.errors import InputError
from tests.from_conf import load, make_spec


def covariance(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def small(seed: int = 0, /, **options: object) -> Dataset:
    sizes: dict[str, object] = {"dim": 6, "num_train": 30, "num_test": 8}
    return gaussian.load(make_spec("dataset", "gaussian", **{**sizes, **options}), seed)


def prescribed_spectrum(dim: int, **options: object) -> Tensor:
    return gaussian.prescribed_spectrum(make_spec("dataset", "gaussian", dim=dim, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"condition_number": 1e6},
        {"condition_number": 50.0, "spectrum": "linear"},
        {"eigenvalues": (3.0, 7.0, 7.0, 0.5, 0.0, 1e-3)},
        {"num_train": 6},
        {"condition_number": 1.0},
    ],
)
def test_the_training_sample_has_exactly_the_prescribed_spectrum(
    options: dict[str, object],
) -> None:
    names = ("condition_number", "spectrum", "eigenvalues")
    expected = prescribed_spectrum(6, **{k: v for k, v in options.items() if k in names})
    found = torch.linalg.eigvalsh(covariance(small(**options).train.inputs)).flip(0)
    # Float64 products of matrices of norm up to 7.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    large = load("gaussian", dim=50, num_train=2000, num_test=1, condition_number=1e4)
    found = torch.linalg.eigvalsh(covariance(large.train.inputs)).flip(0)
    wanted = prescribed_spectrum(50, condition_number=1e4)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_spectrum_shapes() -> None:
    log = prescribed_spectrum(4, condition_number=1000)
    # Powers of ten, correctly rounded but for an ulp or two.
    torch.testing.assert_close(log, torch.tensor([1, 0.1, 0.01, 0.001]).double(), rtol=1e-7, atol=0)
    linear = prescribed_spectrum(3, condition_number=2, spectrum="linear")
    assert linear.tolist() == [1.0, 0.75, 0.5]
    assert prescribed_spectrum(2, eigenvalues=[1.0, 4.0]).tolist() == [4.0, 1.0]
    assert prescribed_spectrum(1).tolist() == [1.0]


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_the_hessian_is_known(num_outputs: int) -> None:
    """nn.MSELoss over C outputs: H = 2/C · Σ_x ⊗ I, whatever the weights."""
    data = small(num_outputs=num_outputs, noise=0.5).train

    def loss(weight: Tensor) -> Tensor:
        return nn.functional.mse_loss(data.inputs @ weight.view(num_outputs, 6).T, data.targets)

    weights = torch.zeros(num_outputs * 6).double()
    hessian = torch.autograd.functional.hessian(loss, weights)  # type: ignore[no-untyped-call]
    values = 2 / num_outputs * prescribed_spectrum(6)
    expected = values.repeat_interleave(num_outputs)
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian).flip(0), expected, rtol=0, atol=1e-13)


def test_axes_are_rotated() -> None:
    matrix = covariance(small().train.inputs)
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    assert off_diagonal.norm() > 0.1 * matrix.norm()


def test_targets_are_linear_up_to_the_noise() -> None:
    clean = small(num_outputs=2)
    weight = torch.linalg.lstsq(clean.train.inputs, clean.train.targets).solution
    for split in (clean.train, clean.test):
        # κ(X) = 10 times float64 rounding.
        torch.testing.assert_close(split.inputs @ weight, split.targets, rtol=0, atol=1e-12)
    noisy = load("gaussian", dim=2, num_train=20_000, num_test=1, noise=0.3)
    weight = torch.linalg.lstsq(noisy.train.inputs, noisy.train.targets).solution
    residual = (noisy.train.inputs @ weight - noisy.train.targets).std().item()
    # Five standard errors of a deviation from 20,000 samples.
    assert abs(residual / 0.3 - 1) < 5 / math.sqrt(2 * 20_000)


def test_the_test_sample_is_drawn_from_the_same_law() -> None:
    data = load("gaussian", dim=4, num_train=8, num_test=20_000)
    root = torch.linalg.cholesky(covariance(data.train.inputs))
    white = torch.linalg.solve_triangular(root, data.test.inputs.T, upper=False).T
    spread = torch.linalg.eigvalsh(covariance(white)).sqrt()
    # Singular values of a Gaussian matrix lie within 1 ± (√d + t)/√n but for 2·exp(−t²/2); t = 5.
    assert (spread - 1).abs().max() < (2 + 5) / math.sqrt(20_000)


def test_is_a_function_of_its_seed_alone() -> None:
    first = small()
    torch.manual_seed(9)
    assert small().checksum == first.checksum
    assert small(1).checksum != first.checksum
    other = torch.linalg.eigvalsh(covariance(small(1).train.inputs)).flip(0)
    torch.testing.assert_close(other, prescribed_spectrum(6), rtol=0, atol=1e-13)


def test_record() -> None:
    data = small(num_outputs=3)
    assert (data.name, data.task) == ("gaussian", Task.REGRESSION)
    assert (data.input_shape, data.num_outputs) == ((6,), 3)
    assert data.train.inputs.dtype == data.train.targets.dtype == torch.float64
    assert (data.train.targets.shape, data.test.targets.shape) == ((30, 3), (8, 3))
    assert (data.mean, data.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 5}, "num_train is 5; fewer samples than dim 6"),
        ({"dim": 0}, "dim=0: it must be at least 1"),
        ({"num_test": 0}, "num_test=0: it must be at least 1"),
        ({"num_outputs": 0}, "num_outputs=0: it must be at least 1"),
        ({"noise": -1.0}, "noise=-1.0: it must be at least 0"),
        ({"noise": math.nan}, "noise=nan: it must be at least 0"),
        ({"condition_number": 0.5}, "condition_number=0.5: it must be at least 1"),
        ({"condition_number": math.inf}, "condition_number=inf: it must be at least 1"),
        ({"eigenvalues": (1.0, 2.0)}, "2 eigenvalues for dim 6"),
        ({"eigenvalues": (1.0,) * 5 + (-1.0,)}, "eigenvalues=-1.0: it must be at least 0"),
        ({"spectrum": "linaer"}, "Did you mean 'linear'"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**options)
