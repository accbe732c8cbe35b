"""One number of a run, for whoever searches the settings that make it small."""

import math
from pathlib import Path

from condexp.analysis.vocabulary import (
    CLOSENESS,
    LAYER_MEASURES,
    NETWORK_CLOSENESS,
    SPECTRUM_MEASURES,
    has_closeness,
)
from condexp.errors import InputError, choose
from condexp.results.collect import collect
from condexp.runs.prepare import PreparedRun
from condexp.store.run_folder.status import State
from condexp.store.schema.matrices import NETWORK

SCORES = ("best_test_error", "test_error", "test_loss", "train_error", "train_loss")
ALIASES = ("last_linear", "first")


def check_objective(prepared: PreparedRun) -> None:
    """Refuse a ``run.objective`` that the run will not have.

    Args:
        prepared: The checked experiment.

    Raises:
        InputError: If there is no such number; names the nearest.
    """
    name, spec = prepared.config.run.objective, prepared.spec
    if name is None or name in SCORES:
        return
    kappas = [f"kappa_{float(p)}" for p in spec.kappa_p]
    of_matrix = [f"{m}_{each}" for m in spec.matrices for each in (*SPECTRUM_MEASURES, *kappas)]
    layers = [*ALIASES, *(layer.name for layer in spec.layers)]
    measured = bool(spec.snapshot_steps)
    compared = has_closeness(spec.matrices)
    of_layer = (*of_matrix, *LAYER_MEASURES, *(CLOSENESS if compared else ()))
    names = [f"{layer}.{each}" for layer in layers for each in of_layer]
    names += [f"{NETWORK}.{each}" for each in of_matrix if each.startswith("fisher_")]
    names += [f"{NETWORK}.{each}" for each in NETWORK_CLOSENESS if compared]
    if name not in names or not measured:
        shown = [*SCORES, "<layer>.<measure>" if measured else ""]
        try:
            choose("run.objective", name, [*SCORES, *(names if measured else ())])
        except InputError as error:
            near = str(error).partition(" Did you mean")
            raise InputError(
                f"unknown run.objective {name!r}: allowed are {', '.join(filter(None, shown))}, "
                f"such as last_linear.input_kappa_0.5, as condexp table has them.{near[1]}{near[2]}"
            ) from None


def read_objective(folder: Path, state: State, name: str) -> float:
    """Read the number of a run that ended.

    Args:
        folder: The run's folder.
        state: Complete or diverged.
        name: A column of `collect`.

    Returns:
        The number; +inf of a run that diverged, for it is as bad as can be.

    Raises:
        InputError: If the run has no number there.
    """
    if state is State.DIVERGED:
        return math.inf
    row = collect(folder, [name]).iloc[0]
    value = float(row.get(name, math.nan))
    if math.isnan(value):
        raise InputError(
            f"run.objective={name}: {folder} has no number there (NaN): condexp show {folder} says "
            "why. A regression has no error, only a loss."
        )
    return value
