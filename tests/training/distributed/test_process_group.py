"""Several processes with shares of each batch against one with all of it, in float64."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from condexp.analysis.communicator import SINGLE_PROCESS
from condexp.analysis.linalg.rows.dense import DenseRows
from condexp.analysis.linalg.sums import Sums
from condexp.training.distributed.messages import receive, send
from tests.training.distributed.scenarios import SCENARIOS, Numbers
from tests.waiting import GUARD_SECONDS

ROOT = Path(__file__).resolve().parents[3]


SIZES = (2, 4)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what each rank of groups of two sizes found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.training.distributed.ranks",
        str(folder),
    ]
    done = subprocess.run(
        [*command, *map(str, SIZES)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        timeout=GUARD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return folder


@pytest.fixture(scope="module", params=SIZES)
def ranks(request: pytest.FixtureRequest, groups: Path) -> list[dict[str, Numbers]]:
    """What each rank found, by scenario."""
    return [torch.load(groups / f"{request.param}-{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Numbers]:
    return {name: scenario(SINGLE_PROCESS) for name, scenario in SCENARIOS.items()}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_numbers_are_those_of_one_process(
    scenario: str, ranks: list[dict[str, Numbers]], alone: dict[str, Numbers]
) -> None:
    found, expected = ranks[0][scenario], alone[scenario]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Sums in another order, passed through a few updates: about 1e-13 of the largest number;
        # the mean of a normalised input is 0 but for rounding, its square 1e-31.
        tolerance = max(1e-10 * value.double().abs().nan_to_num(0.0).max().item(), 1e-25)
        same = torch.allclose(found[name], value, rtol=1e-6, atol=tolerance, equal_nan=True)
        assert same, (name, found[name], value)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_ranks_have_the_same_weights_losses_and_scores(
    scenario: str, ranks: list[dict[str, Numbers]]
) -> None:
    for rank in ranks[1:]:
        for name, value in rank[scenario].items():
            assert torch.equal(value, ranks[0][scenario][name]), name


def test_looking_changes_no_bit(ranks: list[dict[str, Numbers]]) -> None:
    for rank in ranks:
        for name, value in rank["not looked at"].items():
            assert torch.equal(value, rank["batch norm"][name]), name


def test_measuring_again_gives_the_same_bits(ranks: list[dict[str, Numbers]]) -> None:
    found, again = ranks[0]["unequal shares"], ranks[0]["unequal shares, again"]
    for name, value in again.items():
        assert torch.equal(value.nan_to_num(), found[name].nan_to_num()), name


def test_a_unit_that_is_dead_on_one_process_is_not_dead(ranks: list[dict[str, Numbers]]) -> None:
    # Of 8 units: one is 0 in the first batch alone, one in both.
    assert ranks[0]["unequal shares"]["second dead_fraction"] == 1 / 8
    assert ranks[0]["unequal shares"]["third dead_fraction"] == 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors on their way through a process group of one process."""
    found: list[Tensor] = []
    monkeypatch.setattr(dist, "isend", lambda tensor, _dst, group: found.append(tensor.clone()))
    monkeypatch.setattr(dist, "recv", lambda tensor, _src, group: tensor.copy_(found.pop(0)))
    return found


def arrived(value: object, device: str = "cpu") -> Any:
    group: Any = None
    send(value, 1, group)()
    return receive(0, group, torch.device(device))


@pytest.mark.parametrize("num", [0, 3, 1 << 15])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool, torch.uint8])
def test_tensors_arrive_as_they_were(num: int, dtype: torch.dtype, sent: list[Tensor]) -> None:
    values = (torch.arange(3 * num).view(num, 3) % 7).to(dtype)
    there = {"view": values.mT, "number": values.sum(), "rows": [values, values[::2]], "other": "a"}
    found = arrived(there)
    assert not sent
    assert found["other"] == "a"
    for one, other in zip(
        [found["view"], found["number"], *found["rows"]],
        [values.mT, values.sum(), values, values[::2]],
        strict=True,
    ):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_large_tensor_is_not_pickled(sent: list[Tensor]) -> None:
    values = torch.zeros(1 << 16)
    send([values], 1, None)  # type: ignore[arg-type]
    size, text, numbers = sent
    assert int(size) == len(text) < 1000
    assert len(numbers) == values.nbytes


def test_half_of_a_symmetric_matrix_is_sent(sent: list[Tensor]) -> None:
    rows = torch.randn(2, 300, 200, dtype=torch.float64, generator=torch.manual_seed(0))
    sums = Sums.of(DenseRows(rows), None, torch.float64)
    found = arrived(sums)
    assert torch.equal(found.products.triu(), sums.products.triu())
    assert torch.allclose(found.products, sums.products, rtol=1e-14, atol=1e-12)
    send(sums, 1, None)  # type: ignore[arg-type]
    assert sum(part.nbytes for part in sent) < 0.7 * sums.products.nbytes


def test_what_arrives_keeps_random_states_on_the_cpu(sent: list[Tensor]) -> None:
    found = arrived({"state": torch.ones(2), "rows": [torch.zeros(3)]}, device="meta")
    # Random states are read on the CPU, whatever device a process trains on.
    assert found["state"].device == torch.device("cpu")
    assert torch.equal(found["state"], torch.ones(2))
