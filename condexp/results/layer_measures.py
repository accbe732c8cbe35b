"""The measures of a run's layers by name, and what stands where there is no number."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from condexp.analysis.linalg.ratios import p_limit
from condexp.analysis.vocabulary import (
    CERTIFICATES,
    CLOSENESS,
    CURVATURE_MATRICES,
    CURVATURE_MEASURES,
    LAYER_MEASURES,
    NETWORK_CLOSENESS,
    SPECTRUM_MEASURES,
)
from condexp.errors import InputError, suggestion
from condexp.results.config_keys import lookup
from condexp.results.tables.numbers import Mark, kappa_marks, put_mark, value_marks
from condexp.store.reader import Run
from condexp.store.schema.fields import COVERAGE_NAMES
from condexp.store.schema.matrices import KAPPAS, NETWORK


@dataclass(frozen=True)
class Measure:
    """Where a named measure lies in the results file.

    Attributes:
        array: Name of the array.
        matrix: The matrix it belongs to; ``None`` for measures of the layer itself.
        p: Index of its fraction, for condition numbers.
    """

    array: str
    matrix: str | None = None
    p: int | None = None


@dataclass(frozen=True)
class LayerMeasures:
    """All measures of all layers at some snapshots, from one results file.

    A measure is called as in the file, κ_p with its fraction: ``input_kappa_0.5``, and the ends of
    its interval ``input_kappa_low_0.5`` and ``input_kappa_high_0.5``.

    Attributes:
        steps: ``[S]`` training steps of the snapshots.
        layers: L names in execution order.
        fractions: The fractions p of the condition numbers.
        arrays: The file's arrays ``[S, L]``, ``[S, L, P]`` for condition numbers, and ``[L]`` for
            the layers' sizes.
        centered: Whether the moments are about the mean, which costs them one row.
        num_signals: Gradients that each row of an input comes with.
    """

    steps: NDArray[np.int64]
    layers: tuple[str, ...]
    fractions: tuple[float, ...]
    arrays: Mapping[str, NDArray[Any]]
    centered: bool
    num_signals: int

    @classmethod
    def read(cls, run: Run, p: Sequence[float] = (), only: Collection[str] = ()) -> "LayerMeasures":
        """Read every committed snapshot of a run.

        Args:
            run: The run.
            p: Fractions of condition numbers in place of the measured ones.
            only: Arrays of measures that are enough; all where empty.

        Returns:
            The measures.
        """
        return cls.of(_arrays(run.measures(p, only)), run.config, run.attrs.get("num_signals", 1))

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        config: Mapping[str, Any],
        num_signals: int = 1,
    ) -> "LayerMeasures":
        """Take the arrays of a results file's ``/layers``.

        Args:
            arrays: By name, cut to the snapshots wanted.
            config: The run's configuration.
            num_signals: Gradients that each row of an input comes with.

        Returns:
            The measures.
        """
        return cls(
            steps=arrays["step"],
            layers=tuple(map(str, arrays["layer"])),
            fractions=tuple(map(float, arrays["p"])),
            arrays=arrays,
            centered=bool(lookup(config, "analysis.center")),
            num_signals=num_signals,
        )

    @classmethod
    def read_network(cls, run: Run, p: Sequence[float] = ()) -> "LayerMeasures":
        """Read every committed snapshot of all layers together, as those of one layer.

        Args:
            run: A run that measured the Fisher matrix.
            p: Fractions of condition numbers in place of the measured ones.

        Returns:
            The measures.
        """
        return cls.of_network(_arrays(run.network(p)))

    @classmethod
    def of_network(cls, arrays: Mapping[str, NDArray[Any]]) -> "LayerMeasures":
        """Take the arrays of a results file's ``/network`` as those of one layer of this name.

        Args:
            arrays: By name, cut to the snapshots wanted.

        Returns:
            The measures.
        """
        scales = {"p": np.empty(0)} | {n: arrays[n] for n in ("step", "p") if n in arrays}
        starts = tuple(f"{each}_" for each in ("fisher", *CURVATURE_MATRICES, "block_diagonal"))
        own = {n: array[:, None] for n, array in arrays.items() if n.startswith(starts)}
        own |= {name: arrays[name] for name in COVERAGE_NAMES if name in arrays}
        one = np.ones(1, dtype=np.int64)
        # A Fisher spectrum knows its rows by its length: the sizes of a layer play no part.
        of_fisher = ("n_fisher",) if "fisher_status" in arrays else ()
        sizes = dict.fromkeys(("d_in", "d_out", "groups", "num_rows", *of_fisher), one)
        return cls.of({**scales, **own, **sizes, "layer": np.array([NETWORK])}, {})

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """The matrices measured, in the file's order."""
        return tuple(name[2:] for name in self.arrays if name.startswith("n_"))

    @property
    def has_intervals(self) -> bool:
        """Whether the intervals of condition numbers were read: a file of version 1 has none."""
        return any(name.endswith("_kappa_high") for name in self.arrays)

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """Every measure that was read, by name: those of the layer, then those of each matrix."""
        of_layer = (*LAYER_MEASURES, *CERTIFICATES, *CLOSENESS, *NETWORK_CLOSENESS)
        found = {name: Measure(name) for name in of_layer}
        for matrix in self.matrices:
            for suffix in SPECTRUM_MEASURES:
                found[f"{matrix}_{suffix}"] = Measure(f"{matrix}_{suffix}", matrix)
            for kappa in KAPPAS:
                for index, p in enumerate(self.fractions):
                    found[f"{matrix}_{kappa}_{p}"] = Measure(f"{matrix}_{kappa}", matrix, index)
        for each in CURVATURE_MATRICES:
            found |= {f"{each}_{s}": Measure(f"{each}_{s}", each) for s in CURVATURE_MEASURES}
        return {name: measure for name, measure in found.items() if measure.array in self.arrays}

    def find(self, name: str) -> Measure:
        """Look up a measure.

        Args:
            name: Its name.

        Returns:
            Where it lies.

        Raises:
            InputError: If the run has no such measure; names the nearest.
        """
        if name not in self.measures:
            raise InputError(
                f"unknown measure {name!r}: this run has {', '.join(LAYER_MEASURES)}, and "
                f"<matrix>_<measure> of the matrices {', '.join(self.matrices) or '(none)'} with "
                f"{', '.join(SPECTRUM_MEASURES)}, kappa_low_<p>, kappa_high_<p> and "
                f"{', '.join(f'kappa_{p}' for p in self.fractions)}."
                f"{suggestion(name, self.measures)}"
            )
        return self.measures[name]

    def require_layer(self, name: str) -> str:
        """Return the name of a layer if there is such a layer.

        Args:
            name: The name.

        Returns:
            The name itself.

        Raises:
            InputError: If there is none; names the nearest.
        """
        if name not in self.layers:  # not `choose`: there may be a thousand
            raise InputError(f"unknown layer {name!r}.{suggestion(name, self.layers)}")
        return name

    def values(self, name: str) -> NDArray[np.float64]:
        """Return a measure of every layer at every snapshot.

        Args:
            name: Name of the measure.

        Returns:
            ``[S, L]``, as stored.
        """
        measure = self.find(name)
        array = self.arrays[measure.array]
        return array if measure.p is None else array[..., measure.p]

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """Lay out measures of every layer at every snapshot.

        Args:
            names: Names of the measures.

        Returns:
            One row a snapshot and layer, in this order: ``step``, ``layer`` and the measures.
        """
        return pd.DataFrame({
            "step": np.repeat(self.steps, len(self.layers)),
            "layer": list(self.layers) * len(self.steps),
            **{name: self.values(name).ravel() for name in names},
        })

    def marks(self, name: str) -> NDArray[np.object_]:
        """Say which values of a measure are no plain numbers, and why.

        Args:
            name: Name of the measure.

        Returns:
            ``[S, L]`` of `Mark`.
        """
        measure, values = self.find(name), self.values(name)
        if measure.matrix is None:
            return value_marks(values)
        status = self.arrays[f"{measure.matrix}_status"]
        marks = value_marks(values, status)
        if measure.p is not None:
            p, highs = self.fractions[measure.p], self.interval(name)[1]
            limits = np.broadcast_to(self.limits[measure.matrix], values.shape)
            marks = kappa_marks(values, status, p, limits, highs)
        put_mark(marks, status == "absent", Mark.MISSING)
        return marks

    def interval(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ends of the interval of a condition number.

        Args:
            name: Name of a measure.

        Returns:
            Low and high end, ``[S, L]`` each; NaN where the measure is no κ_p, or the file is of a
            version without intervals.
        """
        measure = self.find(name)
        ends = [self.arrays.get(f"{measure.array}_{end}") for end in ("low", "high")]
        none = np.full(self.values(name).shape, np.nan)
        low, high = (none if end is None else np.asarray(end[..., measure.p]) for end in ends)
        return low, high

    @cached_property
    def limits(self) -> dict[str, list[float]]:
        """For each matrix, the share of each layer's spectrum that the rows can fill; else NaN."""
        sizes = [self.arrays[name] for name in ("d_in", "d_out", "groups", "num_rows")]
        limits: dict[str, list[float]] = {matrix: [] for matrix in self.matrices}
        for layer in range(len(self.layers)):
            d_in, d_out, groups, num_rows = (int(size[layer]) for size in sizes)
            rows, gradients = (n - self.centered for n in (num_rows, num_rows * self.num_signals))
            for matrix in self.matrices:
                limits[matrix].append(p_limit(matrix, d_in, d_out, groups, rows, gradients))
        return limits


def _arrays(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    return {str(name): variable.to_numpy() for name, variable in dataset.variables.items()}
