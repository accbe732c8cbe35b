import json
from dataclasses import replace
from pathlib import Path

import pytest

from condexp.errors import InputError
from condexp.results.layer_measures import LayerMeasures
from condexp.results.run_view import headline, layer_table, summary
from condexp.results.tables.numbers import Mark
from condexp.store.last_rows import read_last_rows
from condexp.store.reader import Run, open_run
from condexp.store.run_folder.status import State, read_status, write_status
from tests.results.stored import WITH_BLOCKS, make_config, text_of, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(write_run(tmp_path_factory.mktemp("runs") / "run"))


def cells(run: Run, layer: str, *arguments: object) -> list[str]:
    lines = text_of(layer_table(run, *arguments)).splitlines()  # type: ignore[arg-type]
    (line,) = [line for line in lines if line.strip().startswith(f"{layer} ")]
    return line.split()[1:]


def test_the_usual_columns(run: Run) -> None:
    # At step 5 λ_max of layer i is 2^(i-5), of kfac its square; κ_0.5 of d values is 2^(⌈d/2⌉-1).
    # Of kfac's 36 products 2^-(i+j), i < 8, j < 3, the 18th largest is 2^-6: 1+2+3+3+3+3+3 = 18.
    assert cells(run, "conv") == [
        "Conv2d", "9", "4", "0.0312", "16", "0.0312", "2", "9.77e-4", "64", "0.125",
    ]  # fmt: skip
    assert cells(run, "fc")[:5] == ["Linear", "4", "3", "0.25", "2"]
    text = text_of(layer_table(run))
    assert "layers at step 5" in text
    assert text.index("conv") < text.index("hidden") < text.index("fc")


def test_fisher_blocks_stand_beside_their_approximation(tmp_path: Path) -> None:
    blocks = open_run(write_run(tmp_path / "run", matrices=WITH_BLOCKS))
    # KFAC as above; the block has as many eigenvalues as samples, four.
    assert cells(blocks, "conv")[3:] == ["9.77e-4", "64", "0.0312", "2", "0.125"]
    text = text_of(layer_table(blocks), width=80)
    assert "network: Fisher λ_max = 0.5, κ_0.5 = 2" in map(str.strip, text.splitlines())
    assert cells(blocks, "fc", None, ["fisher_kappa_1.0"])[-1] == "8"
    assert "network: Fisher λ_max = 16, " in text_of(layer_table(blocks, 0))


def test_usual_columns_fit_a_terminal(run: Run) -> None:
    lines = text_of(layer_table(run, 0), width=80).splitlines()
    assert [line.split()[0] for line in lines if "Linear" in line] == ["hidden", "dead", "fc"]


@pytest.mark.parametrize("width", [24, 40, 50, 66, 75])
def test_a_narrow_terminal_neither_folds_nor_cuts_a_number_or_a_head(run: Run, width: int) -> None:
    """It gets the columns in parts, one below the other, each with the layers' names."""
    lines = text_of(layer_table(run), width).splitlines()
    assert max(map(len, lines)) <= width
    narrow, wide = " ".join(lines).split(), text_of(layer_table(run), 200).split()
    assert set(wide) - {"layers", "step"} <= {*narrow, *wide[:4], *(w for w in wide if "─" in w)}
    assert "…" not in narrow
    assert narrow.count("hidden") > wide.count("hidden")


def test_infinite_condition_numbers_say_why(run: Run) -> None:
    # Four samples for eight inputs: rows. 64 rows for nine, of which one counts as zero: ∞.
    assert cells(run, "hidden", None, ["input_kappa_1.0"])[-1] == "rows"
    assert cells(run, "conv", None, ["input_kappa_1.0"])[-1] == "∞"
    text = text_of(layer_table(run, None, ["input_kappa_1.0"]))
    assert "fewer rows than p·d were measured" in text
    assert "rank-deficient" in text


