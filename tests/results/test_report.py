"""The report of the paper: from stored files alone, missing experiments named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from condexp.cli.main import main
from condexp.errors import InputError
from condexp.results.claims import CLAIMS
from condexp.results.claims.verdict import Verdict
from condexp.results.report import EXPERIMENTS, write_report
from condexp.results.tables.formats import markdown_frame
from condexp.store.reader import open_run
from condexp.store.run_folder.status import State
from tests.results.stored import WITH_BLOCKS, write_early_failure, write_run

ORIGIN: dict[str, Any] = {
    "argv": ["condexp", "-m", "experiment=table1", "model.kwargs={a: 1}"],
    "git": {"commit": "0123456789abcdef", "diff": "+ a line"},
    "python": "3.11.7 (main)",
    "packages": {"torch": "2.14.1", "numpy": "2.4.6", "zipp": "1"},
    "hardware": {
        "system": "Linux",
        "processor": "A processor",
        "num_cores": 2,
        "num_threads": 1,
        "device": "cpu",
        "gpu": None,
    },
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments, one with a run that failed early and one that diverged."""
    root = tmp_path_factory.mktemp("stored")
    for seed in (1, 2, 3):
        for last_bn in (False, True):
            run = write_run(
                root / "table1" / f"{seed}{last_bn}",
                seed=seed,
                model__name="resnet",
                model__last_bn=last_bn,
                test_errors=(90, 50, 10 + seed - 5 * last_bn),
                profile="smoke",
                state=State.DIVERGED if seed == 3 and last_bn else State.COMPLETE,
            )
            (run / "provenance.json").write_text(json.dumps(ORIGIN))
    write_early_failure(root / "table1" / "failed")
    for seed in (1, 2):
        folder = root / "fig_validation" / str(seed)
        write_run(folder, seed=seed, matrices=WITH_BLOCKS, profile="cpu")
    return root


@pytest.fixture
def root(stored: Path, tmp_path: Path) -> Path:
    """A copy of them, for reports and more runs."""
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_tables_claims_origins_and_what_is_missing(root: Path) -> None:
    page = write_report(root)
    assert page == root / "REPORT.md"
    text = page.read_text()
    assert "**test_error on digits**" in text
    assert "6.50 ± 0.71" in text  # LastBN of seeds 1 and 2: 6 and 7
    assert "1 diverged" in text
    assert "-5.00 [-5.00, -5.00] (2 of 3 pairs)" in text
    assert "last_linear.input_kappa_0.5 on digits: paired differences" in text
    runs = [open_run(path) for path in sorted((root / "table1").glob("[1-3]*"))]
    verdict = CLAIMS["last_layer"].judge(CLAIMS["last_layer"].measure(runs))
    assert f"Claim 5: {verdict.statement}\n\nCounts as shown when {verdict.criterion}." in text
    assert f"| 5     | last_layer   | {verdict.answer} " in text
    assert verdict.shown is False  # κ is 2 in both
    for remark in verdict.remarks:
        assert f"- {remark}" in text
    assert "### table2\n\nMissing: no such runs. They are made by `make table2`." in text
    for name in set(EXPERIMENTS) - {"table1", "fig_validation"}:
        assert f"- {name}: {root / name} does not exist" in text
    assert "**Verdict: cannot be said.** no run of fig_stability has ended with a snapshot" in text
    assert "1 diverged, 1 failed" in text
    assert "condexp -m experiment=table1 'model.kwargs={a: 1}'" in text
    assert "0123456789ab with uncommitted changes (6 runs); not recorded (3 runs)" in text
    assert "A processor, 2 cores" in text
    assert "zipp" not in text


def test_the_verdicts_follow_from_the_archive(root: Path) -> None:
    """The CSV beside the page is all that a verdict needs."""
    text = write_report(root).read_text()
    archive = {path.stem: path for path in (root / "claims").glob("*.csv")}
    assert set(archive) == {"validation", "last_layer"}
    for name, path in archive.items():
        verdict = CLAIMS[name].judge(pd.read_csv(path))
        assert f"| {verdict.claim}     | {name:<12} | {verdict.answer} " in text
        for table in verdict.tables:
            assert f"{table.caption}:\n\n{markdown_frame(table.rows)}" in text


def test_the_same_files_give_the_same_page_and_figures_are_linked(root: Path) -> None:
    first = write_report(root).read_bytes()
    assert b"No figure yet: it is drawn by `make fig-validation`" in first
    assert write_report(root).read_bytes() == first
    (root / "fig_validation" / "validation.png").write_bytes(b"")
    (root / "fig_last_layer").mkdir()
    (root / "fig_last_layer" / "last_layer.png").write_bytes(b"")
    page = write_report(root, output=root / "docs" / "page.md").read_text()
    assert "![validation](../fig_validation/validation.png)" in page
    assert "![last_layer](../fig_last_layer/last_layer.png)" in page


def test_where_chooses_runs_and_what_has_none_is_missing(root: Path) -> None:
    text = write_report(root, ["profile=smoke"]).read_text()
    assert "Runs with `profile=smoke`." in text
    assert "- fig_validation: none of 2 runs has profile=smoke" in text
    assert "No figure yet" in text


def test_a_measure_that_was_not_recorded_is_said_and_hides_nothing(root: Path) -> None:
    write_run(root / "fig_conditioning" / "1", matrices=())
    text = write_report(root).read_text()
    assert "kfac in analysis.matrices and 0.5 in analysis.kappa_p" in text
    assert "### Claim 5: A very deep ResNet" in text


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    assert main(["report", str(root), "--where", "seed=1", "--output", str(page)]) == 0
    assert f"wrote {page}" in capsys.readouterr().out
    assert "fewer than two seeds" in page.read_text()
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)nothing to report: .*make paper.*table1: .*exist"):
        write_report(tmp_path)
    write_run(tmp_path / "table1" / "1")
    with pytest.raises(InputError, match=r"table1: no run has .*'modle'.*"):
        write_report(tmp_path, ["modle=1"])
    assert not (tmp_path / "REPORT.md").exists()


def test_a_claim_is_not_shown_before_every_run_has_ended(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(_frame: pd.DataFrame) -> Verdict:
        return Verdict(5, "It holds.", "it holds", "it does not", True, pd.DataFrame({"n": [1]}))

    monkeypatch.setitem(CLAIMS, "last_layer", replace(CLAIMS["last_layer"], judge=judge))
    line = "| 5     | last_layer   | {} "
    assert line.format("cannot be said") in write_report(root).read_text()
    shutil.rmtree(root / "table1" / "failed")
    assert line.format("shown") in write_report(root).read_text()


def test_a_run_that_goes_on_is_no_part_of_a_verdict(root: Path) -> None:
    before = write_report(root).read_text()
    write_run(
        root / "table1" / "4", seed=4, model__name="resnet", model__last_bn=False,
        test_errors=(90, 80, 70), state=State.RUNNING,
    )  # fmt: skip
    after = write_report(root).read_text()
    row = next(line for line in before.splitlines() if "| test error" in line)
    assert row in after
    assert "- 1 of 7 runs did not end with a snapshot and are left out" in before  # the failed one
    assert "- 2 of 8 runs did not end with a snapshot and are left out" in after
