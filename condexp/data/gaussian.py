"""Linear regression on Gaussian inputs with a prescribed covariance: every answer is known."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from condexp.data.choices import Shape
from condexp.data.dataset import Dataset, Split, Task, checksum_of
from condexp.errors import InputError, choose


def prescribed_spectrum(
    dim: int,
    *,
    condition_number: float = 100.0,
    spectrum: Shape | str = Shape.LOG,
    eigenvalues: Sequence[float] = (),
) -> Tensor:
    """Return the prescribed eigenvalues: an explicit list, or spaced from 1 to 1/condition_number.

    Args:
        dim: Number of eigenvalues, d.
        condition_number: λ_1/λ_d of a spaced spectrum.
        spectrum: How they are spaced, in the logarithm or linearly.
        eigenvalues: The list itself, in place of a spaced spectrum; zeros are allowed.

    Returns:
        Eigenvalues, descending, float64 [d].

    Raises:
        InputError: If a number is out of its range, or the list has not d entries.

    >>> prescribed_spectrum(3, condition_number=100).tolist()
    [1.0, 0.1, 0.01]
    """
    kind = Shape(choose("spectrum", spectrum, [str(each) for each in Shape]))
    if dim < 1:
        raise InputError(f"gaussian: dim is {dim}; it must be a whole number from 1 on.")
    if len(eigenvalues) not in {0, dim}:
        raise InputError(f"gaussian: {len(eigenvalues)} eigenvalues for dim {dim}; give {dim}.")
    if not all(math.isfinite(value) and value >= 0 for value in eigenvalues):
        raise InputError(f"gaussian: eigenvalues {list(eigenvalues)} must be numbers from 0 on.")
    if not (math.isfinite(condition_number) and condition_number >= 1):
        raise InputError(f"gaussian: condition_number is {condition_number}; it must be ≥ 1.")
    if eigenvalues:
        return torch.tensor(eigenvalues, dtype=torch.float64).sort(descending=True).values
    if kind is Shape.LINEAR:
        return torch.linspace(1, 1 / condition_number, dim, dtype=torch.float64)
    return torch.logspace(0, -math.log10(condition_number), dim, dtype=torch.float64)


def load_gaussian(
    *,
    dim: int,
    num_train: int,
    num_test: int,
    num_outputs: int = 1,
    condition_number: float = 100.0,
    spectrum: Shape | str = Shape.LOG,
    eigenvalues: Sequence[float] = (),
    noise: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Generate linear regression whose training inputs have exactly the prescribed spectrum.

    Training inputs are ``X = √N · U diag(√λ) Qᵀ`` with orthonormal columns U and an orthogonal Q:
    ``XᵀX/N = Q diag(λ) Qᵀ`` holds for the sample itself, not in expectation alone. The Hessian of a
    linear layer is then ``c · (XᵀX/N) ⊗ I`` with c = 2/num_outputs for ``nn.MSELoss``. Test inputs
    are drawn from N(0, Q diag(λ) Qᵀ). Targets are ``y = W x + noise · ε`` with standard Gaussian W
    and ε. Nothing is normalised: mean 0, std 1.

    Args:
        dim: Size d of the inputs.
        num_train: Number of training samples N, at least d.
        num_test: Number of test samples.
        num_outputs: Size of the targets.
        condition_number: λ_1/λ_d of a spaced spectrum, whose λ_1 is 1.
        spectrum: How the eigenvalues are spaced.
        eigenvalues: The eigenvalues themselves, in place of a spaced spectrum.
        noise: Standard deviation of the targets' noise.
        seed: Seed of U, Q, W, the test inputs and the noise.

    Returns:
        The data set; inputs float64 [N, d], targets float64 [N, num_outputs].
    """
    values = prescribed_spectrum(
        dim, condition_number=condition_number, spectrum=spectrum, eigenvalues=eigenvalues
    )
    _check(dim, num_train, num_test, num_outputs, noise)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rotation = torch.linalg.qr(normal(dim, dim)).Q
    scaled_rotation = values.sqrt()[:, None] * rotation.T
    weight = normal(dim, num_outputs)

    def with_targets(rows: Tensor) -> Split:
        inputs = rows @ scaled_rotation
        return Split(inputs, inputs @ weight + noise * normal(len(inputs), num_outputs))

    train = with_targets(math.sqrt(num_train) * torch.linalg.qr(normal(num_train, dim)).Q)
    test = with_targets(normal(num_test, dim))
    return Dataset(
        name="gaussian",
        task=Task.REGRESSION,
        train=train,
        test=test,
        mean=(0.0,),
        std=(1.0,),
        num_outputs=num_outputs,
        checksum=checksum_of(train, test),
    )


def _check(dim: int, num_train: int, num_test: int, num_outputs: int, noise: float) -> None:
    if num_train < dim:
        raise InputError(
            f"gaussian: num_train is {num_train}; fewer samples than dim {dim} can't have "
            f"the prescribed spectrum: give at least {dim}."
        )
    for name, size in (("num_test", num_test), ("num_outputs", num_outputs)):
        if size < 1:
            raise InputError(f"gaussian: {name} is {size}; it must be a whole number from 1 on.")
    if not (math.isfinite(noise) and noise >= 0):
        raise InputError(f"gaussian: noise is {noise}; it must be a number from 0 on.")
