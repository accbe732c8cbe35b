"""Gram matrices of gradients, formed and as ghosts, against sums of outer products."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from condexp.analysis.linalg import gram as fisher_gram
from condexp.analysis.linalg.gram import (
    Batch,
    GradientShape,
    form_gradients,
    grams,
    grams_of_gradients,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


class Rows:
    """Rows of some samples, laid out."""

    def __init__(
        self,
        shape: GradientShape,
        num_samples: int,
        num_signals: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        size = (shape.groups, num_samples, shape.positions)
        self.inputs = normal(*size, shape.d_in, seed=seed, dtype=dtype)
        self.grads = [
            normal(*size, shape.d_out, seed=seed + 1 + s, dtype=dtype) for s in range(num_signals)
        ]
        signals = tuple(lambda part, g=g: g[:, part] for g in self.grads)
        self.batch = Batch(shape, num_samples, lambda part: self.inputs[:, part], signals)

    def gradients(self) -> Tensor:
        """vec(G) by signal and sample, one outer product after another."""
        shape = self.batch.shape
        rows = []
        for grads, n in product(self.grads, range(self.batch.num_samples)):
            total = torch.zeros(shape.groups, shape.d_out, shape.d_in, dtype=torch.float64)
            for group, t in product(range(shape.groups), range(shape.positions)):
                total[group] += torch.outer(
                    grads[group, n, t].double(), self.inputs[group, n, t].double()
                )
            rows.append(total.flatten())
        return torch.stack(rows)


def close(given: Tensor | None, expected: Tensor, relative: float = 1e-12) -> None:
    assert given is not None
    assert given.dtype == torch.float64
    atol = relative * float(expected.abs().max())
    torch.testing.assert_close(given, expected, rtol=0, atol=atol)


sizes = st.builds(
    GradientShape,
    groups=st.integers(1, 3),
    positions=st.integers(1, 4),
    d_in=st.integers(1, 5),
    d_out=st.integers(1, 4),
)


@settings(max_examples=60)
@given(
    shape=sizes,
    num_samples=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    num_signals=st.integers(1, 3),
    budget=st.sampled_from([1, 20, 200, fisher_gram.WORKING_NUMBERS]),
)
def test_every_way_gives_the_products_of_the_gradients(
    shape: GradientShape, num_samples: list[int], num_signals: int, budget: int
) -> None:
    made = [Rows(shape, n, num_signals, seed=10 * i) for i, n in enumerate(num_samples)]
    batches, rows = [each.batch for each in made], torch.cat([each.gradients() for each in made])
    expected = rows @ rows.T
    found = grams(batches, torch.float64, budget)
    close(found.rows, expected)
    close(fisher_gram._ghost_gram(batches, budget), expected)
    close(grams_of_gradients(rows, torch.float64).rows, expected)
    if len(rows) > shape.num_weights:
        close(found.weights, rows.T @ rows)
        assert found.smaller is found.weights
    else:
        assert found.weights is None


def test_batches_may_differ_in_positions() -> None:
    made = [Rows(GradientShape(2, t, 5, 3), 2, 2, seed=t) for t in (1, 3)]
    rows = torch.cat([each.gradients() for each in made])
    for budget in (1, 1000):
        batches = [each.batch for each in made]
        close(fisher_gram._ghost_gram(batches, budget), rows @ rows.T)


def test_gradients_are_formed_a_few_samples_and_outputs_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Rows(GradientShape(2, 3, 5, 4), 7, 2)
    monkeypatch.setattr(fisher_gram, "_LAID_OUT", 70)
    expected = made.gradients()[7:].reshape(7, 2, 4, 5)
    for channels in (slice(0, 4), slice(1, 3)):
        formed = form_gradients(made.batch, 1, torch.float64, channels)
        close(formed, expected[:, :, channels].flatten(1))


@pytest.mark.parametrize(
    ("shape", "ghosts"),
    [
        (GradientShape(1, 1, 50, 40), True),  # a linear layer
        (GradientShape(1, 2, 400, 50), True),  # VGG's last convolutions, scaled
        (GradientShape(1, 64, 20, 10), False),  # a convolution with many positions
    ],
)
def test_the_cheaper_way_is_taken(
    shape: GradientShape, ghosts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, taken = Rows(shape, 8, 1), []

    def ghost_gram(batches: list[Batch], budget: int) -> Tensor:
        taken.append(budget)
        return torch.eye(8)

    monkeypatch.setattr(fisher_gram, "_ghost_gram", ghost_gram)
    grams([made.batch], torch.float64)
    assert bool(taken) is ghosts


# Float32: what the noise floor of a spectrum promises, 4·eps·λ_1 and 4·eps²·λ_1 for the rows.


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(
    "shape",
    [
        GradientShape(1, 1, 3000, 8),
        GradientShape(1, 16, 600, 16),
        GradientShape(1, 1024, 20, 16),
        GradientShape(2, 4, 9, 100),
    ],
)
def test_single_precision_stays_far_below_the_noise_floor(
    shape: GradientShape, offset: float
) -> None:
    """Every second gradient is a multiple of another: half of the eigenvalues are 0.

    Also with a mean in every row, as rectified inputs have.
    """
    made, eps = Rows(shape, 24, 1, dtype=torch.float32), torch.finfo(torch.float32).eps
    made.inputs[:, :12] = made.inputs[:, 12:] = made.inputs[:, 12:] + offset
    made.grads[0][:, :12] = 3 * made.grads[0][:, 12:]
    expected = torch.linalg.svdvals(made.gradients()) ** 2
    formed = form_gradients(made.batch, 0, torch.float32)
    for found in (grams([made.batch], torch.float32), grams_of_gradients(formed, torch.float32)):
        values = torch.linalg.eigvalsh(found.rows).flip(0)
        error = (values - expected).abs() / expected[0]
        assert float(error[12:].max()) < eps
        assert float(error.max()) < 2 * eps
    rounding = torch.linalg.svdvals(formed.double())[12:].square() / expected[0]
    assert float(rounding.max()) < 2 * eps**2


@pytest.mark.parametrize("exponent", [-25, 25])
def test_gradients_whose_squares_leave_single_precision(exponent: int) -> None:
    for shape in (GradientShape(1, 1, 30, 20), GradientShape(1, 64, 5, 4)):
        made = Rows(shape, 6, 1, dtype=torch.float32)
        made.grads[0] *= 10.0**exponent
        rows = made.gradients()
        close(grams([made.batch], torch.float32).rows, rows @ rows.T, 1e-6)
