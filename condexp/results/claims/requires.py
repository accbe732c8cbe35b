"""A claim is judged, and drawn, from measures that a run may not have recorded."""

from collections.abc import Sequence

from condexp.analysis.vocabulary import SINGULAR_VALUES
from condexp.errors import InputError
from condexp.results.layer_measures import LayerMeasures
from condexp.store.reader import Run


def require(run: Run, names: Sequence[str], option: str) -> LayerMeasures:
    """Read the measures of a run's layers, all of the named ones among them.

    Args:
        run: The run.
        names: Measures as in `LayerMeasures`, such as ``kfac_lambda_max``.
        option: What records them, such as ``analysis=factors``.

    Returns:
        Every measure of every layer at every snapshot; there is one snapshot at least.

    Raises:
        InputError: If one was not recorded; names it and the option.
    """
    measures = LayerMeasures.read(run)
    recorded = [*measures.measures]
    if not SINGULAR_VALUES & set(measures.matrices):
        recorded.remove("domination")  # a file without them holds NaN in its place
    missing = [name for name in names if name not in recorded]
    if missing:
        raise InputError(
            f"{run.path} holds no {', '.join(missing)}: recorded with {option}. "
            f"The matrices it measured are {', '.join(measures.matrices) or 'none'}."
        )
    if not len(measures.steps):
        raise InputError(
            f"{run.path} holds no snapshot yet: {', '.join(names)} are recorded with {option}, at "
            "the steps that analysis.schedule names."
        )
    return measures
