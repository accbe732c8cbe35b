from pathlib import Path

from condexp.results.status_table import format_seconds, read_statuses, status_table
from condexp.store.runs import State, Status, write_status
from tests.results.stored import text_of, write_early_failure


def test_one_row_a_run_with_what_became_of_it(tmp_path: Path) -> None:
    for index, state in enumerate(State):
        folder = tmp_path / f"run{index}"
        folder.mkdir()
        status = Status(state, step=index, num_steps=10, test_error=12.5, seconds=3661)
        write_status(folder, status)
    text = text_of(status_table(read_statuses([tmp_path])))
    rows = [line for line in text.splitlines() if "run" in line and "/10" in line]
    for index, state in enumerate(State):
        (row,) = [line for line in rows if f"run{index} " in line]
        assert row.split()[1:] == [state, f"{index}/10", "12.5", "–", "1:01:01"]
    assert "6 runs: 1 pending, 1 running, 1 interrupted, 1 failed, 1 diverged, 1 complete" in text
    assert "error " not in text.replace("test error", "")  # no empty column


def test_a_failure_says_why_and_markup_in_it_is_text(tmp_path: Path) -> None:
    write_early_failure(tmp_path / "run", "RuntimeError: [red]shapes[/red] do not match")
    statuses = read_statuses([tmp_path])
    text = text_of(status_table(statuses))
    assert "RuntimeError: [red]shapes[/red] do not match" in text
    assert [status.state for status in statuses.values()] == [State.FAILED]


def test_seconds() -> None:
    assert format_seconds(83.4) == "0:01:23"
