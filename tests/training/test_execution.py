"""bf16, channels_last, compiled: other arithmetic, the same definitions; and nobody is changed."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.float64_network import float64_network
from condexp.analysis.linalg.rows.patches import Window, unfold_patches
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import LayerSnapshot, Snapshot
from condexp.analysis.vocabulary import NetworkPrecision
from condexp.errors import InputError
from condexp.training.choices import ModelPrecision, Source
from condexp.training.execution import check_execution, compile_model, configure
from condexp.training.loop import Outcome
from tests.cases import labels, normal, randomised
from tests.from_conf import build
from tests.training.runs import NUM_STEPS, STEPS_PER_EPOCH, Run, hooks, mlp, resnet
from tests.training.test_unchanged import SOURCES

CPU = torch.device("cpu")
BF16 = ModelPrecision.BF16
EPS32 = torch.finfo(torch.float32).eps
EPS_BF16 = torch.finfo(torch.bfloat16).eps  # 2⁻⁷
MATRICES = ("input", "grad_output", "kfac", "weight", "weight_grad")
NUM_SAMPLES = 16


def convolutions() -> nn.Module:
    """Convolutions of every kind between normalisations, and a linear layer."""
    layers = [
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, padding_mode="reflect"),
        nn.Conv2d(8, 8, (3, 1), padding="same", dilation=2, groups=8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ]
    return randomised(nn.Sequential(*layers)).float()


def images_and_labels() -> tuple[Tensor, Tensor]:
    return normal(NUM_SAMPLES, 3, 8, 8).float(), labels(NUM_SAMPLES, 3)


def measure(model: nn.Module, dtype: torch.dtype = torch.float32, **options: object) -> Snapshot:
    inputs, targets = images_and_labels()
    loss_fn = nn.CrossEntropyLoss()
    return condexp.analyze(model, loss_fn, inputs.to(dtype), targets, MATRICES, **options)  # type: ignore[arg-type]


def spectrum(record: LayerSnapshot, matrix: str) -> Spectrum:
    found = getattr(record, matrix)
    assert isinstance(found, Spectrum)
    return found


def assert_close(ours: Snapshot, theirs: Snapshot, relative: float) -> None:
    """Every eigenvalue and measure of every layer; eigenvalues relative to the largest (Weyl)."""
    assert ours.layers == theirs.layers
    for name in theirs.layers:
        one, other = ours[name], theirs[name]
        for matrix in ("input", "grad_output", "weight", "weight_grad"):
            a, b = spectrum(one, matrix), spectrum(other, matrix)
            # An eigenvalue below its floor counts as 0, so it may be off by the floor.
            atol = relative * b.lambda_max + max(a.noise_floor, b.noise_floor)
            torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=0, atol=atol)
            assert a.status == b.status
            assert len(a) == len(b)
        assert one.kfac is not None
        assert other.kfac is not None
        assert one.kfac.lambda_max == pytest.approx(other.kfac.lambda_max, rel=3 * relative)
        for measure_name in ("weight_norm", "grad_norm", "domination", "input_mean_fraction"):
            expected = getattr(other, measure_name)
            found = getattr(one, measure_name)
            assert found == pytest.approx(expected, rel=3 * relative, abs=relative)


@pytest.mark.parametrize("conv_input", ["patches", "channels"])
def test_channels_last_measures_the_same(conv_input: str) -> None:
    plain, other = convolutions().double(), convolutions().double()
    configure(other, CPU, channels_last=True)
    layouts: list[bool] = []

    def note(_module: nn.Module, args: tuple[Tensor], _output: Tensor) -> None:
        layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))

    handles = [other.get_submodule(name).register_forward_hook(note) for name in ("0", "3")]
    results = [measure(m, torch.float64, conv_input=conv_input) for m in (plain, other)]
    for handle in handles:
        handle.remove()
    assert layouts == [True, True]  # or nothing was tested
    # Float64 sums of at most 36 products in another order, through five layers: some 100 eps.
    assert_close(results[1], results[0], relative=1e-13)


def test_channels_last_in_float32() -> None:
    plain, other = convolutions(), convolutions()
    configure(other, CPU, channels_last=True)
    # The same in float32, where eps is 1.2e-7.
    assert_close(measure(other), measure(plain), relative=2e-5)


def test_bf16_measures_the_same_up_to_its_rounding() -> None:
    plain, other = convolutions(), convolutions()
    configure(other, CPU, precision=BF16)
    ours, theirs = measure(other), measure(plain)
    # A layer rounds its input, weight and output by eps/2 each, the normalisation behind it once
    # more: 2 eps. Five layers forwards and five backwards make 20 eps in the worst case, and an
    # eigenvalue is a square; independent errors add as a root, √20, which leaves 2·√20 = 9 eps.
    assert_close(ours, theirs, relative=9 * EPS_BF16)
    for name in theirs.layers:
        # Weights are float32 still, and measured as they are.
        pair = [spectrum(s[name], "weight").eigenvalues for s in (ours, theirs)]
        assert torch.equal(*pair)
        assert other.get_parameter(f"{name}.weight").dtype == torch.float32


def capture(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and gradients of the outputs of every layer in a pass of one's own."""
    inputs, grads = {}, {}

    def listen(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            inputs[name] = args[0].detach().clone()
            output.register_hook(lambda grad: grads.update({name: grad.clone()}))  # type: ignore[no-untyped-call]

        return hook

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [module.register_forward_hook(listen(name)) for name, module in layers]
    images, targets = images_and_labels()
    loss = nn.functional.cross_entropy(model(images), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    return inputs, grads


def test_bf16_spectra_are_those_of_the_very_rows_of_the_pass() -> None:
    """The definition has not changed: float64 moments of what the layers saw."""
    model = convolutions()
    configure(model, CPU, precision=BF16)
    snapshot = measure(model)
    inputs, grads = capture(model)
    assert inputs["0"].dtype == torch.float32  # the images, as they are
    assert {inputs[name].dtype for name in ("3", "6", "11")} == {torch.bfloat16}
    assert {grad.dtype for grad in grads.values()} == {torch.bfloat16}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        a, g = inputs[name].double(), grads[name].double() * NUM_SAMPLES
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        if isinstance(module, nn.Conv2d):
            kernel = (module.kernel_size, module.stride, module.padding, module.dilation)
            a = unfold_patches(a, Window(*kernel, groups, module.padding_mode))
            g = torch.stack(g.movedim(1, -1).flatten(0, 2).tensor_split(groups, dim=1))
        else:
            a, g = a[None], g[None]
        oracles = {"input": a.mT @ a / a.shape[1], "grad_output": g.mT @ g / NUM_SAMPLES}
        for matrix, oracle in oracles.items():
            found = spectrum(snapshot[name], matrix)
            expected = torch.linalg.eigvalsh(oracle).flatten().sort(descending=True).values
            # Products of exact bfloat16 rows in float32; below the floor it is 0.
            atol = found.noise_floor + 1e-6 * found.lambda_max
            torch.testing.assert_close(found.eigenvalues, expected, rtol=0, atol=atol)
            rounding = 4 * (EPS_BF16 if (name, matrix) != ("0", "input") else 2**-23) ** 2
            # Half-precision rows set the floor, float32 rows leave it to the products.
            if rounding > 1e-9:
                assert found.noise_floor == pytest.approx(found.lambda_max * rounding, rel=0.05)
            else:
                assert found.noise_floor < 60 * EPS32 * found.lambda_max


def test_bf16_does_not_invent_eigenvalues() -> None:
    """Softmax's null vector is 0 in theory; rounding leaves more of it than float32's floor."""
    model = convolutions()
    configure(model, CPU, precision=BF16)
    record = measure(model)["11"]
    assert spectrum(record, "grad_output").kappa_interval(1.0)[1] == float("inf")
    assert spectrum(record, "grad_output").rank == 2
    _, grads = capture(model)
    rows = grads["11"].double()
    values = torch.linalg.eigvalsh(rows.T @ rows)
    assert values[0] > 4 * torch.finfo(torch.float32).eps * values[-1]
    # The gradient of the weight is computed in bfloat16 as well, and arrives in float32.
    gradient = spectrum(record, "weight_grad")
    assert gradient.noise_floor > 4 * EPS_BF16**2 * gradient.lambda_max


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "center", "scale", "none"])
def test_bf16_runs_with_every_normalisation(norm: str) -> None:

    torch.manual_seed(0)
    model = build("mlp", (3, 8, 8), 3, depth=3, width=8, norm=norm)
    reference = measure(model)
    configure(model, CPU, precision=BF16)
    # Three layers: see above, 2·√12 eps; a normalisation may divide by little.
    assert_close(measure(model), reference, relative=14 * EPS_BF16)


