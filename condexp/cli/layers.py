"""``condexp layers``: what an experiment would measure, and what not; it trains nothing."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from condexp.analysis.vocabulary import Matrix
from condexp.cli.hydra_app import with_hydra
from condexp.config.presets import chosen_presets
from condexp.errors import InputError
from condexp.results.tables.fitted import Fitted

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from condexp.analysis.costs import LayerCost
    from condexp.analysis.layers.info import NotAnalysed
    from condexp.runs.prepare import PreparedRun
    from condexp.runs.snapshot_cost import SnapshotMemory

SIDES = {Matrix.INPUT: "Σx", Matrix.GRAD_OUTPUT: "Σ∇h", Matrix.FISHER: "Fisher"}


def run(args: list[str]) -> int:
    """Print what an experiment would measure, and what not.

    Args:
        args: Hydra's arguments.

    Returns:
        The exit code.

    Raises:
        InputError: If the configuration is wrong, or a sweep is asked for.
    """

    def task(composed: "DictConfig") -> None:
        from condexp.config.validation import parse_config
        from condexp.results.console import show
        from condexp.runs.prepare import prepare

        show(*layers_report(prepare(parse_config(composed, **chosen_presets(HydraConfig.get())))))

    if any(arg.startswith(("-m", "--mu", "hydra.mode=")) for arg in args):
        raise InputError("condexp layers shows one configuration: leave out -m.")
    return with_hydra(task, args)


def layers_report(prepared: "PreparedRun") -> Iterator[RenderableType]:
    """Lay out the layers, the warning about too few rows, the rest of the modules, and the sizes.

    Args:
        prepared: The checked experiment.

    Yields:
        One part after the other, for the console.
    """
    costs, rest = prepared.costs, prepared.catalogue.not_analysed
    yield _layer_table(f"{prepared.spec.attributes['title']}: analysed layers", costs)
    if any(sides.is_dual for cost in costs for sides in cost.sides.values()):
        yield Text(
            "dual: the spectrum comes from the Gram matrix of the rows, which are fewer than the "
            "matrix has columns; primal: from the matrix itself",
            style="dim",
        )
    if any(sides.is_estimated for cost in costs for sides in cost.sides.values()):
        yield Text(
            "estimated: too wide to be solved for; λ_max and trace are as of any other, κ_p has an "
            "interval, ranks are not known (docs/theory.md)",
            style="dim",
        )
    largest = max(prepared.options.kappa_p, default=0.0)
    short = sum(cost.finite_share < largest for cost in costs)
    if short:
        yield Text.from_markup(
            f"[yellow]rows:[/] {short} of {len(costs)} layers have fewer rows than p·d, so some "
            "κ_p is infinite by construction: a statement about the sample size, not the network. "
            "A larger trainer.batch_size, or analysis.source=probe with a probe.size of 4 d, helps."
        )
    if rest:
        yield _not_analysed_table(rest)
    if prepared.plan.snapshot_steps and prepared.options.needs_gradients:
        yield from _certificates(prepared)
    yield Text("\n".join(_sizes(prepared)))


def _certificates(prepared: "PreparedRun") -> Iterator[RenderableType]:
    """Yield what the certificates of one small batch say: of all layers, or of those that fail."""
    from condexp.runs.model_trace import certify_model

    snapshot = certify_model(prepared.config, prepared.dataset, prepared.options)
    failed = [record for record in snapshot.records if record.incomplete is not None]
    if not failed:
        # NaN where the gradient itself is 0, as below a last layer that starts at 0.
        residuals = [record.gradient_residual for record in snapshot.records]
        largest = max((residual for residual in residuals if residual == residual), default=0.0)
        yield Text(
            f"certificates hold on {snapshot.num_samples} samples: the rows of all "
            f"{len(snapshot.records)} layers reproduce the gradients of their weights (relative "
            f"difference up to {largest:.1g})"
        )
        return
    table = Table(title="incomplete: every number of it would be NaN", title_justify="left")
    for column in ("layer", "reason"):
        table.add_column(column, overflow="fold")
    for record in failed:
        table.add_row(Text(record.info.name), Text(str(record.incomplete)))
    yield table


def _layer_table(title: str, costs: "Sequence[LayerCost]") -> RenderableType:
    from condexp.runs.snapshot_cost import size

    measured = {matrix for cost in costs for matrix in cost.sides}
    sides = [matrix for matrix in SIDES if matrix in measured]
    grouped = any(cost.layer.groups > 1 for cost in costs)
    # Close together, so that the columns fit a terminal of 100.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("type")
    sizes = ["d_in", "d_out", *(["groups"] if grouped else []), "posi-\ntions", "rows"]
    for column in (*sizes, "finite\nκ_p", *(SIDES[matrix] for matrix in sides), "memory"):
        table.add_column(column, justify="right")
    for cost in costs:
        layer, share = cost.layer, cost.finite_share
        groups = [str(layer.groups)] if grouped else []
        table.add_row(
            Text(layer.name + (" (reused)" if layer.uses > 1 else "")),
            layer.type,
            *(str(layer.d_in), str(layer.d_out), *groups, str(layer.positions), str(cost.num_rows)),
            "all" if share == 1 else Text(f"p ≤ {share:.2g}", style="yellow"),
            *(cost.sides[matrix].form if matrix in cost.sides else "–" for matrix in sides),
            size(cost.matrix_bytes),
        )
    return Fitted(table)


def _sizes(prepared: "PreparedRun") -> Iterator[str]:
    """Yield lines on the schedule, the cost of a snapshot and the files."""
    from condexp.runs.snapshot_cost import (
        curvature_costs,
        size,
        snapshot_cost,
        snapshot_memory,
    )
    from condexp.store.schema.layout import file_size

    plan, spec, memory = prepared.plan, prepared.spec, snapshot_memory(prepared)
    yield (
        f"{len(plan.snapshot_steps)} snapshots of {spec.num_samples} samples in {plan.num_steps} "
        f"steps: {_shortened(plan.snapshot_steps)}"
    )
    if plan.snapshot_steps and spec.extent.network_length:
        yield _fisher_line(prepared, memory)
    yield (
        f"memory of a snapshot: {size(memory.kept)} kept until it is complete, and up to "
        f"{size(memory.at_work)} at work on a layer"
    )
    if cost := snapshot_cost(prepared):
        yield cost
    yield from curvature_costs(prepared)
    yield f"results file {size(file_size(spec))}, run folder {prepared.folder}"


def _fisher_line(prepared: "PreparedRun", memory: "SnapshotMemory") -> str:
    from condexp.runs.snapshot_cost import size

    spec, limit = prepared.spec, prepared.options.memory_limit
    each = f" of {spec.num_signals} signals a sample" if spec.num_signals > 1 else ""
    takes = f"takes {size(memory.fisher)}"
    if limit is not None:
        takes += f" of {size(limit)} (memory_limit)"
    elif memory.least < memory.fisher and spec.num_signals > 1:
        takes += f", with a memory_limit {size(memory.least)} at least"
    return (
        f"Fisher: {spec.fisher_rows} rows{each}, {spec.extent.network_length} eigenvalues of the "
        f"network; {takes}"
    )


def _not_analysed_table(modules: "Sequence[NotAnalysed]") -> Table:
    table = Table(title="not analysed", title_justify="left")
    for column in ("module", "reason"):
        table.add_column(column, overflow="fold")
    names: dict[str, list[str]] = {}
    for module in modules:
        names.setdefault(module.reason, []).append(module.name)
    for reason, alike in names.items():
        table.add_row(Text(", ".join(alike)), Text(reason))
    return table


def _shortened(steps: Sequence[int]) -> str:
    if len(steps) <= 16:
        return ", ".join(map(str, steps)) or "none"
    return f"{', '.join(map(str, steps[:12]))}, …, {steps[-1]}"
