"""Which modules are measured, which are not and why; sizes in execution order."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condexp
from condexp.analysis.layers.info import LayerInfo
from condexp.analysis.layers.select import select_layers, trace_layers
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError
from tests import cases

ALL = ("input", "grad_output", "kfac", "weight", "weight_grad")


def options(**choices: object) -> AnalysisOptions:
    return AnalysisOptions(**choices)  # type: ignore[arg-type]


def selected(model: nn.Module, *layers: str, exclude: tuple[str, ...] = ()) -> tuple[str, ...]:
    return tuple(select_layers(model, options(layers=layers, exclude=exclude)).layers)


def test_names_globs_and_aliases() -> None:
    model = cases.resnet()
    everything = selected(model, "all")
    assert everything[0] == "conv"
    assert everything[-1] == "fc"
    assert len(everything) == 8
    assert selected(model, "first") == ("conv",)
    assert selected(model, "last_linear") == ("fc",)
    assert selected(model, "blocks.1.conv2") == ("blocks.1.conv2",)
    assert selected(model, "*.conv1", "first") == (
        "conv",
        "blocks.0.conv1",
        "blocks.1.conv1",
        "blocks.2.conv1",
    )
    assert selected(model, "all", exclude=("blocks.*", "first")) == ("fc",)


@pytest.mark.parametrize(
    ("layers", "exclude", "message"),
    [
        (("blocks.1.conv3",), (), "layers='blocks.1.conv3' matches no .* mean 'blocks.1.conv"),
        (("bn",), (), "'bn': a scale has a Fisher block alone: ask for 'fisher' and for layers"),
        (("last_liner",), (), "Did you mean 'last_linear'"),
        (("all",), ("cfc",), "exclude='cfc' matches no .* mean 'fc'"),
        (("fc",), ("last_linear",), r"exclude=\['last_linear'\] leaves nothing of layers=\['fc'\]"),
        ((), (), r"leaves nothing of layers=\[\]"),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest_layer(
    layers: tuple[str, ...], exclude: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        selected(cases.resnet(), *layers, exclude=exclude)


def test_last_linear_of_a_net_without_one_is_an_error() -> None:
    with pytest.raises(InputError, match="'last_linear' matches no"):
        selected(nn.Sequential(nn.Conv2d(1, 1, 1)), "last_linear")


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(InputError, match="BatchNorm1d has no layer that can be analysed"):
        selected(nn.BatchNorm1d(3), "all")


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_uninitialised_layers_are_an_error() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(InputError, match="layer '0' has uninitialised parameters: call the model"):
        selected(model, "all")


class Standardised(nn.Linear):
    """Multiplies with another matrix than its weight."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.linear(input, self.weight - self.weight.mean(), self.bias)


FOREIGN = "not a linear map, convolution, embedding or attention"
SCALE = "a scale has a Fisher block alone: ask for 'fisher' and for layers 'norms'"


def test_every_other_module_with_weights_is_listed_with_its_reason() -> None:
    model = cases.randomised(cases.Attention())
    model.standardised = Standardised(2, 2)
    catalogue = trace_layers(model, torch.zeros(2, 5, dtype=torch.long), options())
    assert [layer.name for layer in catalogue.layers] == [
        "embedding",
        "attention.in_proj",
        "attention.out_proj",
        "conv",
        "fc",
    ]
    reasons = {entry.name: entry.reason for entry in catalogue.not_analysed}
    assert reasons == {
        "Attention": f"Attention: {FOREIGN} (owns position)",
        "norm": f"LayerNorm: {SCALE}",
        "attention.in_proj.bias": "a bias: measured with bias=True",
        "conv.bias": "a bias: measured with bias=True",
        "wrapped": "Linear: its weight is computed from others (a parametrisation)",
        "unused": "never called in the forward pass",
        "standardised": "never called in the forward pass",
        "attention.out_proj.bias": "a bias: measured with bias=True",
        "fc.bias": "a bias: measured with bias=True",
    }


