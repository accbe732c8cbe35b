"""Reduced precision, however it was asked for, does not reach the products."""

from collections.abc import Callable, Iterator

import pytest
import torch

from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.precision import computed_in, exact_products
from condexp.analysis.linalg.spectrum import Spectrum

CPU = torch.device("cpu")


@pytest.fixture
def restored_settings() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32


def fail_inside(check: Callable[[], None]) -> None:
    with exact_products(CPU):
        check()
        raise KeyError


@pytest.mark.usefixtures("restored_settings")
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_matmul_precision_is_full_inside_and_as_before_after_an_exception(setting: str) -> None:
    torch.set_float32_matmul_precision(setting)
    before, inside = settings(), []
    with pytest.raises(KeyError):
        fail_inside(lambda: inside.append(settings()))
    assert inside == [("highest", False)]
    assert settings() == before == (setting, setting != "highest")


@pytest.mark.usefixtures("restored_settings")
def test_the_older_switch_of_tf32_is_respected_too() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    with exact_products(CPU):
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("restored_settings")
def test_the_digits_of_a_networks_own_products() -> None:
    cuda, float32 = torch.device("cuda"), torch.float32
    assert computed_in(float32, CPU, convolves=True) == float32
    assert computed_in(torch.bfloat16, cuda, convolves=True) == torch.bfloat16
    assert computed_in(float32, cuda, convolves=False) == float32
    # PyTorch's default for cuDNN. TF32 has float16's digits.
    assert computed_in(float32, cuda, convolves=True) == torch.float16
    torch.backends.cudnn.allow_tf32 = False
    assert computed_in(float32, cuda, convolves=True) == float32
    torch.set_float32_matmul_precision("high")
    assert computed_in(float32, cuda, convolves=False) == torch.float16
    assert computed_in(float32, CPU, convolves=False) == torch.bfloat16
    torch.set_float32_matmul_precision("medium")
    assert computed_in(float32, cuda, convolves=False) == torch.bfloat16
    assert computed_in(torch.float64, cuda, convolves=True) == torch.float64


def test_autocast_does_not_reach_moments_and_spectra() -> None:
    rows = torch.randn(1, 300, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for enabled in (False, True):
        moment = SecondMoment(Scale.MEAN)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            moment.add(rows, 300, torch.float32)
            factor = Spectrum.from_factor(rows, dtype=torch.float32)
        results.append((moment.matrix(), factor.eigenvalues))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
