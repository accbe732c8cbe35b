"""Readers of every kind look on for a whole run: none fails, and none sees a row that is wrong."""

from pathlib import Path

from tests.survival.nursery import Nursery
from tests.survival.readers import READERS
from tests.survival.runs import EVERY_RUN, check_in_the_end, undisturbed

# A snapshot a step, and no checkpoints' syncs to wait for; long enough to be looked at often.
LONG = [
    *EVERY_RUN["mlp"],
    "trainer.epochs=null",
    "trainer.steps=150",
    "analysis.schedule.every_steps=1",
    "trainer.checkpoint.every_steps=50",
    "trainer.eval.every_epochs=20",
]


def test_four_readers_look_on_for_a_whole_run(tmp_path: Path, nursery: Nursery) -> None:
    reference = undisturbed(nursery, tmp_path / "reference", LONG)
    root, seen = tmp_path / "watched", tmp_path / "seen"
    seen.mkdir()
    path = root / "default" / reference.folder.name / "results.h5"
    readers = [nursery.read(name, path, reference.folder / "results.h5", seen) for name in READERS]
    # From creation to seal.
    assert nursery.run(reference.overrides, root, seen=str(seen)) == 0
    (seen / "end").touch()
    assert [nursery.wait(reader) for reader in readers] == [0] * len(readers)
    check_in_the_end(root, reference)
