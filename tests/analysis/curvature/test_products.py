"""Products with vectors, against another library, and their independence of the thread of calls."""

import warnings

import torch
from torch import nn

from condexp.analysis.curvature.measure import loss_passes
from condexp.analysis.curvature.passes import CurvatureProducts
from condexp.analysis.vocabulary import Matrix
from tests import cases

with warnings.catch_warnings():  # at its import torch is made to compile what it deprecates
    warnings.simplefilter("ignore")
    import curvlinops


def test_products_are_those_of_curvlinops() -> None:
    """Eval mode: it cannot run batch statistics, whose buffers change in a pass."""
    model, inputs, targets = cases.resnet().eval(), cases.normal(4, 2, 8, 8), cases.labels(4, 3)
    loss_fn, parameters = nn.CrossEntropyLoss(), [*model.parameters()]
    passes = loss_passes(model, loss_fn, [(inputs, targets)])
    products = CurvatureProducts(model, passes, parameters, list(Matrix))
    num_weights = sum(parameter.numel() for parameter in parameters)
    columns = cases.normal(num_weights, 3)
    kinds = {
        Matrix.HESSIAN: curvlinops.HessianLinearOperator,
        Matrix.GGN: curvlinops.GGNLinearOperator,
    }
    for matrix, kind in kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            operator = kind(model, loss_fn, parameters, [(inputs, targets)])
            expected = operator @ columns
        found = products.of(matrix, parameters)(columns)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert products.num_products == 6
