"""The recorder around a pass of the user's own, and the precision policy."""

import math
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import condexp
from condexp.analysis.layers.calls import PassMode
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.recorder import Recorder
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.vocabulary import SpectrumStatus
from condexp.errors import InputError
from tests import cases, reference
from tests.analysis import oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
ALL = ("input", "grad_output", "kfac", "weight", "weight_grad")


def same_snapshots(given: Snapshot, expected: Snapshot) -> None:
    assert given.layers == expected.layers
    for name in given.layers:
        for matrix in ("input", "grad_output", "weight", "weight_grad"):
            oracles.same(getattr(given[name], matrix), getattr(expected[name], matrix))


@pytest.mark.parametrize("model", [cases.vgg(), cases.resnet()], ids=["vgg", "resnet"])
def test_recording_a_pass_equals_analysing_it(model: nn.Module) -> None:
    inputs, targets = cases.normal(4, 2, 8, 8), cases.labels(4, 3)
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, ALL)
    with Recorder(model, ALL) as recorder:
        CROSS_ENTROPY(model(inputs), targets).backward()
    same_snapshots(recorder.snapshot(), expected)
    assert recorder.snapshot().num_samples == 4
    assert recorder.snapshot().bn_mode == "train"


def test_what_is_already_in_grad_does_not_matter() -> None:
    """weight_grad is that of this very backward, not what has accumulated."""
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with Recorder(model, ("weight_grad",)) as recorder:
        CROSS_ENTROPY(model(inputs), targets).backward()
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, ("weight_grad",))
    for name in expected.layers:
        oracles.same(recorder.snapshot()[name].weight_grad, expected[name].weight_grad)


def test_a_snapshot_after_the_update_shows_the_weights_of_the_pass() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, ALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with Recorder(model, ALL) as recorder:
        CROSS_ENTROPY(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    same_snapshots(recorder.snapshot(), expected)


def test_passes_without_gradients_and_outside_the_block_are_not_recorded() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    with Recorder(model, ALL) as recorder:
        with torch.no_grad():
            model(100 * inputs)
        CROSS_ENTROPY(model(inputs), targets).backward()
    pending = CROSS_ENTROPY(model(100 * inputs), targets)
    pending.backward()
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, ALL)
    same_snapshots(recorder.snapshot(), expected)


def test_a_graph_that_outlives_the_block_is_not_recorded() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    with Recorder(model) as recorder:
        loss = CROSS_ENTROPY(model(inputs), targets)
    loss.backward()
    with pytest.raises(InputError, match="no gradient reached layer '0': backward"):
        recorder.snapshot()


def test_empty_batches_are_skipped() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    with Recorder(model, ALL) as recorder:
        model(inputs[:0]).sum().backward()
        CROSS_ENTROPY(model(inputs), targets).backward()
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, ALL)
    oracles.same(recorder.snapshot()["0"].input, expected["0"].input)
    oracles.same(recorder.snapshot()["4"].grad_output, expected["4"].grad_output)
    assert recorder.snapshot().num_samples == 4


