import dataclasses
import pydoc
import re

import pytest
from torch import nn

import condexp
from condexp.analysis.options import AnalysisChoices, AnalysisOptions
from condexp.analysis.vocabulary import ConvInput, FisherType, Matrix, Precision
from condexp.errors import InputError
from tests import cases


def from_strings(**choices: object) -> AnalysisOptions:
    return AnalysisOptions(**choices)  # type: ignore[arg-type]


def test_plain_strings_become_the_records_own_types() -> None:
    options = from_strings(
        matrices=["weight", "input"],
        fisher_type="empirical",
        layers="conv*",
        conv_input="channels",
        precision="float64",
        kappa_p=[1],
    )
    assert options.matrices == (Matrix.WEIGHT, Matrix.INPUT)
    assert options.fisher_type is FisherType.EMPIRICAL
    assert options.layers == ("conv*",)
    assert options.conv_input is ConvInput.CHANNELS
    assert options.precision is Precision.FLOAT64
    assert options.kappa_p == (1.0,)
    assert dataclasses.replace(options) == options


def test_none_given_means_all_layers() -> None:
    assert AnalysisOptions.of(["fisher"], {"layers": None}).layers == ("all",)
    given = AnalysisOptions.of(None, {"layers": iter(["fc", "conv1"]), "fisher_type": "mc"})
    assert given.layers == ("fc", "conv1")
    assert given.fisher_type is FisherType.MC


def test_choices_change_a_record_that_is_given() -> None:
    record = AnalysisOptions.of("input", {"center": True})
    assert AnalysisOptions.of(record, {}) == record
    changed = AnalysisOptions.of(record, {"matrices": ("kfac",)})
    assert (changed.matrices, changed.center) == ((Matrix.KFAC,), True)


def test_unknown_options_name_the_nearest() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    for name, meant in [("matrizes", "matrices"), ("learning_rat", "learning_rate")]:
        message = f"unknown option '{name}': allowed are matrices, .* Did you mean '{meant}'"
        with pytest.raises(InputError, match=message):
            condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets, **{name: 1})  # type: ignore[arg-type]
        with pytest.raises(InputError, match=message):
            condexp.Recorder(model, **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Did you mean 'loss_fn'"):
        condexp.Recorder(model, loss_fnn=nn.CrossEntropyLoss())  # type: ignore[call-arg]
    with pytest.raises(InputError, match="matrices are given twice"):
        condexp.Recorder(model, ("input",), matrices=("kfac",))


@pytest.mark.parametrize("measured_by", [condexp.analyze, condexp.Recorder])
def test_help_tells_every_option_with_its_default(measured_by: object) -> None:
    shown = pydoc.plain(pydoc.render_doc(measured_by))
    options = {field.name: field for field in dataclasses.fields(AnalysisOptions)}
    assert options.keys() - AnalysisChoices.__annotations__ == {"float64"}
    for name in AnalysisChoices.__annotations__:
        assert re.search(rf"^[ |]+{name}=\S.*\n[ |]+[A-Z]", shown, re.MULTILINE), name
    assert "matrices=('input', 'grad_output', 'kfac')\n" in shown
    assert "kappa_p=(0.5, 0.8, 0.9, 1.0)\n" in shown


@pytest.mark.parametrize(
    ("fisher_type", "mc_samples", "several"),
    [("empirical", 3, False), ("mc", 1, False), ("mc", 2, True), ("exact", 1, True)],
)
def test_several_signals(fisher_type: str, mc_samples: int, several: bool) -> None:
    options = from_strings(fisher_type=fisher_type, mc_samples=mc_samples)
    assert options.has_several_signals is several


def test_named_twice_is_named_once() -> None:
    options = from_strings(matrices=["weight", "input", "weight"], kappa_p=[0.5, 1, 0.5, 1.0])
    assert options.matrices == (Matrix.WEIGHT, Matrix.INPUT)
    assert options.kappa_p == (0.5, 1.0)


@pytest.mark.parametrize(
    ("matrices", "needs"),
    [
        (("input",), False),
        (("input", "weight"), False),
        (("grad_output",), True),
        (("kfac",), True),
        (("weight_grad",), True),
        (("fisher",), True),
    ],
)
def test_gradients_are_needed_only_where_a_matrix_is_made_of_them(
    matrices: tuple[str, ...], needs: bool
) -> None:
    assert from_strings(matrices=matrices).needs_gradients is needs


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"matrices": ("inputs",)}, "unknown matrix 'inputs': .* Did you mean 'input'"),
        ({"matrices": "grad_ouput"}, "Did you mean 'grad_output'"),
        ({"fisher_type": "exakt"}, "unknown fisher_type 'exakt': .* Did you mean 'exact'"),
        ({"mc_samples": 0}, "mc_samples must be at least 1, got 0"),
        ({"memory_limit": 0}, "memory_limit must be a positive number of bytes, got 0"),
        ({"conv_input": "patch"}, "Did you mean 'patches'"),
        ({"precision": "float46"}, "Did you mean 'float64'"),
        ({"kappa_p": (0.0,)}, r"kappa_p must be fractions in \(0, 1\], got 0.0"),
        ({"kappa_p": (0.5, 1.5)}, "got 1.5"),
        ({"kappa_p": (float("nan"),)}, "got nan"),
    ],
)
def test_unusable_choices_say_what_is_allowed(choices: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_strings(**choices)
