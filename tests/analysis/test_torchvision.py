"""torchvision's classifiers with random weights: every matrix is measured, and certified."""

import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import condexp
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.options import AnalysisOptions

NAMES: list[str] = torchvision.models.list_models(module=torchvision.models)
QUICK = ("shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1", "swin_t")
SIZES = {"maxvit_t": 224, "inception_v3": 96}
MANY = 250e6  # parameters, of which the gradients too would take gigabytes


def built(name: str) -> nn.Module:
    options: dict[str, Any] = {}
    if name.startswith("vit"):
        options = {"image_size": 56 if name == "vit_h_14" else 64}
    elif name in {"googlenet", "inception_v3"}:
        options = {"aux_logits": False, "init_weights": False}
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
    with torch.no_grad():  # where the last layer is 0 no gradient would reach the others
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES],
)
def test_every_matrix_of_a_classifier_is_measured(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = built(name)
    size = 56 if name == "vit_h_14" else SIZES.get(name, 64)
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    options = AnalysisOptions(("grad_output",), precision="float32")  # type: ignore[arg-type]
    if sum(p.numel() for p in model.parameters()) > MANY:
        catalogue = trace_layers(model, inputs, options)
        measured, others = {layer.name for layer in catalogue.layers}, catalogue.not_analysed
    else:
        targets = torch.tensor([0, 1])
        snapshot = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets, options)
        for record in snapshot.records:
            assert record.incomplete is None
            assert record.gradient_residual < 1e-4  # of float32 sums
        measured, others = set(snapshot.layers), snapshot.not_analysed
    listed = {entry.name for entry in others}
    covered = total = 0
    for key, parameter in model.named_parameters():
        module, _, own = key.rpartition(".")
        layer = module if own == "weight" else key.removesuffix("_weight")
        is_covered = layer in measured
        assert is_covered or {module, key, type(model).__name__} & listed, key
        if parameter.ndim > 1:
            total += parameter.numel()
            covered += is_covered * parameter.numel()
    assert covered / total >= 0.99
