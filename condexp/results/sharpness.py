"""λ_max of a run's Hessian over training, and the edge of stability that it is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condexp.errors import InputError
from condexp.results.config_keys import lookup
from condexp.store.reader import Run


@dataclass(frozen=True)
class Edge:
    """Where gradient descent on a quadratic function becomes unstable.

    θ ← θ − η(g + wθ), with momentum β, contracts along an eigenvector of the Hessian while
    λ + w < (2 + 2β)/η, with Nesterov's momentum while λ + w < (2 + 2β)/((1 + 2β)η) (Cohen et al.
    2021, appendix B). Batches that differ from step to step move it further down.

    Attributes:
        factor: 2, (2 + 2β) or (2 + 2β)/(1 + 2β).
        weight_decay: w.
    """

    factor: float
    weight_decay: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Edge | None":
        """Find the edge of a run.

        Args:
            config: Its configuration.

        Returns:
            The edge; None where its optimizer is not known to be SGD: that of an adaptive one is no
            matter of λ_max of the Hessian.
        """
        if lookup(config, "optimizer.name") != "sgd":
            return None
        momentum = float(lookup(config, "optimizer.momentum") or 0.0)
        factor = 2 + 2 * momentum
        if lookup(config, "optimizer.nesterov"):
            factor /= 1 + 2 * momentum
        return cls(factor, float(lookup(config, "optimizer.weight_decay") or 0.0))

    def at(self, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the edge at some learning rates.

        Args:
            rates: η; where it is 0 or NaN there is none.

        Returns:
            λ_max at the edge, NaN where there is none.

        >>> Edge(2.0, 0.0).at(np.array([0.1, 0.0])).tolist()
        [20.0, nan]
        """
        edge = np.full(len(rates), np.nan)
        np.divide(self.factor, rates, out=edge, where=rates > 0)
        return edge - self.weight_decay

    @property
    def label(self) -> str:
        """How it is written: ``2/lr``, and with momentum ``3.8/lr``."""
        decay = f" − {self.weight_decay:g}" if self.weight_decay else ""
        return f"{self.factor:.4g}/lr{decay}"


def has_sharpness(run: Run) -> bool:
    """Return whether a run measured it.

    Args:
        run: The run.
    """
    return "sharpness" in run.metrics or "hessian" in run.curvature


def sharpness_line(run: Run, metrics: pd.DataFrame) -> str:
    """Say what the last sharpness was that was measured between the snapshots.

    Args:
        run: The run.
        metrics: Its metrics.

    Returns:
        A line; empty where there is none.
    """
    if "sharpness" not in metrics or not len(table := sharpness_table(run)):
        return ""
    last = table.iloc[-1]
    text = f"sharpness at step {last['step']:.0f}: λ_max = {last['lambda_max']:.4g} ± "
    text += f"{last['error']:.1g}"
    edge = Edge.of(run.config)
    if edge is None or not last["edge"] > 0:
        return text
    share = last["lambda_max"] / last["edge"]
    return f"{text}, {share:.3g} of the edge of stability {edge.label} = {last['edge']:.4g}"


def sharpness_table(run: Run) -> pd.DataFrame:
    """Gather λ_max of the Hessian with its error, and the edge of stability at those steps.

    Args:
        run: A run that measured ``sharpness``, or else ``hessian`` at its snapshots.

    Returns:
        Columns ``step``, ``lambda_max``, ``error`` and ``edge``, which is NaN where the optimizer
        has none (:meth:`.Edge.of`).

    Raises:
        InputError: If it measured neither.
    """
    metrics = run.metrics
    if "sharpness" in metrics:
        stored = metrics[["sharpness", "sharpness_error"]].dropna()
        frame = stored.set_axis(["lambda_max", "error"], axis=1).rename_axis("step").reset_index()
    elif "hessian" in run.curvature:
        network = run.network()
        frame = pd.DataFrame({
            "step": network["step"].to_numpy(),
            "lambda_max": network["hessian_lambda_max"].to_numpy(),
            "error": network["hessian_lambda_max_error"].to_numpy(),
        })
    else:
        raise InputError(
            f"{run.path}: λ_max of the network's Hessian was not measured: it is with "
            "analysis.sharpness.every_steps, or at snapshots with hessian in analysis.matrices."
        )
    # A snapshot of the trained network comes after the last update: that one's rate.
    rates = metrics["lr"].dropna().reindex(frame["step"], method="ffill").to_numpy(dtype=float)
    edge = Edge.of(run.config)
    return frame.assign(edge=float("nan") if edge is None else edge.at(rates))
