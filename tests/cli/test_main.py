"""The command line as its user meets it, in one process: arguments in, words and exit code out."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from condexp.cli.hydra_app import explain
from condexp.cli.main import VERBS, split_verb
from condexp.config.presets import conf_dir
from condexp.errors import InputError

TINY = [
    "model.depth=2",
    "model.width=8",
    "trainer.steps=3",
    "dataset.subset.train=60",
    "dataset.subset.test=20",
    "trainer.batch_size=20",
    "analysis.schedule.log_spaced=2",
]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def condexp(condexp: Command, tmp_path: Path) -> Command:
    """Run the command line; its runs go to a folder of the test's own."""

    def run(*args: str, root: bool = True) -> tuple[int, str, str]:
        return condexp(*args, *([f"run.root={tmp_path / 'outputs'}"] if root else []))

    return run


def runs(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in tmp_path.rglob("status.json"))


def state(folder: Path) -> str:
    return str(json.loads((folder / "status.json").read_text())["state"])


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "hydra", "omegaconf", "rich", "h5py", "numpy", "pandas", "matplotlib"}
    code = (
        "import sys; from condexp.cli.main import main; main(['--help']);"
        f"print({heavy!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    for verb in VERBS:
        assert f"  {verb}" in done.stdout


def test_first_word() -> None:
    assert split_verb([]) == ("run", [])
    assert split_verb(["model=mlp"]) == ("run", ["model=mlp"])
    assert split_verb(["-m", "seed=1,2"]) == ("run", ["-m", "seed=1,2"])
    assert split_verb(["+a=1"]) == ("run", ["+a=1"])
    assert split_verb(["~scheduler"]) == ("run", ["~scheduler"])
    assert split_verb(["show", "x"]) == ("show", ["x"])
    with pytest.raises(InputError, match=r"unknown command 'tabel'.*Did you mean 'table'"):
        split_verb(["tabel", "outputs"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnett"], r"unknown model 'resnett': allowed are .*Did you mean 'resnet'"),
        (["model.depth=deep"], r"model\.depth: Value 'deep'.*Integer"),
        (["model.depth=2.5"], r"model\.depth: Value '2\.5'.*Integer"),
        (["+modle.depth=3"], r"unknown key 'modle.*Did you mean 'model'"),
        (["modle.depth=3"], r"unknown key 'modle\.depth'.*Did you mean 'model\.depth'"),
        (["model.dpeth=3"], r"unknown key 'model\.dpeth'.*Did you mean 'model\.depth'"),
        (["+model.dpeth=3"], r"unknown key 'model\.dpeth'.*Did you mean 'model\.depth'"),
        (["model=resnet", "model.depth=21"], r"depth.*21.*20.*26"),
        (["optimizer.lr=-1"], r"optimizer\.lr=-1\.0: it must be greater than 0"),
        (["optimizer.lr=nan"], r"optimizer\.lr=nan"),
        (["model.norm=bacth"], r"unknown model\.norm 'bacth'.*Did you mean 'batch'"),
        (["model=resnet", "dataset.image_size=4"], r"8"),
        (["dataset=fashion_mnist", "dataset.root=/nowhere"], r"fashion_mnist.*nowhere.*fetch"),
        (["analysis.schedule.log_spaced=null", "analysis.schedule.at_start=false",
          "analysis.schedule.at_end=false"], r"schedule"),
        (["analysis.schedule.at_steps=[99]"], r"99"),
        (["analysis.layers.include=[fcc]"], r"fcc.*fc"),
        (["trainer.device=cuda:7"], r"trainer\.device=cuda:7: this machine has 0 CUDA"),
        (["trainer.device=gpu"], r"trainer\.device='gpu': give auto, cpu"),
        (["trainer.epochs=null", "trainer.steps=null"], r"both null"),
        (["trainer.batch_size=all"], r"trainer\.batch_size='all'"),
        (["trainer.batch_size=0"], r"trainer\.batch_size=0: it must be at least 1"),
        (["analysis.matrices=[imput]"], r"analysis\.matrices 'imput'.*Did you mean 'input'"),
        (["analysis.kappa_p=[1.5]"], r"analysis\.kappa_p=1\.5"),
        (["analysis.source=probe", "analysis.probe.size=9999"], r"probe\.size.*9999"),
        (["optimizer.nesterov=true"], r"nesterov"),
        (["seed=-1"], r"seed=-1"),
        (["seed=one"], r"seed='one'"),
        (["model="], r"model"),
        (["model=null"], r"composed"),
        (["model.width=100000", "model.depth=3"], r"layers\.1\.linear.*eigenvalues"),
        (["optimizer=adam", "optimizer.momentum=0.9"], r"no key of the optimizer that was chosen"),
        (["analysis.kappa_p=0.5"], r"analysis\.kappa_p: give a list"),
        (["trainer.batch_size=1"], r"more than 1 value per channel"),
        (["model.depth=[1"], r"composed"),
        (["experiment=table1", "profile=cpu"],
         r"no profiles of their own: give experiment=table1/cpu instead"),
        (["experiment=table1/smoke", "profile=cpu"], r"give experiment=table1/cpu instead"),
        (["experiment=table1,table2", "profile=smoke,cpu", "hydra.mode=MULTIRUN"],
         r"give experiment=table1/smoke,table1/cpu,table2/smoke,table2/cpu instead"),
        (["experiment=table1", "profile=table1/cpu"], r"give experiment=table1/cpu instead"),
        (["experiment=table1/cppu"],
         r"'table1/cppu': allowed are table1/cpu, table1/p.* Did you mean 'table1/cpu'"),
        (["experiment=tabel1/cpu"], r"unknown experiment 'tabel1/cpu'.*Did you mean 'table1/cpu'"),
        (["experiment=tabel1"], r"unknown experiment 'tabel1': .*vgg, .*Did you mean 'table1'"),
        (["profile=cppu"], r"unknown profile 'cppu': allowed are cpu, .*Did you mean 'cpu'"),
    ],
    ids=lambda value: " ".join(value)[:48] if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_message_and_nothing_is_written(
    condexp: Command, tmp_path: Path, overrides: list[str], message: str
) -> None:
    # What the case is about comes last and wins.
    tiny = [o for o in TINY if "model=" not in overrides[0] or not o.startswith("model.")]
    code, out, err = condexp(*tiny, *overrides)
    assert code == 2
    assert out == ""
    assert err.count("condexp: ") == 1
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args",
    [["show", "nowhere"], ["status", "nowhere"], ["table", "nowhere", "--rows", "seed"],
     ["validate", "nowhere"], ["layers", "--multirun"], ["-m", "seed=range(3,1)"],
     ["figure", "overwiev", "nowhere"], ["figure", "overview", "nowhere"], ["layers", "-m"]],
    ids=" ".join,
)  # fmt: skip
def test_bad_arguments_of_other_commands(condexp: Command, args: list[str]) -> None:
    code, out, err = condexp(*args, root=False)
    assert (code, out) == (2, "")
    assert err.startswith("condexp: ")
    assert "Traceback" not in err


def test_an_unwritable_root_is_refused(condexp: Command, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    code, _, err = condexp(*TINY, f"run.root={in_the_way}/outputs", root=False)
    assert code == 2
    assert "run.root" in err
    assert "not a folder that can be written to" in err


def test_a_run_and_all_that_can_be_asked_of_it(
    condexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = condexp(*TINY)
    (folder,) = runs(tmp_path)
    assert code == 0
    assert state(folder) == "complete"
    assert folder.name.startswith("mlp-digits-s1-")
    written = {path.name for path in folder.iterdir()}
    assert written >= {
        "results.h5", "checkpoint.pt", "status.json", "config.yaml", "provenance.json", "run.log",
        "overview.png", "overview.pdf", "overview.svg", "overview.csv",
    }  # fmt: skip
    assert "layers.0.linear" in out
    assert "test error" in out

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    code, out, _ = condexp(*TINY)
    assert code == 0
    assert "stored already" in out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    assert condexp("show", str(folder), root=False)[0] == 0
    code, out, _ = condexp(
        "show", str(folder), "--measure", "weight_norm", "--step", "0", root=False
    )
    assert code == 0
    assert "step 0" in out
    assert condexp("status", str(tmp_path), root=False)[0] == 0
    assert condexp("validate", str(folder / "results.h5"), root=False)[0] == 0
    code, out, _ = condexp(
        "table", str(tmp_path), "--rows", "model.depth", "--format", "markdown", root=False
    )
    assert code == 0
    assert "|" in out
    code, out, _ = condexp("figure", "overview", str(folder), "--output", str(tmp_path), root=False)
    assert code == 0
    # The same file gives the same picture, byte for byte.
    for suffix in ("png", "pdf", "csv"):
        name = f"overview.{suffix}"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()

    code, _, err = condexp(*TINY, "run.on_existing=fail")
    assert code == 2
    assert "exists already" in err
    monkeypatch.setattr("condexp.runs.attempt.draw_overview", lambda folder: None)  # drawn above
    assert condexp(*TINY, "run.on_existing=restart")[0] == 0
    assert (folder / "status.json").stat().st_mtime_ns != before[folder / "status.json"]


def test_layers_trains_nothing(condexp: Command, tmp_path: Path) -> None:
    code, out, _ = condexp("layers", "model=resnet", "model.depth=8", "model.last_bn=true")
    assert code == 0
    assert "stages.0.0.conv1" in out
    assert "BatchNorm2d" in out
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("no_picture")
def test_a_diverged_run_is_a_result(condexp: Command, tmp_path: Path) -> None:
    code, out, _ = condexp(*TINY, "model.activation=identity", "optimizer.lr=1e30")
    (folder,) = runs(tmp_path)
    assert code == 0
    assert state(folder) == "diverged"
    assert "diverged" in out


def test_one_bad_job_stops_a_grid_before_it_starts(condexp: Command, tmp_path: Path) -> None:
    code, out, err = condexp(
        "-m", "model=resnet", "model.depth=8,21", "trainer.steps=1", "seed=1,2"
    )
    assert code == 2
    assert "job 3 of 4 (model=resnet model.depth=21" in err
    assert "Nothing was run" in err
    assert out == ""
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("no_picture")
def test_ctrl_c_leaves_an_interrupted_run_that_can_be_finished(
    condexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from condexp.runs.status_writer import StatusWriter

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StatusWriter, "on_snapshot", interrupt)
    code, _, err = condexp(*TINY)
    (folder,) = runs(tmp_path)
    assert code == 130
    assert "interrupted" in err
    assert state(folder) == "interrupted"
    monkeypatch.undo()
    assert condexp(*TINY)[0] == 0
    assert state(folder) == "complete"


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_stops_a_run_that_the_same_command_finishes(
    condexp: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    expected: int,
) -> None:
    from condexp.runs.status_writer import StatusWriter

    monkeypatch.setattr(StatusWriter, "on_snapshot", lambda *_: os.kill(os.getpid(), number))
    code, _, err = condexp(*TINY)
    (folder,) = runs(tmp_path)
    assert code == expected
    assert f"condexp: stopped by {number.name}; the same command resumes it" in err
    assert state(folder) == "interrupted"
    monkeypatch.undo()
    code, out, _ = condexp(*TINY, "run.dry_run=true")
    assert code == 0
    assert "to resume" in out
    assert condexp(*TINY)[0] == 0
    assert state(folder) == "complete"


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("stop", [SystemExit(3), OSError(28, "full")])
def test_nothing_that_stops_a_run_leaves_it_running(
    condexp: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
) -> None:
    def fall(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr("condexp.runs.checkpointer.save_checkpoint", fall)
    ended, out, err = condexp(*TINY)
    assert ended == 1
    assert [state(folder) for folder in runs(tmp_path)] == ["failed"]
    assert "failed: " in out
    assert "Traceback" not in out + err


def test_ctrl_c_while_the_picture_is_drawn_costs_the_picture_alone(
    condexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("condexp.runs.attempt.draw_overview", interrupt)
    assert condexp(*TINY)[0] == 130
    (folder,) = runs(tmp_path)
    assert state(folder) == "complete"
    assert "stored already" in condexp(*TINY)[1]


@pytest.mark.usefixtures("no_picture")
def test_a_damaged_result_is_named_and_can_be_run_anew(condexp: Command, tmp_path: Path) -> None:
    condexp(*TINY)
    condexp(*TINY, "seed=2")
    first, _ = runs(tmp_path)
    (first / "results.h5").write_bytes(b"not HDF5")
    seed = "seed=1" if "-s1-" in first.name else "seed=2"
    # It hides no other run from a table, and is not what its status says.
    assert condexp("table", str(tmp_path), "--rows", "seed", root=False)[0] == 1
    code, out, _ = condexp("status", str(tmp_path), root=False)
    assert code == 1
    assert "the same command resumes it" in " ".join(out.split())
    assert condexp(*TINY, seed)[0] == 0
    assert (first / "results.damaged.h5").read_bytes() == b"not HDF5"
    assert condexp("table", str(tmp_path), "--rows", "seed", root=False)[0] == 0
    (first / "status.json").write_text("{")
    assert condexp("status", str(tmp_path), root=False)[0] == 1
    assert condexp(*TINY, seed, "run.on_existing=restart")[0] == 0


@pytest.mark.usefixtures("no_picture")
def test_existing_runs_are_refused_before_a_grid_starts(condexp: Command, tmp_path: Path) -> None:
    condexp(*TINY)
    code, _, err = condexp("-m", *TINY, "seed=1,2", "run.on_existing=fail")
    assert code == 2
    assert "exists already" in err
    assert len(runs(tmp_path)) == 1


def test_a_closed_pipe_does_not_end_a_run(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m condexp {' '.join(TINY)} run.root={tmp_path} | head -n 1"
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    (folder,) = runs(tmp_path)
    assert state(folder) == "complete"


@pytest.mark.usefixtures("jobs_in_this_process", "no_picture")
def test_the_first_grid_and_its_table(condexp: Command, tmp_path: Path) -> None:
    small = ["trainer.epochs=null", "model=resnet", "model.depth=8", *TINY[2:]]
    code, out, _ = condexp("-m", "experiment=table1/smoke", *small)
    assert code == 0
    assert "sweep of 4 jobs" in out
    stem = tmp_path / "table"
    code, out, _ = condexp(
        "table", str(tmp_path), "--rows", "model.depth", "--cols", "model.last_bn",
        "--value", "last_linear.input_kappa_0.5", "--save", str(stem), root=False,
    )  # fmt: skip
    assert code == 0
    rows = [line for line in stem.with_suffix(".md").read_text().splitlines() if "(2)" in line]
    assert [row.split()[1] for row in rows] == ["8"]
    assert "model.last_bn=true" in stem.with_suffix(".txt").read_text()


def test_a_grid_over_experiments_has_the_jobs_of_all(condexp: Command, tmp_path: Path) -> None:
    both = "experiment=fig_validation/smoke,fig_domination/smoke"
    code, out, _ = condexp("-m", both, "seed=1", "trainer.epochs=31", "run.dry_run=true")
    assert code == 0
    assert "5 jobs" in out
    for own in ("model.norm=none", "model.norm=batch", "rescale.factor=1", "rescale.factor=100"):
        assert own in out
    code, out, _ = condexp("-m", "profile=smoke,paper", "run.dry_run=true")
    assert code == 0
    assert "3 jobs" in out
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("given", [None, "0"])
@pytest.mark.parametrize("args", [["--cfg", "job"], ["model=none"], ["run.dry_run=maybe"]])
def test_the_process_is_left_as_it_was(
    condexp: Command, args: list[str], given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if given is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", given)
    monkeypatch.setattr(sys, "argv", ["my_script.py", "its-own"])
    condexp(*args)
    assert os.environ.get("HYDRA_FULL_ERROR") == given
    assert sys.argv == ["my_script.py", "its-own"]


def test_the_configuration_is_shown_without_torch() -> None:
    code = (
        "import sys; from condexp.cli.main import main; "
        "main(['run', '--cfg', 'job', 'experiment=table1/cpu']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "  name: fashion_mnist\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_a_launcher_that_is_not_installed_is_named() -> None:
    missing = MissingConfigException(
        "no", "hydra/launcher/joblib"
    )  # as Hydra raises it: no options
    assert "pip install 'condexp[local]'" in explain(missing)


def test_completion_knows_the_groups_with_and_without_a_verb() -> None:
    for line in ("condexp model=", "condexp run model="):
        environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
        code = (
            "import sys; from condexp.cli.main import main; sys.exit(main(['-sc', 'query=bash']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == sorted(
            f"model={path.stem}" for path in (conf_dir() / "model").glob("*.yaml")
        )


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("condexp sh", "show"),
        ("condexp show outp", ""),  # the shell's to complete
        ("condexp analyze model=resnet_", "model=resnet_imagenet"),
    ],
)
def test_completion_knows_the_verbs(
    line: str, completions: str, condexp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, err = condexp("-sc", "query=bash", root=False)
    assert (code, err) == (0, "")
    assert out.split() == completions.split()


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("condexp experiment=table1/", "table1/cpu table1/paper table1/smoke"),
        ("condexp run -m experiment=table1/s", "table1/smoke"),
        ("condexp experiment=tab", "table1 table2 table3"),
    ],
)
def test_completion_knows_the_profiles_of_an_experiment(
    line: str, completions: str, condexp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, _ = condexp("-sc", "query=bash", root=False)
    assert code == 0
    assert out.split() == [f"experiment={name}" for name in completions.split()]
