"""Calls of a layer in one pass, whose rows have to belong to samples."""

from torch import Tensor

from condexp.analysis.layers.calls import LayerCall
from condexp.analysis.layers.samples import SampleTest


class SampleCalls:
    """The calls of one pass, by the index of the use, and why their rows belong to no samples.

    Args:
        name: The layer's name.
        needed_by: What the rows are needed by, for messages.

    Attributes:
        obstacle: Why they do not; None where they do.
    """

    def __init__(self, name: str, needed_by: str) -> None:
        self.name, self._needed_by = name, needed_by
        self._calls: dict[int, LayerCall] = {}
        self.obstacle: str | None = None

    def _add_call(self, call: LayerCall, use: int) -> None:
        self._calls[use] = call
        self._refuse_without_layout(call)

    def test_samples(self, test: SampleTest, grad: Tensor, use: int) -> None:
        """Find out which rows of a use belong to which sample.

        Args:
            test: The test.
            grad: Gradient of its cotangents with respect to the output.
            use: Index of the use within the pass.
        """
        self._calls[use].test_samples(test, grad)

    @property
    def needs_another_test(self) -> bool:
        """Whether a test of the other samples could tell more."""
        return any(c.owners is not None and not c.owners.is_settled for c in self._calls.values())

    def tests_are_over(self) -> None:
        """Refuse rows that do not belong to samples, or of which that cannot be seen."""
        for call in self._calls.values():
            self._refuse_without_layout(call)

    def refuse(self, obstacle: str) -> None:
        """Measure nothing, for a reason."""
        self.obstacle = self.obstacle or obstacle

    def _refuse_without_layout(self, call: LayerCall) -> None:
        if call.layout is not None or self.obstacle is not None:
            return
        if call.num_parts % call.num_samples:
            what = f"it got {call.num_parts} rows for {call.num_samples} samples"
        else:
            what = (
                "the gradient of a sample's output reaches rows of other samples (where that is a "
                "batch normalisation's doing, model.eval() tells)"
            )
        self.refuse(f"its rows do not belong to samples, as {self._needed_by} needs: {what}")

    def close(self) -> None:
        """Complete the pass, whose last signal has been added."""
