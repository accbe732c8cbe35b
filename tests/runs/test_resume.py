"""A run that was stopped or killed goes on by the same command, to the same bytes."""

import errno
import fcntl
import json
import os
import pickle
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from condexp.errors import InputError
from condexp.runs import attempt
from condexp.runs.stop_signals import Stopped
from condexp.store.reader import open_run
from condexp.store.run_folder.status import State, read_status
from condexp.training.events import StepRecord
from tests.in_process import contents, run
from tests.observer import Silent
from tests.store.hdf5.processes import without_privileges

TINY = [
    "trainer.steps=9",  # an epoch is four
    "dataset.subset.train=40",
    "dataset.subset.test=20",
    "trainer.batch_size=10",
    "analysis.schedule.every_steps=2",
    "trainer.checkpoint.every_steps=4",
]
MLP = ["model.depth=3", "model.width=8"]
RESNET = ["model=resnet", "model.depth=8", "model.last_bn=true"]
PROBE = ["analysis.source=probe", "analysis.probe.size=20", "analysis.probe.batch_size=10"]


class Signals(Silent):
    """Sends this process a signal during a step."""

    def __init__(self, at: int, *numbers: signal.Signals) -> None:
        super().__init__()
        self.at, self.numbers = at, numbers

    def on_step(self, record: StepRecord, /) -> None:
        super().on_step(record)
        if record.step == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)


def stop(root: Path, *overrides: str, at: int, by: signal.Signals = signal.SIGTERM) -> Path:
    """Start a run and stop it after a step; its folder."""
    observer = Signals(at, by)
    with pytest.raises(Stopped) as stopped:
        run(root, *overrides, observer=observer)
    assert stopped.value.signal is by
    assert len(observer.losses) == at + 1  # the step was finished, and no other begun
    (folder,) = (root / "default").iterdir()
    assert read_status(folder).state is State.INTERRUPTED
    assert read_status(folder).step == at + 1
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MLP's folder after a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    folder = run(root, *TINY, *MLP).folder
    assert folder is not None
    return folder


@pytest.mark.parametrize(
    "way",
    [
        [*RESNET, "dataset.augment=crop_flip", "optimizer=adamw", "scheduler=cosine"],
        [*MLP, *PROBE, "analysis.schedule.at_end=true"],
        [*RESNET, *PROBE, "analysis.probe.mode=eval", "trainer.precision=bf16"],
        [*RESNET, "analysis.network_precision=float64"],
        [*MLP, "trainer.batch_size=full", "trainer.eval.every_epochs=3"],
        ["model=resnet_imagenet", "model.depth=18", "model.dropout=0.3", "analysis=last_layer"],
        [*MLP, "trainer.rescale.factor=10", "trainer.rescale.release_epoch=1"],
        pytest.param([*RESNET, "trainer.compile=true"], marks=pytest.mark.slow),
    ],
    ids=["augment", "probe", "bf16", "float64", "full batch", "dropout", "rescale", "compile"],
)
def test_a_stopped_run_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, way: list[str]
) -> None:
    undisturbed = run(tmp_path / "whole", *TINY, *way).folder
    assert undisturbed is not None
    # In the middle of the first epoch, and of the second.
    stop(tmp_path / "stopped", *TINY, *way, at=1)
    observer = Signals(5, signal.SIGUSR1)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", *TINY, *way, observer=observer)
    assert len(observer.losses) == 4  # steps 2 to 5
    result = run(tmp_path / "stopped", *TINY, *way)
    assert result.state is State.COMPLETE
    assert result.folder is not None
    assert contents(result.folder) == contents(undisturbed)


