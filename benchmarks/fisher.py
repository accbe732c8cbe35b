"""The cost of the exact Fisher blocks and network, in units of the training step."""

from benchmarks.networks import Training, resnet
from benchmarks.snapshot import riding
from benchmarks.timing import Measurement, rounds
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix

TARGET = 8.0


def measure(num_rounds: int) -> list[Measurement]:
    """Time steps with and without all Fisher blocks and the network's matrix.

    Args:
        num_rounds: How often each.

    Returns:
        The cost of ResNet-20's beyond its step.
    """
    network = resnet(20)
    training = Training(network)
    ways = {"step": training.step}
    for precision in ("float32", "auto"):
        options = AnalysisOptions((Matrix.FISHER,), precision=precision)  # type: ignore[arg-type]
        ways[precision] = riding(training, options)
    times = rounds(ways, num_rounds)
    return [
        Measurement(
            f"{network.name}: exact Fisher, {name}", times[name], times["step"], TARGET, beyond=True
        )
        for name in ("float32", "auto")
    ]