def test_a_call_without_rows_adds_nothing() -> None:
    """An expert that no sample was sent to, before one that got them all."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = cases.randomised(nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.fc(x[:0]), self.fc(x)])

    model, inputs, targets = Routed(), cases.normal(4, 4), cases.labels(4, 3)
    given = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)["fc"]
    plain = condexp.analyze(model.fc, CROSS_ENTROPY, inputs, targets)["Linear"]
    assert given.info.uses == 1
    oracles.same(given.input, plain.input)
    oracles.same(given.grad_output, plain.grad_output)


def test_several_passes_are_merged() -> None:
    """Two forward passes before two backward passes, in the other order too."""
    model, inputs, targets = cases.reused(), cases.normal(6, 4), cases.normal(6, 3, seed=3)
    loss_fn = nn.MSELoss()
    expected = condexp.analyze(model, loss_fn, inputs, targets, ALL)
    for order in (1, -1):
        with Recorder(model, ALL, denominator=6.0) as recorder:
            halves = [  # as gradients are accumulated: W.grad is then the whole batch's
                loss_fn(model(inputs[:3]), targets[:3]) / 2,
                loss_fn(model(inputs[3:]), targets[3:]) / 2,
            ]
            for loss in halves[::order]:
                loss.backward()
        same_snapshots(recorder.snapshot(), expected)
        assert recorder.snapshot()["shared"].info.uses == 3


def test_activation_checkpointing_is_followed() -> None:
    """The layers of a re-entrant checkpoint run again inside the backward pass."""

    class Checkpointed(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.first, self.body = cases.randomised(nn.Linear(4, 4)), body

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.body, self.first(x), use_reentrant=True)
            return out

    body, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    model = Checkpointed(body)
    plain = nn.Sequential(model.first, body)
    with Recorder(model, ALL) as recorder:
        CROSS_ENTROPY(model(inputs), targets).backward()
    expected = condexp.analyze(plain, CROSS_ENTROPY, inputs, targets, ALL)
    for name in ("0", "2", "4"):
        oracles.same(recorder.snapshot()[f"body.{name}"].input, expected[f"1.{name}"].input)
        oracles.same(
            recorder.snapshot()[f"body.{name}"].grad_output, expected[f"1.{name}"].grad_output
        )


@pytest.mark.parametrize("keyword", [False, True])
def test_samples_are_counted_by_the_first_tensor_of_any_arguments(keyword: bool) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = cases.randomised(nn.Linear(4, 3))

        def forward(self, batch: dict[str, object]) -> Tensor:
            inputs = batch["inputs"]
            assert isinstance(inputs, list)
            out: Tensor = self.fc(input=inputs[0])
            return out

    model, inputs = Nested(), cases.normal(5, 4)
    batch = {"name": "a string", "inputs": [inputs, None]}
    with Recorder(model, denominator=1) as recorder:
        outputs = model(batch=batch) if keyword else model(batch)
        outputs.sum().backward()
    record = recorder.snapshot()["fc"]
    oracles.close(record.input, oracles.united(oracles.input_matrices(oracles.linear_rows(inputs))))
    assert record.info.positions == 1
    assert recorder.snapshot().num_samples == 5


def test_a_gradient_scaler_is_divided_out_by_the_denominator() -> None:
    """Powers of two, so nothing is rounded; the weight gradient is literally the scaled one."""
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, ALL)
    scale = 2.0**16
    with Recorder(model, ALL, denominator=len(inputs) / scale) as recorder:
        (scale * CROSS_ENTROPY(model(inputs), targets)).backward()
    for name in expected.layers:
        given = recorder.snapshot()[name]
        oracles.same(given.grad_output, expected[name].grad_output)
        oracles.same(given.weight_grad, expected[name].weight_grad, scale**2)


def test_autocast_measures_what_was_computed_but_not_in_half_precision() -> None:
    """The layer's own float32 input; products of bfloat16 would be off by 10⁻³."""
    model, inputs = cases.mlp().float(), cases.normal(64, 4).float()
    targets = cases.labels(64, 3)
    with Recorder(model, precision="float32") as recorder, torch.autocast("cpu", torch.bfloat16):
        CROSS_ENTROPY(model(inputs), targets).backward()
    record = recorder.snapshot()["0"]
    matrices = oracles.input_matrices(oracles.linear_rows(inputs))
    # Products in float32 over 64 rows: eps/2 each.
    oracles.close(record.input, oracles.united(matrices), 64 * torch.finfo(torch.float32).eps)
    assert record.grad_output is not None
    assert record.grad_output.status is SpectrumStatus.OK


def test_half_precision_gradients_do_not_overflow_under_the_denominator() -> None:
    model, inputs = nn.Linear(2, 1, bias=False).half(), torch.ones(4, 2).half()
    with Recorder(model, denominator=2.0**20) as recorder:
        model(inputs).sum().backward()
    assert recorder.snapshot()["Linear"].grad_output.lambda_max == 2.0**40  # type: ignore[union-attr]


# Batch normalisation's mode.