@pytest.mark.parametrize("at", range(8))
def test_at_every_step(tmp_path: Path, whole: Path, at: int) -> None:
    folder = stop(tmp_path, *TINY, *MLP, at=at)
    run(tmp_path, *TINY, *MLP)
    assert contents(folder) == contents(whole)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in whole.iterdir() if path.stem != "overview"}


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_release_is_made_once(tmp_path: Path, at: int) -> None:
    """Step 4 is the release: a checkpoint at 4, before it; one at 5, behind it."""
    way = [*TINY, *MLP, "trainer.rescale.factor=10", "trainer.rescale.release_epoch=1"]
    undisturbed = run(tmp_path / "whole", *way).folder
    assert undisturbed is not None
    folder = stop(tmp_path / "stopped", *way, at=at)
    run(tmp_path / "stopped", *way)
    assert contents(folder) == contents(undisturbed)
    norms = open_run(folder).measures()["weight_norm"].sel(layer="layers.0.linear")
    # Snapshots at even steps; the updates change a norm of about 10 by less than a tenth.
    before, after = float(norms.sel(step=2)), float(norms.sel(step=4))
    assert before / after == pytest.approx(10, rel=0.2)


def test_a_run_that_is_asked_in_its_last_step_is_finished(tmp_path: Path, whole: Path) -> None:
    result = run(tmp_path, *TINY, *MLP, observer=Signals(8, signal.SIGTERM))
    assert result.state is State.COMPLETE
    assert result.folder is not None
    assert contents(result.folder) == contents(whole)


def test_a_second_ctrl_c_ends_the_run_at_once_and_costs_no_result(
    tmp_path: Path, whole: Path
) -> None:
    observer = Signals(6, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *TINY, *MLP, observer=observer)
    (folder,) = (tmp_path / "default").iterdir()
    assert read_status(folder).state is State.INTERRUPTED
    again = Silent()
    run(tmp_path, *TINY, *MLP, observer=again)
    assert len(again.losses) == 5  # from the checkpoint of step 4
    assert contents(folder) == contents(whole)


def test_an_error_is_reported_and_the_same_command_goes_on(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stumbling(Silent):
        def on_step(self, record: StepRecord, /) -> None:
            if record.step == 7:
                raise OSError(5, "Input/output error")

    result = run(tmp_path, *TINY, *MLP, observer=Stumbling())
    assert (result.state, result.message) == (State.FAILED, "[Errno 5] Input/output error")
    assert result.folder is not None
    assert run(tmp_path, *TINY, *MLP).state is State.COMPLETE
    assert read_status(result.folder).attempts == 2
    assert contents(result.folder) == contents(whole)


def test_what_the_folder_says_of_an_attempt_that_goes_on(tmp_path: Path, whole: Path) -> None:
    folder = stop(tmp_path, *TINY, *MLP, at=6)
    first = read_status(folder)
    provenance = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(provenance | {"python": "older"}))
    run(tmp_path, *TINY, *MLP)
    second, undisturbed = read_status(folder), read_status(whole)
    assert (first.attempts, second.attempts) == (1, 1)  # to be interrupted is no failure
    assert second.started == first.started
    assert second.seconds > first.seconds > 0
    for name in ("step", "epoch", "test_error", "best_test_error", "train_loss"):
        assert getattr(second, name) == getattr(undisturbed, name)
    log = (folder / "run.log").read_text()
    assert "stopped by SIGTERM" in log
    assert "going on from step 7" in log
    assert log.rstrip().endswith("complete")
    (earlier,) = json.loads((folder / "provenance.json").read_text())["earlier"]
    assert earlier["python"] == "older"
    assert "packages" not in earlier  # they are the same


def test_restart_forgets_what_was_there(tmp_path: Path, whole: Path) -> None:
    folder = stop(tmp_path, *TINY, *MLP, at=6)
    observer = Silent()
    run(tmp_path, *TINY, *MLP, "run.on_existing=restart", observer=observer)
    assert len(observer.losses) == 9
    assert read_status(folder).attempts == 1
    assert "SIGTERM" not in (folder / "run.log").read_text()
    assert contents(folder) == contents(whole)


