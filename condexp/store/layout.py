"""The layout of ``results.h5``, format ``condexp`` version 1: what is measured, dataset by dataset.

Pure, and in file order: columns enter a row's checksum in the order they have here. Every dimension
has its scale in the same group, so that a group opens as one table of labelled arrays.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from condexp.analysis.layers import LayerInfo, NotAnalysed
from condexp.analysis.options import Matrix
from condexp.analysis.snapshot import LAYER_MEASURES
from condexp.errors import InputError
from condexp.linalg.spectrum import SPECTRUM_MEASURES
from condexp.store.fields import (
    EVAL_NAMES,
    MATRIX_NAMES,
    MEASURE_NAMES,
    TRAIN_NAMES,
    WITHOUT_SPECTRA,
    Axis,
    DatasetSpec,
    Extent,
    Kind,
)

FILE_NAME = "results.h5"
CRC = "crc32"
COUNTERS = {
    Axis.SNAPSHOT: "n_committed",
    Axis.TRAIN: "n_train_committed",
    Axis.EVAL: "n_eval_committed",
}
STEPS = {Axis.SNAPSHOT: "step", Axis.TRAIN: "train/train_step", Axis.EVAL: "eval/eval_step"}


@dataclass(frozen=True)
class FileSpec:
    """Everything a results file is created from.

    Attributes:
        layers: The analysed layers in execution order.
        not_analysed: Modules with weights that are not measured, with the reason.
        matrices: The matrices measured.
        kappa_p: The fractions p of the condition numbers.
        save_spectra: Whether eigenvalues are kept, not only their measures.
        snapshot_steps: Steps of the snapshots, increasing.
        eval_steps: Finished updates at each evaluation, increasing.
        num_train_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one epoch.
        num_samples: Samples N of each snapshot.
        config_yaml: The identity configuration as sorted YAML.
        attributes: fisher_type, source, bn_mode, conv_input, center, bias, title.

    Raises:
        InputError: If a spectrum is longer than the file can say.
    """

    layers: tuple[LayerInfo, ...]
    not_analysed: tuple[NotAnalysed, ...]
    matrices: tuple[Matrix, ...]
    kappa_p: tuple[float, ...]
    save_spectra: bool
    snapshot_steps: tuple[int, ...]
    eval_steps: tuple[int, ...]
    num_train_steps: int
    steps_per_epoch: int
    num_samples: int
    config_yaml: str
    attributes: Mapping[str, str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer in self.layers:
            longest = max((layer.spectrum_length(matrix) for matrix in self.matrices), default=0)
            if longest >= 2**31:
                raise InputError(
                    f"layer {layer.name!r} has a matrix of {longest} eigenvalues, more than the "
                    "2^31 - 1 of a results file: leave it out with analysis.layers.exclude"
                )

    @property
    def extent(self) -> Extent:
        """The facts that decide names and shapes."""
        # In the order of the enumeration, which is the order a file is read back in.
        lengths = {
            matrix: tuple(layer.spectrum_length(matrix) for layer in self.layers)
            for matrix in Matrix
            if matrix in self.matrices
        }
        return Extent(
            layers=tuple(layer.name for layer in self.layers),
            lengths=lengths,
            num_p=len(self.kappa_p),
            save_spectra=self.save_spectra,
            num_snapshots=len(self.snapshot_steps),
            num_train_steps=self.num_train_steps,
            num_evals=len(self.eval_steps),
            num_not_analysed=len(self.not_analysed),
        )


def datasets(spec: FileSpec | Extent) -> tuple[DatasetSpec, ...]:
    """List every dataset of a results file.

    Args:
        spec: What the file is created from, or what was read back from one.

    Returns:
        The datasets in file order.
    """
    extent = spec.extent if isinstance(spec, FileSpec) else spec
    parts = (_root, _training, _layers, _measures, _spectra)
    return tuple(dataset for part in parts for dataset in part(extent))


def columns(extent: Extent, axis: Axis) -> tuple[DatasetSpec, ...]:
    """List the datasets that one record fills a row of, in the order of its checksum.

    Args:
        extent: The facts that decide names and shapes.
        axis: The kind of record.

    Returns:
        Those datasets in file order.
    """
    return tuple(dataset for dataset in datasets(extent) if dataset.axis is axis)


def file_size(spec: FileSpec) -> int:
    """Estimate the size of the results file, to about a tenth.

    Args:
        spec: What the file would be created from.

    Returns:
        Bytes: those of the arrays exactly, and about 640 for the description of each.
    """
    return sum(dataset.num_bytes + 640 for dataset in datasets(spec))


def spectra_group(matrix: Matrix, length: int) -> str:
    """Name the group of the spectra of one length.

    Args:
        matrix: The matrix.
        length: Number of eigenvalues.

    Returns:
        The path of the group.

    >>> spectra_group(Matrix.INPUT, 512)
    'spectra/input/n00512'
    """
    return f"spectra/{matrix}/n{length:05d}"


def _root(extent: Extent) -> Iterator[DatasetSpec]:
    """Yield the commit record, what it counts, and the configuration."""
    shape, dims, axis = (extent.num_snapshots,), ("step",), Axis.SNAPSHOT
    yield DatasetSpec("config", (), Kind.TEXT, (), "identity configuration of the run, YAML")
    name, num = "modules with weights that are not measured, and why", extent.num_not_analysed
    yield DatasetSpec("not_analysed", (num,), Kind.TEXT, ("not_analysed",), name)
    yield DatasetSpec("n_committed", (), Kind.INT, (), "snapshots that are final")
    yield DatasetSpec("n_train_committed", (), Kind.INT, (), "training steps that are final")
    yield DatasetSpec("n_eval_committed", (), Kind.INT, (), "evaluations that are final")
    name = "training step of the snapshot; 0 is before the first update"
    yield DatasetSpec("step", shape, Kind.INT, dims, name, axis=axis)
    yield DatasetSpec("epoch", shape, Kind.FLOAT, dims, "epochs of training", axis=axis)
    name = "CRC-32 of the snapshot's row, columns in file order; 0 is not written"
    yield DatasetSpec(CRC, shape, Kind.CHECKSUM, dims, name)


def _training(extent: Extent) -> Iterator[DatasetSpec]:
    """Yield the columns of the training steps and of the evaluations."""
    shape, dims, axis = (extent.num_train_steps,), ("train_step",), Axis.TRAIN
    yield DatasetSpec("train/train_step", shape, Kind.INT, dims, "training step")
    for name, long_name in TRAIN_NAMES.items():
        yield DatasetSpec(f"train/{name}", shape, Kind.FLOAT, dims, long_name, axis=axis)
    shape, dims, axis = (extent.num_evals,), ("eval_step",), Axis.EVAL
    yield DatasetSpec("eval/eval_step", shape, Kind.INT, dims, "finished updates")
    for name, long_name in EVAL_NAMES.items():
        units = "percent" if name.endswith("error") else "1"
        yield DatasetSpec(f"eval/{name}", shape, Kind.FLOAT, dims, long_name, units, axis)


def _layers(extent: Extent) -> Iterator[DatasetSpec]:
    """Yield the scales of ``/layers`` and the description of the layers."""
    shape, dims = (len(extent.layers),), ("layer",)
    yield DatasetSpec("layers/step", (extent.num_snapshots,), Kind.INT, ("step",), "training step")
    yield DatasetSpec("layers/layer", shape, Kind.TEXT, dims, "layer, in execution order")
    yield DatasetSpec("layers/p", (extent.num_p,), Kind.FLOAT, ("p",), "fraction p of kappa")
    yield DatasetSpec("layers/type", shape, Kind.TEXT, dims, "kind of layer")
    yield DatasetSpec("layers/d_in", shape, Kind.INT, dims, "side of a block of input")
    yield DatasetSpec("layers/d_out", shape, Kind.INT, dims, "output features or channels")
    yield DatasetSpec("layers/groups", shape, Kind.INT, dims, "blocks on the diagonal")
    yield DatasetSpec("layers/num_rows", shape, Kind.INT, dims, "rows of a snapshot, all uses")
    yield DatasetSpec("layers/positions", shape, Kind.INT, dims, "rows of a sample in one use")
    yield DatasetSpec("layers/reused", shape, Kind.FLAG, dims, "1 where used more than once a pass")
    for matrix in extent.lengths:
        name = f"number of eigenvalues of {matrix}; 0 is absent"
        yield DatasetSpec(f"layers/n_{matrix}", shape, Kind.COUNT, dims, name)


def _measures(extent: Extent) -> Iterator[DatasetSpec]:
    """Yield the measures of every layer at every snapshot."""
    shape, dims = (extent.num_snapshots, len(extent.layers)), ("step", "layer")
    axis = Axis.SNAPSHOT
    for measure in LAYER_MEASURES:
        name = MEASURE_NAMES[measure]
        yield DatasetSpec(f"layers/{measure}", shape, Kind.FLOAT, dims, name, axis=axis)
    kinds = dict.fromkeys((*SPECTRUM_MEASURES, "noise_floor", "kappa"), Kind.FLOAT)
    kinds |= {"status": Kind.STATUS, "dtype": Kind.DTYPE}
    for matrix in extent.lengths:
        for measure, kind in kinds.items():
            path = f"layers/{matrix}_{measure}"
            name = f"{MEASURE_NAMES[measure]}: {MATRIX_NAMES[matrix]}"
            full = (*shape, extent.num_p) if measure == "kappa" else shape
            names = (*dims, "p") if measure == "kappa" else dims
            yield DatasetSpec(path, full, kind, names, name, axis=axis, matrix=matrix)


def _spectra(extent: Extent) -> Iterator[DatasetSpec]:
    """Yield the eigenvalues: a group a length, as a group a layer would open too slowly."""
    stored = [matrix for matrix in extent.lengths if matrix not in WITHOUT_SPECTRA]
    for matrix in stored if extent.save_spectra else ():
        lengths = extent.lengths[matrix]
        for length in sorted(set(lengths) - {0}):
            group = spectra_group(matrix, length)
            members = tuple(i for i, other in enumerate(lengths) if other == length)
            shape, dims = (extent.num_snapshots, len(members), length), ("step", "layer", "eig")
            yield DatasetSpec(f"{group}/step", shape[:1], Kind.INT, dims[:1], "training step")
            yield DatasetSpec(f"{group}/layer", shape[1:2], Kind.TEXT, dims[1:2], "layer")
            name = "index of the layer among all layers"
            yield DatasetSpec(f"{group}/layer_index", shape[1:2], Kind.INT, dims[1:2], name)
            name = "0-based index of the eigenvalue, the largest first"
            yield DatasetSpec(f"{group}/eig", shape[2:], Kind.INT, dims[2:], name)
            path, name = f"{group}/eigenvalue", f"eigenvalues, descending: {MATRIX_NAMES[matrix]}"
            yield DatasetSpec(
                path, shape, Kind.FLOAT, dims, name, "1", Axis.SNAPSHOT, matrix, members
            )