@pytest.mark.parametrize(
    ("prepare", "mode"),
    [
        (lambda m: m.train(), "train"),
        (lambda m: m.eval(), "eval"),
        (lambda m: m[1].eval(), "mixed"),
    ],
)
def test_bn_mode(prepare: Callable[[nn.Module], object], mode: str) -> None:
    model = cases.mlp(batch_norm=True)
    prepare(model)
    snapshot = condexp.analyze(model, CROSS_ENTROPY, cases.normal(4, 4), cases.labels(4, 3))
    assert snapshot.bn_mode == mode


def test_bn_mode_of_nets_without_or_with_batch_statistics_only() -> None:
    inputs, targets = cases.normal(4, 4), cases.labels(4, 3)
    assert condexp.analyze(cases.mlp(), CROSS_ENTROPY, inputs, targets).bn_mode == "none"
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    assert condexp.analyze(model.eval(), CROSS_ENTROPY, inputs, targets).bn_mode == "train"


# Precision.


def graded_inputs(num_rows: int, smallest: float) -> Tensor:
    """Two features of very different size, so that λ_2 / λ_1 is about smallest²."""
    return (cases.normal(num_rows, 2) * torch.tensor([1.0, smallest])).float()


def input_of(inputs: Tensor, **options: object) -> Spectrum:
    recorder = Recorder(nn.Linear(inputs.shape[1], 1), ("input",), **options)  # type: ignore[arg-type]
    with recorder:
        recorder.model(inputs)
    spectrum = recorder.snapshot()["Linear"].input
    assert spectrum is not None
    return spectrum


def exact(inputs: Tensor) -> Tensor:
    return reference.eigenvalues(reference.mean_second_moment(inputs[:, None]))


def test_auto_stays_in_float32_where_that_suffices() -> None:
    inputs = graded_inputs(100, 0.1)
    spectrum = input_of(inputs)
    assert spectrum.dtype == torch.float32
    assert math.isclose(spectrum.kappa(1.0), reference.kappa(exact(inputs), 1.0), rel_tol=0.01)


def test_auto_takes_float64_where_a_requested_kappa_needs_it() -> None:
    inputs = graded_inputs(100, 1e-4)
    assert input_of(inputs, precision="float32").kappa_interval(1.0)[1] == math.inf
    spectrum = input_of(inputs)
    assert spectrum.dtype == torch.float64
    assert math.isclose(spectrum.kappa(1.0), reference.kappa(exact(inputs), 1.0), rel_tol=1e-6)


def test_auto_stays_in_float32_where_no_requested_kappa_needs_more() -> None:
    assert input_of(graded_inputs(100, 1e-4), kappa_p=(0.5,)).dtype == torch.float32


def test_auto_stays_in_float32_where_the_rows_already_limit_the_rank() -> None:
    assert input_of(cases.normal(3, 30).float()).dtype == torch.float32


def test_auto_takes_cheap_products_in_float64_at_once() -> None:
    assert input_of(cases.normal(3, 6).float()).dtype == torch.float64


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_fixed_precision_is_taken_literally(precision: str) -> None:
    for inputs in (graded_inputs(100, 1e-4), graded_inputs(100, 0.1)):
        assert input_of(inputs, precision=precision).dtype == getattr(torch, precision)


def test_auto_is_never_coarser_than_the_rows() -> None:
    layer = nn.Linear(2, 1).double()
    snapshot = condexp.analyze(layer, nn.MSELoss(), cases.normal(9, 2), cases.normal(9, 1))
    assert snapshot["Linear"].input.dtype == torch.float64  # type: ignore[union-attr]


def test_auto_takes_float64_where_it_cannot_look_again() -> None:
    """Streamed batches, and whatever follows the first portion."""
    layer, options = nn.Linear(2, 1), AnalysisOptions()
    with MeasurementHooks(layer, options, pass_mode=PassMode.SEVERAL_PASSES) as recorder:
        layer(graded_inputs(50, 0.1)).sum().backward()
    assert recorder.snapshot()["Linear"].input.dtype == torch.float64  # type: ignore[union-attr]


# Errors: what would have gone wrong silently.


