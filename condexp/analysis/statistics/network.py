"""What all layers of a network have shown: one tape each, and what they share."""

from collections.abc import Mapping
from functools import partial

from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.fisher.block import FisherBlock
from condexp.analysis.fisher.network import NetworkFisher
from condexp.analysis.layers.rows import Layer
from condexp.analysis.loss.rounding import LossRounding
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import BnMode, LayerSnapshot, Snapshot
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.statistics.moment import SolveQueue
from condexp.analysis.vocabulary import FisherType, Matrix
from condexp.errors import InputError


class NetworkStatistics:
    """The tapes of the layers that were called, in the order of their first calls.

    Args:
        modules: The layers that are measured, by name.
        options: What to measure.
        learning_rate: For ``effective_lr``: lr / (1 − momentum).
        root_noise: The loss's rounding; None where it does not count.
        streaming: See :class:`.MeasurementHooks`, also for the next two.
        single: One pass will follow.
        keeps_weights: For a ``domination`` that is read later.
    """

    def __init__(
        self,
        modules: Mapping[str, Layer],
        options: AnalysisOptions,
        *,
        learning_rate: float | None,
        root_noise: LossRounding | None,
        streaming: bool,
        single: bool,
        keeps_weights: bool,
    ) -> None:
        self.num_samples = 0
        self.batch_statistics: set[bool] = set()
        self.root_noise = root_noise
        self._modules, self._options = modules, options
        self._learning_rate, self._streaming = learning_rate, streaming
        self.waiting = SolveQueue() if single else None
        self._new_tape = partial(
            LayerStatistics, options=options, waiting=self.waiting, keeps_weights=keeps_weights
        )
        self._network = NetworkFisher()
        self._tapes: dict[str, LayerStatistics] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether a layer was called."""
        return name in self._tapes

    def __getitem__(self, name: str) -> LayerStatistics:
        """Return a layer's tape, a new one at its first call."""
        if name not in self._tapes:
            self._tapes[name] = self._new(name)
        return self._tapes[name]

    @property
    def came_again(self) -> tuple[str, ...]:
        """The layers of which rows were left out, for they were used again."""
        return tuple(name for name, tape in self._tapes.items() if tape.came_again)

    @property
    def blocks(self) -> dict[str, FisherBlock]:
        """The Fisher blocks of the layers called so far."""
        tapes = self._tapes.items()
        return {name: tape.fisher for name, tape in tapes if tape.fisher is not None}

    def snapshot(self, communicator: Communicator = SINGLE_PROCESS) -> Snapshot:
        """Return what was measured so far.

        Args:
            communicator: The processes that measure together; each solves a part of the layers.

        Returns:
            The records of all layers that were called; on other ranks than 0 an empty one.

        Raises:
            InputError: If nothing was recorded, or a gradient that was asked for did not arrive.
        """
        names = list(self._tapes) if communicator.world_size == 1 else self._unite(communicator)
        if not names:
            raise InputError(
                "nothing was recorded: call the model on at least one sample inside the with "
                "block, with gradients enabled, so that it calls the selected layers "
                f"({', '.join(self._modules)})."
            )
        excess = 0.0 if self.root_noise is None else self.root_noise.excess()
        # Cheap measures first: torch's intra-op threads still spin and would compete with the
        # solver's.
        plain = {name: tape.plain() for name, tape in self._tapes.items()}
        mine = {
            name: self[name].record(measures, self._learning_rate, excess)
            for name, measures in plain.items()
            if measures is not None
        }
        records: dict[str, LayerSnapshot] = {}
        for of_rank in communicator.gather_objects(mine, dst=0):
            records |= of_rank
        network = NetworkFisher()
        for of_rank_too in communicator.gather_objects(self._network, dst=0):
            network.merge(of_rank_too)
        hears_the_loss = self._options.fisher_type is FisherType.EMPIRICAL
        return Snapshot(
            tuple(records[name] for name in names if name in records),
            self.num_samples,
            BnMode.of(self.batch_statistics),
            network.spectrum(excess if hears_the_loss else 0.0),
        )

    def _new(self, name: str) -> LayerStatistics:
        module, options, fisher = self._modules[name], self._options, None
        if options.wants(Matrix.FISHER):
            fisher = FisherBlock(name, module, options, self._network, streaming=self._streaming)
        # Of several signals, each is a portion of the rows.
        streaming = self._streaming or options.has_several_signals
        return self._new_tape(name, module, fisher=fisher, streaming=streaming)

    def _unite(self, communicator: Communicator) -> list[str]:
        """Gather each layer's statistics on the rank that solves it, and keep only those.

        Returns:
            The names of all layers.
        """
        heard = communicator.all_gather_object((
            list(self._tapes),
            self.num_samples,
            self.batch_statistics,
            self.root_noise,
        ))
        names = list(dict.fromkeys(name for of_rank, *_ in heard for name in of_rank))
        self.num_samples = sum(num_samples for _, num_samples, *_ in heard)
        self.batch_statistics = set().union(*(used for *_, used, _ in heard))
        self.root_noise, *others = [noise for *_, noise in heard]
        for noise in others:
            if self.root_noise is not None and noise is not None:
                self.root_noise.merge(noise)
        united: dict[str, LayerStatistics] = {}
        for number, name in enumerate(names):
            share, tape = self[name].share, self._new(name)
            del self._tapes[name]
            for of_rank in communicator.gather_objects(share, dst=number % communicator.world_size):
                tape.merge(of_rank)
                united[name] = tape
        self._tapes = united
        return names
