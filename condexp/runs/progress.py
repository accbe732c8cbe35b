"""What a terminal shows of a run: its progress while it trains, and its result."""

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from condexp.results.console import make_console, say
from condexp.runs.result import RunResult
from condexp.store.run_folder.status import State
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord

if TYPE_CHECKING:
    from condexp.runs.prepare import PreparedRun

SAID_EACH = 500  # jobs of a sweep that are planned without a terminal's bar
T = TypeVar("T")


def show_result(result: RunResult) -> None:
    """Print what a run left: the table of its layers and where its files are.

    Args:
        result: How the run ended.
    """
    from condexp.results.run_view import layer_table, metrics_table
    from condexp.store.reader import open_run

    console = make_console()
    if result.state is State.FAILED or result.folder is None:
        log_file = result.folder and result.folder / "run.log"
        log = f"; more in {log_file}" if log_file and log_file.exists() else ""
        console.print(Text(f"failed: {result.message}{log}", style="red"))
        return
    run = open_run(result.folder)
    console.print(metrics_table(run), layer_table(run))
    verb = "stored already" if result.stored else "wrote"
    names = sorted(path.name for path in result.folder.iterdir() if path.suffix != ".lock")
    console.print(f"{result.state}; {verb}: {result.folder}/{{{', '.join(names)}}}", soft_wrap=True)


def planning(jobs: Iterable[T], num_jobs: int) -> Generator[T]:
    """Say how far the plan of a sweep is: checking thousands of jobs takes minutes.

    Args:
        jobs: What is made for each job, one after the other.
        num_jobs: How many there are.

    Yields:
        The same.
    """
    console = make_console()
    with Progress(
        *(TextColumn("planning"), BarColumn(24), MofNCompleteColumn()),
        TextColumn("jobs"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=num_jobs)
        for number, job in enumerate(jobs):
            if number and number % SAID_EACH == 0 and not console.is_terminal:
                say(f"planning: {number} of {num_jobs} jobs")
            yield job
            progress.advance(task)


class ProgressReporter:
    """The observer of a run on the command line.

    Args:
        job: Number and overrides of a sweep's job, for its heading; None for a single run, which
            ends with its table.
        bar: Whether the terminal is its own, so that it may draw a bar there.
    """

    def __init__(self, job: str | None = None, *, bar: bool = True) -> None:
        self._console = make_console()
        self._job = job
        self._num_snapshots = 0
        self._scores = ""
        self._num_steps = 0
        fixed = Column(no_wrap=True, min_width=5)
        length = min(24, max(4, self._console.width - 26))  # beside the count and the time
        columns = (
            BarColumn(length, table_column=Column(min_width=length)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=11)),
            TimeRemainingColumn(compact=True, table_column=fixed),
        )
        self._progress = Progress(
            TextColumn("step"),
            *columns,
            # The text goes first where the terminal is narrow, never the count.
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
            console=self._console,
            expand=True,
            transient=True,
            disable=not (bar and self._console.is_terminal),
        )
        self._task = self._progress.add_task("", total=None)

    def started(self, prepared: "PreparedRun", /) -> None:
        """Print the heading and start the bar.

        Args:
            prepared: The checked experiment.
        """
        from condexp.runs.snapshot_cost import snapshot_cost

        plan, title = prepared.plan, prepared.spec.attributes["title"]
        self._num_steps = plan.num_steps
        self._say(
            f"{f'job {self._job}: ' if self._job else ''}{title}: {plan.num_steps} steps, "
            f"{len(plan.snapshot_steps)} snapshots of {len(prepared.catalogue.layers)} layers on "
            f"{prepared.device}"
        )
        if self._job is None and (cost := snapshot_cost(prepared)):
            self._say(cost)
        self._progress.reset(self._task, total=plan.num_steps)
        self._progress.start()

    def on_step(self, record: StepRecord, /) -> None:
        """Move the bar.

        Args:
            record: The step.
        """
        self._progress.update(self._task, completed=record.step + 1)

    def on_eval(self, record: EvalRecord, /) -> None:
        """Show the scores.

        Args:
            record: The evaluation.
        """
        self._scores = (
            f"epoch {record.epoch:.4g}  train loss {record.train_loss:.4g}  "
            f"test loss {record.test_loss:.4g}  test error {record.test_error:.4g} %"
        )
        self._describe()
        if not self._console.is_terminal and self._job is None:
            self._say(f"step {record.step}/{self._num_steps}  {self._scores}")

    def on_snapshot(self, _record: SnapshotRecord, /) -> None:
        """Count it.

        Args:
            _record: The snapshot.
        """
        self._num_snapshots += 1
        self._describe()

    def measuring(self, what: str, num_done: int, num: int, /) -> None:
        """Say how far a snapshot is.

        Args:
            what: What is being done.
            num_done: How many of it are done.
            num: How many there are.
        """
        self._progress.update(
            self._task, description=f"snapshot: {what} {num_done + 1}/{num}  {self._scores}"
        )

    def finished(self, result: "RunResult", /) -> None:
        """Stop the bar; print the result of a single run.

        Args:
            result: How the run ended.
        """
        self.close()
        if self._job is None:
            show_result(result)
        else:
            stored = " (stored already)" if result.stored else ""
            what = result.message or self._scores or result.folder
            self._say(f"job {self._job}: {result.state}{stored}  {what}")

    def close(self) -> None:
        """Give the terminal back, whatever happened."""
        self._progress.stop()

    def _describe(self) -> None:
        text = f"{self._num_snapshots} snapshots  {self._scores}"
        self._progress.update(self._task, description=text)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
