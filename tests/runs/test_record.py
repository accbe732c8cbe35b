"""A loop of the user's own leaves a run folder, whichever way it ends, and is not changed."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.errors import InputError
from condexp.runs.record import RunRecord
from condexp.store.hdf5.seal import is_sealed
from condexp.store.hdf5.validate import validate_results

T, N = 6, 8
INPUTS = torch.randn(T, N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(2, (T, N), generator=torch.Generator().manual_seed(1))
LOSS = nn.CrossEntropyLoss()
SCHEDULE = condexp.Schedule(every_steps=2, at_end=True)
Command = Callable[..., tuple[int, str, str]]


def net() -> tuple[nn.Module, torch.optim.SGD]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))
    model = model.double()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)


def test_reduced_factors_are_part_of_the_configuration(tmp_path: Path) -> None:
    model, _ = net()
    for name, options in (("plain", {}), ("reduced", {"weight_sharing": "reduce"})):
        with record(tmp_path / name, model, num_steps=1, **options) as run, run.step(0):
            LOSS(model(INPUTS[0]), TARGETS[0]).backward()
    plain, reduced = (condexp.open_run(tmp_path / name) for name in ("plain", "reduced"))
    assert "weight_sharing" not in plain.config["analysis"]
    assert reduced.config["analysis"]["weight_sharing"] == "reduce"


def record(folder: Path, model: nn.Module, **changes: Any) -> RunRecord:
    given: dict[str, Any] = {"num_steps": T, "schedule": SCHEDULE, "config": {"lr": 0.1}}
    return condexp.record_run(folder, model, **{**given, **changes})


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    loss: Tensor = LOSS(model(INPUTS[step]), TARGETS[step])
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def loop(run: RunRecord, model: Any, optimizer: Any, start: int = 0, stop: int = T) -> None:
    for step in range(start, stop):
        optimizer.zero_grad()
        with run.step(step):
            loss = update(model, optimizer, step)
        optimizer.step()
        run.log(loss=loss.item())


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "mine" / "run1"
    model, optimizer = net()
    with record(folder, model, optimizer=optimizer, eval_steps=[3, T]) as run:
        for start, stop in ((0, 3), (3, T)):
            loop(run, model, optimizer, start, stop)
            run.eval(test_error=50 - stop, test_loss=0.5)
    return folder


def test_the_folder_is_that_of_a_run(complete: Path, condexp: Command) -> None:
    names = {"results.h5", "status.json", "config.yaml", "provenance.json", "run.log"}
    assert {path.name for path in complete.iterdir()} >= {*names, "overview.png"}
    assert (status(complete)["state"], status(complete)["step"]) == ("complete", T)
    assert is_sealed(complete / "results.h5")
    assert validate_results(complete / "results.h5") == []
    for command in ("show", "validate", "status"):
        code, out, err = condexp(command, str(complete))
        assert (code, err) == (0, ""), command
        assert out
    _, shown, _ = condexp("show", str(complete))
    assert "Sequential, recorded in run1" in shown
    code, out, _ = condexp("table", str(complete.parent), "--rows", "lr", "--value", "test_error")
    assert code == 0
    assert "44" in out
    assert condexp("figure", "overview", str(complete), "--output", str(complete))[0] == 0


def test_every_number_is_the_recorder_s(complete: Path) -> None:
    run = condexp.open_run(complete)
    assert run.steps == (0, 2, 4, 5)
    assert run.config["lr"] == 0.1
    model, optimizer = net()
    losses, kappas, rates = [], [], []
    for step in range(T):
        optimizer.zero_grad()
        with condexp.Recorder(model, learning_rate=0.2) as recorder:
            losses.append(update(model, optimizer, step).item())
        if step in run.steps:
            snapshot = recorder.snapshot()
            kfac = snapshot["3"].kfac
            assert kfac is not None
            kappas.append(kfac.kappa(0.5))
            rates.append(snapshot["3"].effective_lr)
        optimizer.step()
    assert run.metrics["loss"].dropna().tolist() == losses
    assert run.metrics["lr"].dropna().tolist() == [0.1] * T
    assert run.metrics["test_error"].dropna().tolist() == [47, 44]
    measures = run.measures().sel(layer="3")
    assert measures["kfac_kappa"].sel(p=0.5).values.tolist() == kappas
    assert measures["effective_lr"].values.tolist() == rates


def test_training_is_unchanged_bit_for_bit(complete: Path, tmp_path: Path) -> None:
    alone, optimizer = net()
    for step in range(T):
        optimizer.zero_grad()
        update(alone, optimizer, step)
        optimizer.step()
    state = torch.get_rng_state()
    recorded, optimizer = net()
    with record(tmp_path / "run", recorded) as run:
        loop(run, recorded, optimizer)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(alone.state_dict().values(), recorded.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in recorded.modules())


@pytest.mark.usefixtures("no_picture")
def test_a_resumed_loop_leaves_the_bytes_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    model, optimizer = net()
    with record(tmp_path / "whole" / "run", model) as run:
        loop(run, model, optimizer)
    folder = tmp_path / "stopped" / "run"
    model, optimizer = net()
    with suppress(RuntimeError), record(folder, model) as run:
        loop(run, model, optimizer, 0, 2)
        random = torch.get_rng_state()
        loop(run, model, optimizer, 2, 5)
        raise RuntimeError("boom")
    assert (status(folder)["state"], status(folder)["error"]) == ("failed", "RuntimeError: boom")
    assert condexp.open_run(folder).steps == (0, 2, 4)
    again, optimizer = net()
    for step in range(2):  # the momentum of the checkpoint
        optimizer.zero_grad()
        update(again, optimizer, step)
        optimizer.step()
    torch.set_rng_state(random)
    with record(folder, again) as run:
        assert run.resumable_from == 5
        loop(run, again, optimizer, 2)
    assert status(folder)["state"] == "complete"
    assert status(folder)["attempts"] == 2
    whole = tmp_path / "whole" / "run" / "results.h5"
    assert (folder / "results.h5").read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("ending", "state", "said"),
    [
        (None, "interrupted", "the loop ended after 3 of 6 steps"),
        (KeyboardInterrupt(), "interrupted", "stopped by Ctrl-C"),
        (ValueError("bad"), "failed", "ValueError: bad"),
        (SystemExit(3), "failed", "SystemExit: 3"),
        (math.nan, "diverged", None),
    ],
)
def test_every_end_is_said(tmp_path: Path, ending: Any, state: str, said: str | None) -> None:
    model, optimizer = net()
    raised: type[BaseException] | None = None
    try:
        with record(tmp_path / "run", model) as run:
            loop(run, model, optimizer, 0, 3)
            if isinstance(ending, float):
                run.log(loss=ending)
            elif ending is not None:
                raise ending
    except BaseException as error:
        raised = type(error)
    assert raised == (type(ending) if isinstance(ending, BaseException) else None)
    assert (status(tmp_path / "run")["state"], status(tmp_path / "run")["error"]) == (state, said)
    assert condexp.open_run(tmp_path / "run").steps == (0, 2)
    assert len(condexp.open_run(tmp_path / "run").metrics) == 3


@pytest.mark.usefixtures("no_picture")
def test_a_pass_that_fails_leaves_no_hook_and_no_row(tmp_path: Path) -> None:
    model, optimizer = net()
    with suppress(ZeroDivisionError), record(tmp_path / "run", model) as run:
        loop(run, model, optimizer, 0, 2)
        with run.step(2):
            model(INPUTS[2])
            1 / 0  # noqa: B018
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert condexp.open_run(tmp_path / "run").steps == (0,)
    assert len(condexp.open_run(tmp_path / "run").metrics) == 2


@pytest.mark.usefixtures("no_picture")
def test_accumulated_parts_are_the_whole_batch(tmp_path: Path) -> None:
    found = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        folder = tmp_path / str(parts)
        first = condexp.Schedule(at_start=True)
        with record(folder, model, num_steps=1, schedule=first) as run, run.step(0):
            for inputs, targets in zip(
                INPUTS[0].chunk(parts), TARGETS[0].chunk(parts), strict=True
            ):
                (LOSS(model(inputs), targets) / parts).backward()
        found.append(condexp.open_run(folder).measures())
    for name in ("input_lambda_max", "grad_output_lambda_max", "grad_norm"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-12)


@pytest.mark.usefixtures("no_picture")
def test_a_late_schedule_has_its_layers_from_the_first_pass(tmp_path: Path) -> None:
    model, optimizer = net()
    with record(tmp_path / "run", model, schedule=condexp.Schedule(at_steps=(4,))) as run:
        loop(run, model, optimizer, 0, 2)
        assert condexp.open_run(tmp_path / "run").layers == ("0", "3")
        loop(run, model, optimizer, 2)
    assert condexp.open_run(tmp_path / "run").steps == (4,)


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("damage", ['{"state": "spam"}', "{", '{"state": "complete", "step": -1}'])
def test_a_damaged_status_is_decided_by_what_is_stored(tmp_path: Path, damage: str) -> None:
    model, optimizer = net()
    with record(tmp_path / "whole", model) as run:
        loop(run, model, optimizer)
    whole = (tmp_path / "whole" / "results.h5").read_bytes()
    (tmp_path / "whole" / "status.json").write_text(damage)
    with pytest.raises(InputError, match="holds a record that is finished"):
        record(tmp_path / "whole", model).__enter__()
    assert (tmp_path / "whole" / "results.h5").read_bytes() == whole

    model, optimizer = net()
    with suppress(RuntimeError), record(tmp_path / "stopped", model) as run:
        loop(run, model, optimizer, 0, 2)
        raise RuntimeError("boom")
    (tmp_path / "stopped" / "status.json").write_text(damage)
    with record(tmp_path / "stopped", model) as run:
        assert run.resumable_from == 2
        loop(run, model, optimizer, 2)
    assert status(tmp_path / "stopped")["state"] == "complete"
    assert condexp.open_run(tmp_path / "stopped").steps == (0, 2, 4, 5)


def test_what_is_refused(complete: Path, tmp_path: Path) -> None:
    model, _ = net()
    with pytest.raises(InputError, match="a record that is complete: give another folder, or on_"):
        record(complete, model).__enter__()
    with pytest.raises(InputError, match="exists already, and on_existing='fail'"):
        record(complete, model, on_existing="fail").__enter__()
    for changes, message in (
        ({"on_existing": "resum"}, "unknown on_existing 'resum'.*Did you mean 'resume'"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"eval_steps": [7]}, r"eval_steps holds \[7\]"),
        ({"config": {"analysis": 1}}, "config has the key 'analysis'"),
        ({"config": {"x": object()}}, "config holds what is no plain value"),
        ({"schedule": condexp.Schedule(at_steps=(6,))}, "the last step that can be measured"),
        ({"matrice": ["input"]}, "unknown option 'matrice'"),
        ({"network_precision": "float64"}, "needs a pass of its own"),
    ):
        with pytest.raises(InputError, match=message):
            record(tmp_path / "run", model, **changes)
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(InputError, match="is no run and not empty"):
        record(tmp_path / "other", model).__enter__()


@pytest.mark.usefixtures("no_picture")
def test_steps_follow_each_other(tmp_path: Path) -> None:
    model, optimizer = net()
    with record(tmp_path / "run", model) as run:
        with pytest.raises(InputError, match="holds the steps before 0: go on with that one"):
            run.step(1)
        loop(run, model, optimizer, 0, 2)
        with pytest.raises(InputError, match=r"run.step\(3\): expected step 2"):
            run.step(3)
        with pytest.raises(InputError, match=r"run.eval after 2 updates, and eval_steps=\[\]"):
            run.eval(test_error=1)
    with pytest.raises(InputError, match="the record of another configuration, length or"):
        record(tmp_path / "run", model, config={"lr": 0.2}).__enter__()
    with record(tmp_path / "run", model, config={"lr": 0.2}, on_existing="restart") as run:
        assert run.resumable_from == 0
        loop(run, model, optimizer)
    assert condexp.open_run(tmp_path / "run").config["lr"] == 0.2
