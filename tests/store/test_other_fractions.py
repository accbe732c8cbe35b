"""κ at fractions that were not measured, from stored spectra, against runs that measured them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from condexp.errors import InputError
from condexp.store.reader import Run, open_run
from tests.in_process import run

SMALL = [
    "dataset.subset.train=60", "dataset.subset.test=20", "trainer.steps=2", "trainer.batch_size=60",
    "analysis.schedule.log_spaced=null", "dataset.image_size=8",
]  # fmt: skip
NETS = {
    "mlp": ["model.depth=2", "model.width=12", "analysis.center=true"],
    "cnn": ["model=cnn", "model.width=4"],
    "fisher": ["model.depth=2", "model.width=4", "analysis=fisher", "analysis.probe.size=60"],
    "dead": ["model.depth=2", "model.width=12", "model.init_scale=1e-30", "model.norm=none"],
}
ASKED = (0.05, 0.3, 0.6, 0.95)
Command = Callable[..., tuple[int, str, str]]


def stored(root: Path, *overrides: str) -> Run:
    folder = run(root, *SMALL, *overrides).folder
    assert folder is not None
    return open_run(folder)


@pytest.mark.parametrize("net", NETS)
def test_they_are_what_would_have_been_measured(net: str, tmp_path: Path) -> None:
    kept = stored(tmp_path, *NETS[net], "analysis.save_spectra=true", "analysis.kappa_p=[0.5,0.9]")
    other = stored(tmp_path, *NETS[net], f"analysis.kappa_p={list(ASKED)}".replace(" ", ""))
    found, wanted = kept.measures(p=ASKED), other.measures()
    names = [str(name).removesuffix("_low") for name in wanted if str(name).endswith("_kappa_low")]
    assert names
    for name in names:
        low, high = (found[f"{name}_{end}"].to_numpy() for end in ("low", "high"))
        true_low, true_high = (wanted[f"{name}_{end}"].to_numpy() for end in ("low", "high"))
        # Where something is known it is not lost, nor is more claimed than was measured. An exact 0
        # of a dead unit is known to the measurement alone.
        np.testing.assert_array_equal(np.isnan(low), np.isnan(true_low), name)
        known = ~np.isnan(low)
        assert (low[known] <= true_low[known] * (1 + 1e-9)).all(), name
        assert (high[known] >= true_high[known] * (1 - 1e-9)).all(), name
        # The eigenvalues are the same bits, and a product is found up to a rounding.
        sure = known & np.isfinite(high)
        np.testing.assert_allclose(
            found[name].to_numpy()[sure], wanted[name].to_numpy()[sure], rtol=1e-9, err_msg=name
        )
        if net != "dead":
            assert sure.any(), name
            assert (high[sure] <= 2 * true_high[sure]).all(), name
    assert found["p"].to_numpy().tolist() == list(ASKED)


def test_a_measured_fraction_is_the_stored_number(tmp_path: Path) -> None:
    plain = stored(tmp_path, *NETS["mlp"], "analysis.save_spectra=false")
    np.testing.assert_array_equal(
        plain.measures(p=(0.9, 0.5))["kfac_kappa"].to_numpy(),
        plain.measures()["kfac_kappa"].sel(p=[0.9, 0.5]).to_numpy(),
    )
    with pytest.raises(InputError, match=r"holds no spectra: .* analysis\.save_spectra=true"):
        plain.measures(p=(0.3,))
    with pytest.raises(InputError, match=r"1\.5 is not a fraction of the spectrum"):
        plain.measures(p=(1.5,))


def test_the_fisher_matrix_of_the_network(tmp_path: Path) -> None:
    kept = stored(tmp_path, *NETS["fisher"], "analysis.save_spectra=true")
    (kappa,) = kept.network(p=(0.1,))["fisher_kappa"].to_numpy()[-1]
    eigenvalues = kept.network()["fisher_eigenvalue"].to_numpy()[-1]
    assert kappa == pytest.approx(eigenvalues[0] / eigenvalues[-(-len(eigenvalues) // 10) - 1])


def test_show(tmp_path: Path, condexp: Command) -> None:
    kept = stored(tmp_path, *NETS["mlp"], "analysis.save_spectra=true")
    code, out, _ = condexp("show", str(kept.path), "--p", "0.3")
    assert code == 0
    assert "κ 0.3" in out
    assert "κ 0.5" not in out
    plain = stored(tmp_path, *NETS["mlp"], "analysis.save_spectra=false")
    code, out, err = condexp("show", str(plain.path), "--p", "0.3")
    assert (code, out) == (2, "")
    assert "analysis.save_spectra=true" in err
