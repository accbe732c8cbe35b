"""Statistics of a whole network: those of each layer, and what the layers share."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.fisher.block import FisherBlock
from condexp.analysis.fisher.formed import fisher_block
from condexp.analysis.fisher.network import NetworkFisher
from condexp.analysis.layers.calls import PassMode
from condexp.analysis.layers.info import LayerInfo, NotAnalysed
from condexp.analysis.layers.sample_calls import SampleCalls
from condexp.analysis.layers.select import Selection, biases, why_never
from condexp.analysis.layers.uses import uses_in_graph
from condexp.analysis.loss.rounding import LossRounding
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import BnMode, Coverage, LayerSnapshot, Snapshot
from condexp.analysis.statistics.gradients import GradientStatistics
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.statistics.moment import SolveQueue
from condexp.analysis.statistics.ranks import AT_ONCE, deal, rounds, solving_cost, sum_bytes
from condexp.analysis.statistics.reduced import ReducedStatistics, ReducedTableStatistics
from condexp.analysis.statistics.table import TableStatistics
from condexp.analysis.vocabulary import SAMPLE_MATRICES
from condexp.analysis.watch import tell
from condexp.errors import InputError


@dataclass(frozen=True)
class _Gradients:
    """‖∂L/∂θ‖², summed over the backward passes of all processes.

    Args:
        of_layers: Of each layer's weight.
        rest: Of all other parameters.
    """

    of_layers: Mapping[str, float]
    rest: float

    def with_rank(self, of_layers: Mapping[str, float], rest: float) -> "_Gradients":
        """Return the sums with those of a process, which has layers of its own."""
        return _Gradients({**self.of_layers, **of_layers}, self.rest + rest)


class NetworkStatistics:
    """Statistics of the layers that were called, in the order of their first calls.

    Args:
        model: The network.
        selection: What is measured of it.
        options: What to measure.
        learning_rate: For ``effective_lr``: lr / (1 − momentum).
        pass_mode: See :class:`.MeasurementHooks`, also for the next one.
        keep_weights: Whether weights are kept for a ``domination`` that is read later.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        options: AnalysisOptions,
        *,
        learning_rate: float | None,
        pass_mode: PassMode,
        keep_weights: bool,
    ) -> None:
        self.num_samples = 0
        self.batch_statistics: set[bool] = set()
        self.loss_rounding = LossRounding()
        self.output_layer: str | None = None
        self.queue = SolveQueue()
        self.unmeasured_norms: list[Tensor] = []
        self.of_tables: set[str] = set()
        self.hidden: set[str] = set()
        self.unexplained: set[str] = set()
        self._model, self._selection = model, selection
        self._selected, self._options = selection.layers, options
        self._learning_rate = learning_rate
        self._pass_mode, self._keep_weights = pass_mode, keep_weights
        self._convolves = any(isinstance(module, _ConvNd) for module in model.modules())
        self._fisher = NetworkFisher()
        self._layers: dict[str, LayerStatistics] = {}
        self._order: dict[str, int] = {}

    def see(self, name: str) -> None:
        """Note the first use of a layer, which may be measured later."""
        self._order.setdefault(name, len(self._order))

    def compare_uses(self, output: Tensor, seen: Counter[str]) -> None:
        """Note the layers whose weights are in an output's graph more often than was seen."""
        selected = self._selected.items()
        weights = {name: layer.weight for name, layer in selected if layer.weight.requires_grad}
        for name in uses_in_graph(output, weights) - seen:
            if name in self._layers:
                self._layers[name].has_unseen_uses = True
            else:
                self.unexplained.add(name)

    def __contains__(self, name: str) -> bool:
        """Return whether a layer was called."""
        return name in self._layers

    def __getitem__(self, name: str) -> LayerStatistics:
        """Return a layer's statistics, new ones at its first call."""
        if name not in self._layers:
            self.see(name)
            self._layers[name] = self._new(name)
        return self._layers[name]

    def leave_out(self, name: str) -> None:
        """Measure nothing of a layer whose rows do not belong to samples."""
        del self._layers[name]
        self.of_tables.add(name)

    @property
    def layers(self) -> list[LayerStatistics]:
        """The layers called so far."""
        return list(self._layers.values())

    @property
    def reused_layers(self) -> tuple[str, ...]:
        """Names of the layers that were called again under ``ONE_PASS``, so that rows are missing.

        Their spectra are wrong: measure again, with these layers in ``options.float64``.
        """
        return tuple(name for name, layer in self._layers.items() if layer.is_reused)

    @property
    def of_samples(self) -> list[SampleCalls]:
        """What is measured of rows that have to belong to samples."""
        reduced = (of.reduced for of in self.layers if isinstance(of, ReducedStatistics))
        return [*self.blocks.values(), *reduced]

    @property
    def blocks(self) -> dict[str, FisherBlock]:
        """The Fisher blocks of the layers called so far."""
        layers = self._layers.items()
        return {name: layer.fisher for name, layer in layers if layer.fisher is not None}

    def snapshot(self, communicator: Communicator = SINGLE_PROCESS) -> Snapshot:
        """Return what was measured so far.

        Args:
            communicator: The processes that measure together; each computes the spectra of some
                layers.

        Returns:
            The records of all layers that were called; on other ranks than 0 an empty one.

        Raises:
            InputError: If nothing was recorded, or a gradient that was asked for did not arrive.
        """
        names = (
            sorted(self._layers, key=self._order.__getitem__)
            if communicator.world_size == 1
            else self._merge_ranks(communicator)
        )
        if not names:
            raise InputError(
                "nothing was recorded: call the model on at least one sample inside the with "
                "block, with gradients enabled, so that it calls the selected layers "
                f"({', '.join(self._selected)})."
            )
        rounding = self.loss_rounding.relative_square()
        if self.output_layer in self._layers and self.loss_rounding.has_zero_sums:
            self._layers[self.output_layer].has_zero_sums = True
        # Cheap measures first: torch's intra-op threads are still spinning after the backward pass
        # and would compete with the solver's for cores.
        plain = {name: layer.plain() for name, layer in self._layers.items()}
        for layer in self.layers:
            layer.enqueue()
        mine: dict[str, LayerSnapshot] = {}
        for number, (name, measures) in enumerate(plain.items()):
            tell("layer", number, len(plain))
            if measures is not None:
                mine[name] = self[name].record(measures, self._learning_rate, rounding)
        powers = {name: self[name].gradient_power for name in mine}
        rest = sum(float(norm) ** 2 for norm in self.unmeasured_norms)
        records: dict[str, LayerSnapshot] = {}
        gradients = _Gradients({}, 0.0)
        everything = (mine, powers, rest)
        for of_rank, its_powers, its_rest in communicator.gather_objects(everything, dst=0):
            records |= of_rank
            gradients = gradients.with_rank(its_powers, its_rest)
        network = NetworkFisher()
        for of_rank_too in communicator.gather_objects(self._fisher, dst=0):
            network.merge(of_rank_too)
        fisher = network.spectrum(rounding if self._options.is_empirical else 0.0)
        complete = all(record.gradient_is_whole for record in records.values())
        cosine = network.block_diagonal_cosine if complete else math.nan
        return Snapshot(
            tuple(records[name] for name in names if name in records),
            self.num_samples,
            BnMode.of(self.batch_statistics),
            fisher if fisher is None or complete else fisher.as_incomplete(),
            self._not_analysed(records),
            self._coverage(records, gradients),
            self._selection.shared,
            block_diagonal_cosine=cosine,
            block_diagonal_relative_error=math.sqrt(1 - cosine**2),
        )

    def _not_analysed(self, measured: Collection[str]) -> tuple[NotAnalysed, ...]:
        never = []
        for name in self._selected:
            if name in measured:
                continue
            reason = why_never(of_table=name in self.of_tables, hidden=name in self.hidden)
            if name in self.unexplained and name not in self.of_tables:
                reason = "its weight is used otherwise than by linear or conv2d"
            never.append(NotAnalysed(name, reason))
        layers = {name: layer for name, layer in self._selected.items() if name in measured}
        return (*self._selection.not_analysed, *never, *biases(layers, self._options))

    def _coverage(self, records: Mapping[str, LayerSnapshot], gradients: "_Gradients") -> Coverage:
        measured, power = 0, 0.0
        for name, record in records.items():
            if record.has_numbers:
                layer = self._selected[name]
                measured += layer.weight.numel()
                measured += layer.d_out * layer.operation.appends_one(self._options)
                power += gradients.of_layers[name]
        total = sum(parameter.numel() for parameter in self._model.parameters())
        whole = sum(gradients.of_layers.values()) + gradients.rest
        return Coverage(measured / total, power / whole if whole > 0 else math.nan)

    def _new(self, name: str) -> LayerStatistics:
        layer, options = self._selected[name], self._options
        fisher = fisher_block(name, layer, options, self._fisher, self._pass_mode)
        kind = TableStatistics if layer.operation.num_entries else LayerStatistics
        if options.reduces:
            kind = ReducedTableStatistics if layer.operation.num_entries else ReducedStatistics
        return (kind if layer.has_factors else GradientStatistics)(
            name,
            layer,
            options,
            fisher,
            pass_mode=self._pass_mode,
            queue=self.queue,
            keep_weights=self._keep_weights,
            convolves=self._convolves,
        )

    def _merge_ranks(self, communicator: Communicator) -> list[str]:
        """Keep the layers whose spectra this rank computes, with the passes of all ranks.

        Returns:
            The names of all layers.
        """
        of_ranks = communicator.all_gather_object((
            {name: layer.info for name, layer in self._layers.items()},
            self.num_samples,
            self.batch_statistics,
            self.loss_rounding,
        ))
        infos: dict[str, LayerInfo] = {}
        for of_rank, *_ in of_ranks:
            infos = of_rank | infos
        names = list(dict.fromkeys(name for of_rank, *_ in of_ranks for name in of_rank))
        self.num_samples = sum(num_samples for _, num_samples, *_ in of_ranks)
        self.batch_statistics = set().union(*(used for *_, used, _ in of_ranks))
        self.loss_rounding, *others = [rounding for *_, rounding in of_ranks]
        for rounding in others:
            self.loss_rounding.merge(rounding)
        costs = {
            name: solving_cost(self._selected[name], infos[name], self.num_samples)
            for name in names
        }
        alone = self._options.wants(*SAMPLE_MATRICES)  # its rows take more than all sums
        sizes = {name: AT_ONCE if alone else sum_bytes(infos[name]) for name in names}
        united: dict[str, LayerStatistics] = {}
        for portions in rounds(deal(costs, communicator.world_size), sizes):
            states = [[self[name].state() for name in portion] for portion in portions]
            for name in chain(*portions):
                del self._layers[name]  # its rows are freed once they are sent
            mine = portions[communicator.rank]
            layers = [self._new(name) for name in mine]
            for of_rank_too in communicator.all_to_all_objects(states):
                for layer, state in zip(layers, of_rank_too, strict=True):
                    layer.merge(state)
            united |= zip(mine, layers, strict=True)
        self._layers = united
        return names
