import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from condexp.errors import InputError
from condexp.results.collect import collect
from condexp.results.tables.table import make_table
from condexp.store.reader import Run
from condexp.store.run_folder.status import State, Status, write_status
from tests.results.stored import LAYERS, WITH_BLOCKS, lambda_max, write_early_failure, write_run


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two complete runs, one that diverged, one that runs, one that failed, one that waits."""
    root = tmp_path_factory.mktemp("grid")
    write_run(root / "a")
    write_run(root / "b", seed=2, test_errors=(40.0, 10.0, 15.0))
    deeper: dict[str, Any] = {"model__depth": 5, "model__width": 64, "seed": 3}
    write_run(root / "c", state=State.DIVERGED, steps_done=4, diverges_at=3, **deeper)
    write_run(root / "d", state=State.RUNNING, steps_done=0, seed=4)
    write_early_failure(root / "e")
    (root / "f").mkdir()
    write_status(root / "f", Status(State.PENDING))
    return root


@pytest.fixture(scope="module")
def frame(grid: Path) -> pd.DataFrame:
    return collect(grid)


def test_one_row_a_run_none_left_out(grid: Path, frame: pd.DataFrame) -> None:
    assert frame["path"].tolist() == [str(grid / name) for name in "abcdef"]
    states = ["complete", "complete", "diverged", "running", "failed", "pending"]
    assert frame["state"].tolist() == states
    assert frame["step"].tolist() == [6, 6, 4, 0, 0, 0]


def test_the_configuration_is_flat(frame: pd.DataFrame) -> None:
    assert frame["seed"].tolist()[:5] == [1, 2, 3, 4, 9]
    assert frame["model.depth"].tolist()[:5] == [3, 3, 5, 3, 3]
    assert frame["model.width"].isna().tolist() == [True, True, False, True, True, True]
    assert frame["optimizer.betas"][0] == (0.9, 0.999)
    keys = frame.attrs["identity_keys"]
    assert {"seed", "model.depth", "model.width", "trainer.batch_size"} <= set(keys)
    assert not {"run.root", "dataset.root", "trainer.device"} & set(keys)


def test_final_and_best_errors(frame: pd.DataFrame) -> None:
    assert frame["test_error"].tolist()[:3] == [30.0, 15.0, 20.0]
    assert frame["best_test_error"].tolist()[:3] == [20.0, 10.0, 20.0]
    assert frame["train_error"].tolist()[:3] == [15.0, 7.5, 10.0]
    assert frame["train_loss"].tolist()[:3] == [1 / 6, 1 / 6, 1 / 4]
    assert frame[["test_error", "best_test_error"]].iloc[3:].isna().all(axis=None)


def test_measures_are_of_the_last_committed_snapshot(frame: pd.DataFrame) -> None:
    # Run a was measured at step 5, the diverged run c last at step 2.
    for row, step in ((0, 5), (2, 2)):
        for index, info in enumerate(LAYERS):
            if info.name == "dead":
                continue
            value, expected = frame[f"{info.name}.input_lambda_max"][row], lambda_max(index, step)
            assert value == expected
            # Powers of two: products are exact.
            assert frame[f"{info.name}.kfac_lambda_max"][row] == expected**2
            assert frame[f"{info.name}.domination"][row] == 0.125 * (index + 1)
    # λ_k = λ_1 / 2^(k-1): κ_0.5 is at k = 5 of 9, and at k = 2 of 4.
    assert frame["conv.input_kappa_0.5"][0] == 2.0**4
    assert frame["fc.input_kappa_0.5"][0] == 2.0
    assert frame["fc.domination"].iloc[3:].isna().all()
    assert math.isnan(frame["dead.input_kappa_0.5"][0])


def test_what_the_rows_can_fill(frame: pd.DataFrame) -> None:
    # Four samples: enough for all but the hidden layer's eight inputs.
    assert frame["hidden.input_p_limit"][0] == 0.5
    assert frame["conv.input_p_limit"][0] == frame["fc.kfac_p_limit"][0] == 1.0
    assert frame["hidden.input_kappa_0.5"][0] == 2.0**3
    assert frame["hidden.input_kappa_1.0"][0] == math.inf
    assert frame["conv.input_kappa_1.0"][0] == math.inf
    value = "hidden.input_kappa_1.0"
    assert make_table(frame, ["model.depth"], [], value).cells[(3,), ()].mark == "rows"
    value = "conv.input_kappa_1.0"
    assert make_table(frame, ["model.depth"], [], value).cells[(3,), ()].mark == "∞"


def test_fisher_blocks_and_the_network(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed=seed, matrices=WITH_BLOCKS)
    frame = collect(tmp_path)
    # At the last snapshot, step 5: 2^-1, 2^-2, 2^-3, 0, a spectrum of as many values as samples.
    assert frame["network.fisher_lambda_max"].tolist() == [0.5, 0.5]
    assert frame["network.fisher_trace"][0] == 0.875
    assert frame["network.fisher_kappa_0.5"][0] == 2.0
    assert frame["network.fisher_kappa_1.0"][0] == math.inf
    assert frame["fc.fisher_lambda_max"][0] == lambda_max(3, 5)
    assert frame["last_linear.fisher_kappa_0.5"][0] == 2.0
    # Its length counts no more than the rows, so an infinity is a finding.
    value = "network.fisher_kappa_1.0"
    assert frame["network.fisher_p_limit"][0] == 1.0
    assert make_table(frame, ["model.depth"], [], value).cells[(3,), ()].mark == "∞"
    some = collect(tmp_path, [value])
    pd.testing.assert_series_equal(some[value], frame[value])
    assert "network.fisher_trace" not in collect(tmp_path, ["seed", "fc.fisher_trace"])
    with pytest.raises(InputError, match=r"Did you mean 'network.fisher_lambda_max'\?"):
        make_table(frame, ["seed"], [], "network.fisher_lamda_max")


def test_runs_with_and_without_a_fisher_matrix_in_one_table(tmp_path: Path) -> None:
    write_run(tmp_path / "a", matrices=WITH_BLOCKS)
    write_run(tmp_path / "b", seed=2)
    frame = collect(tmp_path)
    assert frame["network.fisher_lambda_max"].isna().tolist() == [False, True]
    assert frame["fc.input_lambda_max"].notna().all()


def test_aliases(frame: pd.DataFrame, tmp_path: Path) -> None:
    pd.testing.assert_series_equal(
        frame["last_linear.input_trace"], frame["fc.input_trace"], check_names=False
    )
    pd.testing.assert_series_equal(
        frame["first.input_trace"], frame["conv.input_trace"], check_names=False
    )
    # Where only the last layer was analysed, it is not the network's first.
    write_run(tmp_path / "a", layers=LAYERS[-1:], analysis__layers={"include": ["last_linear"]})
    columns = set(collect(tmp_path).columns)
    assert {"fc.domination", "last_linear.domination"} <= columns
    assert "first.domination" not in columns


def test_only_what_is_needed_is_read_and_it_is_the_same(grid: Path, frame: pd.DataFrame) -> None:
    keys = ["model.depth", "seed", "test_error", "last_linear.input_kappa_0.5"]
    some = collect(grid, keys)
    pd.testing.assert_frame_equal(some[keys], frame[keys])
    assert "fc.domination" not in some
    assert len(some.columns) < len(frame.columns) / 2
    with pytest.raises(InputError, match=r"Did you mean 'last_linear.grad_output_trace'\?"):
        make_table(
            collect(grid, ["last_linear.grad_outptu_trace"]),
            ["seed"],
            [],
            "last_linear.grad_outptu_trace",
        )


def test_the_high_end_of_an_interval_comes_with_its_number(tmp_path: Path) -> None:
    write_run(tmp_path / "run", bounded=["fc"])
    value = "last_linear.input_kappa_0.5"
    low = "last_linear.input_kappa_low_0.5"
    assert collect(tmp_path, [low])[low].tolist() == [2]
    frame = collect(tmp_path, [value])
    assert frame[value].tolist() == [2]
    assert frame["last_linear.input_kappa_high_0.5"].tolist() == [math.inf]
    assert frame["hidden.input_kappa_high_0.5"].tolist() == [8]
    (cell,) = make_table(frame, ["model.depth"], [], value).cells.values()
    assert (cell.mean, cell.num_bounds) == (2, 1)


def test_beside_a_wide_matrix_a_solved_one_is_no_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run with wide matrices the rank is read, which is NaN where a spectrum is estimated."""
    for seed, info in enumerate((LAYERS[1], LAYERS[3])):  # 8 inputs, and 4
        write_run(tmp_path / info.name, seed=seed, layers=[info])
    monkeypatch.setattr("condexp.store.last_rows.is_wide", lambda side: side > 4)
    value = "last_linear.input_kappa_0.5"
    frame = collect(tmp_path, [value])
    assert frame["last_linear.input_rank"].notna().all()
    (cell,) = make_table(frame, ["model.depth"], [], value).cells.values()
    assert (cell.num, cell.num_estimates) == (2, 0)


def test_a_run_costs_no_labelled_arrays(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A thousand runs would take minutes by way of xarray.
    def refuse(_run: Run) -> None:
        raise AssertionError

    monkeypatch.setattr(Run, "measures", refuse)
    monkeypatch.setattr(Run, "metrics", property(refuse))
    assert len(collect(str(grid))) == 6


def test_regression_has_no_errors(tmp_path: Path) -> None:
    write_run(tmp_path / "a", test_errors=(math.nan,) * 3)
    row = collect([tmp_path]).iloc[0]
    assert math.isnan(row["test_error"])
    assert math.isnan(row["best_test_error"])
    assert row["test_loss"] == 0.5


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        collect(tmp_path)
