"""A step of two processes, one a GPU, against the same batch in one: nccl, or gloo as a dry run."""

from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import condexp
from condexp.analysis.layers.calls import PassMode
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.training.distributed.process_group import ProcessGroupCommunicator
from tests.gpu.checks import LOSS, batch, net


def two_processes_measure_what_one_does(kind: str) -> None:
    """DistributedDataParallel over two devices of a kind, each with half of the batch."""
    with TemporaryDirectory() as folder:
        mp.spawn(_measure, (kind, folder), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]


def _measure(rank: int, kind: str, folder: str) -> None:
    device = torch.device(f"{kind}:{rank}" if kind == "cuda" else kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    where = f"file://{folder}/store"
    dist.init_process_group(backend, init_method=where, rank=rank, world_size=2)
    try:
        communicator = ProcessGroupCommunicator(device, 1)
        model, options = net(str(device)).eval(), AnalysisOptions(precision="float64")  # type: ignore[arg-type]
        inputs, targets = batch(str(device))
        wrapped = communicator.wrap_ddp(model)
        with MeasurementHooks(model, options, pass_mode=PassMode.SEVERAL_PASSES) as hooks:
            loss = LOSS(wrapped(inputs[rank::2]), targets[rank::2])
            loss.backward()
        found = hooks.snapshot(communicator)
        if rank == 0:
            expected = condexp.analyze(net("cpu").eval(), LOSS, *batch("cpu"), precision="float64")
            for name in expected:
                for matrix in ("input", "grad_output", "kfac"):
                    one, other = getattr(found[name], matrix), getattr(expected[name], matrix)
                    # The networks' own float32 rounds differently.
                    assert abs(one.lambda_max / other.lambda_max - 1) < 1e-3, (name, matrix)
    finally:
        dist.destroy_process_group()
