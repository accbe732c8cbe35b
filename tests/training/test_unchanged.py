"""Analysis every step, by either source, or never: the same run to the last bit."""

import math
from collections.abc import Callable
from functools import partial

import pytest
from torch import Tensor, nn

from condexp.analysis.linalg.moments import SecondMoment
from condexp.analysis.options import AnalysisOptions
from condexp.training.choices import ProbeMode, Source
from condexp.training.loop import Outcome
from tests.training.runs import NUM_STEPS, Log, Run, hooks, mlp, resnet

EVERY_STEP = tuple(range(NUM_STEPS))
SOURCES: dict[str, dict[str, object]] = {
    "train_batch": {"source": Source.TRAIN_BATCH, "snapshots": EVERY_STEP},
    "probe train": {
        "source": Source.PROBE,
        "mode": ProbeMode.TRAIN,
        "snapshots": (*EVERY_STEP, NUM_STEPS),
    },
    "probe eval": {
        "source": Source.PROBE,
        "mode": ProbeMode.EVAL,
        "snapshots": (*EVERY_STEP, NUM_STEPS),
    },
}
NETS: dict[str, Callable[[], nn.Sequential]] = {
    "mlp": partial(mlp, dropout=0.0),
    "mlp dropout": partial(mlp, dropout=0.5, noise=True),
    "resnet": partial(resnet, dropout=0.0),
    "resnet dropout": partial(resnet, dropout=0.5),
}


@pytest.fixture(scope="module", params=NETS)
def never(request: pytest.FixtureRequest) -> tuple[Run, Outcome, dict[str, object]]:
    run = Run(NETS[request.param])
    outcome = run.train()
    return run, outcome, run.state()


@pytest.mark.parametrize("source", SOURCES)
def test_analysed_or_not(never: tuple[Run, Outcome, dict[str, object]], source: str) -> None:
    reference, outcome, state = never
    run = Run(reference.build, **SOURCES[source])  # type: ignore[arg-type]
    assert run.train() == outcome
    assert run.state() == state
    assert str(run.log.steps) == str(reference.log.steps)  # NaN is no sharpness
    assert run.log.evals == reference.log.evals
    assert tuple(record.step for record in run.log.snapshots) == run.snapshots
    assert hooks(run.model) == []


@pytest.mark.parametrize("source", SOURCES)
def test_sharpness_or_not(never: tuple[Run, Outcome, dict[str, object]], source: str) -> None:
    reference, outcome, state = never
    way = {name: value for name, value in SOURCES[source].items() if name != "snapshots"}
    run = Run(reference.build, sharpness_every=2, **way)  # type: ignore[arg-type]
    assert run.train() == outcome
    assert run.state() == state
    measured = [math.isfinite(record.sharpness) for record in run.log.steps]
    assert measured == [step % 2 == 0 for step in range(NUM_STEPS)]
    assert [(r.loss, r.lr) for r in run.log.steps] == [(r.loss, r.lr) for r in reference.log.steps]
    assert run.log.evals == reference.log.evals
    assert hooks(run.model) == []


@pytest.mark.parametrize("net", NETS)
def test_same_seed_same_bytes(net: str) -> None:
    results = []
    for seed in (0, 0, 1):
        run = Run(NETS[net], seed=seed)
        run.train()
        results.append((str(run.log.steps), run.log.evals, run.state()))
    first, again, other = results
    assert again == first
    assert other[0] != first[0]


STEP = 3


@pytest.mark.parametrize("net", NETS)
def test_a_sink_stumbles_over_a_probe(net: str) -> None:
    """The probe comes after update STEP − 1 and before anything of step STEP."""
    run = Run(
        NETS[net],
        source=Source.PROBE,
        snapshots=(STEP,),
        evals=(STEP,),
        log=Log(stumble=("snapshot", STEP)),
    )
    state = stumble(run)
    assert hooks(run.model) == []
    assert state == stumble(Run(NETS[net], evals=(STEP,), log=Log(stumble=("eval", STEP))))


@pytest.mark.parametrize("net", NETS)
def test_a_sink_stumbles_over_a_training_batch(net: str) -> None:
    """The pass of step STEP is made, its update is not."""
    run = Run(NETS[net], snapshots=(STEP,), log=Log(stumble=("snapshot", STEP)))
    state = stumble(run)
    assert hooks(run.model) == []
    assert state == stumble(Run(NETS[net], log=Log(stumble=("step", STEP))))


def stumble(run: Run) -> dict[str, object]:
    with pytest.raises(OSError, match="the sink stumbled"):
        run.train()
    return run.state()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("matrix", ["input", "grad_output"])
def test_a_hook_raises(net: str, source: str, matrix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward pass (``input``) or in the backward pass (``grad_output``) of step STEP."""
    run = Run(
        NETS[net],
        **(SOURCES[source] | {"snapshots": (STEP,), "evals": (STEP,)}),  # type: ignore[arg-type]
        options=AnalysisOptions(matrices=(matrix,)),  # type: ignore[arg-type]
    )

    def broken(*_: object, **__: object) -> None:
        raise ArithmeticError("the hook broke")

    monkeypatch.setattr(SecondMoment, "add", broken)
    with pytest.raises(ArithmeticError, match="the hook broke"):
        run.train()
    state = run.state()
    assert hooks(run.model) == []
    assert [record.step for record in run.log.steps] == list(range(STEP))

    if run.source is Source.PROBE:
        expected = stumble(Run(NETS[net], evals=(STEP,), log=Log(stumble=("eval", STEP))))
    elif matrix == "input":
        expected = interrupted(NETS[net], at_layer="first")
    else:
        expected = interrupted(NETS[net], at_layer="last")
    assert state == expected


def interrupted(build: Callable[[], nn.Sequential], *, at_layer: str) -> dict[str, object]:
    """Stop a plain run at step STEP in the first layer's forward or the last layer's backward."""
    run = Run(build, evals=(STEP,))
    layers = [m for m in run.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    def stop(*_: object) -> None:
        raise KeyError("stopped")

    def forward(module: nn.Module, _: object, output: Tensor) -> None:
        if not module.training or len(run.log.steps) < STEP:
            return
        if at_layer == "first":
            stop()
        output.register_hook(stop)  # type: ignore[no-untyped-call]

    layer = layers[0] if at_layer == "first" else layers[-1]
    handle = layer.register_forward_hook(forward)
    with pytest.raises(KeyError, match="stopped"):
        run.train()
    handle.remove()
    return run.state()
