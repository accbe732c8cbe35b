"""Loggers get a run's numbers, and can do it no harm: each is read back by its own reader."""

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from condexp.errors import InputError
from condexp.results.layer_measures import LayerMeasures
from condexp.results.loggers.follow import without_secrets
from condexp.runs import checks, loggers
from condexp.runs.stop_signals import Stopped
from condexp.store.reader import open_run
from condexp.store.run_folder.status import State
from tests.in_process import contents, run
from tests.results.wandb_file import read_offline
from tests.runs.test_resume import MLP, TINY, Signals

KAPPA = "kfac_kappa_0.5"
OPTIONS = ["logger.layers=[fc,last_linear]", f"logger.measures=[{KAPPA},weight_norm]"]
EVERY = ["logger=[tensorboard,mlflow,wandb]", "logger.wandb.mode=offline", *OPTIONS]
SECRET = "hunter2-hunter2"
Points = dict[str, list[tuple[int, float]]]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to run in, and credentials that must be found nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the test's own client
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, SECRET)


def logged_to_tensorboard(folder: Path) -> tuple[Points, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}, events


def logged_to_mlflow(store: Path) -> tuple[Points, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.absolute().as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "default"]
    (found,) = client.search_runs([experiment.experiment_id])
    histories = {k: client.get_metric_history(found.info.run_id, k) for k in found.data.metrics}
    return {k: [(m.step, m.value) for m in each] for k, each in histories.items()}, found


def logged_to_wandb(folder: Path) -> tuple[Points, Any]:
    points: Points = {}
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    runs = []
    for file in files:
        found, rows = read_offline(file)
        runs.append(found)
        for row in rows:
            for name, value in row.items():
                if not name.startswith(("_", "overview", "step")):
                    points.setdefault(name, []).append((row["step"], value))
    assert len({found.run_id for found in runs}) == 1
    return points, runs[0]


def expected(folder: Path) -> Points:
    """What the run's own file says that loggers should have."""
    stored = open_run(folder)
    metrics, measures = stored.metrics, LayerMeasures.read(stored)
    column = measures.layers.index("fc")
    points: Points = {
        f"fc/{name}": [
            (int(step), float(value))
            for step, value in zip(measures.steps, measures.values(name)[:, column], strict=True)
        ]
        for name in (KAPPA, "weight_norm")
    }
    points[f"fc/{KAPPA}_at_least"] = []
    for (step, value), mark in zip(
        list(points[f"fc/{KAPPA}"]), measures.marks(KAPPA)[:, column], strict=True
    ):
        if mark.name != "NONE":  # of three rows a unit, say: no number is logged as one
            points[f"fc/{KAPPA}"].remove((step, value))
        if mark.name == "AT_LEAST":
            points[f"fc/{KAPPA}_at_least"].append((step, value))
    evaluated = metrics.loc[metrics["test_loss"].notna()]
    for name in ("train_loss", "train_error", "test_loss", "test_error", "epoch"):
        points[name] = list(zip(evaluated.index.tolist(), evaluated[name].tolist(), strict=True))
    points["lr"] = [(int(step), float(metrics["lr"][step - 1])) for step in evaluated.index]
    return {name: each for name, each in points.items() if each}


def check(found: Points, wanted: Points, rel: float = 1e-12) -> None:
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in points], rel=rel), name


@pytest.fixture(scope="module")
def unlogged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run(tmp_path_factory.mktemp("unlogged"), *TINY, *MLP).folder
    assert folder is not None
    return folder


def test_a_stopped_run_is_one_whole_run_in_every_logger(tmp_path: Path, unlogged: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, *TINY, *MLP, *EVERY, observer=Signals(5, signal.SIGTERM))
    result = run(tmp_path, *TINY, *MLP, *EVERY, picture=True)
    folder = result.folder
    assert folder is not None
    assert folder.name == unlogged.name  # what is logged decides no number
    assert contents(folder) == contents(unlogged)
    assert "logger" not in (folder / "run.log").read_text()
    wanted = expected(folder)
    assert {"fc/weight_norm", "test_error", "lr"} <= wanted.keys()
    assert len(wanted["fc/weight_norm"]) == 9  # before and after the stop

    points, events = logged_to_tensorboard(folder)
    check(points, wanted, rel=1e-6)  # TensorBoard's scalars are float32
    (picture,) = events.Images("overview")
    assert picture.encoded_image_string == (folder / "overview.png").read_bytes()
    assert picture.step == 9
    parameters = hyperparameters(events)
    assert parameters["model.width"] == 8
    assert parameters["model.norm"] == "batch"
    assert not any(key.startswith(("run", "logger")) for key in parameters)

    points, found = logged_to_mlflow(tmp_path / "mlruns")
    check(points, wanted)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == folder.name
    assert found.data.params["optimizer.lr"] == "0.1"
    (artifacts,) = (tmp_path / "mlruns").rglob("overview.png")
    assert artifacts.read_bytes() == (folder / "overview.png").read_bytes()

    points, wandb_run = logged_to_wandb(folder)
    check(points, wanted)
    assert wandb_run.display_name == folder.name
    assert not wandb_run.git.remote_url
    assert [*folder.glob("wandb/*/files/media/images/overview*.png")]

    assert not [path for path in tmp_path.rglob("*") if path.is_file() and holds_secret(path)]


