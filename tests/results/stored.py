"""Run folders made by the real store from records whose every number is known."""

import io
import math
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from rich.console import Console, RenderableType

from condexp.analysis.layers.info import LayerInfo, NotAnalysed
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.snapshot import BnMode, Coverage, LayerSnapshot, Snapshot
from condexp.analysis.vocabulary import WHOLE_MATRICES, Matrix, SpectrumStatus
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.identity import identity_yaml
from condexp.store.run_folder.status import State, Status, write_status
from condexp.store.schema.layout import FileSpec
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord

NUM_SAMPLES = 4
FRACTIONS = (0.5, 1.0)
WITH_BLOCKS = tuple(matrix for matrix in WHOLE_MATRICES if matrix is not Matrix.EKFAC)
MATRICES = tuple(matrix for matrix in WITH_BLOCKS if matrix is not Matrix.FISHER)
LAYERS = (
    LayerInfo("conv", "Conv2d", d_in=9, d_out=4, groups=1, positions=16, uses=1),
    LayerInfo("hidden", "Linear", d_in=8, d_out=4, groups=1, positions=1, uses=1),
    LayerInfo("dead", "Linear", d_in=4, d_out=4, groups=1, positions=1, uses=1),
    LayerInfo("fc", "Linear", d_in=4, d_out=3, groups=1, positions=1, uses=1),
)


