"""Eigenvalues of many matrices, several at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from condexp.analysis.linalg import eigen
from condexp.analysis.linalg.device import solve_stacked
from condexp.analysis.linalg.eigen import _Workers, descending_eigenvalues, pin_threads, solve_all

SHAPES = [(1, 40, 40)] * 9 + [
    (1, 40, 40),
    (4, 17, 17),
    (4, 17, 17),
    (1, 17, 17),
    (1, 600, 600),
    (3, 1, 1),
    (3, 1, 1),
]


@pytest.fixture(params=[0, 1, 2, 3], ids=["not pinned", "1", "2", "3"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(_Workers, "num_threads", 0)
    monkeypatch.setattr(_Workers, "pool", None)
    if request.param:
        pin_threads(request.param)
    else:
        torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def matrices(shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return [factor @ factor.mT for factor in factors]


@pytest.mark.usefixtures("threads")
def test_many_are_solved_as_each_alone() -> None:
    every = matrices(SHAPES)
    every[3] = every[3].float()  # of another precision than those around it
    for found, matrix in zip(solve_all(every), every, strict=True):
        alone = descending_eigenvalues(matrix)
        assert found.dtype == torch.float64
        assert found.shape == matrix.shape[:-1]
        assert torch.allclose(found, alone, rtol=1e-12, atol=1e-12 * float(alone.max()))


@pytest.mark.parametrize("threads", [0], indirect=True)
@pytest.mark.parametrize("found", [True, False])
@pytest.mark.usefixtures("threads")
def test_threads_that_are_not_pinned_stay_as_they_are(
    found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting them, even to what they are, may change the last bits of a network's products."""
    every = matrices(SHAPES)
    alone = [descending_eigenvalues(matrix) for matrix in every]
    if not found:  # a NumPy whose BLAS may be torch's too
        none = ThreadpoolController().select(internal_api="nobody's")
        monkeypatch.setattr(eigen, "_numpys_blas", lambda: none)
    blas = [library.num_threads for library in ThreadpoolController().lib_controllers]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_num_threads", _never_converges)
        solved = solve_all(every)
    for values, expected in zip(solved, alone, strict=True):
        assert torch.allclose(values, expected, rtol=1e-12, atol=1e-12 * float(expected.max()))
    assert [library.num_threads for library in ThreadpoolController().lib_controllers] == blas


@pytest.mark.usefixtures("threads")
def test_what_is_not_finite_spoils_no_other() -> None:
    every = matrices(SHAPES)
    for bad, value in (1, torch.nan), (5, torch.inf), (11, -torch.inf):
        every[bad][0, 2, 2] = value
    unknown = [bool(values.isnan().all()) for values in solve_all(every)]
    assert [number for number, is_unknown in enumerate(unknown) if is_unknown] == [1, 5, 11]
    assert not any(values.isnan().any() for values in solve_all(matrices(SHAPES)))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("both", [False, True])
def test_a_solver_that_fails(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, every = torch.linalg.eigvalsh, matrices([(1, 40, 40)] * 8)
    marked = float(every[6][0, 0, 0])

    def failing(given: Tensor, **more: Any) -> Tensor:
        if bool((given[..., 0, 0] == marked).any()):
            raise torch.linalg.LinAlgError("it did not converge")  # type: ignore[attr-defined]
        values: Tensor = plain(given, **more)
        return values

    monkeypatch.setattr(torch.linalg, "eigvalsh", failing)
    if both:
        monkeypatch.setattr(np.linalg, "eigvalsh", _never_converges)
    found = list(solve_all(every))
    for number, matrix in enumerate(every):
        if both and number == 6:
            assert found[number].isnan().all()
        else:
            expected = plain(matrix).flip(-1)
            assert torch.allclose(found[number], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("both", [False, True])
def test_a_solver_that_returns_nonsense_is_not_believed(
    both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, every = torch.linalg.eigvalsh, matrices([(1, 40, 40)] * 8)
    every[2], every[3] = every[2] * 1e-200, every[3] * 1e200  # squares out of range

    def wrong(given: Tensor, **more: Any) -> Tensor:
        values: Tensor = plain(given, **more)
        return values.roll(1, 0) if values.ndim == 3 else values * (1 + 1e-9)

    monkeypatch.setattr(torch.linalg, "eigvalsh", wrong)
    if both:
        monkeypatch.setattr(np.linalg, "eigvalsh", lambda given: np.ones(given.shape[:-1]))
    for number, (found, matrix) in enumerate(zip(solve_all(every), every, strict=True)):
        expected = plain(matrix).flip(-1)
        if number in {2, 3}:  # nobody can tell
            assert not found.isnan().any()
        elif both:
            assert found.isnan().all()
        else:
            assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


def _never_converges(_given: object) -> object:
    raise np.linalg.LinAlgError("it did not converge")


@pytest.mark.parametrize("side", [3, 40])
def test_a_product_that_is_symmetric_to_its_rounding_only(side: int) -> None:
    """Of XᵀX in float32 the entries i, j and j, i may differ: some processors sum them apart."""
    rows = torch.randn(90, side, generator=torch.Generator().manual_seed(1)).double()
    whole = rows.T @ rows
    symmetric = whole.triu() + whole.triu(1).T
    rounded = symmetric + 1e-5 * torch.ones_like(whole).tril(-1)
    expected = np.linalg.eigvalsh(symmetric.numpy())[::-1]
    stack = torch.stack([rounded, rounded])
    found = [*solve_all([stack, stack]), descending_eigenvalues(stack), *solve_stacked([stack])]
    for values in found:
        assert values is not None
        np.testing.assert_allclose(values.numpy(), np.stack([expected, expected]), rtol=1e-12)
    np.testing.assert_allclose(eigen._numpy_eigenvalues(rounded), expected, rtol=1e-12)
