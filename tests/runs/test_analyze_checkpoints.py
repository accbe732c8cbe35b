"""Kept checkpoints measured afterwards are the snapshots recorded live, to the last bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import condexp
from condexp.errors import InputError
from condexp.runs.analyze_checkpoints import analyze_checkpoints
from condexp.runs.result import RunResult
from condexp.store.hdf5.validate import validate_results
from condexp.store.run_folder.kept_checkpoints import kept_checkpoints
from tests import in_process

Command = Callable[..., tuple[int, str, str]]
GIVEN = [
    "model.depth=3", "model.width=6", "trainer.steps=6", "trainer.batch_size=10",
    "dataset.subset.train=40", "dataset.subset.test=20", "scheduler=cosine",
    "analysis.source=probe", "analysis.probe.size=20", "analysis.probe.batch_size=10",
    "analysis.schedule.every_steps=2", "analysis.schedule.log_spaced=null",
]  # fmt: skip
KEEP = [*GIVEN, "trainer.checkpoint.every_steps=2", "trainer.checkpoint.every_epochs=null"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    folder = in_process.run(root, *KEEP, "trainer.checkpoint.keep=all").folder
    assert folder is not None
    return folder


def analyze(root: Path, paths: list[Path], *overrides: str) -> RunResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condexp.runs.record_folder.draw_overview", lambda folder: None)
        return analyze_checkpoints(in_process.validated(*GIVEN, *overrides, root=root), paths)


def test_kept_checkpoints_are_those_of_their_steps(trained: Path, tmp_path: Path) -> None:
    kept = kept_checkpoints(trained)
    assert [path.name for path in kept] == ["step-000002.pt", "step-000004.pt", "step-000006.pt"]
    assert kept[-1].read_bytes() == (trained / "checkpoint.pt").read_bytes()
    last = in_process.run(tmp_path, *KEEP, "trainer.checkpoint.keep=2").folder
    assert last is not None
    assert last.name == trained.name
    assert [path.name for path in kept_checkpoints(last)] == [path.name for path in kept[1:]]
    assert (last / "results.h5").read_bytes() == (trained / "results.h5").read_bytes()
    in_process.run(tmp_path, *KEEP, "run.on_existing=restart")
    assert kept_checkpoints(last) == []
    with pytest.raises(InputError, match=r"trainer.checkpoint.keep='al': give a whole number, or"):
        in_process.run(tmp_path, *KEEP, "trainer.checkpoint.keep=al")


def test_measured_afterwards_is_measured_live(trained: Path, tmp_path: Path) -> None:
    result = analyze(tmp_path, kept_checkpoints(trained)[::-1])
    assert result.folder is not None
    assert validate_results(result.folder / "results.h5") == []
    live, after = condexp.open_run(trained), condexp.open_run(result.folder)
    assert after.steps == (2, 4, 6)
    assert live.steps == (0, 2, 4, 6)
    assert (
        live.measures().isel(step=[1, 2, 3]).drop_attrs().identical(after.measures().drop_attrs())
    )
    for layer in live.layers:
        assert live.spectrum("input", layer)[1:].equals(after.spectrum("input", layer))
    errors = [run.metrics["test_error"].dropna() for run in (live, after)]
    assert errors[0].iloc[-1] == errors[1].iloc[-1]
    again = analyze(tmp_path, kept_checkpoints(trained))
    assert (again.folder, again.stored) == (result.folder, True)
    fewer = analyze(tmp_path, kept_checkpoints(trained)[:1])
    assert fewer.folder != result.folder


@pytest.fixture
def weights(trained: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(trained / "checkpoint.pt", weights_only=True)["model"]
    return found


def renamed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def test_state_dicts_of_any_origin(
    trained: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    contents: list[Any] = [
        weights,
        {"state_dict": renamed(weights, "module.")},
        {
            "state_dict": {**renamed(weights, "net."), "loss.weight": torch.ones(3)},
            "global_step": 6,
        },
        {"model": renamed(weights, "module._orig_mod."), "step": 6},
        {n: t for n, t in renamed(weights, "model.").items() if "num_batches" not in n},
    ]
    live = condexp.open_run(trained).measures().isel(step=[3]).drop_attrs()
    for number, content in enumerate(contents):
        known = isinstance(content, dict) and {"step", "global_step"} & set(content)
        path = tmp_path / (f"last{number}x.pt" if known else f"run{number}_step_6.pt")
        torch.save(content, path)
        result = analyze(tmp_path / "outputs", [path])
        assert result.folder is not None
        found = condexp.open_run(result.folder).measures().drop_attrs()
        assert live.identical(found)


def test_what_cannot_be_used_is_said_before_anything_is_written(
    trained: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    first, *rest = weights
    small = {**weights, first: torch.zeros(2, 2)}
    bad: list[tuple[str, Any, str]] = [
        ("a1.pt", {n: weights[n] for n in rest}, f"another network: missing: {first}. Give the"),
        ("b1.pt", {**weights, "extra.bias": torch.ones(1)}, "unexpected: extra.bias"),
        ("c1.pt", small, rf"of another shape: {first} \[2, 2\] in place of \[6, 64\]"),
        ("d.pt", weights, "neither its content .* nor its name tells the step"),
        ("e1.pt", {"epoch": 3}, "holds no state dict: found epoch"),
        ("f1.pt", {"model": weights, "args": Path("x")}, "more than tensors and plain values"),
    ]
    for name, content, message in bad:
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=message):
            analyze(tmp_path / "outputs", [tmp_path / name])
    (tmp_path / "g1.pt").write_bytes(b"no checkpoint")
    for path, message in (
        (tmp_path / "g1.pt", "cannot be read"),
        (tmp_path / "h1.pt", "there is no"),
    ):
        with pytest.raises(InputError, match=message):
            analyze(tmp_path / "outputs", [path])
    kept = kept_checkpoints(trained)
    with pytest.raises(InputError, match="are both of step 6: give one"):
        analyze(tmp_path / "outputs", [kept[-1], trained / "checkpoint.pt"])
    with pytest.raises(InputError, match="has nothing to measure"):
        analyze(tmp_path / "outputs", kept, "analysis=none")
    assert not (tmp_path / "outputs").exists()


def test_the_command(
    trained: Path, tmp_path: Path, condexp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("condexp.runs.record_folder.draw_overview", lambda folder: None)
    kept = [str(path) for path in kept_checkpoints(trained)]
    code, out, err = condexp("analyze", *kept, *GIVEN)
    assert (code, err) == (0, "")
    assert "complete; wrote: outputs/default/mlp-digits-s1-" in out
    (folder,) = (tmp_path / "outputs" / "default").iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"], status["num_steps"]) == ("complete", 3, 3)
    for verb in ("show", "status", "validate"):
        code, out, err = condexp(verb, str(folder))
        assert (code, err) == (0, ""), verb
    assert "3 checkpoints" in condexp("show", str(folder))[1]
    code, _, _ = condexp("analyze", kept[0], *GIVEN, "run.root=alone")
    assert code == 0
    (alone,) = (tmp_path / "alone" / "default").iterdir()
    assert "1 checkpoint  " in condexp("show", str(alone))[1]
    assert "of 3 steps" not in condexp("show", str(folder))[1]
    assert condexp("figure", "overview", str(folder), "--output", str(tmp_path))[0] == 0
    assert condexp("analyze", *GIVEN)[0] == 2
    assert condexp("analyze", "--cfg", "job", *GIVEN)[0] == 0
