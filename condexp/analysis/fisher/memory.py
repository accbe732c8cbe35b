"""Memory of exact Fisher blocks, and groups of layers that stay under a limit."""

from collections.abc import Collection, Mapping

from condexp.analysis.fisher.block import FisherBlock
from condexp.analysis.layers.calls import PassMode
from condexp.errors import InputError

_GRAMS = 3  # the network's, a layer's, and that of a product on its way


class Memory:
    """The memory limit of one analysis.

    Args:
        limit: Bytes that may be used; None for no limit.
        num_samples: N over all batches, where it is known beforehand.
        pass_mode: Under ``SEVERAL_PASSES`` the rows of all batches are kept until the snapshot.
        has_grams: Whether Gram matrices are formed: ``fisher``, and not ``ekfac`` alone.
    """

    def __init__(
        self, limit: int | None, num_samples: int | None, pass_mode: PassMode, *, has_grams: bool
    ) -> None:
        self._limit, self._num_samples, self._has_grams = limit, num_samples, has_grams
        self._in_batches = pass_mode is PassMode.SEVERAL_PASSES

    def groups(
        self, blocks: Mapping[str, FisherBlock], num_signals: int, now: int, so_far: int
    ) -> list[list[str]]:
        """Divide layers into groups whose signals fit, to be back-propagated group by group.

        Args:
            blocks: The layers' Fisher blocks after the forward pass.
            num_signals: Number of back-propagations of each.
            now: Number of samples of this pass.
            so_far: Number of samples of all passes up to this one.

        Returns:
            The names of each group's layers; no group where there is no layer.

        Raises:
            InputError: If one layer alone, or where batches are kept all of them, do not fit.
        """
        if not blocks:
            return []
        if self._limit is None:
            return [list(blocks)]
        num_samples = self._num_samples or so_far
        kept = {
            name: block.kept_bytes(num_signals, inputs=self._in_batches)
            for name, block in blocks.items()
        }
        batches = num_samples / now if self._in_batches else 1.0
        check_fits(
            self._limit,
            [round(size * batches) for size in kept.values()],
            num_samples,
            num_signals,
            in_batches=self._in_batches,
            has_grams=self._has_grams,
        )
        if self._in_batches or num_signals == 1:
            return [list(blocks)]
        grams = self._has_grams * _gram_bytes(num_samples, num_signals)
        return _packed(kept, self._limit - grams)


def needed_bytes(
    kept: Collection[int], num_samples: int, num_signals: int, *, in_batches: bool, has_grams: bool
) -> int:
    """Return the memory that ``fisher`` and ``ekfac`` need at least.

    Args:
        kept: Bytes that each layer keeps of all samples whose rows are kept.
        num_samples: N over all batches.
        num_signals: Number of back-propagations of each.
        in_batches: Whether there are several batches, all of whose rows are kept until the end.
        has_grams: See :class:`Memory`.

    Returns:
        The number of bytes.
    """
    grams = has_grams * _gram_bytes(num_samples, num_signals)
    if in_batches:
        return grams + sum(kept)
    # With one signal every layer is done as soon as its gradient has come.
    return grams + (max(kept, default=0) if num_signals > 1 else 0)


def check_fits(
    limit: int | None,
    kept: Collection[int],
    num_samples: int,
    num_signals: int,
    *,
    in_batches: bool,
    has_grams: bool,
) -> None:
    """Refuse ``fisher`` or ``ekfac`` that does not fit.

    Args:
        limit: Bytes that may be used; None for no limit.
        kept: See :func:`needed_bytes`, also for the next arguments.
        num_samples: N over all batches.
        num_signals: Number of back-propagations of each.
        in_batches: Whether there are several batches.
        has_grams: See :class:`Memory`.

    Raises:
        InputError: If more is needed than allowed.
    """
    needed = needed_bytes(
        kept, num_samples, num_signals, in_batches=in_batches, has_grams=has_grams
    )
    if limit is not None and needed > limit:
        what = "the exact Fisher matrix" if has_grams else "ekfac"
        raise InputError(
            f"{what} of {num_samples} samples × {num_signals} signals needs "
            f"{_size(needed)}, memory_limit allows {_size(limit)}: take fewer "
            "samples, fewer signals (mc_samples, or fisher_type='empirical'), fewer layers, "
            "or a higher limit."
        )


def _gram_bytes(num_samples: int, num_signals: int) -> int:
    return _GRAMS * 8 * (num_signals * num_samples) ** 2


def _packed(sizes: Mapping[str, int], capacity: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room or not groups:
            groups.append([])
            room = capacity
        groups[-1].append(name)
        room -= size
    return groups


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"
