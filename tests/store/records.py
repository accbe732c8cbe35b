"""Synthetic records with every kind of number a run can produce, and the file they make."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import torch

from condexp.analysis.layers.info import LayerInfo, NotAnalysed
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.snapshot import BnMode, Coverage, LayerSnapshot, Snapshot
from condexp.analysis.vocabulary import LAYER_MEASURES, WHOLE_MATRICES, Matrix, SpectrumStatus
from condexp.store.hdf5.checked_file import sealed_trailer
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import FileSpec
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord

LAYERS = (
    LayerInfo("conv", "Conv2d", d_in=9, d_out=6, groups=1, positions=16, uses=1),
    LayerInfo("groups", "Conv2d", d_in=3, d_out=6, groups=2, positions=4, uses=1),
    LayerInfo("shared.ünit", "Linear", d_in=6, d_out=6, groups=1, positions=1, uses=2),
    LayerInfo("fc", "Linear", d_in=6, d_out=4, groups=1, positions=1, uses=1),
)
MATRICES = tuple(matrix for matrix in WHOLE_MATRICES if matrix is not Matrix.EKFAC)
"""Those of a file of version 3."""
KAPPA_P = (0.5, 0.9, 1.0)
BAD = (
    SpectrumStatus.ZERO,
    SpectrumStatus.UNRELIABLE,
    SpectrumStatus.NONFINITE,
    SpectrumStatus.INCOMPLETE,
)


def make_spec(num_snapshots: int = 8, every: int = 3, **changes: Any) -> FileSpec:
    """A schedule with a snapshot every few steps and an evaluation every second snapshot."""
    num_steps = num_snapshots * every
    evals = {*range(2 * every, num_steps, 2 * every), num_steps} if num_steps else {0}
    fields: dict[str, Any] = {
        "layers": LAYERS,
        "not_analysed": (NotAnalysed("bn", "BatchNorm2d: no matrix weight"),),
        "matrices": MATRICES,
        "kappa_p": KAPPA_P,
        "save_spectra": True,
        "snapshot_steps": tuple(range(0, num_steps, every)),
        "eval_steps": tuple(sorted(evals)),
        "num_train_steps": num_steps,
        "steps_per_epoch": 2 * every,
        "num_samples": 8,
        "config_yaml": "model: {name: mlp}\nseed: 1\n",
        "attributes": {"title": "a test λ", "source": "probe", "center": False, "bias": True},
    }
    return FileSpec(**fields | changes)


def few_columns(**changes: Any) -> FileSpec:
    """A fifth of the datasets, where a test creates or checks a file many times over."""
    return make_spec(layers=LAYERS[2:], matrices=(Matrix.INPUT, Matrix.KFAC), **changes)


def step_record(step: int) -> StepRecord:
    """The losses of training; the fourth is not a number."""
    return StepRecord(step, math.nan if step == 3 else 2.0 / (step + 1), 0.1 * 0.5 ** (step // 10))


def eval_record(spec: FileSpec, step: int) -> EvalRecord:
    """An evaluation after so many updates."""
    return EvalRecord(step, step / spec.steps_per_epoch, 0.5 / step, 10.0 / step, 0.6 / step, 12.5)


def snapshot_record(spec: FileSpec, step: int) -> SnapshotRecord:
    """A snapshot as a function of its step, degenerate layers among its layers."""
    generator = torch.Generator().manual_seed(step)
    records = tuple(_layer(spec, info, step, generator) for info in spec.layers)
    network = _spectrum(1, max(1, spec.extent.network_length), SpectrumStatus.OK, generator)
    snapshot = Snapshot(
        records,
        num_samples=32,
        bn_mode=BnMode.NONE,
        fisher=network if spec.extent.network_length else None,
        coverage=Coverage(parameters=0.75, gradient=1 / (step + 1)),
    )
    return SnapshotRecord(step, step / spec.steps_per_epoch, snapshot)


def _layer(spec: FileSpec, info: LayerInfo, step: int, generator: torch.Generator) -> LayerSnapshot:
    status = SpectrumStatus.OK
    if info.name == "groups" and step % 2:
        status = BAD[step // 6 % 4]
    sides = {
        Matrix.INPUT: info.d_in,
        Matrix.GRAD_OUTPUT: info.d_out // info.groups,
        Matrix.WEIGHT: min(info.d_in, info.d_out // info.groups),
        Matrix.WEIGHT_GRAD: min(info.d_in, info.d_out // info.groups),
    }
    spectra = {
        matrix: _spectrum(info.groups, side, status, generator) for matrix, side in sides.items()
    }
    kfac = KroneckerSpectrum(spectra[Matrix.INPUT], spectra[Matrix.GRAD_OUTPUT])
    length = min(spec.fisher_rows, info.d_in * info.d_out)
    spectra[Matrix.FISHER] = _spectrum(1, length, status, generator)
    numbers = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
    numbers[3] = math.nan
    residual = math.nan if step == 3 else 1e-7 * (step + info.d_in)
    measures = dict(zip(LAYER_MEASURES, numbers, strict=True))
    domination = measures.pop("domination")
    asked = {matrix: spectra[matrix] for matrix in spectra if matrix in spec.matrices}
    return LayerSnapshot(
        info=info,
        input=asked.get(Matrix.INPUT),
        grad_output=asked.get(Matrix.GRAD_OUTPUT),
        kfac=kfac if Matrix.KFAC in spec.matrices else None,
        fisher=asked.get(Matrix.FISHER),
        weight=asked.get(Matrix.WEIGHT),
        weight_grad=asked.get(Matrix.WEIGHT_GRAD),
        domination_of=lambda: domination,
        gradient_residual=residual,
        **measures,
    )


def _spectrum(
    groups: int, side: int, status: SpectrumStatus, generator: torch.Generator
) -> Spectrum:
    values = torch.rand(groups, side, generator=generator, dtype=torch.float64)
    # The last eigenvalue counts as zero: some condition numbers are infinite.
    values = values.sort(1, descending=True).values
    values[:, -1] = 0
    if status is not SpectrumStatus.OK:
        values = values * (0.0 if status is SpectrumStatus.ZERO else math.nan)
    dtype = torch.float32 if side % 2 else torch.float64
    return Spectrum(values, 1e-7 * side, status, dtype, 50)


def write_run(path: Path, spec: FileSpec, num_steps: int | None = None, **options: Any) -> Path:
    """Create a file and write a run's records into it, in the order of training."""
    create_results(path, spec)
    with ResultsWriter(path, **options) as writer:
        feed(writer, spec, num_steps)
    return path


