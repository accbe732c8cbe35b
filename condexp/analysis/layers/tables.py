"""Tables of a model's own, such as relative positions, which layers map beside the samples."""

from typing import Any

from torch import Tensor, nn

from condexp.analysis.layers.samples import tensors_in
from condexp.analysis.layers.use import WeightUse


class OwnTables:
    """Tells a layer's input that is made of a model's buffers from one that has samples' rows.

    An input is of that kind if it is a buffer (or a view of one), or if its graph leads to products
    of such inputs and otherwise to parameters alone.

    An index into an embedding has no graph. Where it is not of the batch, as positions are not, its
    first dimension tells whether it is of samples; if so, only the gradients can tell for certain.

    Args:
        model: The network.
        batch: What the model is called with.
        num_samples: N.

    Attributes:
        doubtful: Names of embeddings whose indices are taken to be of samples.
    """

    def __init__(self, model: nn.Module, batch: object = (), num_samples: int = 1) -> None:
        self.doubtful: set[str] = set()
        self._model, self._num_samples = model, num_samples
        self._of_batch = {_storage(tensor) for tensor in tensors_in(batch)}
        self._of_tables: set[Any] = set()  # nodes of products of tables
        self._of_samples: set[Any] = set()

    def maps(self, name: str, use: WeightUse, source: Tensor) -> bool:
        """Return whether the input of a use is a table.

        Args:
            name: Name of the layer.
            use: The use.
            source: Its product, see :func:`.gradient_source`.
        """
        if use.operation.num_entries:
            return not self._indexes_samples(name, use.given)
        found = self._is_table(use.given)
        if (node := source.grad_fn) is not None:
            (self._of_tables if found else self._of_samples).add(node)
        return found

    def _indexes_samples(self, name: str, indices: Tensor) -> bool:
        if self._num_samples == 1 or _storage(indices) in self._of_batch:
            return True
        if indices.ndim == 0 or len(indices) != self._num_samples:
            return False
        self.doubtful.add(name)
        return True

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
