"""λ_max of the Hessian by a few products, against dense Hessians of torch.func."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condexp.analysis.curvature.sharpness import SHARPNESS, Sharpness
from condexp.analysis.measurement import Measurement
from condexp.analysis.options import AnalysisOptions
from condexp.errors import InputError
from tests import cases
from tests.analysis import curvature_oracles as oracles
from tests.analysis.curvature.test_measure import CASES, CROSS_ENTROPY, everything


def measured(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], start: Any = None, **options: Any
) -> Sharpness:
    chosen = AnalysisOptions(**options)
    return Measurement(model, CROSS_ENTROPY, batches, chosen, start=start).sharpness()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_it_is_that_of_the_dense_matrix(name: str, training: bool) -> None:
    model, inputs = CASES[name]()
    model.train(training)
    targets = cases.labels(len(inputs), 4)
    found, start = None, None
    for _ in range(3):
        found = measured(model, [(inputs, targets)], start)
        whole = oracles.dense_hessian(model, CROSS_ENTROPY, inputs, targets, everything(model))
        largest = float(oracles.eigenvalues(whole)[0])
        assert abs(found.value - largest) <= found.error
        assert found.value <= largest * (1 + 1e-12)
        assert found.error < 0.1 * largest
        assert found.vectors is not None
        start = {SHARPNESS: found.vectors}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 1e-3)
    assert found is not None
    assert found.num_products <= 4


def test_several_batches_are_one() -> None:
    model, inputs = CASES["mlp"]()
    targets = cases.labels(12, 4)
    whole = measured(model, [(inputs, targets)])
    parts = measured(model, [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])])
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
    assert parts.error == pytest.approx(whole.error, rel=1e-6)


def test_in_float64_and_as_trained() -> None:
    model, inputs = CASES["batch norm"]()
    targets = cases.labels(12, 4)
    double = measured(model, [(inputs, targets)])
    single = measured(model.float(), [(inputs.float(), targets)])
    widened = measured(model, [(inputs.float(), targets)], network_precision="float64")
    assert widened.value == pytest.approx(double.value, rel=1e-6)
    assert widened.error < single.error < double.error + 1e-4 * double.value
    assert abs(single.value - double.value) <= single.error


def test_a_diverged_network_has_none() -> None:
    model, inputs = CASES["mlp"]()
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(torch.nan)
    found = measured(model, [(inputs, cases.labels(12, 4))])
    assert math.isnan(found.value)
    assert math.isnan(found.error)
    assert found.vectors is None


def test_refusals() -> None:
    model, inputs = CASES["mlp"]()
    targets = cases.labels(12, 4)
    with pytest.raises(InputError, match=r"analysis\.sharpness of 165 weights take"):
        measured(model, [(inputs, targets)], memory_limit=1000)
    with pytest.raises(InputError, match="need a network in float32 or float64"):
        measured(model.bfloat16(), [(inputs.bfloat16(), targets)])
