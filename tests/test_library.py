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
