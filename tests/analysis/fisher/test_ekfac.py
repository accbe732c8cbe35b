"""EKFAC and the closeness of Kronecker approximations against dense matrices; float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.vocabulary import CLOSENESS, SpectrumStatus
from condexp.errors import InputError
from tests import cases, reference
from tests.analysis import ekfac_oracles, fisher_oracles, oracles
from tests.analysis.ekfac_oracles import Dense
from tests.analysis.fisher_cases import CASES, Case, targets_of

CROSS_ENTROPY, MSE = nn.CrossEntropyLoss(), nn.MSELoss()
MATRICES = ("ekfac", "fisher")
# A square of 10⁻¹⁶ is subtracted from one: its root is the error where nothing is left.
RELATIVE = 1e-9


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[str(request.param)]()


def analyse(
    case: Case, loss_fn: nn.Module, fisher_type: str = "empirical", **options: Any
) -> Snapshot:
    model, inputs = case
    targets = targets_of(loss_fn, len(inputs))
    options.setdefault("matrices", MATRICES)
    return condexp.analyze(model, loss_fn, inputs, targets, fisher_type=fisher_type, **options)


def dense(
    case: Case,
    loss_fn: nn.Module,
    name: str,
    fisher_type: str = "empirical",
    *,
    bias: bool = False,
) -> Dense:
    model, inputs = case
    targets = targets_of(loss_fn, len(inputs))
    losses: list[ekfac_oracles.LossFunction] = [loss_fn]
    if fisher_type == "exact":
        squared = isinstance(loss_fn, nn.MSELoss)
        root = fisher_oracles.squared_root if squared else fisher_oracles.softmax_root
        found = ekfac_oracles.all_labels(model, root, inputs)
        losses = [column_of(root, column) for column in range(3)]
    else:
        found = ekfac_oracles.gradients(model, loss_fn, inputs, targets)
    a, g = ekfac_oracles.rows_of(model, name, losses, inputs, targets, bias=bias)
    own = found[f"{name}.weight"], found.get(f"{name}.bias") if bias else None
    return ekfac_oracles.dense(a, g, ekfac_oracles.vec(*own), len(inputs))


def column_of(root: ekfac_oracles.Root, column: int) -> ekfac_oracles.LossFunction:
    return lambda output, _: output[0] @ root(output[0].detach())[:, column]


def same_as_dense(record: Any, expected: Dense) -> None:
    oracles.close(record.ekfac, expected.values, RELATIVE)
    assert math.isclose(record.ekfac.trace, float(expected.fisher.trace()), rel_tol=1e-10)
    found = [getattr(record, name) for name in CLOSENESS]
    both = expected.kfac, expected.ekfac
    wanted = [of(each) for each in both for of in (expected.cosine, expected.relative_error)]
    assert found == pytest.approx(wanted, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fisher_type", ["empirical", "exact"])
@pytest.mark.parametrize("loss_fn", [CROSS_ENTROPY, MSE])
def test_values_and_closeness_equal_dense_matrices(
    case: Case, loss_fn: nn.Module, fisher_type: str, bias: bool
) -> None:
    snapshot = analyse(case, loss_fn, fisher_type, bias=bias)
    for name in snapshot.layers:
        same_as_dense(snapshot[name], dense(case, loss_fn, name, fisher_type, bias=bias))


def test_it_has_the_trace_of_the_fisher_block_and_is_never_further_from_it_than_kfac(
    case: Case,
) -> None:
    for fisher_type in ("empirical", "mc", "exact"):
        for record in analyse(case, CROSS_ENTROPY, fisher_type, mc_samples=3).records:
            assert record.ekfac is not None
            assert record.fisher is not None
            assert math.isclose(record.ekfac.trace, record.fisher.trace, rel_tol=1e-12)
            assert record.ekfac_relative_error <= record.kfac_relative_error
            assert record.ekfac.lambda_max <= record.fisher.lambda_max * (1 + 1e-12)


def test_measures_are_those_of_the_values() -> None:
    case = CASES["mlp"]()
    record = analyse(case, CROSS_ENTROPY)["0"]
    assert record.ekfac is not None
    values = dense(case, CROSS_ENTROPY, "0").values
    for name, value in reference.measures(values).items():
        assert getattr(record.ekfac, name) == pytest.approx(value, rel=1e-9), name
    for p in (0.3, 0.5, 0.8, 1.0):
        low, high = record.ekfac.kappa_interval(p)
        assert low <= reference.kappa(values, p) <= high
        assert record.ekfac.kappa(p) == pytest.approx(reference.kappa(values, p), rel=1e-9)


def test_one_sample_and_one_position_make_ekfac_kfac_and_fisher_equal() -> None:
    """G = g aᵀ: one value, ‖g‖²‖a‖²."""
    model, inputs, targets = cases.mlp(), cases.normal(1, 4), cases.labels(1, 3)
    matrices = (*MATRICES, "kfac")
    for record in condexp.analyze(model, CROSS_ENTROPY, inputs, targets, matrices).records:
        assert record.ekfac is not None
        assert record.fisher is not None
        assert record.kfac is not None
        assert record.ekfac.rank == record.kfac.rank == 1
        assert math.isclose(record.ekfac.lambda_max, record.fisher.lambda_max, rel_tol=1e-12)
        assert record.kfac_cosine == pytest.approx(1, abs=1e-12)
        assert record.kfac_relative_error < 1e-7


def test_one_sample_of_several_positions_has_the_squares_of_its_gradient() -> None:
    """N = 1: s_ij = (v_iᵀ G u_j)², with the eigenvectors of Σ_t a aᵀ and Σ_t g gᵀ."""
    model, inputs = CASES["sequences"]()
    record = analyse((model, inputs[:1]), CROSS_ENTROPY)["wide"]
    a, g = ekfac_oracles.rows_of(
        model, "wide", [CROSS_ENTROPY], inputs[:1], cases.labels(1, 3), bias=False
    )
    u, v = torch.linalg.svd(a[0, 0]).Vh.mT, torch.linalg.svd(g[0, 0]).Vh.mT
    values = (v.mT @ g[0, 0].mT @ a[0, 0] @ u).square().flatten()
    oracles.close(record.ekfac, values.sort(descending=True).values)


def test_a_deep_linear_net_with_exact_labels_is_its_own_kronecker_product() -> None:
    """Squared loss, any N: the g of a signal are the same for every sample."""
    model = cases.randomised(nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))))
    snapshot = condexp.analyze(
        model,
        MSE,
        cases.normal(9, 4),
        cases.normal(9, 4, seed=3),
        (*MATRICES, "input", "grad_output"),
        fisher_type="exact",
    )
    for record in snapshot.records:
        assert record.fisher is not None
        assert record.input is not None
        assert record.grad_output is not None
        products = torch.kron(record.input.eigenvalues, record.grad_output.eigenvalues)
        oracles.close(record.ekfac, products.sort(descending=True).values)
        oracles.same(record.ekfac, record.fisher)
        assert record.kfac_cosine == pytest.approx(1, abs=1e-12)
        # Roots of what rounding leaves of 1 − 1.
        assert record.kfac_relative_error < 1e-7
        assert record.ekfac_relative_error < 1e-7


@pytest.mark.parametrize("fisher_type", ["empirical", "exact"])
def test_the_block_diagonal_against_the_network(case: Case, fisher_type: str) -> None:
    model, inputs = case
    snapshot = analyse(case, CROSS_ENTROPY, fisher_type, matrices="fisher")
    found = (
        ekfac_oracles.gradients(model, CROSS_ENTROPY, inputs, cases.labels(len(inputs), 3))
        if fisher_type == "empirical"
        else ekfac_oracles.all_labels(model, fisher_oracles.softmax_root, inputs)
    )
    rows = [found[f"{name}.weight"].flatten(1) for name in snapshot.layers]
    whole = torch.cat(rows, 1)
    fisher = whole.T @ whole / len(inputs)
    squares = [of.T @ of / len(inputs) for of in rows]
    blocks = torch.block_diag(*squares)  # type: ignore[no-untyped-call]
    cosine = float((fisher * blocks).sum() / (fisher.norm() * blocks.norm()))
    error = float((fisher - blocks).norm() / fisher.norm())
    assert snapshot.block_diagonal_cosine == pytest.approx(cosine, rel=1e-9)
    assert snapshot.block_diagonal_relative_error == pytest.approx(error, rel=1e-9)


def test_batches_and_single_precision_rows_agree_with_one_batch() -> None:
    model, inputs = CASES["convolutions"]()
    targets = cases.labels(3, 3)
    from condexp.analysis.analyze import analyze_batches
    from condexp.analysis.options import AnalysisOptions

    batches = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    for fisher_type in ("empirical", "exact"):
        options = AnalysisOptions(MATRICES, fisher_type=fisher_type)  # type: ignore[arg-type]
        together = analyse((model, inputs), CROSS_ENTROPY, fisher_type)
        apart = analyze_batches(model, CROSS_ENTROPY, batches, options)
        single = analyse((model.float(), inputs.float()), CROSS_ENTROPY, fisher_type)
        model.double()
        for name in together.layers:
            oracles.same(apart[name].ekfac, together[name].ekfac)
            oracles.close(single[name].ekfac, eigenvalues(together, name), 1e-5)


def eigenvalues(snapshot: Snapshot, name: str) -> Tensor:
    found = snapshot[name].ekfac
    assert found is not None
    return found.eigenvalues


def test_without_fisher_there_is_no_network_and_nothing_to_be_close_to() -> None:
    case = CASES["convolutions"]()
    both, alone = analyse(case, CROSS_ENTROPY), analyse(case, CROSS_ENTROPY, matrices="ekfac")
    assert alone.fisher is None
    assert math.isnan(alone.block_diagonal_cosine)
    for name in both.layers:
        oracles.same(alone[name].ekfac, both[name].ekfac)
        assert alone[name].fisher is None
        assert math.isnan(alone[name].kfac_cosine)
    assert math.isnan(analyse(case, CROSS_ENTROPY, matrices="fisher")["fc"].kfac_cosine)


def test_embeddings_have_a_diagonal_factor_of_the_entries_that_are_used() -> None:
    model = cases.randomised(cases.Attention())
    tokens, targets = torch.tensor([[0, 1, 1], [2, 0, 4]]), cases.labels(2, 3)
    record = condexp.analyze(model, CROSS_ENTROPY, tokens, targets, MATRICES)["embedding"]
    assert record.ekfac is not None
    assert record.fisher is not None
    assert len(record.ekfac) == 7 * 4
    assert record.ekfac.kappa(1.0) == math.inf
    assert math.isclose(record.ekfac.trace, record.fisher.trace, rel_tol=1e-12)


def test_softmax_has_a_null_vector_in_every_row() -> None:
    model, inputs = cases.mlp((2, 3)), cases.normal(30, 2)
    record = analyse((model, inputs), CROSS_ENTROPY, matrices=(*MATRICES, "kfac"))["0"]
    assert record.ekfac is not None
    assert record.kfac is not None
    assert record.ekfac.rank == record.kfac.rank == 4
    assert record.ekfac.kappa(1.0) == record.kfac.kappa(1.0) == math.inf
    assert record.ekfac.kappa(0.5) < math.inf


def test_a_diverged_net_and_a_dead_layer_have_states() -> None:
    model, inputs = cases.mlp(), cases.normal(4, 4)
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
        model.get_parameter("2.bias").fill_(-1.0)
    dead = analyse((model, inputs), CROSS_ENTROPY)["0"]
    assert dead.ekfac is not None
    assert dead.ekfac.status is SpectrumStatus.ZERO
    assert math.isnan(dead.kfac_cosine)
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(math.inf)
    snapshot = analyse((model, inputs), CROSS_ENTROPY)
    diverged = snapshot["0"]
    assert diverged.ekfac is not None
    assert diverged.ekfac.status is SpectrumStatus.NONFINITE
    assert math.isnan(diverged.ekfac_cosine)
    assert math.isnan(snapshot.block_diagonal_cosine)


class Mixing(nn.Module):
    """Rows of a sample that depend on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.last(torch.tanh(h - h.mean(0)))
        return out


