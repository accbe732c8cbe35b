"""Eigenvalues of symmetric matrices, in float64 on the CPU, one or many at a time."""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import chain, groupby
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from condexp.analysis.linalg.device import (
    has_fast_float64,
    solve_stacked,
    solver_error,
    upper_norms,
)
from condexp.analysis.linalg.pair_products import Numbers

T = TypeVar("T")

_SQUARES_FIT = 1e-140, 1e140  # norms whose squares are neither denormal nor infinite
_STACKED = 1 << 18  # numbers in matrices that are solved in one call
_WIDE = 1024  # side of a matrix that keeps several threads busy by itself


class _Workers:
    """Threads that solve one matrix each, with one torch thread: the solver is bound by memory."""

    num_threads = 0  # not pinned
    pool: ThreadPoolExecutor | None = None

    @classmethod
    def do_all(cls, tasks: Iterable[Callable[[], T]]) -> list[T]:
        # This thread works too: it is awake already, and has a core.
        waiting = deque(enumerate(tasks))
        done: dict[int, T] = {}

        def work() -> None:
            while waiting:
                try:
                    number, task = waiting.popleft()
                except IndexError:  # another was quicker
                    return
                done[number] = task()

        others = [cls.start().submit(work) for _ in range(cls.num_threads - 1)]
        torch.set_num_threads(1)
        try:
            work()
        finally:
            torch.set_num_threads(cls.num_threads)
            waiting.clear()
        for other in others:
            other.result()
        return [done[number] for number in range(len(done))]

    @classmethod
    def start(cls) -> ThreadPoolExecutor:
        if cls.pool is None:
            num_others = cls.num_threads - 1
            pool = ThreadPoolExecutor(num_others, thread_name_prefix="condexp")
            all_there = threading.Barrier(num_others, timeout=60)

            def pin_to_one() -> None:
                all_there.wait()
                torch.get_num_threads()  # or the thread's first operation would set it anew
                torch.set_num_threads(1)

            for started in [pool.submit(pin_to_one) for _ in range(num_others)]:
                started.result()
            cls.pool = pool
            torch.set_num_threads(cls.num_threads)  # for threads that are made later
        return cls.pool

    @classmethod
    def forget(cls) -> None:
        cls.pool = None


os.register_at_fork(after_in_child=_Workers.forget)  # a child has none of its parent's threads


def pin_threads(num_threads: int | None = None) -> None:
    """Fix the number of torch's threads for the process, and let it solve several problems at once.

    To set the number of torch's threads for the first time may change how the libraries below
    divide a network's own products, and so their last bits: only a program that owns the process
    does so.

    Args:
        num_threads: The number; None: the one that torch has chosen.
    """
    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    torch.set_num_threads(num_threads)
    if num_threads != _Workers.num_threads:
        _Workers.num_threads = num_threads
        _Workers.forget()


