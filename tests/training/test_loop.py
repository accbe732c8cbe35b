"""What the loop reports, in which order, and how it ends."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condexp.analysis.analyze import analyze_batches
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import NetworkPrecision
from condexp.errors import InputError
from condexp.training.choices import ModelPrecision, RunState, Source
from condexp.training.loop import Outcome
from condexp.training.seeding import random_state, restore_random_state
from tests.training.runs import (
    BATCH,
    EVERY_MATRIX,
    NUM_STEPS,
    STEPS_PER_EPOCH,
    Log,
    Run,
    images,
    mlp,
    model_state,
    resnet,
)


def plain_mlp() -> nn.Sequential:
    return mlp(dropout=0.0)


class Recording(nn.CrossEntropyLoss):
    """Remembers the batches, and gives infinity once."""

    def __init__(self, infinite_at: int | None = None, value: float = math.inf) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.infinite_at, self.value = infinite_at, value

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.sizes.append(len(outputs))
        loss = super().forward(outputs, targets)
        return loss * self.value if len(self.sizes) - 1 == self.infinite_at else loss


@pytest.fixture(scope="module")
def trained() -> tuple[Run, Outcome]:
    run = Run(plain_mlp, loss_fn=Recording(), snapshots=(0, 5))
    return run, run.train()


def test_equals_the_loop_everyone_writes(trained: tuple[Run, Outcome]) -> None:
    reference = Run(plain_mlp)
    model, optimizer, losses = reference.model, reference.optimizer, []
    batches = reference.batches(reference.data.train, BATCH, shuffle=True)
    model.train()
    for step in range(NUM_STEPS):
        epoch, position = divmod(step, STEPS_PER_EPOCH)
        inputs, targets = list(batches.epoch(epoch))[position]
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5**epoch
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    run, _ = trained
    assert [record.loss for record in run.log.steps] == losses
    ours, theirs = run.model.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_records(trained: tuple[Run, Outcome]) -> None:
    run, _ = trained
    assert [record.step for record in run.log.steps] == list(range(NUM_STEPS))
    assert [record.lr for record in run.log.steps] == [0.1] * 4 + [0.05] * 2
    assert [(record.step, record.epoch) for record in run.log.evals] == [(4, 1.0), (6, 1.5)]
    assert [(record.step, record.epoch) for record in run.log.snapshots] == [(0, 0.0), (5, 1.25)]
    assert all(0 <= record.test_error <= 100 for record in run.log.evals)


def test_order_of_reports(trained: tuple[Run, Outcome]) -> None:
    assert trained[0].log.order == [
        ("step", 0),
        ("snapshot", 0),
        *[("step", step) for step in (1, 2, 3)],
        ("eval", 4),
        *[("step", step) for step in (4, 5)],
        ("snapshot", 5),
        ("eval", 6),
    ]


def test_outcome(trained: tuple[Run, Outcome]) -> None:
    run, outcome = trained
    log = run.log
    assert outcome.state is RunState.COMPLETE
    assert outcome.num_steps_done == NUM_STEPS
    assert outcome.final == log.evals[-1]


def test_the_last_evaluation_is_of_the_trained_network(trained: tuple[Run, Outcome]) -> None:
    run, _ = trained
    inputs = (run.data.test.inputs.float() - 128) / 64
    with torch.no_grad():
        outputs = run.model.eval()(inputs)
    run.model.train()
    loss = nn.functional.cross_entropy(outputs, run.data.test.targets).item()
    # Float32 sums over other batches: a few eps.
    assert run.log.evals[-1].test_loss == pytest.approx(loss, rel=1e-5)


def test_the_last_partial_batch_is_dropped(trained: tuple[Run, Outcome]) -> None:
    loss_fn = trained[0].loss_fn
    assert isinstance(loss_fn, Recording)
    assert loss_fn.sizes == [BATCH] * NUM_STEPS


def test_unless_it_is_the_only_one() -> None:
    loss_fn = Recording()
    run = Run(plain_mlp, data=images(3), loss_fn=loss_fn)
    assert run.train().num_steps_done == NUM_STEPS
    assert loss_fn.sizes == [3] * NUM_STEPS


def test_a_probe_measures_before_the_update_and_after_the_last() -> None:
    run = Run(plain_mlp, source=Source.PROBE, snapshots=(0, 2, NUM_STEPS))
    untrained = run.probe().measure(run.model, run.loss_fn, run.options, 0.1 / (1 - 0.9))
    run.train()
    assert run.log.order[:4] == [("snapshot", 0), ("step", 0), ("step", 1), ("snapshot", 2)]
    assert run.log.order[-2:] == [("eval", NUM_STEPS), ("snapshot", NUM_STEPS)]
    trained = run.probe().measure(run.model, run.loss_fn, run.options)
    for record, direct in ((run.log.snapshots[0], untrained), (run.log.snapshots[2], trained)):
        for name in direct.layers:
            ours, theirs = record.snapshot[name].input, direct[name].input
            assert ours is not None
            assert theirs is not None
            assert torch.equal(ours.eigenvalues, theirs.eigenvalues)
    assert run.log.snapshots[0].snapshot["1"].effective_lr == untrained["1"].effective_lr


def test_a_training_batch_is_measured_as_analyze_would() -> None:
    weights = torch.tensor([1.0, 2.0, 5.0])
    run = Run(plain_mlp, loss_fn=nn.CrossEntropyLoss(weight=weights), snapshots=(0,))
    batch = next(iter(run.batches(run.data.train, BATCH, shuffle=True).epoch(0)))
    direct = analyze_batches(run.model.train(), run.loss_fn, [batch], run.options)
    run.train()
    recorded = run.log.snapshots[0].snapshot
    assert recorded.layers == direct.layers == ("1", "6")
    assert recorded.bn_mode == direct.bn_mode == "train"
    for name in direct.layers:
        for matrix in ("input", "grad_output", "weight", "weight_grad"):
            ours, theirs = getattr(recorded[name], matrix), getattr(direct[name], matrix)
            assert torch.equal(ours.eigenvalues, theirs.eigenvalues)


IN_FLOAT64 = replace(EVERY_MATRIX, network_precision=NetworkPrecision.FLOAT64)


@pytest.mark.parametrize("precision", list(ModelPrecision))
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("source", list(Source))
def test_float64_snapshots_leave_the_training_alone(
    source: Source, channels_last: bool, precision: ModelPrecision
) -> None:
    def run(options: AnalysisOptions, snapshots: tuple[int, ...]) -> Run:
        build = partial(resnet, dropout=0.5)
        execution: Any = {"precision": precision, "channels_last": channels_last}
        made = Run(build, source=source, snapshots=snapshots, options=options, **execution)
        made.train()
        return made

    measured, plain = run(IN_FLOAT64, (0, 3)), run(EVERY_MATRIX, ())
    assert measured.state() == plain.state()
    assert measured.log.steps == plain.log.steps
    assert [what for what in measured.log.order if what[0] == "snapshot"] == [
        ("snapshot", 0),
        ("snapshot", 3),
    ]
    for record in measured.log.snapshots:
        for layer in record.snapshot.records:
            assert layer.input is not None
            assert layer.input.dtype == torch.float64
            assert layer.gradient_residual < 1e-12


def test_a_float64_snapshot_is_of_the_training_batch_as_it_is_trained() -> None:
    """BatchNorm's own statistics, and the very dropout masks: their difference is rounding."""
    logs = []
    for options in (IN_FLOAT64, EVERY_MATRIX):
        run = Run(partial(mlp, dropout=0.5), snapshots=(0, 3), options=options)
        run.train()
        logs.append(run.log)
    for exact, trained in zip(logs[0].snapshots, logs[1].snapshots, strict=True):
        assert exact.snapshot.layers == trained.snapshot.layers
        assert exact.snapshot.bn_mode == trained.snapshot.bn_mode == "train"
        for one, other in zip(exact.snapshot.records, trained.snapshot.records, strict=True):
            assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
            assert one.effective_lr == pytest.approx(other.effective_lr, rel=1e-6)
            for matrix in ("input", "grad_output", "weight_grad"):
                ours, theirs = getattr(one, matrix), getattr(other, matrix)
                assert ours.trace == pytest.approx(theirs.trace, rel=1e-4)
                assert ours.trace != theirs.trace or matrix == "input"


