"""What a page keeps of a large run: rounded as it says, spread as it says, under ten megabytes."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser

from condexp.analysis.layers.info import LayerInfo
from condexp.analysis.vocabulary import Matrix
from condexp.results.page.packing import round_to_bits
from condexp.results.page.thinning import (
    SPECTRUM_VALUES,
    SpectrumPlan,
    spectrum_plan,
    thinned,
)
from condexp.results.page.write import write_run_page
from condexp.store.hdf5.checked_file import sealed_trailer
from condexp.store.hdf5.create import create_results
from condexp.store.reader import Run, open_run
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import SEALED, FileSpec
from tests.results.page.looking import opened
from tests.results.stored import WITH_BLOCKS, write_run

LARGEST = np.finfo(np.float64).max


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([10, 20]))
def test_rounding_is_within_its_bound_and_makes_nothing_infinite(value: float, bits: int) -> None:
    (rounded,) = round_to_bits(np.array([value]), bits)
    if not np.isfinite(value):
        assert np.array_equal([rounded], [value], equal_nan=True)
        return
    assert np.isfinite(rounded)
    smallest = np.finfo(np.float64).tiny  # below it, steps are all alike
    bound = 2.0 ** -(bits + 1) * max(abs(value), smallest)
    assert abs(rounded - value) <= (2 * bound if abs(value) > LARGEST / 1.01 else bound)


@given(st.integers(1, 5000), st.sampled_from([48, 96, 512]))
def test_the_first_and_the_last_eigenvalue_are_kept(length: int, points: int) -> None:
    kept = SpectrumPlan(points, 4).indices(length)
    assert len(kept) <= points
    assert kept[0] == 0
    assert kept[-1] == length - 1
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize("layers", [1, 20, 1202, 100_000])
@pytest.mark.parametrize("length", [10, 512, 40_000])
def test_a_plan_of_spectra_fits(layers: int, length: int) -> None:
    lengths = np.full((5, layers), length)
    plan = spectrum_plan(lengths, 50)
    kept = lengths[:, : plan.layers].size * len(plan.indices(length)) * len(plan.rows(50))
    assert kept <= SPECTRUM_VALUES
    assert (plan.layers is None) == (layers < 100_000)


def test_a_thinned_curve_keeps_every_spike() -> None:
    values = np.ones(1_000_000)
    values[[3, 777_777]] = [5.0, -2.0]
    values[500_000] = np.nan
    steps, kept = thinned(np.arange(1_000_000), values)
    assert len(steps) <= 2000
    assert {3: 5.0, 777_777: -2.0}.items() <= dict(zip(steps, kept, strict=True)).items()


def test_the_first_and_the_last_snapshot_are_in_any_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condexp.results.page.run_data.MEASURE_LETTERS", 10)
    page = write_run_page(write_run(tmp_path / "run")).read_text()
    assert "Of 4 snapshots 2 are kept here." in page
    assert '"steps":[0,5]' in page


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A file of 1202 layers and 50 snapshots, filled with numbers that compress badly."""
    path = tmp_path_factory.mktemp("large") / "results.h5"
    layers = [
        LayerInfo(f"stage{i // 100}.{i}.conv", "Conv2d", 72, 16, groups=1, positions=4, uses=1)
        for i in range(1202)
    ]
    spec = FileSpec(
        layers=tuple(layers), not_analysed=(), save_spectra=True, num_samples=64,
        steps_per_epoch=100,
        matrices=tuple(each for each in WITH_BLOCKS if each is not Matrix.FISHER),
        num_train_steps=5000,
        kappa_p=(0.5, 0.8, 0.9, 1.0), snapshot_steps=tuple(range(0, 5000, 100)), eval_steps=(5000,),
        config_yaml="{}", attributes={"title": "a large run", "center": False},
    )  # fmt: skip
    create_results(path, spec)
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        arrays: list[h5py.Dataset] = []
        file.visititems(
            lambda _, item: arrays.append(item) if isinstance(item, h5py.Dataset) else None
        )
        for array in arrays:
            if array.dtype == np.float64 and array.ndim >= 2 and len(array) == 50:
                drift = rng.normal(0, 0.1, array.shape).cumsum(axis=0)
                array[...] = np.exp(drift + rng.uniform(0, 14, array.shape[1:]))
            elif array.name.endswith("_status"):
                array[...] = 1
        file["train/loss"][...] = rng.random(5000)
        counters = ("n_committed", "n_train_committed")
        for name, num in zip(counters, (50, 5000), strict=True):
            file[name][()] = num
        file.attrs[SEALED] = 1  # its blocks have checksums, not its rows
        rows = {Axis.SNAPSHOT: 50, Axis.TRAIN: 5000, Axis.EVAL: 0}
    with path.open("r+b") as stored:
        size = stored.seek(0, 2)
        stored.write(sealed_trailer(stored.fileno(), size, rows, rows | {Axis.EVAL: 1}).to_bytes())
    return open_run(path)


def test_a_large_run_stays_under_ten_megabytes_and_says_what_it_left_out(
    large: Run, browser: Browser
) -> None:
    page_file = write_run_page(large.path)
    assert page_file.stat().st_size < 10e6
    with opened(browser, page_file) as page:
        notes = page.inner_text("#thinned")
        kept = int(notes.partition("Of 50 snapshots ")[2].split()[0])
        assert 10 < kept < 50
        assert "rounded to within 0.05 %" in notes
        assert "intervals of κ" in notes
        steps = page.evaluate("DATA.steps")
        assert len(steps) == kept
        assert (steps[0], steps[-1]) == (0, 4900)
        rows = [large.steps.index(step) for step in steps]
        page.select_option("#matrix", "input")
        page.select_option("#quantity", "trace")
        drawn = np.array(page.evaluate("document.getElementById('plot-map').data[0].z"))
        stored = large.measures()["input_trace"].to_numpy()[rows].T
        # Ten bits: 2⁻¹¹ relative, as a difference of decimal logarithms.
        np.testing.assert_allclose(drawn, np.log10(stored), atol=1.01 * 2**-11 / np.log(10))
        page.select_option("#layer", "1201")
        spectrum = page.evaluate("[...document.getElementById('plot-spectrum').data[0].y]")
        found = large.spectrum("input", large.layers[1201]).to_numpy()[-1]
        np.testing.assert_allclose([spectrum[0], spectrum[-1]], found[[0, -1]], rtol=2**-11)
