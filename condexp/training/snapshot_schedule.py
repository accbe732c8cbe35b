"""The schedule of snapshots: pure functions from a run's length to a set of steps."""

from collections.abc import Iterator
from dataclasses import dataclass

from condexp.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """The union of simple rules, each saying at which training steps a snapshot is taken.

    A step s is 0-based and stands for the network before update s.

    Attributes:
        every_steps: k: the steps 0, k, 2k, …
        every_epochs: k: the last step of each k-th epoch.
        at_steps: These very steps.
        log_spaced: n: n points from 1 to T − 1 in geometric progression, rounded; points that
            round to the same step are taken once.
        at_start: Step 0.
        at_end: The last step that can be measured.

    Raises:
        InputError: If a period or a count is below 1, or a step below 0.

    >>> Schedule(every_epochs=1, at_start=True).steps(num_steps=6, steps_per_epoch=3, last=5)
    (0, 2, 5)
    """

    every_steps: int | None = None
    every_epochs: int | None = None
    at_steps: tuple[int, ...] = ()
    log_spaced: int | None = None
    at_start: bool = False
    at_end: bool = False

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_epochs", "log_spaced"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"schedule.{name} is {value}: it must be at least 1, or null")
        if any(step < 0 for step in self.at_steps):
            raise InputError(f"schedule.at_steps is {list(self.at_steps)}: steps count from 0")

    def steps(self, num_steps: int, steps_per_epoch: int, last: int) -> tuple[int, ...]:
        """Return the steps to measure in a run of given length.

        Args:
            num_steps: T, the number of updates of the run.
            steps_per_epoch: Updates in an epoch.
            last: The last step that can be measured: T − 1 on the training batches, T by a probe.

        Returns:
            The steps, ascending, each once.

        Raises:
            InputError: If the schedule never fires in this run, or names a step after the last.
        """
        beyond = [step for step in self.at_steps if step > last]
        if beyond:
            raise InputError(
                f"schedule.at_steps holds {beyond}: the last step that can be measured in this run"
                f" of {num_steps} steps is {last}"
                + (
                    "; the trained network, step T, can be measured with analysis.source=probe"
                    if beyond == [num_steps]
                    else ""
                )
            )
        fired = set(self._candidates(num_steps, steps_per_epoch, last))
        if not fired:
            raise InputError(
                f"the schedule never fires in a run of {num_steps} steps ({steps_per_epoch} an"
                f" epoch): {self}. Set at_start, at_end or a shorter period, or switch the analysis"
                " off with analysis=none"
            )
        return tuple(sorted(fired))

    def _candidates(self, num_steps: int, steps_per_epoch: int, last: int) -> Iterator[int]:
        if self.every_steps is not None:
            yield from range(0, last + 1, self.every_steps)
        if self.every_epochs is not None:
            period = self.every_epochs * steps_per_epoch
            yield from range(period - 1, num_steps, period)
        yield from self.at_steps
        if self.log_spaced is not None and num_steps > 1:
            yield from _geometric(num_steps - 1, self.log_spaced)
        if self.at_start:
            yield 0
        if self.at_end:
            yield last


def _geometric(end: int, count: int) -> Iterator[int]:
    """Yield ``round(end^(i / (count − 1)))`` for i = 0 … count − 1: from 1 to ``end``."""
    yield 1
    for i in range(1, count):
        yield round(end ** (i / (count - 1)))


def evaluation_steps(
    num_steps: int, steps_per_epoch: int, every_epochs: int | None
) -> tuple[int, ...]:
    """Return after how many updates the network is evaluated: each k-th epoch, and at the end.

    Args:
        num_steps: T, the number of updates of the run.
        steps_per_epoch: Updates in an epoch.
        every_epochs: k, the number of epochs between evaluations; None: at the end only.

    Returns:
        Numbers of finished updates, ascending; the last is T.

    Raises:
        InputError: If k is below 1.

    >>> evaluation_steps(num_steps=10, steps_per_epoch=2, every_epochs=2)
    (4, 8, 10)
    """
    if every_epochs is None:
        return (num_steps,)
    if every_epochs < 1:
        raise InputError(f"eval.every_epochs is {every_epochs}: it must be at least 1")
    period = every_epochs * steps_per_epoch
    return (*range(period, num_steps, period), num_steps)
