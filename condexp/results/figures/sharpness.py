"""λ_max of the Hessian over training, against 2/lr, where gradient descent becomes unstable."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from condexp.errors import InputError
from condexp.results.figures.curves import COLORS, LINES
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import Size, new_figure, save, style
from condexp.results.run_view import headline
from condexp.store.reader import Run

HEIGHT = 3.0  # inches


def sharpness(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """Draw λ_max of the network's Hessian at every snapshot, with its error, and 2/lr.

    A step of gradient descent contracts along an eigenvector as long as λ < 2/lr (Cohen et al.
    2021); weight decay and momentum move that edge, and are not in it.

    Args:
        runs: Runs that measured ``hessian``.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, the PNG and the CSV of what was drawn.

    Raises:
        InputError: If a run has no Hessian.
    """
    frames = []
    with style():
        figure = new_figure(size.width, HEIGHT)
        axes = figure.subplots()
        for number, run in enumerate(runs):
            frame = _frame(run)
            color = COLORS[number % len(COLORS)]
            steps = frame["step"].to_numpy(float)
            look = {"color": color, "linestyle": LINES[number % len(LINES)]}
            axes.errorbar(
                steps, frame["lambda_max"], frame["error"], marker=".", label=headline(run), **look
            )
            axes.plot(steps, frame["edge"], color=color, linewidth=0.6, linestyle="--")
            frames.append(frame)
        axes.plot([], [], color="0.5", linewidth=0.6, linestyle="--", label="2 / learning rate")
        axes.set(yscale="log", xlabel="step", ylabel=r"$\lambda_\mathrm{max}$ of the Hessian")
        every = np.concatenate([frame["step"].to_numpy(float) for frame in frames])
        StepAxis.of(every, float(every.max(initial=0))).apply(axes)
        axes.legend(fontsize=6)
        return save(figure, pd.concat(frames), folder, "sharpness")


def _frame(run: Run) -> pd.DataFrame:
    """Return step, λ_max, its error and 2/lr of one run's snapshots.

    Raises:
        InputError: If it has no Hessian.
    """
    if "hessian" not in run.curvature:
        raise InputError(
            f"{run.path}: no Hessian of the network: it is measured with hessian in "
            "analysis.matrices."
        )
    network, metrics = run.network(), run.metrics
    steps = network["step"].to_numpy()
    # A snapshot of the trained network comes after the last update: that one's rate.
    rates = metrics["lr"].reindex(steps, method="ffill").to_numpy()
    return pd.DataFrame({
        "run": run.path.name,
        "step": steps,
        "lambda_max": network["hessian_lambda_max"].to_numpy(),
        "error": network["hessian_lambda_max_error"].to_numpy(),
        "edge": np.divide(2.0, rates, out=np.full(len(rates), np.nan), where=rates > 0),
    })
