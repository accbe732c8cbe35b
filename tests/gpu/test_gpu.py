"""The checks of GPUs by pytest, and their dry run on the CPU, which the suite makes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import main as benchmark
from tests.gpu.__main__ import main
from tests.gpu.checks import CHECKS
from tests.gpu.ranks import two_processes_measure_what_one_does

ROOT = Path(__file__).resolve().parents[2]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is seen by torch")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_on_a_gpu(check: Callable[[str], None]) -> None:
    check("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_two_gpus() -> None:
    two_processes_measure_what_one_does("cuda")


def test_the_checks_hold_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--no-ranks"]) == 0
    out = capsys.readouterr().out
    assert out.count("\nok ") + out.startswith("ok ") == len(CHECKS)


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no GPU is seen" in capsys.readouterr().err


def test_the_benchmark_runs_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    assert benchmark(["--device", "cpu", "--json", str(path)]) == 0
    networks = json.loads(path.read_text())["networks"]
    assert list(networks) == ["ResNet-20", "ResNet-56", "VGG-16-BN", "ResNet-50", "ViT-B/16"]
    for found in networks.values():
        ways = [f"snapshot {precision}" for precision in ("float32", "auto")]
        by_the_cpu = [f"{way}, solved by the CPU" for way in ways]
        assert set(found["seconds"]) == {"step", *ways, *by_the_cpu}
        assert all(len(times) == 1 for times in found["seconds"].values())
    assert "beyond it" in capsys.readouterr().out


def test_nothing_is_imported_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    """Torch, torchvision, h5py and hydra, with what they import themselves."""
    code = f"""
import sys, torch, torchvision, h5py, hydra
before = {{name.partition(".")[0] for name in sys.modules}}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"threadpoolctl", "scipy", "pandas", "rich", "pytest"}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import importlib.util as util
found = util.find_spec
import tests.gpu.bare as bare
bare.find_spec = lambda name: None
from tests.gpu.__main__ import main
from benchmarks.gpu import main as benchmark
assert main(["--device", "cpu", "--no-ranks"]) == 0
assert benchmark(["--device", "cpu", "--json", {str(tmp_path / "gpu.json")!r}]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
