"""The cost of a snapshot against depth, width and batch."""

from benchmarks.networks import Network, Training, mlp, resnet
from benchmarks.snapshot import beyond, riding
from benchmarks.timing import Measurement, rounds
from condexp.analysis.options import AnalysisOptions

OPTIONS = AnalysisOptions(precision="float32")  # type: ignore[arg-type]
DEPTHS = (20, 56, 110, 1202)
DEEP_BATCH = 32
FLAT = 1.2


def measure(num_rounds: int) -> list[Measurement]:
    """Time snapshots of ever deeper and wider networks and of larger batches.

    Args:
        num_rounds: How often each.

    Returns:
        Each beyond its step; and the cost of a layer of the deepest against one of ResNet-56.
    """
    found, by_layer = [], {}
    for depth in DEPTHS:
        network = resnet(depth, batch=DEEP_BATCH)
        measurement = _beyond(network, num_rounds)
        found.append(measurement)
        extra = beyond(measurement.ours, measurement.reference)
        by_layer[depth] = tuple(seconds / depth for seconds in extra)
    name = f"a layer of ResNet-{DEPTHS[-1]} / ResNet-56"
    found.append(Measurement(name, by_layer[DEPTHS[-1]], by_layer[56], FLAT))
    others = [resnet(20, batch=batch) for batch in (64, 256)]
    others += [mlp(6, width) for width in (256, 512, 2048)]
    others += [mlp(6, 512, batch=batch) for batch in (512, 2048)]
    return found + [_beyond(network, num_rounds) for network in others]


def _beyond(network: Network, num_rounds: int) -> Measurement:
    training = Training(network)
    times = rounds({"step": training.step, "snapshot": riding(training, OPTIONS)}, num_rounds)
    name = f"{network.name}, batch {network.batch}"
    return Measurement(name, times["snapshot"], times["step"], None, beyond=True)
