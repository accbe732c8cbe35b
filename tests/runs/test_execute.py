"""From configuration to run folder, without the command line: what a run leaves, and again."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import condexp
from condexp.runs.prepare import prepare
from condexp.store.hdf5.validate import validate_results
from condexp.store.run_folder.identity import identity_hash
from condexp.store.run_folder.status import State, read_status
from tests import in_process
from tests.observer import Silent

TINY = [
    "trainer.steps=4",
    "dataset.subset.train=40",
    "dataset.subset.test=20",
    "trainer.batch_size=10",
    "analysis.schedule.log_spaced=3",
]
MLP = ["model.depth=3", "model.width=8"]
RESNET = ["model=resnet", "model.depth=8", "model.last_bn=true"]
PROBE = ["analysis.source=probe", "analysis.probe.size=20", "analysis.probe.batch_size=10"]


def run(root: Path, *overrides: str, picture: bool = False) -> tuple[Path, Silent]:
    observer = Silent()
    result = in_process.run(root, *overrides, observer=observer, picture=picture)
    assert result.state is State.COMPLETE, result.message
    assert result.folder is not None
    return result.folder, observer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Silent]:
    """The root, the folder and the observer of a finished run of the MLP."""
    root = tmp_path_factory.mktemp("tiny")
    return root, *run(root, *TINY, *MLP)


@pytest.fixture(scope="module", params=[MLP, RESNET], ids=["mlp", "resnet"])
def bare(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path, Silent]:
    """A model, and its run without any analysis."""
    model: list[str] = request.param
    return model, *run(tmp_path_factory.mktemp("bare"), *TINY[:-1], *model, "analysis=none")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return dict(loaded)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("model", [MLP, RESNET], ids=["mlp", "resnet"])
def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path, model: list[str]) -> None:
    one, _ = run(tmp_path / "a", *TINY, *model, picture=True)
    torch.rand(7)  # what happened before in this process must not matter
    two, _ = run(tmp_path / "b", *TINY, *model, picture=True)
    assert one.name == two.name
    for name in (
        "results.h5",
        "checkpoint.pt",
        "overview.png",
        "overview.svg",
        "overview.pdf",
        "overview.csv",
    ):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize(
    "analysis",
    [["analysis.schedule.every_steps=1"], PROBE, [*PROBE, "analysis.probe.mode=eval"]],
    ids=["every step", "probe", "probe eval"],
)
def test_analysis_does_not_change_training(
    tmp_path: Path, bare: tuple[list[str], Path, Silent], analysis: list[str]
) -> None:
    model, bare_folder, bare_observer = bare
    seen, seen_observer = run(tmp_path, *TINY, *model, *analysis)
    assert seen_observer.losses == bare_observer.losses
    assert "snapshot" in seen_observer.told
    assert "snapshot" not in bare_observer.told
    assert_same(weights(seen), weights(bare_folder))


@pytest.mark.parametrize(
    "way",
    [
        ["trainer.precision=bf16"],
        ["trainer.channels_last=true"],
        ["optimizer=adamw", "scheduler=cosine"],
        pytest.param(["trainer.compile=true"], marks=pytest.mark.slow),
        pytest.param(
            ["trainer.compile=true", "trainer.precision=bf16", "trainer.channels_last=true"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_no_way_of_running_is_changed_by_a_probe(tmp_path: Path, way: list[str]) -> None:
    bare, bare_observer = run(tmp_path, *TINY[:-1], *RESNET, "analysis=none", *way)
    seen, seen_observer = run(tmp_path, *TINY, *RESNET, *PROBE, *way)
    assert seen_observer.losses == bare_observer.losses
    assert_same(weights(seen), weights(bare))
    # What is stored is float32, under the names it always has.
    kinds = {name: value.dtype for name, value in weights(seen).items()}
    assert kinds["fc.weight"] == torch.float32
    assert set(kinds.values()) == {torch.float32, torch.int64}


def test_the_learning_rates_that_are_stored(tmp_path: Path) -> None:
    schedule = ["scheduler=cosine", "scheduler.warmup_steps=2", "optimizer=adamw"]
    folder, _ = run(tmp_path, *TINY, *MLP, *schedule, "optimizer.lr=0.5")
    # 0.5 · (1 + cos(π s/4)) / 2, times 1/2 at step 0; four steps.
    cosine = [0.5, 0.25 * (1 + 0.5**0.5), 0.25, 0.25 * (1 - 0.5**0.5)]
    rates = condexp.open_run(folder).metrics["lr"].dropna().tolist()
    assert rates == pytest.approx([cosine[0] / 2, *cosine[1:]], rel=1e-12)


def test_what_a_run_folder_holds(tiny: tuple[Path, Path, Silent]) -> None:
    root, folder, observer = tiny
    assert observer.told[0] == "started"
    assert observer.told[-1] == "finished"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert folder == root / "default" / f"mlp-digits-s1-{identity_hash(config)}"
    status = read_status(folder)
    assert (status.state, status.step, status.num_steps) == (State.COMPLETE, 4, 4)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert {"argv", "packages", "hardware", "data_sha256", "git", "python"} <= provenance.keys()
    assert validate_results(folder / "results.h5") == []
    opened = condexp.open_run(folder)
    measures = opened.measures()
    assert measures.sizes["step"] == len(opened.steps)
    assert list(opened.layers) == ["layers.0.linear", "layers.1.linear", "fc"]
    assert float(measures["input_lambda_max"].min()) > 0
    assert opened.metrics["loss"].notna().sum() == 4
    assert opened.metrics["test_error"].notna().sum() == 1
    # The stored weight norm is that of the network the step started from.
    norm = measures["weight_norm"].sel(layer="fc")
    assert norm.notnull().all()
    frame = condexp.collect([root])
    assert frame.loc[0, "model.depth"] == 3
    assert frame.loc[0, "test_error"] == status.test_error


def test_where_and_how_fast_is_no_part_of_the_identity(tmp_path: Path) -> None:
    def folder(*overrides: str) -> str:
        return prepare(in_process.validated(*overrides)).folder.name

    same = folder(f"run.root={tmp_path}", "trainer.device=cpu", "trainer.num_threads=1",
                  "store.durability=power", "run.on_existing=fail")  # fmt: skip
    assert folder() == same
    assert folder("optimizer.lr=0.2") != same
    assert folder("seed=2") != same


def test_a_second_process_is_refused_and_harms_nothing(tiny: tuple[Path, Path, Silent]) -> None:
    from condexp.store.disk import locked

    root, folder, _ = tiny
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with locked(folder / "results.h5"):
        result = in_process.run(root, *TINY, *MLP, "run.on_existing=restart")
    assert result.state is State.FAILED
    assert "another process" in str(result.message)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