def test_what_was_not_selected_is_listed() -> None:
    catalogue = trace_layers(cases.mlp(), cases.normal(2, 4), options(layers=("first",)))
    assert [layer.name for layer in catalogue.layers] == ["0"]
    assert [(n.name, n.reason) for n in catalogue.not_analysed] == [
        ("2", "not selected"),
        ("4", "not selected"),
        ("0.bias", "a bias: measured with bias=True"),
    ]
    whole = trace_layers(cases.mlp(), cases.normal(2, 4), options(bias=True))
    assert whole.not_analysed == ()


def test_transformer_layers_are_seen_in_evaluation_too() -> None:
    """torch's fused fast path, without gradients alone, would bypass the linear layers."""
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    catalogue = trace_layers(model, torch.zeros(2, 5, 4), options())
    names = [layer.name for layer in catalogue.layers]
    assert names == ["self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"]


def test_layers_come_in_execution_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 2)
            self.first = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.first(x))
            return out

    model = cases.randomised(Backwards())
    inputs, targets = cases.normal(2, 4), cases.labels(2, 2)
    catalogue = trace_layers(model, inputs, options())
    assert [layer.name for layer in catalogue.layers] == ["first", "last"]
    snapshot = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets)
    assert snapshot.layers == ("first", "last")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("conv_input", ["patches", "channels"])
def test_sizes(conv_input: str, bias: bool) -> None:
    conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2)
    model = cases.conv_net(conv, 7, 5)
    choice = options(conv_input=conv_input, bias=bias)
    first, second = trace_layers(model, cases.normal(2, 4, 7, 5), choice).layers
    d_in = {"patches": 12, "channels": 2}[conv_input] + bias
    fan_in = None if d_in == 12 else 12
    num_weights = 6 * (12 + bias) if conv_input == "channels" else None
    assert first == LayerInfo("0", "Conv2d", d_in, 6, 2, 12, 1, fan_in, num_weights)
    # A weight's gradient is of the patches, whatever rows Σ_x is made of.
    assert first.spectrum_length(Matrix.FISHER) == 6 * (12 + bias)
    linear_fan_in = 72 if bias else None
    assert second == LayerInfo("3", "Linear", 72 + bias, 3, 1, 1, 1, fan_in=linear_fan_in)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("conv_input", ["patches", "channels"])
@pytest.mark.parametrize("model", [cases.vgg(), cases.resnet(), cases.reused()])
def test_the_catalogue_foretells_the_snapshot(
    model: nn.Module, conv_input: str, bias: bool
) -> None:
    """The same records, and the length of every spectrum."""
    reused = isinstance(model, cases.Reused)
    inputs = cases.normal(3, 2, 4) if reused else cases.normal(3, 2, 8, 8)
    choice = options(conv_input=conv_input, bias=bias)
    catalogue = trace_layers(model, inputs[:1], choice)
    snapshot = condexp.analyze(
        model, lambda f, _: f.square().mean(), inputs, None, ALL, conv_input=conv_input, bias=bias
    )
    assert catalogue.layers == tuple(record.info for record in snapshot.records)
    assert any(info.uses == 3 for info in catalogue.layers) is reused
    for record in snapshot.records:
        for matrix in ALL:
            assert len(getattr(record, matrix)) == record.info.spectrum_length(Matrix(matrix))


def test_grouped_spectra_have_the_foretold_length() -> None:
    model = cases.conv_net(nn.Conv2d(4, 8, 3, groups=4), 5, 5)
    inputs, targets = cases.normal(2, 4, 5, 5), cases.labels(2, 3)
    record = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets, ALL)["0"]
    lengths = [record.info.spectrum_length(Matrix(matrix)) for matrix in ALL]
    assert lengths == [36, 8, 72, 8, 8]
    assert [len(getattr(record, matrix)) for matrix in ALL] == lengths