def test_effective_lr_of_sgd_counts_the_momentum() -> None:
    run = Run(plain_mlp, snapshots=(0,))
    rows = run.model.get_parameter("1.weight").detach().double().square().sum(1)
    run.train()
    expected = (0.1 / (1 - 0.9) / rows).quantile(0.5, interpolation="midpoint").item()
    # Float32 weights squared: relative 1e-6.
    assert run.log.snapshots[0].snapshot["1"].effective_lr == pytest.approx(expected, rel=1e-5)


def test_adam_trains_without_an_effective_lr() -> None:
    run = Run(plain_mlp, optimizer_name="adam", snapshots=(0,), num_steps=30, evals=(30,))
    assert run.train().state is RunState.COMPLETE
    assert math.isnan(run.log.snapshots[0].snapshot["1"].effective_lr)
    assert run.log.steps[-1].loss < 0.8 * run.log.steps[0].loss


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("source", list(Source))
def test_divergence(value: float, source: Source) -> None:
    # The probe evaluates the loss too: three batches before step 3.
    before = 3 if source is Source.PROBE else 0
    loss_fn = Recording(infinite_at=3 + before, value=value)
    run = Run(plain_mlp, source=source, snapshots=(3,), evals=(2, 6), loss_fn=loss_fn)
    outcome = run.train()
    assert outcome.state is RunState.DIVERGED
    assert outcome.num_steps_done == 3
    assert outcome.final is None
    assert [record.step for record in run.log.steps] == [0, 1, 2, 3]
    assert not math.isfinite(run.log.steps[-1].loss)
    assert [record.step for record in run.log.snapshots] == [3]
    # No update was made from the broken gradient.
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_the_snapshot_of_a_broken_step_says_so() -> None:
    loss_fn = Recording(infinite_at=0, value=math.nan)
    run = Run(plain_mlp, snapshots=(0,), loss_fn=loss_fn)
    run.train()
    layer = run.log.snapshots[0].snapshot["6"]
    assert layer.grad_output is not None
    assert layer.input is not None
    assert layer.grad_output.status == "nonfinite"
    assert layer.input.status == "ok"


