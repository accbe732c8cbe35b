"""The five claims of the paper: what stored runs measured, and the verdict on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from condexp.results.claims import conditioning, domination, last_layer, stability, validation
from condexp.results.claims.verdict import Verdict
from condexp.store.reader import Run


@dataclass(frozen=True)
class Claim:
    """How a claim is judged.

    Attributes:
        number: 1 to 5.
        experiments: The experiments whose runs are made for it.
        measure: Reads the numbers from stored runs; the figure of the claim's name draws these.
        judge: Compares the numbers with the claim's criterion.
    """

    number: int
    experiments: tuple[str, ...]
    measure: Callable[[Sequence[Run]], pd.DataFrame]
    judge: Callable[[pd.DataFrame], Verdict]


CLAIMS: Mapping[str, Claim] = {
    "validation": Claim(
        1,
        ("fig_validation", "fig_validation_cnn", "fig_validation_exact"),
        validation.measure,
        validation.judge,
    ),
    "stability": Claim(2, ("fig_stability",), stability.measure, stability.judge),
    "domination": Claim(3, ("fig_domination",), domination.measure, domination.judge),
    "conditioning": Claim(
        4, ("fig_conditioning", "fig_conditioning_vgg"), conditioning.measure, conditioning.judge
    ),
    "last_layer": Claim(5, ("table1",), last_layer.measure, last_layer.judge),
}
"""By the name of the figure that shows the same numbers."""
