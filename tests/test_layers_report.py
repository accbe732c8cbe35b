"""What ``condexp layers`` says of memory and file size, against what is really taken."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condexp.analysis.layers import trace_layers
from condexp.analysis.measures import InputStatistics
from condexp.analysis.moment import Moment
from condexp.analysis.options import AnalysisOptions, Matrix
from condexp.analysis.recorder import Recorder
from condexp.analysis.tape import Tape
from condexp.layers_report import kept_bytes, row_bytes
from condexp.linalg.moments import SecondMoment
from condexp.store.create import create_results
from condexp.store.layout import FileSpec, file_size

NUM_SAMPLES = 4
MATRICES: dict[str, tuple[Matrix, ...]] = {
    "all": tuple(Matrix),
    "input": (Matrix.INPUT,),
    "grad_output": (Matrix.GRAD_OUTPUT,),
    "kfac": (Matrix.KFAC,),
    "weight": (Matrix.WEIGHT,),
}


def model() -> nn.Module:
    """A convolution, one in groups, a depthwise one, and two linear layers of unequal sides."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 96, 3, stride=2, groups=2),
        nn.Conv2d(96, 96, 5, groups=96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 200),
        nn.ReLU(),
        nn.Linear(200, 48),
    )


def tensors(thing: Any) -> Iterator[Tensor]:
    """Every tensor that a tape and its parts hold."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Moment | SecondMoment | Tape | InputStatistics):
        for value in vars(thing).values():
            yield from tensors(value)


@pytest.mark.parametrize("asked", MATRICES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("conv_input", ["patches", "channels"])
def test_what_is_kept_of_each_layer(asked: str, bias: bool, conv_input: str) -> None:
    matrices = MATRICES[asked]
    options = AnalysisOptions(matrices, bias=bias, conv_input=conv_input, precision="float32")  # type: ignore[arg-type]
    torch.manual_seed(0)
    net, images = model(), torch.randn(NUM_SAMPLES, 3, 14, 14)
    with Recorder.from_options(net, options) as recorder:
        net(images).square().mean().backward()
    for layer in trace_layers(net, images, options).layers:
        held = sum(t.nbytes for t in tensors(recorder._tapes[layer.name]))
        # Sums of rows and the like, a few numbers for each feature, are not counted.
        vectors = 8 * (5 * layer.groups * layer.d_in + 3 * layer.d_out)
        assert 0 <= held - kept_bytes(layer, matrices) <= vectors


def test_rows_of_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest copy of rows that the analysis makes is the one announced."""
    from condexp.analysis import tape

    copies: dict[str, int] = {}

    def listen(function: str) -> None:
        plain = getattr(tape, function)

        def listening(module: nn.Module, given: Tensor, *more: object) -> Tensor:
            rows: Tensor = plain(module, given, *more)
            if rows.data_ptr() != given.data_ptr():
                name = next(n for n, other in net.named_modules() if other is module)
                copies[name] = max(copies.get(name, 0), rows.nbytes)
            return rows

        monkeypatch.setattr(tape, function, listening)

    listen("input_rows")
    listen("grad_output_rows")
    net, images, options = model(), torch.randn(NUM_SAMPLES, 3, 14, 14), AnalysisOptions()
    with Recorder.from_options(net, options):
        net(images).square().mean().backward()
    for layer in trace_layers(net, images, options).layers:
        assert copies.get(layer.name, 0) == row_bytes(layer, NUM_SAMPLES)


@pytest.mark.parametrize("asked", MATRICES)
def test_size_of_the_file(asked: str, tmp_path: Path) -> None:
    options = AnalysisOptions(MATRICES[asked])
    catalogue = trace_layers(model(), torch.zeros(2, 3, 14, 14), options)
    spec = FileSpec(
        layers=catalogue.layers,
        not_analysed=catalogue.not_analysed,
        matrices=options.matrices,
        kappa_p=options.kappa_p,
        save_spectra=True,
        snapshot_steps=tuple(range(40)),
        eval_steps=(40,),
        num_train_steps=40,
        steps_per_epoch=10,
        num_samples=NUM_SAMPLES,
        config_yaml="seed: 1\n",
    )
    create_results(tmp_path / "results.h5", spec)
    # Exact in the arrays; the descriptions of the arrays are estimated.
    actual = (tmp_path / "results.h5").stat().st_size
    assert file_size(spec) == pytest.approx(actual, rel=0.15)