def test_the_last_update_can_break_the_network() -> None:
    run = Run(plain_mlp, num_steps=1, evals=(1,), source=Source.PROBE, snapshots=(0, 1))
    for group in run.optimizer.param_groups:
        group["weight_decay"] = math.inf
    outcome = run.train()
    assert math.isfinite(run.log.steps[0].loss)
    assert outcome.state is RunState.DIVERGED
    assert outcome.final == run.log.evals[0]
    # Measuring a broken network is not an error.
    before, after = (record.snapshot["6"].input for record in run.log.snapshots)
    assert before is not None
    assert after is not None
    assert (before.status, after.status) == ("ok", "nonfinite")


def test_a_training_batch_cannot_show_the_trained_network() -> None:
    run = Run(plain_mlp, snapshots=(0, NUM_STEPS))
    before = model_state(run.model)
    with pytest.raises(InputError, match=r"planned at step 6.*last training batch.*step 5"):
        run.train()
    assert model_state(run.model) == before


def test_a_probe_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(plain_mlp, source=Source.PROBE, snapshots=(0,))
    monkeypatch.setattr(run, "probe", lambda: None)
    with pytest.raises(InputError, match="there is no probe"):
        run.train()


def test_every_sink_is_told() -> None:
    more = Log()
    run = Run(plain_mlp, snapshots=(1,))
    run.train([more])
    assert more.order == run.log.order


class Pause:
    """Remembers when it was asked, and says yes once."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.asked = at, list[int]()

    def __call__(self, step: int) -> bool:
        self.asked.append(step)
        return step == self.at


@pytest.mark.parametrize("at", range(NUM_STEPS))
@pytest.mark.parametrize("source", list(Source))
def test_a_paused_run_goes_on_to_the_last_bit(at: int, source: Source) -> None:
    def run() -> Run:
        last = NUM_STEPS if source is Source.PROBE else NUM_STEPS - 1
        noisy = partial(mlp, dropout=0.5, noise=True)
        return Run(noisy, source=source, snapshots=(0, 3, 4, last), evals=(1, 4, 6))

    whole = run()
    expected = whole.train()
    first = run()
    pause = Pause(at)
    outcome = first.train(pause=pause)
    assert outcome == Outcome(RunState.UNFINISHED, at, None)
    assert pause.asked == list(range(at + 1))
    model, optimizer = first.model.state_dict(), first.optimizer.state_dict()
    state = random_state()
    second = run()  # seeds everything anew
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    restore_random_state(state)
    assert second.train(start=at) == expected
    assert second.state() == whole.state()
    # Every record once, in order, and the same.
    assert first.log.order + second.log.order == whole.log.order
    assert first.log.steps + second.log.steps == whole.log.steps
    assert first.log.evals + second.log.evals == whole.log.evals
    for ours, theirs in zip(
        first.log.snapshots + second.log.snapshots, whole.log.snapshots, strict=True
    ):
        for one, other in zip(ours.snapshot.records, theirs.snapshot.records, strict=True):
            assert one.input is not None
            assert other.input is not None
            assert torch.equal(one.input.eigenvalues, other.input.eigenvalues)


def test_a_run_is_not_paused_once_all_is_done() -> None:
    pause = Pause(NUM_STEPS)
    assert Run(plain_mlp).train(pause=pause).state is RunState.COMPLETE
    assert pause.asked == list(range(NUM_STEPS))
