"""Linear regression on Gaussian inputs with a prescribed covariance: every answer is known."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.data.choices import Shape
from condexp.data.dataset import Dataset, Split, Task, checksum_of
from condexp.data.spec import DatasetSpec
from condexp.errors import InputError, one_of, within


@dataclass(frozen=True, kw_only=True)
class Spec(DatasetSpec):
    """The keys of ``conf/dataset/gaussian.yaml``."""

    dim: int = within(1)
    num_outputs: int = within(1)
    num_train: int = within(1)
    num_test: int = within(1)
    condition_number: float = within(1)
    spectrum: str = one_of(Shape)
    eigenvalues: list[float] = within(0)
    noise: float = within(0)


def prescribed_spectrum(spec: Spec) -> Tensor:
    """Return the prescribed eigenvalues: an explicit list, or spaced from 1 to 1/condition_number.

    Args:
        spec: The keys.

    Returns:
        Eigenvalues, descending, float64 [d].

    Raises:
        InputError: If the list has not d entries.
    """
    if len(spec.eigenvalues) not in {0, spec.dim}:
        raise InputError(
            f"gaussian: {len(spec.eigenvalues)} eigenvalues for dim {spec.dim}; give {spec.dim}."
        )
    if spec.eigenvalues:
        return torch.tensor(spec.eigenvalues, dtype=torch.float64).sort(descending=True).values
    smallest = 1 / spec.condition_number
    if Shape(spec.spectrum) is Shape.LINEAR:
        return torch.linspace(1, smallest, spec.dim, dtype=torch.float64)
    return torch.logspace(0, -math.log10(spec.condition_number), spec.dim, dtype=torch.float64)


def load(spec: Spec, seed: int = 0) -> Dataset:
    """Generate linear regression whose training inputs have exactly the prescribed spectrum.

    Training inputs are ``X = √N · U diag(√λ) Qᵀ`` with orthonormal columns U and an orthogonal Q:
    ``XᵀX/N = Q diag(λ) Qᵀ`` holds for the sample itself, not in expectation alone. The Hessian of a
    linear layer is then ``c · (XᵀX/N) ⊗ I`` with c = 2/num_outputs for ``nn.MSELoss``. Test inputs
    are drawn from N(0, Q diag(λ) Qᵀ). Targets are ``y = W x + noise · ε`` with standard Gaussian W
    and ε. Nothing is normalised: mean 0, std 1.

    Args:
        spec: The keys.
        seed: Seed of U, Q, W, the test inputs and the noise.

    Returns:
        The data set; inputs float64 [N, d], targets float64 [N, num_outputs].

    Raises:
        InputError: If so few samples cannot have the spectrum, or it is not one of d eigenvalues.
    """
    dim, num_train = spec.dim, spec.num_train
    if num_train < dim:
        raise InputError(
            f"gaussian: num_train is {num_train}; fewer samples than dim {dim} can't have "
            f"the prescribed spectrum: give at least {dim}."
        )
    values = prescribed_spectrum(spec)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rotation = torch.linalg.qr(normal(dim, dim)).Q
    scaled_rotation = values.sqrt()[:, None] * rotation.T
    weight = normal(dim, spec.num_outputs)

    def with_targets(rows: Tensor) -> Split:
        inputs = rows @ scaled_rotation
        return Split(inputs, inputs @ weight + spec.noise * normal(len(inputs), spec.num_outputs))

    train = with_targets(math.sqrt(num_train) * torch.linalg.qr(normal(num_train, dim)).Q)
    test = with_targets(normal(spec.num_test, dim))
    return Dataset(
        name="gaussian",
        task=Task.REGRESSION,
        train=train,
        test=test,
        mean=(0.0,),
        std=(1.0,),
        num_outputs=spec.num_outputs,
        checksum=checksum_of(train, test),
    )