def test_what_is_known_from_below_only_says_so(tmp_path: Path) -> None:
    # With every row that one needs, so that no κ is infinite for want of them.
    stored = write_run(tmp_path / "run", bounded=["fc"], matrices=WITH_BLOCKS, coverage=0.75)
    bound = open_run(stored)
    names = ["input_kappa", "input_kappa_low", "input_kappa_high_0.5"]
    assert cells(bound, "fc", None, names)[3:] == ["≥", "2", "≥", "8", "2", "8", "∞"]
    assert cells(bound, "hidden", None, names)[3:] == ["8", "rows", "8", "rows", "8"]
    text = text_of(layer_table(bound, None, names))
    assert "≥: the eigenvalue cannot be told from 0 at this precision" in text
    assert [line.split()[-5:] for line in text.splitlines() if "κ 0.5 low" in line]
    assert "of 75 % of the parameters" in text_of(layer_table(bound))
    assert cells(bound, "fc", None, ["gradient_residual"])[-1] == "1e-7"
    usual = text_of(layer_table(bound), width=80)
    assert "≥ 2" in usual


@pytest.mark.parametrize(
    ("step", "status"), [(0, "zero"), (1, "unreliable"), (2, "nonfinite"), (5, "nonfinite")]
)
def test_statuses_stand_in_place_of_numbers(run: Run, step: int, status: str) -> None:
    assert cells(run, "dead", step) == ["Linear", "4", "4", *[status] * 6, "0.375"]
    assert f"{status}: " in text_of(layer_table(run, step))


def test_chosen_measures(run: Run) -> None:
    assert cells(run, "fc", 2, ["input_kappa", "weight_norm"])[3:] == ["2", "8", "1.5"]
    assert cells(run, "fc", 2, ["effective_lr"])[3:] == ["–"]


