"""Slurm for the tests of engines: daemons of this machine alone, ended whatever happens."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import GUARD_SECONDS

SCRIPT = Path(__file__).parent / "slurm_one_node.sh"
# Of a session inside a cluster's job: they would speak of another Slurm.
FOREIGN = ("SLURM_", "SBATCH_", "SQUEUE_", "SRUN_", "SUBMITIT_")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a Slurm with one node of two cores, which its commands find."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.fail("Slurm is not installed: make test-engines installs it, as root")
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(FOREIGN):
                patch.delenv(name)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            call("up", folder)
            yield folder
            subprocess.run(["scancel", "--me"], check=False, timeout=GUARD_SECONDS)
        finally:
            call("down", folder)


def call(what: str, folder: Path) -> None:
    # To a file: daemons would keep a pipe open.
    with (folder / "script.log").open("a+") as log:
        done = subprocess.run(
            ["bash", str(SCRIPT), what, str(folder)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=GUARD_SECONDS,
        )
        log.seek(0)
        assert done.returncode == 0, log.read()
