"""Lightning's Trainer on two processes: one run folder, of the rows of both."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import condexp
from condexp.store.hdf5.validate import validate_results
from tests.integrations import lightning_ranks
from tests.waiting import GUARD_SECONDS


def test_the_file_of_two_processes_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, lightning_ranks.__file__, tmp_path],
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=GUARD_SECONDS,
    )
    lightning_ranks.train(tmp_path / "alone", 1)
    together, alone = (condexp.open_run(tmp_path / name) for name in ("together", "alone"))
    validate_results(tmp_path / "together" / "results.h5")
    assert together.status["state"] == alone.status["state"] == "complete"
    assert together.steps == alone.steps == (1, 3)
    found, expected = together.measures(), alone.measures()
    for name in ("input_lambda_max", "grad_output_lambda_max", "kfac_kappa", "grad_norm"):
        # Sums over the ranks in another order: rounding of a few additions in float64.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10)
    assert (found["gradient_residual"] < 1e-12).all()