@pytest.mark.parametrize(
    ("step", "measures", "message"),
    [
        (4, None, r"no snapshot at step 4: there are snapshots at 0, 1, 2, 5\. The nearest is 5\."),
        (None, ["input_lamda_max"], r"unknown measure.*Did you mean 'input_lambda_max'\?"),
        (None, ["input_kappa_0.7"], r"kappa_0.5, kappa_1.0\. Did you mean 'input_kappa_0.5'\?"),
    ],
)
def test_what_does_not_exist(
    run: Run, step: int | None, measures: list[str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        layer_table(run, step, measures)


def test_summary_of_a_complete_run(run: Run) -> None:
    lines = [line.rstrip() for line in text_of(summary(run)).splitlines()]
    assert lines[0] == f"mlp on digits, seed 1  {run.path}"
    assert "model      mlp depth=3 last_bn=false" in lines
    assert "dataset    digits root=/data" in lines  # what is not set is left out
    assert "optimizer  adam betas=[0.9,0.999] lr=0.1" in lines
    assert "complete, step 6 of 6, time 0:01:23, batch loss 0.333" in lines
    (test,) = [line.split() for line in lines if line.strip().startswith("test")]
    assert test == ["test", "0.5", "30", "20"]
    (train,) = [line.split() for line in lines if line.strip().startswith("train ")][-1:]
    assert train == ["train", "0.167", "15", "10"]


def test_the_numbers_name_their_threads(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    for hardware, said in (
        ({"num_threads": 2, "processor": "An EPYC"}, "time 0:01:23 on 2 threads of An EPYC, "),
        ({"num_threads": 1, "processor": ""}, "time 0:01:23 on 1 thread, "),
        ({}, "time 0:01:23, "),
    ):
        (run.path / "provenance.json").write_text(json.dumps({"hardware": hardware}))
        assert f"complete, step 6 of 6, {said}batch loss" in text_of(summary(run))


def test_steps_are_those_of_the_results_where_the_status_is_behind(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state=State.RUNNING, steps_done=4)
    status = read_status(folder)
    write_status(folder, replace(status, step=1))
    assert "running, step 4 of 6" in text_of(summary(open_run(folder)))


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    begun = open_run(write_run(tmp_path / "run", state=State.RUNNING, steps_done=0))
    assert "4 layers, no snapshot yet" in text_of(layer_table(begun))
    assert "running, step 0 of 6" in text_of(summary(begun))
    assert headline(begun) == "mlp on digits, seed 1, 0 of 6 steps"
    with pytest.raises(InputError, match=r"no snapshot at step 3: .* no step yet"):
        layer_table(begun, 3)


def test_a_run_that_goes_on_and_one_that_diverged(tmp_path: Path) -> None:
    going = open_run(write_run(tmp_path / "a", state=State.RUNNING, steps_done=3))
    assert headline(going) == "mlp on digits, seed 1, 3 of 6 steps"
    assert "layers at step 2" in text_of(layer_table(going))
    # The figure is drawn while the state is still `running`: the stored steps tell.
    lost = write_run(tmp_path / "b", state=State.RUNNING, steps_done=4, diverges_at=3)
    assert headline(open_run(lost)) == "mlp on digits, seed 1, diverged at step 3"


def test_a_run_without_analysis(tmp_path: Path) -> None:
    bare = open_run(write_run(tmp_path / "run", layers=(), snapshot_steps=()))
    assert "no layer was analysed" in text_of(layer_table(bare))


def test_a_results_file_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", seed=7)
    alone = tmp_path / "elsewhere.h5"
    (folder / "results.h5").rename(alone)
    copy = open_run(alone)
    assert headline(copy) == "mlp on digits, seed 7"
    assert "batch loss 0.333" in text_of(summary(copy))
    assert cells(copy, "hidden", None, ["input_kappa_1.0"])[-1] == "rows"


def test_centred_moments_lose_a_row_and_a_second_use_gives_as_many_again(run: Run) -> None:
    arrays = dict(LayerMeasures.read(run).arrays)
    plain = LayerMeasures.of(arrays, run.config)
    centred = LayerMeasures.of(arrays, make_config(analysis__center=True))
    hidden = run.layers.index("hidden")
    assert (plain.limits["input"][hidden], centred.limits["input"][hidden]) == (4 / 8, 3 / 8)
    arrays["num_rows"] = 2 * arrays["num_rows"]
    reused = LayerMeasures.of(arrays, run.config)
    assert reused.limits["input"][hidden] == 1.0
    assert reused.marks("input_kappa_1.0")[0, hidden] is Mark.INFINITE


def test_several_gradients_a_sample_are_rows_of_grad_output_alone(tmp_path: Path) -> None:
    drawn = open_run(write_run(tmp_path / "run", num_signals=3))
    assert LayerMeasures.read(drawn).num_signals == read_last_rows(drawn.file).num_signals == 3
    arrays = dict(LayerMeasures.read(drawn).arrays)
    hidden = drawn.layers.index("hidden")
    arrays["d_out"] = 24 * (arrays["d_out"] > 0)
    # Four samples: four inputs of side 8, twelve gradients of side 24.
    for center, input_rows, gradients in ((False, 4, 12), (True, 3, 11)):
        config = make_config(analysis__center=center)
        limits = LayerMeasures.of(arrays, config, num_signals=3).limits
        assert limits["input"][hidden] == input_rows / 8
        assert limits["grad_output"][hidden] == gradients / 24
        assert limits["kfac"][hidden] == pytest.approx(input_rows / 8 * gradients / 24)


def test_the_worst_layers_come_first(run: Run) -> None:
    def names(*arguments: object) -> list[str]:
        lines = text_of(layer_table(run, None, None, None, *arguments)).splitlines()  # type: ignore[arg-type]
        rows = [line.split() for line in lines if "Linear" in line or "Conv2d" in line]
        return [row[0] for row in rows]

    values = run.measures()["input_lambda_max"].isel(step=-1).to_series().dropna()
    expected = values.sort_values(ascending=False, kind="stable").index.tolist()
    assert names("input_lambda_max", 2) == expected[:2]
    assert len(names(None, 1)) == 1
    with pytest.raises(InputError, match=r"unknown measure 'kapa'"):
        names("kapa")
    with pytest.raises(InputError, match="--top=0: give the number of layers"):
        names(None, 0)