def test_frozen_layers_are_left_out_or_refused_at_once() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    model[2].requires_grad_(False)
    snapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)
    assert snapshot.layers == ("0", "4")
    assert [(entry.name, entry.reason) for entry in snapshot.not_analysed] == [
        ("2", "frozen (requires_grad=False)"),
        *((f"{name}.bias", "a bias: measured with bias=True") for name in snapshot.layers),
    ]
    with pytest.raises(InputError, match=r"'2': frozen .* exclude=\['2'\]"):
        condexp.analyze(model, CROSS_ENTROPY, inputs, targets, layers=["0", "2"])
    with pytest.raises(InputError, match=r"'0', '2', '4': frozen .* exclude=\['\*'\]"):
        condexp.analyze(cases.mlp().requires_grad_(False), CROSS_ENTROPY, inputs, targets)
    snapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, ("input", "weight"))
    assert snapshot.layers == ("0", "2", "4")
    assert math.isnan(snapshot["2"].grad_norm)
    assert math.isnan(snapshot["2"].domination)
    assert snapshot["0"].grad_norm > 0


def test_an_entirely_frozen_net_still_has_inputs() -> None:
    model = cases.mlp().requires_grad_(False)
    snapshot = condexp.analyze(
        model, CROSS_ENTROPY, cases.normal(4, 4), cases.labels(4, 3), ("input", "weight")
    )
    assert snapshot["4"].input is not None


def test_a_layer_the_loss_does_not_depend_on_is_an_error() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.auxiliary = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.auxiliary(x)
            out: Tensor = self.used(x)
            return out

    model, inputs, targets = TwoHeads(), cases.normal(4, 4).float(), cases.labels(4, 3)
    with pytest.raises(InputError, match=r"no gradient reached layer 'auxiliary'.* exclude"):
        condexp.analyze(model, CROSS_ENTROPY, inputs, targets)
    assert condexp.analyze(model, CROSS_ENTROPY, inputs, targets, exclude=["auxiliary"]).layers == (
        "used",
    )


def test_rows_that_do_not_belong_to_samples_have_no_fisher() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x.mean(0, keepdim=True))
            return out

    measures = ("input", "grad_output", "fisher")
    given = Pooled(), nn.MSELoss(), torch.ones(5, 4), torch.zeros(1, 3)
    snapshot = condexp.analyze(*given, measures)
    record = snapshot["fc"]
    assert record.input is not None
    assert record.input.lambda_max == pytest.approx(4)
    assert record.fisher is not None
    assert snapshot.fisher is not None
    assert record.fisher.status == snapshot.fisher.status == "incomplete"
    assert record.incomplete is not None
    assert "got 1 rows for 5 samples" in record.incomplete
    assert "exclude=['fc']" in record.incomplete


def test_two_backward_passes_through_one_forward_pass_are_an_error() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    with Recorder(model):
        loss = CROSS_ENTROPY(model(inputs), targets)
        loss.backward(retain_graph=True)
        with pytest.raises(InputError, match="layer '4' was back-propagated twice"):
            loss.backward()


def test_calling_a_part_is_an_error() -> None:
    model, inputs = cases.mlp(), cases.normal(4, 4)
    with Recorder(model), pytest.raises(InputError, match="layer '0' was called on its own"):
        model[0](inputs)


def test_calling_without_a_tensor_is_an_error() -> None:
    model = cases.mlp()
    with Recorder(model), pytest.raises(InputError, match=r"without a tensor \[N, ...\]"):
        model(torch.tensor(1.0))


def test_an_unbatched_image_is_an_error() -> None:
    conv = nn.Conv2d(2, 3, 3)
    with (
        Recorder(conv),
        pytest.raises(InputError, match=r"\(2, 8, 8\): its analysis needs a batch"),
    ):
        conv(torch.ones(2, 8, 8))


def test_a_snapshot_of_nothing_is_an_error() -> None:
    recorder = Recorder(cases.mlp())
    with pytest.raises(InputError, match=r"nothing was recorded: .*\(0, 2, 4\)"):
        recorder.snapshot()