def test_a_diverged_run_is_sealed_and_ends_the_same_wherever_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = [*TINY, "model.depth=3", "model.width=8", "model.norm=none", "optimizer.lr=1e18"]
    result = run(tmp_path / "whole", *way)
    assert result.state is State.DIVERGED
    assert result.folder is not None
    whole, num_steps = result.folder, read_status(result.folder).step
    assert 2 <= num_steps < 9
    folder = stop(tmp_path / "stopped", *way, at=0)
    # Its last moment: all is written but what says so.
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(attempt.Attempt, "_finish", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", *way)
    observer = Silent()
    result = run(tmp_path / "stopped", *way, observer=observer)
    assert (result.state, observer.losses) == (State.DIVERGED, [])
    assert contents(folder) == contents(whole)
    assert read_status(folder).step == num_steps


def test_the_previous_checkpoint_steps_in(tmp_path: Path, whole: Path) -> None:
    folder = stop(tmp_path, *TINY, *MLP, at=6)
    (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:-1000])
    observer = Silent()
    run(tmp_path, *TINY, *MLP, observer=observer)
    assert len(observer.losses) == 5  # from step 4
    assert "resuming from checkpoint.previous.pt, step 4" in (folder / "run.log").read_text()
    assert contents(folder) == contents(whole)


def test_without_a_checkpoint_to_trust_nothing_is_touched(tmp_path: Path, whole: Path) -> None:
    folder = stop(tmp_path, *TINY, *MLP, at=6)
    foreign = stop(tmp_path / "other", *TINY, *MLP, "seed=2", at=6)
    (folder / "checkpoint.previous.pt").write_bytes(b"")
    (folder / "checkpoint.pt").write_bytes((foreign / "checkpoint.pt").read_bytes())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for _ in range(2):
        with pytest.raises(InputError, match=r"of another configuration.*on_existing=restart"):
            run(tmp_path, *TINY, *MLP)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    run(tmp_path, *TINY, *MLP, "run.on_existing=restart")
    assert contents(folder) == contents(whole)


