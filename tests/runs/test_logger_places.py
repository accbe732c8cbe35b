"""Where loggers write to and who writes: servers, databases, one rank of several, checkpoints."""

from pathlib import Path

import pytest

from condexp.errors import InputError
from condexp.runs import loggers
from condexp.runs.analyze_checkpoints import analyze_checkpoints
from condexp.runs.workers import group
from condexp.store.reader import open_run
from condexp.store.run_folder.kept_checkpoints import kept_checkpoints
from condexp.store.run_folder.status import State
from tests.in_process import run, validated
from tests.runs.logged_http import tracking_server
from tests.runs.test_loggers import (
    KAPPA,
    OPTIONS,
    Points,
    check,
    expected,
    logged_to_mlflow,
    logged_to_tensorboard,
)
from tests.runs.test_resume import MLP, TINY
from tests.waiting import GUARD_SECONDS

PASSWORD = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the test's own client
    monkeypatch.setattr(loggers, "CLOSE_SECONDS", GUARD_SECONDS)


def test_a_tracking_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "artifacts").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    with tracking_server(tmp_path / "artifacts") as server:
        uri = f"logger.mlflow.tracking_uri={server.uri}"
        folder = run(tmp_path, *TINY, *MLP, "logger=mlflow", uri, *OPTIONS, picture=True).folder
    assert folder is not None
    assert "logger" not in (folder / "run.log").read_text()
    found: Points = {}
    for name, step, value in server.metrics:
        found.setdefault(name, []).append((step, value))
    check(found, expected(folder))
    assert server.params["optimizer.lr"] == "0.1"
    assert server.statuses == ["FINISHED"]
    picture = tmp_path / "artifacts" / "overview.png"
    assert picture.read_bytes() == (folder / "overview.png").read_bytes()
    (sent,) = server.authorizations  # by each request, and stored nowhere
    assert sent is not None
    assert sent.startswith("Basic ")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking_server(tmp_path) as server:
        uri = f"logger.mlflow.tracking_uri={server.uri}"
    result = run(tmp_path, *TINY, *MLP, "logger=mlflow", uri)
    assert result.state is State.COMPLETE
    assert result.folder is not None
    assert "logger mlflow failed" in (result.folder / "run.log").read_text()


@pytest.mark.filterwarnings("ignore")  # SQLAlchemy's, of what MLflow asks of it
def test_a_database(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = ["logger=mlflow", f"logger.mlflow.tracking_uri={uri}", *OPTIONS]
    folder = run(tmp_path, *TINY, *MLP, *options).folder
    assert folder is not None
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "default"]
    (found,) = client.search_runs([experiment.experiment_id])
    points = {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    check(points, expected(folder))


def test_wandb_without_credentials_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would ask for a key: there is neither a terminal nor an input that it could ask at."""
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # and asks nobody else
    result = run(tmp_path, *TINY, *MLP, "logger=wandb", *OPTIONS)
    assert result.state is State.COMPLETE
    assert result.folder is not None
    assert (result.folder / "run.log").read_text().count("WARNING") == 1
    assert capsys.readouterr().out.count("warning: logger wandb failed") == 1


def test_of_several_processes_one_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "GRACE_SECONDS", GUARD_SECONDS)
    monkeypatch.setattr(group, "END_SECONDS", GUARD_SECONDS)
    two = ["trainer.num_processes=2", "trainer.sync_batchnorm=true", "trainer.num_threads=1"]
    folder = run(tmp_path, *TINY, *MLP, *two, "logger=[tensorboard,mlflow]", *OPTIONS).folder
    assert folder is not None
    assert len([*(folder / "tensorboard").iterdir()]) == 1
    check(logged_to_tensorboard(folder)[0], expected(folder), rel=1e-6)
    check(logged_to_mlflow(tmp_path / "mlruns")[0], expected(folder))  # one run of its own


def test_checkpoints_measured_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condexp.runs.record_folder.draw_overview", lambda folder: None)
    keep = ["trainer.checkpoint.every_steps=3", "trainer.checkpoint.keep=all"]
    trained = run(tmp_path, *TINY, *MLP, *keep).folder
    assert trained is not None
    paths = kept_checkpoints(trained)
    probe = ["analysis.source=probe", "analysis.probe.size=10"]
    told = validated(*TINY, *MLP, *probe, "logger=tensorboard", *OPTIONS, root=tmp_path / "after")
    for _ in range(2):  # the second time they are stored, and nothing is told twice
        folder = analyze_checkpoints(told, paths).folder
        assert folder is not None
        points, _ = logged_to_tensorboard(folder)
        steps = list(open_run(folder).steps)
        assert [step for step, _ in points["fc/weight_norm"]] == steps
        assert [step for step, _ in points["test_error"]] == steps
        assert "lr" not in points  # nothing was trained


def test_the_hessian_and_a_network_that_is_not_measured(tmp_path: Path) -> None:
    options = ["logger=tensorboard", "logger.layers=[fc,network]"]
    with pytest.raises(InputError, match=r"logger\.layers has network, of which"):
        run(tmp_path, *TINY, *MLP, *options)
    given = ["analysis.matrices=[kfac,hessian]", "analysis.top_k=1"]
    names = f"logger.measures=[{KAPPA},hessian_lambda_max,hessian_negative_share]"
    folder = run(tmp_path, *TINY, *MLP, *given, *options, names).folder
    assert folder is not None
    assert "logger" not in (folder / "run.log").read_text()
    points = logged_to_tensorboard(folder)[0]
    stored = open_run(folder).network()["hessian_lambda_max"].to_series()
    check(
        {"λ": points["network/hessian_lambda_max"]},
        {"λ": [(int(str(step)), value) for step, value in stored.items()]},
        rel=1e-6,
    )
    assert {"fc/hessian_lambda_max", "network/hessian_negative_share"} <= points.keys()
