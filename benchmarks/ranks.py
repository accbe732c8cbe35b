"""Several processes against one: a step, a measured step, and what uniting the moments takes of it.

``python -m benchmarks.ranks RANK SIZE THREADS MEETING RESULT NETWORK`` is one rank of a group.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.networks import LOSS, NETWORKS, Training
from benchmarks.timing import Measurement
from condexp.analysis.communicator import SINGLE_PROCESS
from condexp.analysis.linalg.eigen import pin_threads
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.statistics.network import NetworkStatistics
from condexp.data.dataset import Share
from condexp.training.distributed.communicator import TrainingCommunicator
from condexp.training.distributed.process_group import ProcessGroupCommunicator
from condexp.training.measured_step import measurement_hooks, snapshot_of

GROUPS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}
MEASURED = ("ResNet-20", "VGG-16-BN")
Times = dict[str, list[float]]


def measure(num_rounds: int) -> list[Measurement]:
    """Time groups of processes one after the other, in turn.

    Args:
        num_rounds: How often each group is started; it then takes three steps of each kind.

    Returns:
        For each network: two processes against one, for a plain and for a measured step, and the
        part of a snapshot that is uniting what the processes have heard.
    """
    found = []
    for name in MEASURED:
        times: dict[str, Times] = {group: {} for group in GROUPS}
        for _ in range(num_rounds):
            for group, (size, threads) in GROUPS.items():
                for what, seconds in _group(name, size, threads).items():
                    times[group].setdefault(what, []).extend(seconds)
        two = times["2 processes"]
        for group in ("1 process, 1 thread", "1 process, 2 threads"):
            one = times[group]
            for what in ("step", "measured step", "step, CPU", "measured step, CPU"):
                title = f"{name}: {what}, 2 processes / {group}"
                found.append(Measurement(title, tuple(two[what]), tuple(one[what]), None))
        whole = tuple(two["snapshot"])
        for what in ("uniting", "uniting, CPU"):
            title = f"{name}: {what} / snapshot, 2 processes"
            found.append(Measurement(title, tuple(two[what]), whole, None))
    return found


def _group(network: str, size: int, threads: int) -> Times:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "times.json"
        common = [str(size), str(threads), f"{folder}/meeting", str(result), network]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ranks"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        ranks = [
            subprocess.Popen([*command, str(rank), *common], env=environment)
            for rank in range(size)
        ]
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise RuntimeError(f"a rank of {network} failed")
        times: Times = json.loads(result.read_text())
    return times


def _rank(rank: int, size: int, meeting: str, network: str) -> Times:
    communicator: TrainingCommunicator = SINGLE_PROCESS
    if size > 1:
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
        communicator = ProcessGroupCommunicator(torch.device("cpu"), size)
    training = Training(next(each for each in NETWORKS if each.name == network))
    part = Share(communicator.rank, communicator.world_size).of(len(training.inputs))
    inputs, targets = training.inputs[part], training.targets[part]
    model, optimizer = training.model, training.optimizer
    forward = communicator.wrap_ddp(model)
    times: Times = {what: [] for what in ("snapshot", "uniting", "uniting, CPU")}
    unite: Any = NetworkStatistics._merge_ranks

    def timed_unite(*arguments: Any) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        names = unite(*arguments)
        times["uniting"].append(time.perf_counter() - start)
        times["uniting, CPU"].append(time.process_time() - cpu)
        return names

    NetworkStatistics._merge_ranks = timed_unite  # type: ignore[method-assign,assignment]

    def forward_backward() -> float:
        optimizer.zero_grad()
        loss = LOSS(forward(inputs), targets)
        loss.backward()
        return communicator.all_reduce_mean(loss.item())

    def step() -> None:
        forward_backward()
        optimizer.step()

    def measured_step() -> None:
        options = AnalysisOptions(precision="float32")  # type: ignore[arg-type]
        hooks = measurement_hooks(model, LOSS, optimizer, inputs, targets, options, communicator)
        with hooks:
            forward_backward()
        start = time.perf_counter()
        snapshot_of(hooks, communicator)
        times["snapshot"].append(time.perf_counter() - start)
        optimizer.step()

    for number in range(4):  # the first of each is not counted
        for what, run in (("step", step), ("measured step", measured_step)):
            seconds, cpu = _time(run, communicator)
            if number > 0:
                times.setdefault(what, []).append(seconds)
                times.setdefault(f"{what}, CPU", []).append(cpu)
    for what in ("snapshot", "uniting", "uniting, CPU"):
        del times[what][:1]
    return times


def _time(run: Callable[[], None], communicator: TrainingCommunicator) -> tuple[float, float]:
    """Return seconds of wall time, and of CPU time of all processes together."""
    communicator.all_reduce_mean(0.0)  # all are here
    start, cpu = time.perf_counter(), time.process_time()
    run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return seconds, communicator.all_reduce_mean(cpu) * communicator.world_size


if __name__ == "__main__":
    pin_threads(int(sys.argv[3]))
    found = _rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4], sys.argv[6])
    if sys.argv[1] == "0":
        Path(sys.argv[5]).write_text(json.dumps(found))
