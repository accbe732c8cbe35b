"""A run of very many steps begins as soon as a short one, and its metrics stay in the file."""

import gc
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from condexp.training.events import StepRecord
from tests.in_process import run
from tests.observer import Silent

TINY = (
    *("dataset.subset.train=40", "dataset.subset.test=20", "trainer.batch_size=10"),
    *("model.depth=2", "model.width=8", "trainer.epochs=null", "trainer.eval.every_epochs=1000"),
    *("analysis=none", "trainer.checkpoint.every_epochs=null"),
)
PERIOD, ENDED = 500, 2300
LOOKED_AT = range(300, ENDED + 1, PERIOD)  # steps


class Counted(Silent):
    """Stops a run at a step; forgets what it was told."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last
        self.traced: dict[int, int] = {}

    def on_step(self, record: StepRecord, /) -> None:
        if record.step in LOOKED_AT:
            gc.collect()  # what only waits for it is not kept
            self.traced[record.step] = tracemalloc.get_traced_memory()[0]
        if record.step == self.last:
            raise KeyboardInterrupt


def calls_before_the_first_step(root: Path, num_steps: int) -> int:
    count = 0

    def counting(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(root, *TINY, f"trainer.steps={num_steps}", observer=Counted(0))
    finally:
        sys.setprofile(before)
    return count


def test_it_begins_as_soon_as_a_short_one(tmp_path: Path) -> None:
    run(tmp_path / "warm", *TINY, "trainer.steps=2")  # imports are done
    short, long = (
        calls_before_the_first_step(tmp_path / str(num), num) for num in (1_000, 1_000_000)
    )
    assert long < 1.2 * short


def test_its_metrics_do_not_grow_the_process(tmp_path: Path) -> None:
    observer = Counted(ENDED)
    tracemalloc.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, *TINY, "trainer.steps=1000000", observer=observer)
    finally:
        tracemalloc.stop()
    traced = [observer.traced[step] for step in LOOKED_AT]
    grown = [after - before for before, after in pairwise(traced)]
    # A record that is kept takes 200 bytes in every period; what is made once, in one of them.
    assert min(grown) < 40 * PERIOD, f"{grown} bytes"