def test_outputs_and_loss_are_float32() -> None:
    model = convolutions()
    configure(model, CPU, precision=BF16, channels_last=True)
    outputs = model(images_and_labels()[0])
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, outputs.bfloat16().float())
    assert not torch.is_autocast_enabled("cpu")


def test_plain_execution_touches_nothing() -> None:
    model = convolutions()
    configure(model, CPU)
    assert "forward" not in vars(model)


MODES: dict[str, dict[str, object]] = {
    "bf16": {"precision": BF16},
    "channels_last": {"channels_last": True},
    "both": {"precision": BF16, "channels_last": True},
    # A compiler without arithmetic of its own: what is compiled is torch's own kernels.
    "compiled": {"backend": "aot_eager"},
    "all": {"precision": BF16, "channels_last": True, "backend": "aot_eager"},
}
Trained = tuple[Run, Outcome, dict[str, object]]


@pytest.fixture(scope="module", params=MODES)
def never(request: pytest.FixtureRequest) -> tuple[dict[str, object], Trained]:
    mode = MODES[request.param]
    run = Run(partial(resnet, dropout=0.5), **mode)  # type: ignore[arg-type]
    outcome = run.train()
    return mode, (run, outcome, run.state())


@pytest.mark.parametrize("source", SOURCES)
def test_analysed_or_not(never: tuple[dict[str, object], Trained], source: str) -> None:
    mode, (reference, outcome, state) = never
    run = Run(reference.build, **(mode | SOURCES[source]))  # type: ignore[arg-type]
    assert run.train() == outcome
    assert run.state() == state
    assert run.log.steps == reference.log.steps
    assert tuple(record.step for record in run.log.snapshots) == run.snapshots
    assert hooks(run.model) == []


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_the_same_up_to_rounding(mode: str) -> None:
    # Without dropout: its masks are drawn in the order of the memory, so by another layout they
    # are others.
    build = partial(resnet, dropout=0.0)
    run, plain = Run(build, **MODES[mode]), Run(build)  # type: ignore[arg-type]
    run.train()
    plain.train()
    losses = [[record.loss for record in r.log.steps] for r in (run, plain)]
    bf16 = run.precision is BF16
    if bf16:
        assert losses[0] != losses[1]
    # Six updates of a small net with a moderate rate do not amplify rounding much. In float32: a
    # thousand eps; in bfloat16: what a single pass of this depth may be off by, 9 eps.
    assert losses[0] == pytest.approx(losses[1], rel=9 * EPS_BF16 if bf16 else 1e-4)