def test_a_network_that_has_changed_since_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(tmp_path, *TINY, *MLP, at=6)
    monkeypatch.setattr(
        torch.nn.Module, "load_state_dict", lambda *_: (_ for _ in ()).throw(RuntimeError("size"))
    )
    result = run(tmp_path, *TINY, *MLP)
    assert result.state is State.FAILED
    assert "another network or optimizer: size" in str(result.message)
    assert "run.on_existing=restart" in str(result.message)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_good_enough(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = stop(tmp_path, *TINY, *MLP, at=6)
    run(tmp_path, *TINY, *MLP)
    assert contents(folder) == contents(whole)


def test_a_folder_that_became_read_only_is_one_clear_error(tmp_path: Path, whole: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # the superuser's own folders are closed to others
        root = Path(name)
        folder = stop(root, *TINY, *MLP, at=6)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        for path in (root, root / "default", folder):
            path.chmod(0o555)
        try:
            with without_privileges():
                result = refusal(root, *TINY, *MLP)
        finally:
            for path in (root, root / "default", folder):
                path.chmod(0o755)
        assert "cannot write" in result or "cannot be made" in result
        assert str(folder) in result
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        run(root, *TINY, *MLP)
        assert contents(folder) == contents(whole)


def refusal(root: Path, *overrides: str) -> str:
    """What is said against a run: before it, or as its failure."""
    try:
        return str(run(root, *overrides).message)
    except InputError as error:
        return str(error)


class Malice:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_folder_from_somebody_else_executes_nothing(tmp_path: Path) -> None:
    import condexp

    folder, harm = stop(tmp_path, *TINY, *MLP, at=6), tmp_path / "harm"
    torch.save({"model": Malice(harm)}, folder / "checkpoint.pt")
    (folder / "checkpoint.previous.pt").write_bytes(pickle.dumps(Malice(harm)))
    (folder / "config.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{harm}']\n")
    with pytest.raises(InputError, match="is damaged or not a checkpoint"):
        run(tmp_path, *TINY, *MLP)
    opened = condexp.open_run(folder)
    with pytest.raises(InputError, match="is damaged"):
        _ = opened.config
    assert len(condexp.collect([tmp_path])) == 1
    run(tmp_path, *TINY, *MLP, "run.on_existing=restart")
    assert not harm.exists()


def test_vanished_data_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from condexp.runs.build import _loaded
    from tests.data.archives import publish_idx, write_mnist_like

    data = tmp_path / "data"
    write_mnist_like(data)
    publish_idx(monkeypatch, "mnist", data)
    way = [*TINY, *MLP, "dataset=mnist", f"dataset.root={data}"]
    whole = run(tmp_path / "whole", *way).folder
    assert whole is not None
    folder = stop(tmp_path, *way, at=6)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    data.rename(tmp_path / "away")
    _loaded.clear()
    with pytest.raises(InputError, match="mnist"):
        run(tmp_path, *way)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    # Other data under the same name would be half of one run and half of another.
    write_mnist_like(data, num_train=60)
    publish_idx(monkeypatch, "mnist", data)
    _loaded.clear()
    with pytest.raises(InputError, match=r"other data than dataset\.root holds now"):
        run(tmp_path, *way)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "away").rename(tmp_path / "data2")
    publish_idx(monkeypatch, "mnist", tmp_path / "data2")
    _loaded.clear()
    run(tmp_path, *way[:-1], f"dataset.root={tmp_path / 'data2'}")
    assert contents(folder) == contents(whole)


class BetweenLayers(Silent):
    """Asks to stop in the middle of a snapshot.

    Args:
        what: What is being done then.
        snapshot: The number of the snapshot, from 0.
    """

    def __init__(self, what: str, snapshot: int) -> None:
        super().__init__()
        self.what, self.snapshot = what, snapshot
        self.seen: list[tuple[str, int]] = []

    def measuring(self, what: str, num_done: int, num: int, /) -> None:
        self.seen.append((what, num_done))
        if (what, num_done) == (self.what, 1) and self.told.count("snapshot") == self.snapshot:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("what", "way"),
    [
        ("layer", [*RESNET, "dataset.augment=crop_flip"]),
        ("layer", [*RESNET, "analysis.network_precision=float64"]),
        ("layer", [*MLP, *PROBE]),
        ("batch", [*MLP, *PROBE]),
        ("back-propagation", [*MLP, *PROBE, "analysis.fisher_type=exact",
                              "analysis.probe.mode=eval", "analysis.matrices=[fisher,kfac,input]"]),
        # The search goes on from the last snapshot's eigenvectors, which the checkpoint has.
        ("block", [*MLP, *PROBE, "analysis.matrices=[hessian,ggn]", "model.width=16"]),
        ("block", [*MLP, "analysis.matrices=[input,hessian]", "model.width=16"]),
        ("block", [*MLP, "analysis.matrices=[hessian,ggn]", "analysis.network_precision=float64",
                   "analysis.layer_blocks=false", "model.width=16", "analysis.top_k=2"]),
    ],
)  # fmt: skip
def test_it_stops_between_the_layers_of_a_snapshot(
    tmp_path: Path, what: str, way: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    undisturbed = run(tmp_path / "whole", *TINY, *way).folder
    assert undisturbed is not None
    capfd.readouterr()
    observer = BetweenLayers(what, snapshot=2)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", *TINY, *way, observer=observer)
    assert "stopping after this layer or step" in capfd.readouterr().err
    assert observer.told.count("snapshot") == 2
    assert len(observer.losses) == 2  # the snapshots are before steps 0, 1, 2, …
    assert observer.seen[-1] == (what, 1)  # nothing was measured after it
    result = run(tmp_path / "stopped", *TINY, *way)
    assert result.folder is not None
    assert contents(result.folder) == contents(undisturbed)
