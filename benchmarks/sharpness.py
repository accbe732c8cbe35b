"""What λ_max of the Hessian costs, in steps: a product, sharpness, and a search to a thousandth."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.networks import LOSS, Training, mlp, resnet
from benchmarks.timing import Measurement, rounds
from condexp.analysis.curvature.measure import loss_passes
from condexp.analysis.curvature.passes import CurvatureProducts
from condexp.analysis.curvature.sharpness import SHARPNESS
from condexp.analysis.linalg.krylov import random_columns, top_eigenpairs
from condexp.analysis.measurement import Measurement as Measured
from condexp.analysis.measurement import undisturbed
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix

NETWORKS = {resnet(20, batch=32): (6.0, 12.0), mlp(6, 1024): (None, None)}
TOLERANCE = 1e-3


def measure(num_rounds: int) -> list[Measurement]:
    """Time steps, products and searches that start from the last one's vectors in turn.

    Args:
        num_rounds: How often each.

    Returns:
        For each network, in CPU time of all threads: a product; sharpness and λ_max beyond a step,
        which lies between each and the next.
    """
    found = []
    for network, (of_sharpness, of_lambda) in NETWORKS.items():
        plain, product, tracked, searched = (Training(network) for _ in range(4))
        ways: dict[str, Callable[[], None]] = {
            "step": plain.step,
            "product": _product(product),
            "sharpness": _sharpness(tracked),
            "lambda_max": _lambda_max(searched),
        }
        times = rounds(ways, num_rounds, clock=time.process_time)
        name, step = network.name, times["step"]
        found.append(Measurement(f"{name}: product", times["product"], step, None))
        sharp, largest = times["sharpness"], times["lambda_max"]
        found.append(
            Measurement(f"{name}: sharpness, warm", sharp, step, of_sharpness, beyond=True)
        )
        found.append(Measurement(f"{name}: λ_max, warm", largest, step, of_lambda, beyond=True))
    return found


def _product(training: Training) -> Callable[[], None]:
    """Return a product with the graph of the gradient, which is kept."""
    product, vectors = _products(training), None

    def run() -> None:
        nonlocal vectors
        vectors = _random(training) if vectors is None else vectors
        product(vectors[:, :1])

    return run


def _sharpness(training: Training) -> Callable[[], None]:
    start: dict[str, Tensor] = {}
    batches = [(training.inputs, training.targets)]

    def run() -> None:
        training.step()
        found = Measured(training.model, LOSS, batches, AnalysisOptions(), start=start).sharpness()
        assert found.vectors is not None
        start[SHARPNESS] = found.vectors

    return run


def _lambda_max(training: Training) -> Callable[[], None]:
    """Return the search of ``hessian`` at its default tolerance: the largest and the lowest."""
    start: list[Tensor] = []

    def run() -> None:
        training.step()
        columns = start.pop() if start else _random(training)
        generator = torch.Generator().manual_seed(0)
        with undisturbed(training.model):
            pairs = top_eigenpairs(
                _products(training), columns, 1, tolerance=TOLERANCE, generator=generator
            )
        start.append(pairs.vectors[:, [0, -1]])

    return run


def _products(training: Training) -> Callable[[Tensor], Tensor]:
    parameters = list(training.model.parameters())
    passes = loss_passes(training.model, LOSS, [(training.inputs, training.targets)])
    products = CurvatureProducts(training.model, passes, parameters, [Matrix.HESSIAN])
    return products.of(Matrix.HESSIAN, parameters)


def _random(training: Training) -> Tensor:
    num = sum(parameter.numel() for parameter in training.model.parameters())
    like = torch.empty(0, dtype=torch.float64)
    return random_columns(num, 2, like, torch.Generator().manual_seed(1))