@cache
def run_bytes(num_steps: int | None = None) -> bytes:
    """The file of `write_run` for `make_spec()`: always the same, so it is written once."""
    with TemporaryDirectory() as folder:
        return write_run(Path(folder) / "results.h5", make_spec(), num_steps).read_bytes()


def feed(writer: ResultsWriter, spec: FileSpec, num_steps: int | None = None) -> None:
    """Write the records of the first steps."""
    last = spec.num_train_steps if num_steps is None else num_steps
    for step in range(last):
        if step in spec.snapshot_steps:
            writer.on_snapshot(snapshot_record(spec, step))
        writer.on_step(step_record(step))
        if step + 1 in spec.eval_steps:
            writer.on_eval(eval_record(spec, step + 1))


def counters(path: Path) -> tuple[int, int, int]:
    """The committed snapshots, training steps and evaluations."""
    with h5py.File(path) as file:
        names = ("n_committed", "n_train_committed", "n_eval_committed")
        first, second, third = (int(file[name][()]) for name in names)
    return first, second, third


def restore_checksums(path: Path) -> None:
    """Give a file that was changed on purpose checksums of what it holds now."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        none = dict.fromkeys(Axis, 0)
        trailer = sealed_trailer(file.fileno(), size, none, none)
        file.seek(size)
        file.write(replace(trailer, committed=None).to_bytes())
