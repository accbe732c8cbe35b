"""``auto`` against float64 on trained networks, whose spectra are what users look at."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condexp.analysis.analyze import analyze_batches
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.vocabulary import KAPPA_P, Matrix
from tests.from_conf import build, load

BATCH, SIZE = 128, 16
LOSS = nn.CrossEntropyLoss()
SHAPE = (1, SIZE, SIZE)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": partial(build, "resnet", SHAPE, 10, depth=20),
    "vgg": partial(build, "vgg", SHAPE, 10, depth=16, norm="batch"),
    "mlp": partial(build, "mlp", SHAPE, 10, depth=20, width=256, norm="batch"),
}
# Samples of the snapshot, and how many κ_p are finite at least.
SAMPLES = {"resnet": (128, 100), "vgg": (128, 80), "mlp": (640, 100)}
MATRICES = (Matrix.INPUT, Matrix.GRAD_OUTPUT, Matrix.KFAC)


def digits() -> tuple[Tensor, Tensor]:
    split = load("digits").train
    images = split.inputs.float() / split.inputs.float().std()
    return F.interpolate(images - images.mean(), (SIZE, SIZE)), split.targets


def trained(make: Callable[[], nn.Module], num_steps: int) -> nn.Module:
    torch.manual_seed(0)
    model, (inputs, targets) = make(), digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(num_steps):
        chosen = torch.arange(step * BATCH, (step + 1) * BATCH) % len(inputs)
        optimizer.zero_grad()
        loss = LOSS(model(inputs[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7  # learned something: chance is 2.3
    return model


def snapshot(model: nn.Module, num_samples: int, precision: str) -> Snapshot:
    inputs, targets = digits()
    options = AnalysisOptions(MATRICES, precision=precision)  # type: ignore[arg-type]
    batch = inputs[:num_samples], targets[:num_samples]
    return analyze_batches(model, LOSS, [batch], options)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_kappas_of_auto_are_those_of_float64(name: str) -> None:
    model = trained(NETWORKS[name], 80)
    num_samples, least = SAMPLES[name]
    auto, exact = (snapshot(model, num_samples, kind) for kind in ("auto", "float64"))
    num_finite = 0
    for record, reference in zip(auto.records, exact.records, strict=True):
        for matrix in MATRICES:
            ours, theirs = getattr(record, matrix), getattr(reference, matrix)
            for p in KAPPA_P:
                # The rows have float32's own rounding: past its noise both are infinite.
                if math.isinf(theirs.kappa(p)) or math.isinf(ours.kappa(p)):
                    assert ours.kappa(p) == theirs.kappa(p), (record.info.name, matrix, p)
                    continue
                num_finite += 1
                assert ours.kappa(p) == pytest.approx(theirs.kappa(p), rel=0.01), record.info.name
            assert ours.lambda_max == pytest.approx(theirs.lambda_max, rel=1e-5)
    assert num_finite >= least
