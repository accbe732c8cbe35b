"""The layout of ``results.h5``, format ``condexp``: what is measured, dataset by dataset.

Pure, and in file order, of the version that is written and of those that are read: columns enter a
row's checksum in the order they have here. Every dimension has its scale in the same group, so that
a group opens as one table of labelled arrays.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from condexp.analysis.layers.info import LayerInfo, NotAnalysed
from condexp.analysis.vocabulary import CURVATURE_MATRICES, Matrix
from condexp.errors import InputError
from condexp.store.schema.fields import (
    COVERAGE_NAMES,
    EVAL_NAMES,
    SHARPNESS_NAMES,
    TRAIN_NAMES,
    VERSION,
    WITH_CURVATURE,
    Axis,
    DatasetSpec,
    FileShape,
    Kind,
)
from condexp.store.schema.matrices import NETWORK, measures, network, spectra

FILE_NAME = "results.h5"
CRC = "crc32"
COLUMN = "column"
CHECKSUMS = {Axis.SNAPSHOT: CRC, Axis.TRAIN: f"train/{CRC}", Axis.EVAL: f"eval/{CRC}"}
SEALED = "condexp_sealed"  # the attribute of a file that no run will add to
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
        num_signals: Back-propagations of each sample: labels drawn or weighted, 1 for the data's.
        config_yaml: The identity configuration as sorted YAML.
        top_k: Number of eigenvalues of ``hessian`` and ``ggn``.
        layer_blocks: Whether these are measured of each layer's block too.
        sharpness: Whether training steps have it.
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
    num_signals: int = 1
    top_k: int = 0
    layer_blocks: bool = False
    sharpness: bool = False
    attributes: Mapping[str, str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer in self.layers:
            longest = max((self._length(layer, matrix) for matrix in self._whole), default=0)
            if longest >= 2**31:
                raise InputError(
                    f"layer {layer.name!r} has a matrix of {longest} eigenvalues, more than the "
                    "2^31 - 1 of a results file: leave it out with analysis.layers.exclude"
                )
            if layer.name == NETWORK and {Matrix.FISHER, *CURVATURE_MATRICES} & {*self.matrices}:
                raise InputError(
                    f"a layer is called {NETWORK!r}, as tables call the matrix of all layers "
                    "together: rename the module, or leave fisher, hessian and ggn out of "
                    "analysis.matrices"
                )

    @property
    def fisher_rows(self) -> int:
        """Gradients that a Fisher matrix averages: one for each sample and signal."""
        return self.num_samples * self.num_signals

    @property
    def extent(self) -> FileShape:
        """The facts that decide names and shapes."""
        # In the order of the enumeration, which is the order a file is read back in.
        lengths = {
            matrix: tuple(self._length(layer, matrix) for layer in self.layers)
            for matrix in Matrix
            if matrix in self._whole
        }
        curvature = tuple(m for m in CURVATURE_MATRICES if m in self.matrices)
        beyond_factors = curvature or self.sharpness or Matrix.EKFAC in lengths
        return FileShape(
            layers=tuple(layer.name for layer in self.layers),
            lengths=lengths,
            network_length=self._network_length(),
            num_p=len(self.kappa_p),
            save_spectra=self.save_spectra,
            num_snapshots=len(self.snapshot_steps),
            num_train_steps=self.num_train_steps,
            num_evals=len(self.eval_steps),
            num_not_analysed=len(self.not_analysed),
            version=WITH_CURVATURE if beyond_factors else VERSION,
            curvature=curvature,
            top_k=self.top_k if curvature else 0,
            layer_blocks=self.layer_blocks and bool(curvature and self.layers),
            sharpness=self.sharpness,
        )

    @property
    def _whole(self) -> tuple[Matrix, ...]:
        return tuple(matrix for matrix in self.matrices if matrix not in CURVATURE_MATRICES)

    @property
    def num_rows(self) -> dict[Axis, int]:
        """The rows of a run that came to its end."""
        return {
            Axis.SNAPSHOT: len(self.snapshot_steps),
            Axis.TRAIN: self.num_train_steps,
            Axis.EVAL: len(self.eval_steps),
        }

    def _length(self, layer: LayerInfo, matrix: Matrix) -> int:
        length = layer.spectrum_length(matrix)
        return min(self.fisher_rows, length) if matrix is Matrix.FISHER else length

    def _network_length(self) -> int:
        if Matrix.FISHER not in self.matrices:
            return 0
        num_weights = sum(layer.spectrum_length(Matrix.FISHER) for layer in self.layers)
        return min(self.fisher_rows, num_weights)


def datasets(spec: FileSpec | FileShape) -> tuple[DatasetSpec, ...]:
    """List every dataset of a results file.

    Args:
        spec: What the file is created from, or what was read back from one.

    Returns:
        The datasets in file order.
    """
    extent = spec.extent if isinstance(spec, FileSpec) else spec
    parts = (_root, _training, _layers, measures, network, spectra)
    described = [dataset for part in parts for dataset in part(extent)]
    if extent.version > 2:
        num = sum(dataset.axis is Axis.SNAPSHOT for dataset in described)
        described += _checksums(extent, num)
    return tuple(described)


def columns(extent: FileShape, axis: Axis) -> tuple[DatasetSpec, ...]:
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


def _root(extent: FileShape) -> Iterator[DatasetSpec]:
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
    if extent.version > 1:
        for name, long_name in COVERAGE_NAMES.items():
            yield DatasetSpec(name, shape, Kind.FLOAT, dims, long_name, axis=axis)
    if extent.version < 3:
        name = "CRC-32 of the snapshot's row, columns in file order; 0 is not written"
        yield DatasetSpec(CRC, shape, Kind.CHECKSUM, dims, name)


def _checksums(extent: FileShape, num_columns: int) -> Iterator[DatasetSpec]:
    """Yield the checksums of the rows that a run commits."""
    name = "arrays with a row a snapshot, in file order"
    yield DatasetSpec(COLUMN, (num_columns,), Kind.TEXT, (COLUMN,), name)
    name = "CRC-32 of the snapshot's row of each array; 0 is not written"
    shape = (extent.num_snapshots, num_columns)
    yield DatasetSpec(CRC, shape, Kind.CHECKSUM, ("step", COLUMN), name)
    sizes = {Axis.TRAIN: extent.num_train_steps, Axis.EVAL: extent.num_evals}
    for axis, size in sizes.items():
        name = "CRC-32 of this row and all before it, columns in file order"
        dims = (f"{axis}_step",)
        yield DatasetSpec(CHECKSUMS[axis], (size,), Kind.CHECKSUM, dims, name)


def _training(extent: FileShape) -> Iterator[DatasetSpec]:
    """Yield the columns of the training steps and of the evaluations."""
    shape, dims, axis = (extent.num_train_steps,), ("train_step",), Axis.TRAIN
    yield DatasetSpec("train/train_step", shape, Kind.INT, dims, "training step")
    names = TRAIN_NAMES | (SHARPNESS_NAMES if extent.sharpness else {})
    for name, long_name in names.items():
        yield DatasetSpec(f"train/{name}", shape, Kind.FLOAT, dims, long_name, axis=axis)
    shape, dims, axis = (extent.num_evals,), ("eval_step",), Axis.EVAL
    yield DatasetSpec("eval/eval_step", shape, Kind.INT, dims, "finished updates")
    for name, long_name in EVAL_NAMES.items():
        units = "percent" if name.endswith("error") else "1"
        yield DatasetSpec(f"eval/{name}", shape, Kind.FLOAT, dims, long_name, units, axis)


def _layers(extent: FileShape) -> Iterator[DatasetSpec]:
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
