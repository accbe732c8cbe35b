"""Random networks against explicit float64: every number right, refused or marked, none silent.

What a network may consist of is in :mod:`.programs`, what is right in :mod:`.explicit`. A refusal
is an :class:`InputError`, a mark is a spectrum of NaN with a status that says so. A weight that is
used and appears nowhere would be silent too.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Self

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import condexp
from condexp.analysis.snapshot import LayerSnapshot, Snapshot
from condexp.errors import InputError
from tests import reference
from tests.analysis.explicit import Truth, sample_gradients, truth
from tests.analysis.programs import Net, Program, Step, Writer, build

MATRICES = ("input", "grad_output", "kfac", "fisher", "weight", "weight_grad")
KAPPA_P = (0.5, 0.8, 1.0)
# Everything is float64, so rounding is about n·eps; the oracle's own sums round as much.
EIGENVALUES = 1e-9  # of the largest
MEASURES = 1e-9
# Where gradients cancel on their way (a softmax over equal scores), what is left is the rounding of
# what was there, of the largest gradients of the network.
ROUNDING = 1e-14
NUM_MICRO_BATCHES = 2


class SilentlyWrongError(AssertionError):
    """A number that is neither right nor refused nor marked."""


def check(right: bool, what: str, given: object, expected: object) -> None:
    if not right:
        raise SilentlyWrongError(f"{what}: got {given}, right is {expected}")


def is_marked(spectrum: Any) -> bool:
    """Whether a spectrum says itself that it is no number."""
    says_so = str(spectrum.status) not in {"ok", "zero"}
    return says_so and math.isnan(spectrum.lambda_max)


def check_spectrum(what: str, spectrum: Any, expected: Tensor, noise: float = 0.0) -> None:
    """The eigenvalues, and what is read of them, against those of an oracle, descending.

    ``noise`` is that of the rows, whose squares the eigenvalues are.
    """
    if is_marked(spectrum):
        return
    expected = expected.clamp(min=0)
    largest = float(expected[0])
    unknown = 2 * noise * math.sqrt(largest) + noise**2
    tolerance = EIGENVALUES * largest + unknown
    check(len(spectrum) == len(expected), f"{what}, length", len(spectrum), len(expected))
    if hasattr(spectrum, "eigenvalues"):
        error = float((spectrum.eigenvalues - expected).abs().max())
        right = error <= tolerance
        check(right, f"{what}, eigenvalues", spectrum.eigenvalues.tolist(), expected.tolist())
    for name, value in (("lambda_max", largest), ("trace", float(expected.sum()))):
        number = getattr(spectrum, name)
        right = abs(number - value) <= tolerance * len(expected)
        check(right, f"{what}, {name}", number, value)
    if unknown < 1e-12 * largest and str(spectrum.status) != "zero":
        for p in KAPPA_P:
            check_kappa(
                f"{what}, κ_{p}", spectrum, p, reference.kappa(expected, p), unknown / largest
            )


def check_kappa(what: str, spectrum: Any, p: float, expected: float, noise: float) -> None:
    """The interval against the oracle, whose own last eigenvalue errs by some 1e-14 + noise."""
    low, high = spectrum.kappa_interval(p)
    known = 1e-9 + (1e-14 + noise) * expected
    right = low * (1 - known) <= expected <= high * (1 + known)
    # The oracle's own zeros are rounding: an eigenvalue of 1e-17 for 0.
    right = right or (high == math.inf and expected > 1e12)
    check(right, what, (low, high), expected)


def united(matrices: Tensor) -> Tensor:
    values = torch.cat([reference.eigenvalues(matrix) for matrix in matrices])
    return values.sort(descending=True).values


def of_rows(rows: Tensor) -> Tensor:
    """The min(N, d) eigenvalues of 1/N Σ r rᵀ."""
    values: Tensor = torch.linalg.svdvals(rows) ** 2 / len(rows)
    return values


@dataclass(frozen=True)
class Noise:
    """Rounding of the gradients of a network: of rows g, of G_n and of ∂L/∂W."""

    grads: float
    samples: float
    gradient: float

    @classmethod
    def of(cls, rights: Iterable[Truth]) -> Self:
        every = list(rights)
        return cls(
            ROUNDING * max(float(right.grads.norm()) for right in every),
            ROUNDING * max(float(right.sample_gradients.norm()) for right in every),
            ROUNDING * max(float(right.gradient.norm()) for right in every),
        )


def unseen(steps: Iterable[Step], *, hidden: bool = False) -> set[str]:
    """The layers that are used by ``x @ W.T`` where the network's graph does not show it."""
    found: set[str] = set()
    for step in steps:
        if step.how == "matmul" and hidden:
            found.add(step.layer)
        hides = step.kind == "no_grad" or step.how == "reentrant"
        found |= unseen(step.body, hidden=hidden or hides)
    return found


