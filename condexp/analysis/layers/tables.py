"""Tables of a model's own, such as relative positions, which layers map beside the samples."""

from typing import Any

from torch import Tensor, nn

from condexp.analysis.layers.uses import WeightUse


class OwnTables:
    """Tells a layer's input that is made of a model's buffers from one that has samples' rows.

    An input is of that kind if it is a buffer (or a view of one), or if its graph leads to products
    of such inputs and otherwise to parameters alone.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._of_tables: set[Any] = set()  # nodes of products of tables
        self._of_samples: set[Any] = set()

    def maps(self, use: WeightUse, source: Tensor) -> bool:
        """Return whether the input of a use is a table.

        Args:
            use: The use.
            source: Its product, see :func:`.gradient_source`.
        """
        found = self._is_table(use.given)
        if (node := source.grad_fn) is not None:
            (self._of_tables if found else self._of_samples).add(node)
        return found

    def _is_table(self, inputs: Tensor) -> bool:
        if inputs.grad_fn is None:
            storage = _storage(inputs)
            return any(_storage(buffer) == storage for buffer in self._model.buffers())
        if not self._of_tables:
            return False
        return self._leads_to_tables(inputs.grad_fn)

    def _leads_to_tables(self, node: Any) -> bool:
        found, seen, waiting = False, {node}, [node]
        while waiting:
            node = waiting.pop()
            if node in self._of_samples:
                return False
            if node in self._of_tables:
                found = True
                continue
            for parent, _ in node.next_functions:
                if parent is not None and parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)
        return found


def _storage(tensor: Tensor) -> int:
    # The address of the data would be 0 on the meta device.
    address: int = tensor.untyped_storage()._cdata
    return address
