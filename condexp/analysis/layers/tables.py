"""Tables of a model's own, such as relative positions, which layers map beside the samples."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condexp.analysis.layers.samples import tensors_in
from condexp.analysis.layers.use import WeightUse


class OwnTables:
    """Tells a layer's input that is made of a model's buffers from one that has samples' rows.

    An input is of that kind if it is a buffer (or a view of one), or if its graph leads to products
    of such inputs and otherwise to parameters alone.

    An index into an embedding has no graph. Where it is not of the batch, as positions are not,
    what becomes of the product tells whether it is of samples, or the gradients do.

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
        self._waiting: list[tuple[str, WeightUse, Tensor]] = []
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
            if self._num_samples == 1 or _storage(use.given) in self._of_batch:
                return False
            self._waiting.append((name, use, source))
            return True
        found = self._is_table(use.given)
        if (node := source.grad_fn) is not None:
            (self._of_tables if found else self._of_samples).add(node)
        return found

    def of_samples(self, outputs: Iterable[Tensor]) -> Iterator[tuple[str, WeightUse, Tensor, Any]]:
        """Yield the uses of embeddings that turn out to be of samples, once the pass is over.

        A product may be added to every sample alike, as transformers do with their positions: the
        gradient of the sum tells each sample's share.

        Args:
            outputs: The outputs of the pass.

        Yields:
            The name; the use, as one of every sample where all share it; its product; and the node
            that gives the sum whose gradient is that of the use, None where the product's is.
        """
        if not self._waiting:
            return
        users = _users([output.grad_fn for output in outputs])
        for name, use, source in self._waiting:
            found = [] if source.grad_fn is None else users.get(source.grad_fn, [])
            if len(found) == 1 and (shape := self._shape_of_sum(found[0], source)) is not None:
                rows = use.inputs.reshape(1, -1, 1).expand(shape[0], -1, 1)
                lay_out = partial(torch.reshape, shape=shape)
                whole = replace(use, inputs=rows, images=rows, output_shape=shape, lay_out=lay_out)
                yield name, whole, source, found[0]
            elif use.given.ndim and len(use.given) == self._num_samples:
                self.doubtful.add(name)
                yield name, use, source, None

    def _shape_of_sum(self, node: Any, source: Tensor) -> torch.Size | None:
        """Return the shape of a sum over samples and positions; None where it is none."""
        if node.name() != "AddBackward0" or getattr(node, "_saved_alpha", 1) != 1:
            return None
        metadata = getattr(node, "_input_metadata", ())
        shape = torch.Size(metadata[0].shape) if metadata else torch.Size()
        if len(shape) < 2 or shape[0] != self._num_samples:
            return None
        alike = source.shape[-len(shape) + 1 :] == shape[1:] and source.numel() == shape[1:].numel()
        return shape if alike else None

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


def _users(roots: Iterable[Any]) -> dict[Any, list[Any]]:
    """Return for each node of a graph those that use what it gives."""
    users: dict[Any, list[Any]] = {}
    waiting = list({node for node in roots if node is not None})
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for parent, _ in node.next_functions:
            if parent is None:
                continue
            users.setdefault(parent, []).append(node)
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return users


def _storage(tensor: Tensor) -> int:
    # The address of the data would be 0 on the meta device.
    address: int = tensor.untyped_storage()._cdata
    return address
