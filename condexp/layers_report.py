"""What an experiment would measure, and what not: ``condexp layers``."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from condexp.analysis.layers import LayerInfo, NotAnalysed
from condexp.analysis.options import Matrix
from condexp.store.layout import file_size

if TYPE_CHECKING:
    from condexp.prepare import Prepared


def layers_report(prepared: "Prepared") -> Iterator[RenderableType]:
    """Lay out the layers, the warning about too few rows, the rest of the modules, and the sizes.

    Args:
        prepared: The checked experiment.

    Yields:
        One part after the other, for the console.
    """
    plan, num_samples = prepared.plan, prepared.spec.num_samples
    layers, rest = prepared.catalogue.layers, prepared.catalogue.not_analysed
    title = f"{prepared.spec.attributes['title']}: analysed layers"
    matrices = prepared.options.matrices if plan.snapshot_steps else ()
    yield _layer_table(title, layers, num_samples, matrices)
    largest = max(prepared.options.kappa_p, default=0.0)
    short = sum(_share(layer, num_samples) < largest for layer in layers)
    if short:
        yield Text.from_markup(
            f"[yellow]rows:[/] {short} of {len(layers)} layers have fewer rows than p·d, so some "
            "κ_p is infinite by construction: a statement about the sample size, not the network. "
            "A larger trainer.batch_size, or analysis.source=probe with a probe.size of 4 d, helps."
        )
    if rest:
        yield _not_analysed_table(rest)
    yield Text(
        f"{len(plan.snapshot_steps)} snapshots of {num_samples} samples in {plan.num_steps} steps: "
        f"{_shortened(plan.snapshot_steps)}\n"
        f"memory of a snapshot {_size(sum(kept_bytes(layer, matrices) for layer in layers))}, and "
        f"up to {_size(max((row_bytes(layer, num_samples) for layer in layers), default=0))} more "
        "while the rows of a convolution are laid out\n"
        f"results file {_size(file_size(prepared.spec))}, run folder {prepared.folder}"
    )


def kept_bytes(layer: LayerInfo, matrices: Sequence[Matrix]) -> int:
    """Estimate what is kept of a layer until a snapshot is complete.

    Args:
        layer: Its sizes.
        matrices: What is measured of it.

    Returns:
        Bytes: the sums of each group's rows, ``[d, d]`` in float64, the weight in float32 and its
        gradient in float64.
    """
    if not matrices:
        return 0
    side = layer.d_out // layer.groups
    of_input = layer.d_in**2 if {Matrix.INPUT, Matrix.KFAC} & set(matrices) else 0
    of_output = side**2 if {Matrix.GRAD_OUTPUT, Matrix.KFAC} & set(matrices) else 0
    num_weights = layer.d_out * (layer.fan_in or layer.d_in)
    return 8 * layer.groups * (of_input + of_output) + (4 + 8) * num_weights


def row_bytes(layer: LayerInfo, num_samples: int) -> int:
    """Estimate what a convolution's rows take in addition, while it is measured.

    Args:
        layer: Its sizes.
        num_samples: Samples of a snapshot.

    Returns:
        Bytes: its patches, or its output's gradients, in float32; 0 for a linear layer, whose rows
        are there already.
    """
    if layer.type == "Linear":
        return 0
    return 4 * num_samples * layer.positions * max(layer.groups * layer.d_in, layer.d_out)


def _layer_table(
    title: str, layers: Sequence[LayerInfo], num_samples: int, matrices: Sequence[Matrix]
) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("layer", "type"):
        table.add_column(column, overflow="fold")
    for column in ("d_in", "d_out", "groups", "positions", "rows", "finite κ_p", "memory"):
        table.add_column(column, justify="right")
    for layer in layers:
        rows = num_samples * layer.positions * layer.uses
        sizes = (layer.d_in, layer.d_out, layer.groups, layer.positions, rows)
        share = _share(layer, num_samples)
        table.add_row(
            Text(layer.name + (" (reused)" if layer.uses > 1 else "")),
            layer.type,
            *(str(size) for size in sizes),
            "all" if share == 1 else Text(f"p ≤ {share:.2g}", style="yellow"),
            _size(kept_bytes(layer, matrices)),
        )
    return table


def _not_analysed_table(modules: Sequence[NotAnalysed]) -> Table:
    table = Table(title="not analysed", title_justify="left")
    for column in ("module", "reason"):
        table.add_column(column, overflow="fold")
    for module in modules:
        table.add_row(Text(module.name), Text(module.reason))
    return table


def _share(layer: LayerInfo, num_samples: int) -> float:
    """Return the largest p for which κ_p of both factors can be finite."""
    rows = num_samples * layer.positions * layer.uses
    return min(1.0, rows / max(layer.d_in, layer.d_out // layer.groups))


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _shortened(steps: Sequence[int]) -> str:
    if len(steps) <= 16:
        return ", ".join(map(str, steps)) or "none"
    return f"{', '.join(map(str, steps[:12]))}, …, {steps[-1]}"
