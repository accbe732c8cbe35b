"""Exact Fisher blocks and the network's matrix against a loop over samples, dense; float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.vocabulary import Matrix, SpectrumStatus
from tests import cases, reference
from tests.analysis import fisher_oracles, oracles
from tests.analysis.fisher_cases import CASES, Case, targets_of

CROSS_ENTROPY = nn.CrossEntropyLoss()
RELATIVE = 1e-10


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[str(request.param)]()


def analyse(
    case: Case,
    loss_fn: nn.Module,
    fisher_type: str = "empirical",
    **options: Any,
) -> Snapshot:
    model, inputs = case
    targets = targets_of(loss_fn, len(inputs))
    options.setdefault("precision", "float64")
    return condexp.analyze(
        model, loss_fn, inputs, targets, "fisher", fisher_type=fisher_type, **options
    )


def same_as_rows(snapshot: Snapshot, rows: dict[str, Tensor], num_samples: int) -> None:
    assert set(snapshot.layers) == set(rows)
    for name, of_layer in rows.items():
        expected = fisher_oracles.eigenvalues(of_layer, num_samples)
        oracles.close(snapshot[name].fisher, expected, RELATIVE)
    expected = fisher_oracles.network_eigenvalues(rows, num_samples)
    oracles.close(snapshot.fisher, expected, RELATIVE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss_fn", [CROSS_ENTROPY, nn.MSELoss()])
def test_empirical_blocks_and_network_equal_a_loop_over_samples(
    case: Case, loss_fn: nn.Module, bias: bool
) -> None:
    snapshot = analyse(case, loss_fn, bias=bias)
    model, inputs = case
    targets = targets_of(loss_fn, len(inputs))
    rows = fisher_oracles.empirical(model, snapshot.layers, loss_fn, inputs, targets, bias=bias)
    same_as_rows(snapshot, rows, len(inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss_fn", [CROSS_ENTROPY, nn.MSELoss()])
def test_exact_blocks_and_network_equal_a_loop_over_samples_and_outputs(
    case: Case, loss_fn: nn.Module, bias: bool
) -> None:
    snapshot = analyse(case, loss_fn, "exact", bias=bias)
    model, inputs = case
    squared = isinstance(loss_fn, nn.MSELoss)
    root = fisher_oracles.squared_root if squared else fisher_oracles.softmax_root
    rows = fisher_oracles.jacobian_rows(model, snapshot.layers, inputs, root, bias=bias)
    num_signals = 3 if squared else 2
    for name, of_layer in rows.items():
        given = snapshot[name].fisher
        assert given is not None
        assert len(given) == min(num_signals * len(inputs), of_layer.shape[1])
        # The symmetric root has a column more, which adds nothing.
        expected = fisher_oracles.eigenvalues(of_layer, len(inputs))[: len(given)]
        oracles.close(given, expected, RELATIVE)
    assert snapshot.fisher is not None
    expected = fisher_oracles.network_eigenvalues(rows, len(inputs))[: len(snapshot.fisher)]
    oracles.close(snapshot.fisher, expected, RELATIVE)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, nn.MSELoss])
def test_mc_is_exact_on_average(loss: type[nn.Module], reduction: str) -> None:
    """Of 1000 drawn labels for each sample, seeded: an error of about 1/√1000 of the scale."""
    model, inputs = cases.mlp((3, 4, 3)), cases.normal(2, 3)
    loss_fn = loss(reduction=reduction)
    exact = analyse((model, inputs), loss_fn, "exact")
    drawn = condexp.analyze(
        model,
        loss_fn,
        inputs,
        targets_of(loss_fn, 2),
        ("fisher", "grad_output"),
        fisher_type="mc",
        mc_samples=1000,
        layers=["0"],
    )["0"]
    expected = exact["0"].fisher
    assert expected is not None
    assert drawn.fisher is not None
    assert len(drawn.fisher) == 12
    scale = expected.lambda_max
    difference = drawn.fisher.eigenvalues[: len(expected)] - expected.eigenvalues
    assert float(difference.abs().max()) < 0.1 * scale


def test_mc_draws_by_its_seed_alone() -> None:
    case = cases.mlp(), cases.normal(6, 4)
    torch.manual_seed(5)
    first = analyse(case, CROSS_ENTROPY, "mc", seed=1)
    torch.manual_seed(6)
    again = analyse(case, CROSS_ENTROPY, "mc", seed=1)
    other = analyse(case, CROSS_ENTROPY, "mc", seed=2)
    assert first.fisher is not None
    assert again.fisher is not None
    assert other.fisher is not None
    assert torch.equal(first.fisher.eigenvalues, again.fisher.eigenvalues)
    assert not torch.equal(first.fisher.eigenvalues, other.fisher.eigenvalues)


@pytest.mark.parametrize("fisher_type", ["mc", "exact"])
def test_labels_of_the_models_own_make_grad_output_and_kfac_too(fisher_type: str) -> None:
    """One linear layer: Σ_∇h is the mean of H_n for exact, and a sum over draws for mc."""
    layer, inputs = cases.randomised(nn.Linear(4, 3)), cases.normal(400, 4)
    targets = cases.labels(400, 3)
    record = condexp.analyze(
        layer, CROSS_ENTROPY, inputs, targets, fisher_type=fisher_type, mc_samples=50
    )["Linear"]
    p = layer(inputs).detach().softmax(1)
    hessian = torch.diag(p.mean(0)) - p.T @ p / len(p)
    expected = reference.eigenvalues(hessian)
    assert record.grad_output is not None
    relative = 1e-10 if fisher_type == "exact" else 0.05
    oracles.close(record.grad_output, expected, relative)
    assert record.kfac is not None
    assert record.input is not None
    product = record.input.lambda_max * record.grad_output.lambda_max
    assert math.isclose(record.kfac.lambda_max, product, rel_tol=1e-14)


@pytest.mark.parametrize("fisher_type", ["mc", "exact"])
def test_the_weights_own_gradient_is_of_the_datas_loss(fisher_type: str) -> None:
    model, inputs = cases.mlp(), cases.normal(6, 4)
    targets, matrices = cases.labels(6, 3), ("grad_output", "weight_grad")
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, matrices)
    given = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, matrices, fisher_type=fisher_type
    )
    for name in expected.layers:
        assert given[name].grad_norm == expected[name].grad_norm
        assert given[name].domination == expected[name].domination
        oracles.same(given[name].weight_grad, expected[name].weight_grad)


def test_batch_norm_in_training_mode_takes_the_paths_through_the_statistics() -> None:
    """G_n is made of the g of the whole batch's pass, which is what the paper measures."""
    model, inputs = cases.resnet(), cases.normal(4, 2, 8, 8)
    snapshot = analyse((model, inputs), CROSS_ENTROPY)
    assert snapshot.bn_mode == "train"
    targets, rows = cases.labels(4, 3), {}
    for name in snapshot.layers:
        arguments = (model, name, CROSS_ENTROPY, inputs, targets)
        rows[name] = fisher_oracles.batch_gradients(*arguments)
    same_as_rows(snapshot, rows, 4)


