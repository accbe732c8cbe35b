"""The cost of a snapshot in units of the network's own training step, and against curvlinops."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import LOSS, NETWORKS, Network, Training
from benchmarks.timing import Measurement, rounds
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.layers.calls import PassMode
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.vocabulary import Matrix

with warnings.catch_warnings():
    # A dependency of curvlinops compiles TorchScript at import, which torch deprecates.
    warnings.simplefilter("ignore")
    import curvlinops

AUTO_ALLOWANCE = 1.6
TARGETS_AGAINST_CURVLINOPS = {"float32": 1 / 4, "auto": 1 / 2.5}
PRESET = AnalysisOptions(tuple(m for m in Matrix if m is not Matrix.FISHER))


def measure(num_rounds: int) -> list[Measurement]:
    """Time steps, snapshots and curvlinops' factors with their eigenvalues in turn.

    Args:
        num_rounds: How often each.

    Returns:
        For each network: a snapshot beyond its step, and against curvlinops.
    """
    return [m for network in NETWORKS for m in _of(network, num_rounds)]


def _of(network: Network, num_rounds: int) -> list[Measurement]:
    training = Training(network)
    options = {name: AnalysisOptions(precision=name) for name in ("float32", "auto")}  # type: ignore[arg-type]
    ways: dict[str, Callable[[], None]] = {"step": training.step}
    for name in options:
        ways[name] = riding(training, options[name])
    ways["preset"] = riding(training, PRESET)
    ways["probe"] = lambda: read_kappas(
        analyze_batches(
            training.model, LOSS, [(training.inputs, training.targets)], options["auto"]
        )
    )
    ways["curvlinops"] = lambda: curvlinops_factors(training)
    times = rounds(ways, num_rounds)
    step = times["step"]
    targets = {"float32": network.target, "auto": network.target}
    if network.target is not None:
        targets["auto"] = network.target * AUTO_ALLOWANCE
    what = {"float32": "float32", "auto": "auto", "preset": "auto, analysis=factors"}
    found = [
        Measurement(
            f"{network.name}: {what[name]}", times[name], step, targets.get(name), beyond=True
        )
        for name in what
    ]
    found.append(Measurement(f"{network.name}: auto, probe", times["probe"], step, None))
    found.append(Measurement(f"{network.name}: curvlinops", times["curvlinops"], step, None))
    for name, target in TARGETS_AGAINST_CURVLINOPS.items():
        extra = beyond(times[name], step)
        found.append(
            Measurement(f"{network.name}: {name} / curvlinops", extra, times["curvlinops"], target)
        )
    return found


def beyond(snapshots: Sequence[float], steps: Sequence[float]) -> tuple[float, ...]:
    """Return what steps with a snapshot take more than the quickest step without.

    Args:
        snapshots: Seconds of steps with a snapshot.
        steps: Seconds of steps without.

    Returns:
        Seconds of the snapshots alone.
    """
    return tuple(time - min(steps) for time in snapshots)


def riding(training: Training, options: AnalysisOptions) -> Callable[[], None]:
    """Return a training step that is measured on its way, as the training loop does it.

    Args:
        training: The network.
        options: What to measure.

    Returns:
        The function; every κ_p is read.
    """

    def run() -> None:
        with MeasurementHooks(
            training.model,
            options,
            denominator=float(len(training.inputs)),
            pass_mode=PassMode.ONE_PASS,
            keep_weights=False,
        ) as hooks:
            loss = training.forward_backward()
        read_kappas(hooks.snapshot())
        training.update(loss)

    return run


def read_kappas(snapshot: Snapshot) -> None:
    """Read every κ_p, and the measure that is worked out when it is read.

    Args:
        snapshot: The snapshot.
    """
    for record in snapshot.records:
        for matrix in Matrix:
            spectrum = getattr(record, matrix)
            if spectrum is not None:
                for p in PRESET.kappa_p:
                    spectrum.kappa(p)
        if record.weight is not None:
            _ = record.domination


def curvlinops_factors(training: Training) -> None:
    """Take the factors of all layers and the eigenvalues of each, in float32.

    Args:
        training: The network.
    """
    layers = [m for m in training.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    kfac: Any = curvlinops.KFACLinearOperator(
        training.model,
        LOSS,
        [parameter for layer in layers for parameter in layer.parameters()],
        [(training.inputs, training.targets)],
        fisher_type=curvlinops.FisherType.EMPIRICAL,
        kfac_approx=curvlinops.KFACType.EXPAND,
        separate_weight_and_bias=True,
        check_deterministic=False,
    )
    kfac.compute_kronecker_factors()
    state = kfac.state_dict()
    for factors in (state["input_covariances"], state["gradient_covariances"]):
        for factor in factors.values():
            eigenvalues(factor)


def eigenvalues(matrix: Tensor) -> Tensor:
    """Return the eigenvalues of a float32 matrix, as a program would that has to have them.

    Args:
        matrix: Symmetric, ``[n, n]``.

    Returns:
        The eigenvalues, ascending: by float64 where float32 fails, as it does where squares of the
        gradients of a deep net are denormal; NaN where that fails too.
    """
    for dtype in (torch.float32, torch.float64):
        try:
            found: Tensor = torch.linalg.eigvalsh(matrix.to(dtype))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        return found
    return torch.full_like(matrix[0], torch.nan)
