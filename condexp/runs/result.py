"""How one run ended, as it crosses from a job's process to its sweep's: nothing heavy here."""

from dataclasses import dataclass
from pathlib import Path

from condexp.runs.stop_signals import TEMPORARY_FAILURE
from condexp.store.run_folder.status import State


@dataclass(frozen=True)
class RunResult:
    """How one experiment ended.

    Attributes:
        folder: The run folder; None where the job was lost before it had one.
        state: Complete, diverged or failed; in a sweep also interrupted, pending (not started) or
            running (in another process).
        message: Why it is neither complete nor diverged.
        stored: Whether the result was there already, and nothing was run.
        cancelled: Whether it was taken out of a cluster's queue by hand.
        objective: The number that ``run.objective`` names; None where it names none.
    """

    folder: Path | None
    state: State
    message: str | None = None
    stored: bool = False
    cancelled: bool = False
    objective: float | None = None

    @property
    def exit_code(self) -> int:
        """1 for a failed or cancelled job, 75 for one to resume; a diverged run is a result."""
        if self.state is State.FAILED or self.cancelled:
            return 1
        return 0 if self.state in {State.COMPLETE, State.DIVERGED} else TEMPORARY_FAILURE

    @classmethod
    def lost(cls, message: str) -> "RunResult":
        """A job that ended without a result.

        Args:
            message: What is known of it.

        Returns:
            A failed job without a folder.
        """
        return cls(None, State.FAILED, message)
