"""The library's face: what `import condexp` gives, and what it costs."""

import subprocess
import sys

import pytest

import condexp


def test_importing_condexp_imports_no_torch() -> None:
    code = "import sys, condexp; sys.exit('torch' in sys.modules or 'h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", condexp.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(condexp, name).__doc__
    assert getattr(condexp, name) is getattr(condexp, name)
    assert name in dir(condexp)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'condexp' has no attribute 'analyse'"):
        condexp.analyse  # noqa: B018


def test_the_version_is_condexps(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    from condexp.cli.main import main

    assert condexp.__version__ == version("condexp")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"condexp {version('condexp')}\n"


def test_a_snapshot_in_short_and_as_a_table() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    snapshot = condexp.analyze(model, torch.nn.MSELoss(), torch.eye(2), torch.zeros(2, 1))
    assert repr(snapshot) == (
        "Snapshot(2 layers, 2 samples, bn_mode=none, matrices: input, grad_output, kfac)"
    )
    table = snapshot.to_pandas(p=(0.5, 1))
    assert table.index.tolist() == ["0", "2"]
    first, last = snapshot["0"].input, snapshot["2"].kfac
    assert first is not None
    assert last is not None
    assert table.at["0", "input_lambda_max"] == first.lambda_max == 0.5
    assert table.at["2", "kfac_kappa_1.0"] == last.kappa(1.0)
    assert [table.at["2", name] for name in ("type", "d_in", "d_out")] == ["Linear", 3, 1]