def solve_all(
    matrices: Sequence[Tensor], on_devices: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return the eigenvalues of many matrices, several at a time on as many threads as torch has.

    A device whose float64 is fast solves its own; the CPU repeats what is not believed.

    Where threads were pinned torch solves them, else NumPy does, whose threads are its own: those
    of torch stay as they are, and with them the bits of what a network computes.

    Args:
        matrices: Matrices as for :func:`descending_eigenvalues`, of any sizes.
        on_devices: The same matrices, where they were made.

    Returns:
        The eigenvalues of each.
    """
    there = [i for i, each in enumerate(on_devices or ()) if has_fast_float64(each.device)]
    if on_devices and there:
        found = dict(zip(there, solve_stacked([on_devices[i] for i in there]), strict=True))
        left = [i for i in range(len(matrices)) if found.get(i) is None]
        found |= dict(zip(left, solve_all([matrices[i] for i in left]), strict=True))
        return [each for i in range(len(matrices)) if (each := found[i]) is not None]
    num_threads = _Workers.num_threads or torch.get_num_threads()
    if num_threads < 2 or len(matrices) < 2:
        return [descending_eigenvalues(matrix) for matrix in matrices]

    def kind(number: int) -> tuple[tuple[int, ...], str]:
        return matrices[number].shape[::-1], str(matrices[number].dtype)

    numbers: list[list[int]] = []
    # The largest first, or one thread would be left with it while the others are idle.
    for _, group in groupby(sorted(range(len(matrices)), key=kind, reverse=True), kind):
        alike = list(group)
        few = -(-len(alike) // (2 * num_threads))  # so that each thread has two stacks
        size = max(1, min(few, _STACKED // matrices[alike[0]].numel()))
        numbers += [alike[start : start + size] for start in range(0, len(alike), size)]
    stacks = [[matrices[number] for number in some] for some in numbers]
    if _Workers.num_threads:
        solved = _Workers.do_all(partial(_solve_stack, stack) for stack in stacks)
    else:
        solved = _solve_in_numpy(stacks, num_threads)
    values = dict(zip(chain(*numbers), chain(*solved), strict=True))
    return [values[number] for number in range(len(matrices))]


def _solve_in_numpy(stacks: Sequence[list[Tensor]], num_threads: int) -> list[list[Tensor]]:
    blas = _numpys_blas()  # without one of its own, its threads cannot be told apart from torch's
    narrow = {
        number: torch.stack(stack).detach().double()
        for number, stack in enumerate(stacks)
        if blas.lib_controllers and stack[0].shape[-1] < _WIDE
    }
    with blas.limit(limits=1), ThreadPoolExecutor(num_threads) as pool:
        found = dict(zip(narrow, pool.map(_tried, narrow.values()), strict=True))
    solved = []
    for number, stack in enumerate(stacks):
        values = found.get(number)
        if values is not None and _is_believed(narrow[number], values):
            solved.append(list(torch.from_numpy(values)))
        else:
            solved.append([descending_eigenvalues(matrix) for matrix in stack])
    return solved


def _is_believed(matrices: Tensor, values: Numbers) -> bool:
    norms = _norms(matrices)
    return bool(np.isfinite(norms).all()) and _is_certified(matrices, norms, values)


@lru_cache(maxsize=1)
def _numpys_blas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def _tried(matrices: Tensor) -> Numbers | None:
    # NumPy alone: torch's operations would start threads in this thread.
    try:
        return _numpy_eigenvalues(matrices)
    except np.linalg.LinAlgError:
        return None


def _solve_stack(matrices: list[Tensor]) -> list[Tensor]:
    # One call holds Python's lock once, so threads wait less for each other.
    if len(matrices) > 1:
        values = descending_eigenvalues(torch.stack(matrices))
        if not values.isnan().any():  # else one failed, and each is solved alone
            return list(values)
    return [descending_eigenvalues(matrix) for matrix in matrices]


def descending_eigenvalues(matrices: Tensor) -> Tensor:
    """Return the eigenvalues of symmetric matrices; a solver that fails is followed by another.

    What a solver returns is believed where Σλ is the trace and Σλ² is ‖·‖_F², to its rounding: some
    of GPUs have returned nonsense without an error.

    Args:
        matrices: ``[..., n, n]`` on the CPU.

    Returns:
        ``[..., n]`` float64, descending; NaN where no solver's can be believed, or the matrices are
        not finite.
    """
    matrices = matrices.detach().double()
    unknown = torch.full_like(matrices[..., 0], torch.nan)
    norms = _norms(matrices)
    # LAPACK's answer would be undefined. Squares may overflow where no number does.
    if not np.isfinite(norms).all() and not math.isfinite(float(matrices.sum())):
        return unknown
    for solve in (_torch_eigenvalues, _numpy_eigenvalues):
        try:
            values = solve(matrices)
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError):  # type: ignore[attr-defined]
            continue  # torch's is public, says its docs
        if _is_certified(matrices, norms, values):
            return torch.from_numpy(values)
    return unknown


def _torch_eigenvalues(matrices: Tensor) -> Numbers:
    # Of the upper triangle: a tenth quicker than of the lower one.
    values: Tensor = torch.linalg.eigvalsh(matrices, UPLO="U")
    return values.flip(-1).numpy()


def _numpy_eigenvalues(matrices: Tensor) -> Numbers:
    # Of the upper triangle, too, which is the lower one of the transposed matrix. A copy in any
    # case: of one column, NumPy takes a reversed view for contiguous.
    return np.linalg.eigvalsh(matrices.mT.numpy())[..., ::-1].copy()


def _norms(matrices: Tensor) -> Numbers:
    norms: Numbers = upper_norms(matrices).numpy()
    return norms


def _is_certified(matrices: Tensor, norms: Numbers, values: Numbers) -> bool:
    side = values.shape[-1]
    traces = np.trace(matrices.numpy(), axis1=-2, axis2=-1)
    allowed = solver_error(side) * norms
    of_values = torch.linalg.vector_norm(torch.from_numpy(values), dim=-1).numpy()
    with np.errstate(invalid="ignore"):  # infinite norms
        fits = np.abs(of_values - norms) <= allowed
    fits &= np.abs(values.sum(-1) - traces) <= allowed * math.sqrt(side)
    squares_fit = (norms > _SQUARES_FIT[0]) & (norms < _SQUARES_FIT[1])
    return bool((fits | ~squares_fit).all())
