"""Several processes with shares of each batch against one with all of it, in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from condexp.analysis.communicator import SINGLE_PROCESS
from condexp.training.distributed.process_group import ProcessGroupCommunicator
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


def test_what_is_gathered_keeps_random_states_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    monkeypatch.setattr(dist, "send", lambda tensor, _dst, group: sent.append(tensor.clone()))
    monkeypatch.setattr(dist, "recv", lambda tensor, _src, group: tensor.copy_(sent.pop(0)))
    communicator = ProcessGroupCommunicator.__new__(ProcessGroupCommunicator)
    communicator._device = torch.device("meta")
    communicator.__dict__["_cpu_group"] = None
    communicator._send({"state": torch.ones(2), "rows": [torch.zeros(3)]}, 0)
    arrived = communicator._receive(1)
    # Random states are read on the CPU, whatever device a process trains on.
    assert arrived["state"].device == torch.device("cpu")
    assert torch.equal(arrived["state"], torch.ones(2))