def grid_frame(key: str, runs: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    """What `collect` returns of runs given as (depth, the key's value, seed, state, test_error)."""
    names = ["model.depth", key, "seed", "state", "test_error"]
    table = pd.DataFrame(list(runs), columns=names)
    table.attrs["identity_keys"] = ("model.depth", key, "seed", "optimizer.lr")
    return table


def text_of(renderable: RenderableType, width: int = 200) -> str:
    """What a terminal of this width shows."""
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def make_config(**changes: Any) -> dict[str, Any]:
    """A configuration as the command line resolves it; keys joined by dots are changed."""
    config: dict[str, Any] = {
        "experiment": "default",
        "seed": 1,
        "model": {"name": "mlp", "depth": 3, "last_bn": False},
        "dataset": {"name": "digits", "root": "/data", "subset": {"train": None}},
        "optimizer": {"name": "adam", "lr": 0.1, "betas": [0.9, 0.999]},
        "trainer": {"batch_size": NUM_SAMPLES, "device": "cpu"},
        "analysis": {"source": "train_batch", "center": False, "layers": {"include": ["all"]}},
        "run": {"root": "outputs"},
    }
    for key, value in changes.items():
        *groups, name = key.split("__")
        section = config
        for group in groups:
            section = section[group]
        section[name] = value
    return config


def lambda_max(layer: int, step: int) -> float:
    """λ_1 of every matrix of a layer but kfac's; powers of two, so that products are exact."""
    return float(2 ** (layer - step))


def spectrum(info: LayerInfo, side: int, step: int) -> Spectrum:
    """λ_1, λ_1/2, λ_1/4, …: as many as there are rows; one less for the convolution."""
    layer, rows = LAYERS.index(info), NUM_SAMPLES * info.positions
    rank = side - 1 if info.name == "conv" else min(side, rows)
    values = torch.zeros(1, side, dtype=torch.float64)
    values[0, :rank] = lambda_max(layer, step) * 0.5 ** torch.arange(rank)
    status = SpectrumStatus.OK
    if info.name == "dead":
        # Dead at first, then overflowing, and no longer to be trusted in between.
        order = (SpectrumStatus.ZERO, SpectrumStatus.UNRELIABLE, SpectrumStatus.NONFINITE)
        status = order[step % 3]
        values = values * (0.0 if step % 3 == 0 else math.nan)
    return Spectrum(values, 0.0, status, torch.float64, rows)


class Bounded(Spectrum):
    """A spectrum whose condition numbers are known from below only."""

    def kappa_interval(self, p: float = 1.0) -> tuple[float, float]:
        return super().kappa_interval(p)[0], math.inf


class BoundedKronecker(KroneckerSpectrum):
    """The same of a Kronecker product."""

    def kappa_interval(self, p: float = 1.0) -> tuple[float, float]:
        return super().kappa_interval(p)[0], math.inf


def network_spectrum(step: int, num_rows: int) -> Spectrum:
    """16·2^-step times 1, 1/2, 1/4, …, and a 0: one gradient is a sum of others."""
    values = 2.0 ** (4 - step - torch.arange(num_rows, dtype=torch.float64))[None]
    values[0, -1] = 0
    return Spectrum(values, 0.0, SpectrumStatus.OK, torch.float64, num_rows)


def layer_snapshot(
    info: LayerInfo, step: int, num_rows: int, *, bounded: bool = False
) -> LayerSnapshot:
    a, b = spectrum(info, info.d_in, step), spectrum(info, info.d_out, step)
    small = spectrum(info, min(info.d_in, info.d_out), step)
    fisher = spectrum(info, min(num_rows, info.d_in * info.d_out), step)
    kind = KroneckerSpectrum
    if bounded:
        kind = BoundedKronecker
        a, b, fisher = (Bounded(*(getattr(s, f.name) for f in fields(s))) for s in (a, b, fisher))
    return LayerSnapshot(
        info=info,
        input=a,
        grad_output=b,
        kfac=kind(a, b),
        fisher=fisher,
        weight=small,
        weight_grad=small,
        domination_of=lambda: 0.125 * (LAYERS.index(info) + 1),
        weight_norm=1.5,
        grad_norm=0.5,
        effective_lr=math.nan,
        input_mean_fraction=0.25,
        dead_fraction=0.0,
        full_fraction=1.0,
        gradient_residual=1e-7,
    )


def write_run(
    folder: Path,
    *,
    state: State = State.COMPLETE,
    steps_done: int | None = None,
    test_errors: Sequence[float] = (50.0, 20.0, 30.0),
    diverges_at: int | None = None,
    snapshot_steps: Sequence[int] = (0, 1, 2, 5),
    layers: Sequence[LayerInfo] = LAYERS,
    matrices: Sequence[Matrix] = MATRICES,
    num_signals: int = 1,
    num_steps: int = 6,
    save_spectra: bool = False,
    bounded: Collection[str] = (),
    coverage: float = 1.0,
    **config: Any,
) -> Path:
    """Train nothing for a few steps, with an evaluation after every second one.

    Every κ of the ``bounded`` layers is a lower bound.
    """
    folder.mkdir(parents=True)
    whole = make_config(**config)
    spec = FileSpec(
        layers=tuple(layers),
        not_analysed=(NotAnalysed("bn", "BatchNorm1d"),),
        matrices=tuple(matrices) if layers else (),
        kappa_p=FRACTIONS,
        save_spectra=save_spectra,
        snapshot_steps=tuple(snapshot_steps),
        eval_steps=tuple(range(2, num_steps + 1, 2)),
        num_train_steps=num_steps,
        steps_per_epoch=2,
        num_samples=NUM_SAMPLES,
        num_signals=num_signals,
        config_yaml=identity_yaml(whole),
        attributes={"title": f"mlp on digits, seed {whole['seed']}", "center": False},
    )
    create_results(folder / "results.h5", spec)
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    done = num_steps if steps_done is None else steps_done
    with ResultsWriter(folder / "results.h5") as writer:
        for step in range(done):
            if step in spec.snapshot_steps:
                records = tuple(
                    layer_snapshot(info, step, spec.fisher_rows, bounded=info.name in bounded)
                    for info in layers
                )
                network = network_spectrum(step, spec.fisher_rows)
                covered = Coverage(parameters=coverage, gradient=1.0)
                snapshot = Snapshot(
                    records, NUM_SAMPLES, BnMode.NONE, fisher=network, coverage=covered
                )
                writer.on_snapshot(SnapshotRecord(step, step / 2, snapshot))
            loss = math.nan if step == diverges_at else 2.0 / (step + 1)
            writer.on_step(StepRecord(step, loss, 0.1))
            if step + 1 in spec.eval_steps:
                error = test_errors[step // 2]
                record = EvalRecord(step + 1, (step + 1) / 2, 1 / (step + 1), error / 2, 0.5, error)
                writer.on_eval(record)
    write_status(folder, Status(state, step=done, num_steps=num_steps, seconds=83.2))
    return folder


def write_early_failure(folder: Path, message: str = "no space left on device") -> Path:
    """A run that failed before it had a results file."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(make_config(seed=9)))
    write_status(folder, Status(State.FAILED, error=message))
    return folder
