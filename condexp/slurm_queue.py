"""What Slurm says of a user's jobs: ``squeue`` alone, for not every cluster keeps accounts."""

import os
import subprocess

# Anything else is still in the queue: running, waiting, or on its way back to waiting.
OVER = frozenset({
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
})
ANSWER_SECONDS = 60


def read_queue() -> dict[str, str] | None:
    """Ask Slurm for the states of this user's jobs, those included that ended minutes ago.

    Returns:
        By the job's number, ``12`` or, in an array, ``12_3``: its state, ``RUNNING`` say; None
        where Slurm does not answer now.
    """
    command = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T")
    try:
        answer = subprocess.run(
            (*command, f"--user={os.getuid()}"),
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    pairs = (line.strip().partition("|") for line in answer.stdout.splitlines())
    return {number: state for number, _, state in pairs if state}
