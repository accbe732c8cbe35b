"""The exact set of steps of every rule, and what is refused."""

import pytest

from condexp.errors import InputError
from condexp.training.snapshot_schedule import Schedule, evaluation_steps

T, EPOCH = 10, 4


@pytest.mark.parametrize(
    ("schedule", "batch", "probe"),
    [
        (Schedule(every_steps=1), tuple(range(10)), tuple(range(11))),
        (Schedule(every_steps=5), (0, 5), (0, 5, 10)),
        (Schedule(every_steps=4), (0, 4, 8), (0, 4, 8)),
        (Schedule(every_steps=100), (0,), (0,)),
        (Schedule(every_epochs=1), (3, 7), (3, 7)),
        (Schedule(every_epochs=2), (7,), (7,)),
        (Schedule(at_steps=(9, 2, 2)), (2, 9), (2, 9)),
        (Schedule(log_spaced=3), (1, 3, 9), (1, 3, 9)),
        (Schedule(log_spaced=1), (1,), (1,)),
        # 9^(i/9) rounds 1.28, 1.63 to 1, 2 and 2.08, 2.66 to 2, 3: ten points, seven steps.
        (Schedule(log_spaced=10), (1, 2, 3, 4, 6, 7, 9), (1, 2, 3, 4, 6, 7, 9)),
        (Schedule(at_start=True), (0,), (0,)),
        (Schedule(at_end=True), (9,), (10,)),
        (
            Schedule(4, 1, (5,), 3, at_start=True, at_end=True),
            (0, 1, 3, 4, 5, 7, 8, 9),
            (0, 1, 3, 4, 5, 7, 8, 9, 10),
        ),
    ],
)
def test_exact_steps(schedule: Schedule, batch: tuple[int, ...], probe: tuple[int, ...]) -> None:
    assert schedule.steps(T, EPOCH, T - 1) == batch
    assert schedule.steps(T, EPOCH, T) == probe


def test_one_step_run() -> None:
    assert Schedule(at_start=True, at_end=True, log_spaced=5).steps(1, 1, 0) == (0,)
    assert Schedule(at_start=True, at_end=True).steps(1, 1, 1) == (0, 1)


@pytest.mark.parametrize(
    ("schedule", "num_steps"),
    [(Schedule(), T), (Schedule(every_epochs=3), T), (Schedule(log_spaced=4), 1)],
)
def test_never_fires(schedule: Schedule, num_steps: int) -> None:
    with pytest.raises(InputError, match="never fires in a run of"):
        schedule.steps(num_steps, EPOCH, num_steps - 1)


def test_steps_beyond_the_end() -> None:
    with pytest.raises(InputError, match=r"holds \[11, 12\].*run of 10 steps is 10$"):
        Schedule(at_steps=(3, 11, 12)).steps(T, EPOCH, T)


def test_the_trained_network_needs_a_probe() -> None:
    schedule = Schedule(at_steps=(T,))
    assert schedule.steps(T, EPOCH, T) == (T,)
    with pytest.raises(InputError, match=r"holds \[10\].*is 9; .*analysis.source=probe"):
        schedule.steps(T, EPOCH, T - 1)


@pytest.mark.parametrize("name", ["every_steps", "every_epochs", "log_spaced"])
def test_counts_below_one(name: str) -> None:
    with pytest.raises(InputError, match=f"schedule.{name} is 0: it must be at least 1"):
        Schedule(**{name: 0})  # type: ignore[arg-type]


def test_negative_step() -> None:
    with pytest.raises(InputError, match="steps count from 0"):
        Schedule(at_steps=(-1,))


@pytest.mark.parametrize(
    ("every_epochs", "expected"), [(1, (4, 8, 10)), (2, (8, 10)), (3, (10,)), (None, (10,))]
)
def test_evaluation_steps(every_epochs: int | None, expected: tuple[int, ...]) -> None:
    assert evaluation_steps(T, EPOCH, every_epochs) == expected


def test_evaluation_at_the_end_is_not_repeated() -> None:
    assert evaluation_steps(8, EPOCH, 1) == (4, 8)


def test_evaluation_period_below_one() -> None:
    with pytest.raises(InputError, match=r"eval.every_epochs is 0"):
        evaluation_steps(T, EPOCH, 0)