def test_hooks_are_gone_after_success_and_after_an_exception() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)

    def hooks() -> int:
        of_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        of_parameters = sum(len(p._backward_hooks or ()) for p in model.parameters())
        return of_modules + of_parameters + (F.linear is not linear) + (torch.conv2d is not conv2d)

    linear, conv2d = F.linear, torch.conv2d
    recorder = Recorder(model)
    with recorder:
        assert hooks() == 2 + 6 + 2
        CROSS_ENTROPY(model(inputs), targets).backward()
    assert hooks() == 0
    with pytest.raises(RuntimeError), recorder:
        model(cases.normal(4, 5))
    assert hooks() == 0


def test_an_input_that_changes_in_place_under_autocast_is_not_mistaken() -> None:
    """Autograd then keeps a copy of its own, and does not forbid it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden: Tensor = self.a(inputs).float()
            hidden += 5 * self.b(hidden)
            return hidden

    torch.manual_seed(0)
    model, inputs, targets = Model(), torch.randn(6, 8), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        snapshot = condexp.analyze(model, nn.MSELoss(), inputs, targets)
        with condexp.Recorder(model) as recorder:  # which copies what it keeps
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
    ours, expected = snapshot["b"].input, recorder.snapshot()["b"].input
    assert ours is not None
    assert expected is not None
    assert ours.lambda_max == pytest.approx(expected.lambda_max, rel=1e-6)


def test_an_input_that_was_changed_behind_autograds_back_is_refused() -> None:
    model = nn.Sequential(nn.Linear(80, 4), nn.Linear(4, 4))
    inputs = torch.randn(3, 80)
    options = AnalysisOptions(("input",))  # type: ignore[arg-type]
    with MeasurementHooks(model, options, pass_mode=PassMode.ONE_PASS) as hooks:
        model(inputs)
    inputs += 1
    for _ in range(2):  # a snapshot that failed leaves what it was made of
        with pytest.raises(InputError, match="changed in place"):
            hooks.snapshot()


def test_an_activation_checkpoint_is_measured_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, targets = cases.normal(6, 4), cases.labels(6, 2)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = checkpoint(self.inner, inputs, use_reentrant=False)
            return outputs

    plain = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets)
    again = condexp.analyze(Checkpointed(), nn.CrossEntropyLoss(), inputs, targets)
    assert [record.info.uses for record in again.records] == [1, 1]
    for one, other in zip(plain.records, again.records, strict=True):
        assert one.input is not None
        assert other.input is not None
        torch.testing.assert_close(one.input.eigenvalues, other.input.eigenvalues)


def test_a_snapshot_can_be_pickled_and_lets_go_of_the_weights() -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 2)).double(), cases.normal(6, 4)
    snapshot = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, cases.labels(6, 2))
    twin = pickle.loads(pickle.dumps(snapshot))
    assert twin["0"].domination == snapshot["0"].domination > 0
    assert snapshot["0"].domination_of.values is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("matrices", [("input",), ("weight",), ("weight_grad",)])
def test_a_pass_whose_weights_are_not_kept_measures_the_same(matrices: tuple[str, ...]) -> None:
    """A training step holds no gradient, which autograd would have to copy."""
    model, inputs = nn.Sequential(nn.Linear(4, 2)).double(), cases.normal(6, 4)
    loss_fn, labels = nn.CrossEntropyLoss(), cases.labels(6, 2)
    options = AnalysisOptions(matrices)  # type: ignore[arg-type]
    with MeasurementHooks(model, options, pass_mode=PassMode.ONE_PASS, keep_weights=False) as hooks:
        loss_fn(model(inputs), labels).backward()
    (ours,) = hooks.snapshot().records
    expected = condexp.analyze(model, loss_fn, inputs, labels, matrices=matrices)["0"]
    assert (ours.weight_norm, ours.grad_norm) == (expected.weight_norm, expected.grad_norm)
    if matrices == ("input",):
        assert math.isnan(ours.domination)
    else:
        assert ours.domination == expected.domination > 0
    assert ours.domination_of.values is None  # type: ignore[attr-defined]