def test_lengths_are_those_foretold(case: Case) -> None:
    for conv_input in ("patches", "channels"):
        for record in analyse(case, CROSS_ENTROPY, conv_input=conv_input, bias=True).records:
            assert record.fisher is not None
            num_weights = record.info.spectrum_length(Matrix.FISHER)
            assert len(record.fisher) == min(len(case[1]), num_weights)


def test_channels_concern_the_input_alone() -> None:
    """A Fisher block is always of the weight's own gradient."""
    case = CASES["convolutions"]()
    patches, channels = (
        analyse(case, CROSS_ENTROPY),
        analyse(case, CROSS_ENTROPY, conv_input="channels"),
    )
    for name in patches.layers:
        oracles.same(channels[name].fisher, patches[name].fisher)


def kfac_equals_fisher(snapshot: Snapshot) -> None:
    for record in snapshot.records:
        kfac, fisher = record.kfac, record.fisher
        assert kfac is not None
        assert fisher is not None
        assert kfac.rank == fisher.rank
        assert math.isclose(kfac.lambda_max, fisher.lambda_max, rel_tol=1e-10)
        assert math.isclose(kfac.trace, fisher.trace, rel_tol=1e-10)


@pytest.mark.parametrize("fisher_type", ["empirical", "mc"])
def test_one_sample_and_one_position_make_fisher_and_kfac_equal(fisher_type: str) -> None:
    model, inputs, targets = cases.mlp(), cases.normal(1, 4), cases.labels(1, 3)
    matrices = ("fisher", "kfac")
    kfac_equals_fisher(
        condexp.analyze(model, CROSS_ENTROPY, inputs, targets, matrices, fisher_type=fisher_type)
    )


