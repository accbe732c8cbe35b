"""Two ranks record one run, of the rows of both."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import condexp
from tests.runs import record_ranks


@pytest.mark.usefixtures("no_picture")
def test_the_record_of_two_ranks_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, record_ranks.__file__, tmp_path],
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    record_ranks.loop(tmp_path / "alone", 0, 1)
    together, alone = (condexp.open_run(tmp_path / name) for name in ("together", "alone"))
    assert together.status["state"] == "complete"
    assert together.steps == alone.steps == (1, 3)
    found, expected = together.measures(), alone.measures()
    for name in ("input_lambda_max", "grad_output_lambda_max", "kfac_kappa", "weight_norm"):
        # Sums over the ranks in another order: rounding of a few additions in float64.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10)
    assert (found["gradient_residual"] < 1e-6).all()
    assert sorted(path.name for path in tmp_path.glob("together/*.pt")) == []