def hyperparameters(events: Any) -> Mapping[str, Any]:
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    return {k: getattr(v, str(v.WhichOneof("kind"))) for k, v in session.hparams.items()}


def holds_secret(path: Path) -> bool:
    return SECRET.encode() in path.read_bytes()


def test_the_same_command_tells_a_logger_what_it_lacks(tmp_path: Path, unlogged: Path) -> None:
    bare = run(tmp_path, *TINY, *MLP).folder
    assert bare is not None
    result = run(tmp_path, *TINY, *MLP, "logger=tensorboard", *OPTIONS)
    assert result.stored
    check(logged_to_tensorboard(bare)[0], expected(bare), rel=1e-6)
    run(tmp_path, *TINY, *MLP, "logger=tensorboard", *OPTIONS)
    check(logged_to_tensorboard(bare)[0], expected(bare), rel=1e-6)  # and nothing twice
    assert len([*(bare / "tensorboard").iterdir()]) == 1
    again = run(tmp_path, *TINY, *MLP, "logger=tensorboard", *OPTIONS, "run.on_existing=restart")
    assert not again.stored
    assert len([*(bare / "tensorboard").iterdir()]) == 1  # of the new run alone


BROKEN = {
    "import": "raise RuntimeError('broken at https://me:{secret}@host, {secret}')",
    "start": "def init(**_): raise RuntimeError('broken at https://me:{secret}@host, {secret}')",
    "middle": "class Run:\n def log(self, *_): raise RuntimeError('broken')",
    "close": "class Run:\n def finish(self): raise RuntimeError('broken')",
    "exit": "class Run:\n def log(self, *_):\n  import sys; sys.exit('broken')",
    "death": "class Run:\n def log(self, *_):\n  import os; os.kill(os.getpid(), 9)",
    "hang": "class Run:\n def log(self, *_):\n  import threading; threading.Event().wait()",
}
FAKE = """
class Settings:
    def __init__(self, **_): pass
class Base:
    def define_metric(self, *_, **__): pass
    def log(self, *_): pass
    def finish(self, **_): pass
class Run(Base): pass
def init(**_): return type('R', (Run, Base), {})()
"""


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_logger_costs_a_warning(
    tmp_path: Path,
    unlogged: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "fakes").mkdir()
    code = f"{FAKE}\n{BROKEN[way].replace('{secret}', SECRET)}\n"
    (tmp_path / "fakes" / "wandb.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    if way == "hang":
        monkeypatch.setattr(loggers, "CLOSE_SECONDS", 3.0)
    result = run(tmp_path, *TINY, *MLP, "logger=[tensorboard,wandb]", *OPTIONS)
    assert result.state is State.COMPLETE
    assert result.folder is not None
    assert contents(result.folder) == contents(unlogged)
    log = (result.folder / "run.log").read_text()
    assert log.count("WARNING") == 1
    reason = {"death": "code -9", "hang": "did not end within 3 s"}.get(way, "broken")
    assert reason in log
    assert SECRET not in log
    out = capsys.readouterr().out
    assert out.count("warning: logger wandb failed") == 1
    # The other one is as whole as ever.
    check(logged_to_tensorboard(result.folder)[0], expected(result.folder), rel=1e-6)


@pytest.mark.parametrize("name", loggers.NAMES)
def test_a_logger_that_is_not_installed(
    tmp_path: Path, condexp: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    code, out, err = condexp("run", *TINY, *MLP, f"logger={name}")
    assert code == 2
    assert not out
    assert err == f"condexp: logger={name} needs {name}: pip install 'condexp[{name}]'.\n"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["logger.layers=[fcc]"], "logger.layers has 'fcc'.*Did you mean 'fc'"),
        (["logger.measures=[kfac_kapa_0.5]"], "unknown logger.measures.*'kfac_kappa_0.5'"),
        (["logger.measures=[kfac_kappa_0.25]"], "unknown logger.measures"),
        (
            ["logger=mlflow", "logger.mlflow.tracking_uri=https://me:secret@host"],
            "tracking_uri holds a user's name or password",
        ),
        (["+logger.tensorboard.api_key=1"], "unknown key 'logger.tensorboard.api_key'"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: list[str], message: str) -> None:
    given = ["logger=tensorboard"] if "logger=mlflow" not in options else []
    with pytest.raises(InputError, match=message):
        run(tmp_path, *TINY, *MLP, *given, *options)
    assert not [*tmp_path.iterdir()]


def test_each_job_of_a_sweep_has_its_own(
    tmp_path: Path, condexp: Command, jobs_in_this_process: None, no_picture: None
) -> None:
    code, *_ = condexp(
        "run", "-m", *TINY, *MLP, "seed=1,2", "logger=[tensorboard,mlflow]", *OPTIONS
    )
    assert code == 0
    folders = sorted((tmp_path / "outputs" / "default").iterdir())
    assert len(folders) == 2
    for folder in folders:
        check(logged_to_tensorboard(folder)[0], expected(folder), rel=1e-6)
    ids = {json.loads((folder / "mlflow.json").read_text())["run_id"] for folder in folders}
    assert len(ids) == 2


def test_messages_lose_their_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abc123def")
    said = "GET https://user:pw@host/api?k=abc123def\nfailed"
    assert without_secrets(said) == "GET https://…@host/api?k=… failed"
