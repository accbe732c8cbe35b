"""What ``condexp layers`` and the start of a run say of the time and memory of a snapshot."""

import re
from pathlib import Path

import pytest
import torch

from condexp.analysis.effort import Effort
from condexp.cli.main import main
from condexp.runs import snapshot_cost as costs
from condexp.runs.prepare import prepare
from condexp.runs.snapshot_cost import Rates, snapshot_cost, snapshot_memory
from tests.in_process import validated

EXACT = ("analysis=fisher", "analysis.fisher_type=exact", "analysis.probe.mode=eval")


@pytest.fixture(autouse=True)
def rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 10 GFLOP/s, 1 for eigenvalues."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Rates, "measured", classmethod(lambda cls: cls(1e10, 1e9)))


def seconds(text: str) -> float:
    number, unit = re.findall(r"all \d+ about ([\d.:]+) (s|min|h)", text)[0]
    if unit == "h":
        hours, minutes, rest = map(int, number.split(":"))
        return 3600.0 * hours + 60 * minutes + rest
    return float(number) * (60 if unit == "min" else 1)


def test_the_exact_fisher_of_many_samples_is_foretold_to_take_long() -> None:
    said = [
        snapshot_cost(prepare(validated(*EXACT, f"analysis.probe.size={size}")))
        for size in (64, 128, 256, 1024)
    ]
    times = [seconds(line) for line in said]
    assert times == sorted(times)
    assert times[3] > 100 * times[0]
    assert f"{torch.get_num_threads()} thread" in said[0]
    assert "2.05 GB" in said[3]  # three Gram matrices of 9216 rows, and little beside


def test_no_snapshots_are_said_nothing_of() -> None:
    assert snapshot_cost(prepare(validated("analysis=none"))) == ""


def test_memory_is_within_its_limit() -> None:
    free = snapshot_memory(prepare(validated(*EXACT)))
    limited = snapshot_memory(prepare(validated(*EXACT, "analysis.memory_limit=2.1")))
    assert limited.fisher <= free.fisher <= free.total
    assert limited.fisher <= 2.1e9


def test_rates_are_measured_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = torch.get_rng_state()
    found = Rates.measured()
    assert torch.equal(torch.get_rng_state(), before)
    assert found.products > 0
    assert found.solves > 0
    more = found.seconds(Effort(2e12, 2e11, 512))
    assert more > found.seconds(Effort(1e12, 2e11, 512)) > found.seconds(Effort(1e12, 1e11, 512))


def test_a_run_says_it_as_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["trainer.steps=2", "analysis.schedule.log_spaced=null", "model.depth=2"]
    assert main(["run", *given]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "snapshots of" in out[0]
    assert re.match(
        r"a snapshot takes about \S+ s \(.* GFLOP, \d+ threads?\) and \S+ [kM]B", out[1]
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.04, "0.04 s"), (3.2, "3 s"), (59.0, "59 s"), (90.0, "1.5 min"), (4000.0, "1:06:40 h")],
)
def test_durations_are_short(number: float, text: str) -> None:
    assert costs._duration(number) == text
