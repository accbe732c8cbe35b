"""Tiny runs to be disturbed, and what has to be true of them at any moment and in the end."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from condexp.store.hdf5.validate import validate_results
from condexp.store.run_folder.status import State, read_status
from tests.survival.nursery import Nursery

TINY = [
    "dataset.subset.train=40",
    "dataset.subset.test=20",
    "trainer.batch_size=10",
    "trainer.num_threads=1",
    "trainer.checkpoint.every_steps=2",
]
EVERY_RUN = {
    # BatchNorm, momentum, a snapshot every step or two.
    "mlp": [
        *TINY,
        "model.depth=3",
        "model.width=8",
        "trainer.steps=16",
        "analysis.schedule.every_steps=2",
    ],
    "resnet": [
        *TINY,
        "model=resnet",
        "model.depth=8",
        "dataset.augment=crop_flip",
        "optimizer=adamw",
        "trainer.steps=9",
        "trainer.eval.every_epochs=2",
        "analysis.schedule.every_steps=3",
    ],
    # What is searched for starts from the checkpoint's vectors.
    "curvature": [
        *TINY,
        "model.depth=2",
        "model.width=16",
        "trainer.steps=12",
        "analysis.matrices=[hessian,ggn]",
        "analysis.top_k=2",
        "analysis.num_random_vectors=2",
        "analysis.num_lanczos_steps=2",
        "analysis.schedule.every_steps=3",
        "analysis.sharpness.every_steps=2",
    ],
    # As few columns as there can be, so that every single write can be made to fail.
    "few": [
        *TINY,
        "model.depth=2",
        "model.width=4",
        "trainer.steps=3",
        "analysis.layers.include=[last_linear]",
        "analysis.matrices=[input]",
        "analysis.schedule.log_spaced=2",
    ],
}
COUNTERS = {"": "n_committed", "train": "n_train_committed", "eval": "n_eval_committed"}


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed."""

    overrides: list[str]
    folder: Path
    results: bytes
    checkpoint: bytes
    num_records: int


def undisturbed(nursery: Nursery, root: Path, overrides: list[str]) -> Reference:
    """Run it to its end."""
    nursery.warm(overrides)
    told = root / "told"
    assert nursery.run(overrides, root, told=str(told)) == 0
    folder = folder_under(root)
    results, checkpoint = (folder / name for name in ("results.h5", "checkpoint.pt"))
    return Reference(
        overrides, folder, results.read_bytes(), checkpoint.read_bytes(), told.stat().st_size
    )


def folder_under(root: Path) -> Path:
    (found,) = (root / "default").iterdir()
    return found


def check_at_any_moment(root: Path, reference: Reference) -> tuple[int, int]:
    """No results file, or one that HDF5 opens, whose committed rows are the reference's."""
    file = root / "default" / reference.folder.name / "results.h5"
    if not file.exists():
        return 0, 0
    with h5py.File(file) as found, h5py.File(reference.folder / "results.h5") as expected:
        rows = {group: int(found[name][()]) for group, name in COUNTERS.items()}

        def compare(path: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and item.dims and path in expected:
                axis = item.name.rpartition("/")[2] if item.is_scale else item.dims[0].keys()[0]
                group = {"step": "", "train_step": "train", "eval_step": "eval"}.get(axis)
                num = len(item) if group is None else rows[group]
                np.testing.assert_array_equal(item[:num], expected[path][:num], strict=True)

        found.visititems(compare)
    assert validate_results(file) == []
    return rows[""], rows["train"]


def check_in_the_end(root: Path, reference: Reference, *, sealed: bool = True) -> None:
    """The same bytes as if nothing had happened."""
    folder = folder_under(root)
    assert read_status(folder).state in {State.COMPLETE, State.DIVERGED}
    check_at_any_moment(root, reference)
    if sealed:
        assert (folder / "results.h5").read_bytes() == reference.results
    assert (folder / "checkpoint.pt").read_bytes() == reference.checkpoint
    # Nothing of the way there is left.
    ways = {path.name for path in folder.iterdir()} - {
        path.name for path in reference.folder.iterdir()
    }
    assert ways == set()