class Backend:
    """Compiles nothing, and counts what it was given and how often that was called."""

    def __init__(self) -> None:
        self.num_graphs = self.num_calls = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        self.num_graphs += 1

        def call(*args: object) -> object:
            self.num_calls += 1
            return graph.forward(*args)

        return call


def plain_mlp() -> nn.Sequential:
    return mlp(dropout=0.0)


@pytest.mark.parametrize("source", list(Source))
def test_only_steps_without_a_snapshot_are_compiled(source: Source) -> None:
    backend = Backend()
    run = Run(plain_mlp, backend=backend, source=source, snapshots=(0, 3))
    run.train()
    # A probe measures beside the step. Evaluations call the model itself.
    expected = NUM_STEPS if source is Source.PROBE else NUM_STEPS - 2
    assert backend.num_calls == expected
    assert backend.num_graphs == 1
    eager = Run(plain_mlp, source=source, snapshots=(0, 3))
    eager.train()
    first, second = (r.log.snapshots[0].snapshot for r in (run, eager))
    for name in first.layers:
        for matrix in ("input", "grad_output", "weight", "weight_grad"):
            pair = [spectrum(s[name], matrix).eigenvalues for s in (first, second)]
            assert torch.equal(*pair)


def test_beside_float64_snapshots_every_step_is_compiled() -> None:
    backend = Backend()
    options = AnalysisOptions(network_precision=NetworkPrecision.FLOAT64)
    Run(plain_mlp, backend=backend, snapshots=(0, 3), options=options).train()
    assert backend.num_calls == NUM_STEPS


