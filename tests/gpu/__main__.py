"""``python -m tests.gpu [--device cuda]``: the checks without pytest, a line each."""

import argparse
import sys
import traceback

from tests.gpu.bare import allow_bare_machine


def main(argv: list[str] | None = None) -> int:
    """Run all checks.

    Args:
        argv: Arguments; those of the process where None.

    Returns:
        The exit code: 1 where one fails, 2 where the device is not there.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu as a dry run")
    parser.add_argument("--no-ranks", action="store_true", help="leave out the two processes")
    given = parser.parse_args(argv)
    allow_bare_machine()
    import torch

    if given.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stderr.write("no GPU is seen by torch; --device cpu is a dry run\n")
        return 2
    from tests.gpu.checks import CHECKS
    from tests.gpu.ranks import two_processes_measure_what_one_does

    checks = list(CHECKS)
    if not given.no_ranks and (given.device == "cpu" or torch.cuda.device_count() > 1):
        checks.append(two_processes_measure_what_one_does)
    failed = 0
    for check in checks:
        try:
            check(given.device)
            verdict = "ok"
        except Exception:
            traceback.print_exc()
            failed += 1
            verdict = "FAILED"
        sys.stdout.write(f"{verdict:7} {check.__name__}\n")
        sys.stdout.flush()
    if len(checks) == len(CHECKS):
        sys.stdout.write("skipped two_processes_measure_what_one_does: needs two GPUs\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