def check_layer(record: LayerSnapshot, right: Truth, noise: Noise, *, blind: bool) -> None:
    """Check all matrices and measures.

    ``blind``: a use inside a re-entrant activation checkpoint that nobody sees may have no gradient
    at all, and no certificate then knows of its rows: inputs are not looked at.
    """
    name = record.info.name
    inputs, grads = right.input_matrices, right.grad_output_matrices
    blocks = right.weight.detach().reshape(len(right.inputs), -1, right.inputs.shape[-1])
    products = [reference.kronecker_eigenvalues(a, b) for a, b in zip(inputs, grads, strict=True)]
    expected = {
        "input": united(inputs),
        "grad_output": united(grads),
        "kfac": torch.cat(products).sort(descending=True).values,
        "fisher": of_rows(right.sample_gradients),
        "weight": squared_singular_values(blocks),
        "weight_grad": squared_singular_values(right.gradient),
    }
    of_rows_a = math.sqrt(float(expected["input"][0]))
    noises = {
        "grad_output": noise.grads,
        "kfac": noise.grads * of_rows_a,
        "fisher": noise.samples,
        "weight_grad": noise.gradient,
    }
    for matrix in MATRICES:
        spectrum = getattr(record, matrix)
        if spectrum is not None and not (blind and matrix in {"input", "kfac"}):
            noise_of = noises.get(matrix, 0.0)
            check_spectrum(f"{name}.{matrix}", spectrum, expected[matrix], noise_of)
    rows = right.inputs.flatten(1, 2)
    mean, power = rows.mean(1).square().sum(), rows.square().sum(2).mean(1).sum()
    measures = {
        "weight_norm": right.weight.detach().norm(),
        "grad_norm": right.gradient.norm(),
        "input_mean_fraction": mean / power if power > 0 else torch.tensor(math.nan),
        "domination": (expected["weight_grad"][0] / expected["weight"][0]).sqrt(),
    }
    for measure, value in measures.items():
        number = getattr(record, measure)
        if blind and measure == "input_mean_fraction":
            continue
        close = math.isclose(number, float(value), rel_tol=MEASURES, abs_tol=10 * noise.gradient)
        check(close or math.isnan(number), f"{name}.{measure}", number, float(value))


def squared_singular_values(blocks: Tensor) -> Tensor:
    values = torch.cat([torch.linalg.svdvals(block) ** 2 for block in blocks])
    return values.sort(descending=True).values


def weight_of(net: Net, name: str) -> Tensor:
    """The parameter that a record is of: a module's weight, or a packed one by its own name."""
    modules, parameters = dict(net.named_modules()), dict(net.named_parameters())
    for label in (f"{name}.weight", f"{name}_weight", name):
        if label in parameters:
            return parameters[label]
    weight = modules[name].weight  # a tied one is listed under its first name alone
    assert isinstance(weight, Tensor)
    return weight


def check_snapshot(
    net: Net, snapshot: Snapshot, rights: dict[int, Truth], matmuls: set[str]
) -> None:
    noise = Noise.of(rights.values())
    found: dict[int, LayerSnapshot] = {}
    for record in snapshot.records:
        weight = weight_of(net, record.info.name)
        if id(weight) not in rights:  # it was used without gradients only
            spectra = [getattr(record, matrix) for matrix in MATRICES if matrix != "weight"]
            says_so = all(spectrum is None or is_marked(spectrum) for spectrum in spectra)
            check(says_so, record.info.name, "a record", "no use with a gradient")
            continue
        right = rights[id(weight)]
        blind = record.info.name.removeprefix("layers.") in matmuls
        blind = blind and bool((right.grads == 0).all(-1).any())
        check_layer(record, right, noise, blind=blind)
        found[id(weight)] = record
    listed = [entry.name for entry in getattr(snapshot, "not_analysed", ())]
    for key, right in rights.items():
        names = [n for n, p in net.named_parameters(remove_duplicate=False) if id(p) == key]
        told = any(n.startswith(entry) or entry.startswith(n) for n in names for entry in listed)
        excluded = not right.weight.requires_grad
        packed = any("in_proj" in name or "out_proj" in name for name in names)
        known = key in found or told or excluded or (packed and not hasattr(snapshot, "coverage"))
        check(known, f"{names[0]}", "nowhere", "measured, or listed with a reason")
    if snapshot.fisher is not None and not is_marked(snapshot.fisher):
        rows = [
            rights[key].sample_gradients
            for key, record in found.items()
            if record.fisher is not None and not is_marked(record.fisher)
        ]
        check(len(rows) > 0, "fisher of the network", "a spectrum", "no layer that has one")
        every = of_rows(torch.cat(rows, 1))
        check_spectrum("fisher of the network", snapshot.fisher, every, noise.samples)