def test_a_pass_in_float64_is_not_cast_to_bfloat16() -> None:
    model, inputs = convolutions().float(), images_and_labels()[0]
    expected = copy.deepcopy(model).double()(inputs.double())
    configure(model, CPU, precision=BF16, channels_last=True)
    with float64_network(model, None), torch.no_grad():
        outputs = model(inputs.double())
    # Convolutions of another memory layout sum in another order.
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-12)


def test_every_job_of_a_process_is_compiled() -> None:
    """By itself dynamo compiles eight models, and from then on silently none."""
    backends = [Backend() for _ in range(10)]
    inputs = torch.randn(4, 36)
    for backend in backends:
        compile_model(plain_mlp(), backend)(inputs)
    assert [backend.num_graphs for backend in backends] == [1] * 10


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(ModelPrecision))
def test_inductor(precision: ModelPrecision) -> None:
    """What really is compiled: probes change no bit, training batches no more than rounding."""
    settings: dict[str, dict[str, object]] = {
        "eager": {"backend": None},
        "never": {},
        "again": {},
        "probe": SOURCES["probe train"],
        "batch": {"snapshots": (3,)},
    }
    losses, states = {}, {}
    for name, setting in settings.items():
        run = Run(
            partial(resnet, dropout=0.5),
            **{"backend": "inductor", "precision": precision, **setting},  # type: ignore[arg-type]
        )
        run.train()
        losses[name], states[name] = [record.loss for record in run.log.steps], run.state()
    assert states["again"] == states["never"] == states["probe"]
    assert losses["again"] == losses["never"] == losses["probe"]
    # Up to the first measured batch it is the same run; from there on it differs by rounding. The
    # dropout masks are the same, or it would differ by far more.
    assert losses["batch"][:3] == losses["never"][:3]
    eps = EPS_BF16 if precision is BF16 else torch.finfo(torch.float32).eps
    for name in ("batch", "eager"):
        assert losses[name] == pytest.approx(losses["never"], rel=60 * eps)
        assert states[name]["torch"] == states["never"]["torch"]
    assert len(losses["never"]) == NUM_STEPS > STEPS_PER_EPOCH


def test_what_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_execution(CPU, precision=BF16, compiled=False)
    with pytest.raises(InputError, match=r"precision=bf16 does not work on meta: .*=fp32\.$"):
        check_execution(torch.device("meta"), precision=BF16, compiled=False)

    def switched_off(*_: object) -> None:
        warnings.warn("In MPS autocast, but the target dtype is not supported.", stacklevel=1)

    monkeypatch.setattr(torch, "autocast", switched_off)
    with pytest.raises(InputError, match=r"does not work on mps: In MPS autocast, but"):
        check_execution(torch.device("mps"), precision=BF16, compiled=False)

    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found in (None, 'g++')\nmore\n")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(InputError, match=r"compile=true does not work here: No working.*'g\+\+'\)"):
        check_execution(torch.device("xla"), precision=ModelPrecision.FP32, compiled=True)


def test_losses_fall_in_every_mode(never: tuple[dict[str, object], Trained]) -> None:
    _, (run, outcome, _) = never
    assert outcome.num_steps_done == NUM_STEPS
    assert len({record.loss for record in run.log.steps}) == NUM_STEPS
    assert all(later.step - earlier.step == 1 for earlier, later in pairwise(run.log.steps))
