"""The cost of a snapshot by the public call, in a program whose threads nobody pinned."""

from collections.abc import Callable

import condexp
from benchmarks.covariances import covariance_eigenvalues
from benchmarks.networks import AS_PEOPLE_HAVE_THEM, NETWORKS, Network, Training
from benchmarks.snapshot import beyond, curvlinops_factors, read_kappas
from benchmarks.timing import Measurement, rounds
from condexp.analysis.vocabulary import Precision

TARGET_AGAINST_CURVLINOPS = 1 / 5


def measure(num_rounds: int) -> list[Measurement]:
    """Time steps, steps in a ``condexp.Recorder``, and what others take for eigenvalues, in turn.

    Args:
        num_rounds: How often each.

    Returns:
        For each network: a snapshot beyond its step, and against curvlinops' factors and hooks that
        take covariances, each with eigenvalues.
    """
    networks = (*NETWORKS, *AS_PEOPLE_HAVE_THEM)
    return [m for network in networks for m in _of(network, num_rounds)]


def _of(network: Network, num_rounds: int) -> list[Measurement]:
    training = Training(network)
    ways: dict[str, Callable[[], None]] = {"step": training.step}
    for precision in (Precision.FLOAT32, Precision.AUTO):
        ways[precision] = _recorded(training, precision)
    ways["curvlinops"] = lambda: curvlinops_factors(training)
    ways["covariances"] = lambda: covariance_eigenvalues(training)
    times = rounds(ways, num_rounds)
    step, found = times["step"], []
    # Of the covariances' own pass as of ours what goes beyond a step counts.
    covariances = beyond(times["covariances"], step)
    for name in (Precision.FLOAT32, Precision.AUTO):
        extra, against = beyond(times[name], step), times["curvlinops"]
        found += [
            Measurement(f"{network.name}: Recorder, {name}", times[name], step, None, beyond=True),
            Measurement(
                f"{network.name}: Recorder, {name} / curvlinops",
                extra,
                against,
                TARGET_AGAINST_CURVLINOPS,
            ),
            Measurement(
                f"{network.name}: Recorder, {name} / covariances", extra, covariances, None
            ),
        ]
    return found


def _recorded(training: Training, precision: Precision) -> Callable[[], None]:
    def run() -> None:
        with condexp.Recorder(training.model, precision=precision) as recorder:
            loss = training.forward_backward()
        read_kappas(recorder.snapshot())
        training.update(loss)

    return run