def test_rows_of_no_sample_have_no_values_and_a_reason() -> None:
    case = cases.randomised(Mixing()), cases.normal(8, 4)
    record = analyse(case, CROSS_ENTROPY, matrices=("ekfac", "kfac"))["first"]
    assert record.ekfac is not None
    assert record.ekfac.status is SpectrumStatus.INCOMPLETE
    assert len(record.ekfac) == 20
    assert "as 'ekfac' needs" in str(record.incomplete)
    assert record.kfac is not None
    assert record.kfac.status is SpectrumStatus.OK


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center": True}, "'ekfac' and center=True exclude each other"),
        ({"weight_sharing": "reduce"}, "'ekfac' needs weight_sharing='expand'"),
        ({"conv_input": "channels"}, "'ekfac' needs conv_input='patches'"),
    ],
)
def test_factors_of_other_rows_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        analyse(CASES["mlp"](), CROSS_ENTROPY, **options)


def test_factors_too_wide_for_eigenvectors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condexp.analysis.linalg.ratios.WIDE", 3)
    with pytest.raises(InputError, match=r"'4': 'ekfac' needs the eigenvectors .* exclude=\['4'\]"):
        analyse(CASES["mlp"](), CROSS_ENTROPY)


def test_a_recorder_measures_it_in_the_users_own_pass() -> None:
    model, inputs = CASES["convolutions"]()
    with condexp.Recorder(model, MATRICES) as recorder:
        CROSS_ENTROPY(model(inputs), cases.labels(3, 3)).backward()
    recorded, expected = recorder.snapshot(), analyse((model, inputs), CROSS_ENTROPY)
    for name in expected.layers:
        oracles.same(recorded[name].ekfac, expected[name].ekfac)
        assert recorded[name].kfac_cosine == pytest.approx(expected[name].kfac_cosine)


def test_batch_norm_in_training_mode_is_empirical_only() -> None:
    case = cases.resnet(), cases.normal(4, 2, 8, 8)
    snapshot = analyse(case, CROSS_ENTROPY)
    assert snapshot.bn_mode == "train"
    for record in snapshot.records:
        assert record.ekfac is not None
        assert record.fisher is not None
        assert math.isclose(record.ekfac.trace, record.fisher.trace, rel_tol=1e-12)
    for fisher_type in ("mc", "exact"):
        with pytest.raises(InputError, match="is not defined while"):
            analyse(case, CROSS_ENTROPY, fisher_type, matrices="ekfac")
