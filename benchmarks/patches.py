"""Second moments of a convolution's patches, layer by layer, against laying the patches out."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.networks import Network, Training, resnet, vgg
from benchmarks.timing import Measurement, alternate
from condexp.analysis.layers.kinds import layer_of
from condexp.analysis.layers.rows import moment_rows
from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.rows.dense import DenseRows, Rows
from condexp.analysis.linalg.rows.patches import Window, unfold_patches
from condexp.analysis.linalg.rows.stride1_patches import PatchRows
from condexp.analysis.options import AnalysisOptions

TARGET = 0.7  # of the time, beyond which two ways to do the same are not worth their lines
NETWORKS = (resnet(20), vgg())  # a deeper ResNet has ResNet-20's shapes, more of each
OPTIONS = AnalysisOptions()


def measure(num_pairs: int) -> list[Measurement]:
    """Time the input's second moment both ways in turn, in float32.

    Args:
        num_pairs: Number of pairs.

    Returns:
        One line for each distinct shape of a stride-1 convolution's input, in the order of the
        networks' layers.
    """
    measured: dict[str, Measurement] = {}
    for network in NETWORKS:
        for module, inputs in _convolutions(network):
            _, channels, height, width = inputs.shape
            name = f"patches: {channels} channels, {height}x{width} px"
            if name not in measured:
                times = alternate(
                    _way(
                        lambda m, x: moment_rows(layer_of(m).operation, x, OPTIONS), module, inputs
                    ),
                    _way(lambda m, x: DenseRows(unfold_patches(x, _window(m))), module, inputs),
                    num_pairs,
                )
                measured[name] = Measurement(name, *times, TARGET)
    return list(measured.values())


def _convolutions(network: Network) -> Iterator[tuple[nn.Conv2d, Tensor]]:
    """Yield the convolutions whose patches are not laid out, each with its input."""
    training = Training(network)
    inputs: dict[nn.Conv2d, Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[Tensor]) -> None:
        if isinstance(module, nn.Conv2d):
            inputs[module] = arguments[0].detach().clone()

    for module in training.model.modules():
        module.register_forward_pre_hook(keep)
    with torch.no_grad():
        training.model(training.inputs)
    for convolution, images in inputs.items():
        if isinstance(moment_rows(layer_of(convolution).operation, images, OPTIONS), PatchRows):
            yield convolution, images


def _window(module: nn.Conv2d) -> Window:
    window = layer_of(module).operation.window
    assert window is not None
    return window


def _way(
    lay_out: Callable[[nn.Conv2d, Tensor], Rows], module: nn.Conv2d, inputs: Tensor
) -> Callable[[], None]:
    """Return how the matrix is taken whose eigenvalues are wanted, from one kind of rows."""

    def run() -> None:
        moment = SecondMoment(Scale.MEAN)
        moment.add(lay_out(module, inputs), len(inputs), torch.float32)
        moment.moment_matrix()

    return run