def check_oracle(
    program: Program, net: Net, inputs: Tensor, targets: Tensor, rights: dict[int, Truth]
) -> None:
    """The oracle against autograd: ∂L/∂W = 1/D Σ g aᵀ, and per sample where samples do not mix."""
    trained = [right for right in rights.values() if right.weight.requires_grad]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    k = NUM_MICRO_BATCHES if program.way == "accumulate" else 1
    loss_fn = loss_function(program)
    for x, y in zip(inputs.chunk(k), targets.chunk(k), strict=True):
        loss = loss_fn(net(x.clone()), y) / k
        loss.backward()
    grads = [right.weight.grad for right in trained]
    net.zero_grad()
    for right, grad in zip(trained, grads, strict=True):
        assert grad is not None
        torch.testing.assert_close(right.gradient.reshape(grad.shape), grad, rtol=1e-9, atol=1e-12)
        if not program.training:
            of_samples = sample_gradients(program, net, inputs, targets, right.weight)
            torch.testing.assert_close(right.sample_gradients, of_samples, rtol=1e-9, atol=1e-12)
    net.load_state_dict(state)


def loss_function(program: Program) -> nn.Module:
    return nn.MSELoss() if program.loss == "mse" else nn.CrossEntropyLoss()


def measured(
    program: Program, net: Net, inputs: Tensor, targets: Tensor, matrices: tuple[str, ...]
) -> Snapshot:
    exclude = tuple(f"layers.{name}" for name in program.frozen)
    loss_fn = loss_function(program)
    if program.way == "analyze":
        return condexp.analyze(net, loss_fn, inputs, targets, matrices, exclude=exclude)
    if program.way == "float64":
        net.float()
        wanted = targets.float() if targets.is_floating_point() else targets
        try:
            return condexp.analyze(
                net,
                loss_fn,
                inputs.float(),
                wanted,
                matrices,
                exclude=exclude,
                network_precision="float64",
            )
        finally:
            net.double()
    k = NUM_MICRO_BATCHES if program.way == "accumulate" else 1
    denominator = float(len(inputs))  # of a micro-batch, times k
    with condexp.Recorder(net, matrices, exclude=exclude, denominator=denominator) as recorder:
        for x, y in zip(inputs.chunk(k), targets.chunk(k), strict=True):
            loss = loss_fn(net(x.clone()), y) / k
            loss.backward()
    return recorder.snapshot()


def examine(program: Program) -> str:
    """Check one network; what became of it: measured, in part, or refused."""
    net, inputs, targets = build(program)
    k = NUM_MICRO_BATCHES if program.way == "accumulate" else 1
    rights = truth(program, net, inputs, targets, k)
    check_oracle(program, net, inputs, targets, rights)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    # What one matrix is refused for, another may be right or wrong with.
    for outcome, matrices in (
        ("measured", MATRICES),
        ("without fisher", tuple(m for m in MATRICES if m != "fisher")),
        ("inputs and weights", ("input", "weight")),
    ):
        try:
            snapshot = measured(program, net, inputs, targets, matrices)
        except (InputError, ArithmeticError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "use_reentrant=True" not in str(error):
                raise  # torch's own refusal says what to do; every other error is a fault
            net.zero_grad()
            net.load_state_dict(state)
            continue
        check_snapshot(net, snapshot, rights, unseen(program.steps))
        return outcome
    return "refused"


def programs(num_examples: int) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Run a test on that many programs, the same ones each time."""

    def decorate(test: Callable[..., None]) -> Callable[[], None]:
        return settings(
            max_examples=num_examples,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # the programs are small, and shrinking them takes minutes
            suppress_health_check=list(HealthCheck),
        )(given(st.randoms(use_true_random=False))(test))

    return decorate


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fuzz(num_examples: int) -> None:
    outcomes: Counter[str] = Counter()

    @programs(num_examples)
    def run(random: Random) -> None:
        program = Writer(random).write()
        try:
            outcomes[examine(program)] += 1
        except SilentlyWrongError as error:
            error.add_note(f"of a network with {sorted(program.features())}: {program}")
            raise

    run()
    # A fuzz whose networks are refused finds nothing.
    assert outcomes["measured"] > 0.4 * outcomes.total(), outcomes
    assert outcomes["refused"] < 0.2 * outcomes.total(), outcomes


def test_no_number_is_silently_wrong() -> None:
    fuzz(200)


@pytest.mark.slow
def test_no_number_is_silently_wrong_in_thousands() -> None:
    fuzz(5000)