def test_a_deep_linear_net_with_exact_labels_has_equal_fisher_and_kfac() -> None:
    """Squared loss, any N: the g of a signal are the same for every sample."""
    model = cases.randomised(nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))))
    snapshot = condexp.analyze(
        model,
        nn.MSELoss(),
        cases.normal(9, 4),
        cases.normal(9, 4, seed=3),
        ("fisher", "kfac", "input", "grad_output"),
        fisher_type="exact",
    )
    kfac_equals_fisher(snapshot)
    for record in snapshot.records:
        assert record.fisher is not None
        assert record.input is not None
        assert record.grad_output is not None
        products = torch.kron(record.input.eigenvalues, record.grad_output.eigenvalues)
        oracles.close(record.fisher, products.sort(descending=True).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fisher_type", ["empirical", "mc", "exact"])
def test_softmax_signals_have_no_part_along_ones(fisher_type: str, dtype: torch.dtype) -> None:
    """The last layer's block has rank (C − 1)·d_in at most, with as many rows as you like."""
    model, inputs = cases.mlp((2, 3)).to(dtype), cases.normal(30, 2).to(dtype)
    record = analyse((model, inputs), CROSS_ENTROPY, fisher_type)["0"]
    assert record.fisher is not None
    assert len(record.fisher) == 6
    assert record.fisher.rank == 4
    low, high = record.fisher.kappa_interval(1.0)
    # In float32 the weakest of the four is far from the rounding of the rows, squared.
    assert low > 1e3
    assert high == math.inf


def test_a_diverged_net_has_no_spectrum_but_an_answer() -> None:
    model, inputs = cases.mlp(), cases.normal(4, 4)
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(math.inf)
    for fisher_type in ("empirical", "mc", "exact"):
        snapshot = analyse((model, inputs), CROSS_ENTROPY, fisher_type)
        assert snapshot.fisher is not None
        assert snapshot.fisher.status is SpectrumStatus.NONFINITE
        assert snapshot["0"].fisher is not None
        assert snapshot["0"].fisher.status is SpectrumStatus.NONFINITE


def test_dead_layers_have_a_zero_spectrum() -> None:
    model, inputs = cases.mlp(), cases.normal(4, 4)
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
        model.get_parameter("2.bias").fill_(-1.0)
    snapshot = analyse((model, inputs), CROSS_ENTROPY)
    assert snapshot["0"].fisher is not None
    assert snapshot["0"].fisher.status is SpectrumStatus.ZERO
    assert snapshot["0"].fisher.rank == 0
    assert snapshot.fisher is not None
    assert snapshot.fisher.status is SpectrumStatus.ZERO  # the last layer's input is 0, too


def test_unreliable_spectra_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> Tensor:
        return torch.diag(torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64))

    monkeypatch.setattr("condexp.analysis.linalg.gram._ghost_gram", wrong)
    monkeypatch.setattr("condexp.analysis.linalg.gram._row_gram", wrong)
    with pytest.raises(ArithmeticError, match="'fisher' of layer '0' is unreliable"):
        analyse((cases.mlp(), cases.normal(4, 4)), CROSS_ENTROPY)
