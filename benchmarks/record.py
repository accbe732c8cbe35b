"""A step of ``record_run`` that is not measured, against a ResNet-20's step."""

import tempfile
from pathlib import Path

import torch.nn.functional as F

import condexp
from benchmarks.loop import BATCH, by_hand
from benchmarks.timing import Measurement, alternate
from tests.from_conf import build, load

TARGET = 0.005
NUM_EMPTY, NUM_STEPS = 2000, 3


def measure(num_pairs: int) -> list[Measurement]:
    """Time recorded steps of an empty loop, and steps of a ResNet-20 on the digits, in turn.

    Args:
        num_pairs: Number of pairs.

    Returns:
        Seconds of a recorded step that does nothing else, and of a training step.
    """
    digits = load("digits")
    model = build("resnet", digits.input_shape, 10, depth=20)
    num_steps = NUM_EMPTY * (num_pairs + 2)
    schedule = condexp.Schedule(at_steps=(num_steps - 1,))
    inputs, targets = digits.train.inputs[:BATCH].float(), digits.train.targets[:BATCH]
    with (
        tempfile.TemporaryDirectory() as folder,
        condexp.record_run(
            Path(folder) / "run", model, num_steps=num_steps, schedule=schedule
        ) as run,
    ):
        with run.step(0):  # is watched for the layers
            F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        done = [1]

        def empty() -> None:
            for step in range(done[0], done[0] + NUM_EMPTY):
                with run.step(step):
                    pass
                run.log(loss=1.0, lr=0.1)
            done[0] += NUM_EMPTY

        ours, reference = alternate(empty, by_hand(model, digits, NUM_STEPS), num_pairs)
    steps = tuple(seconds / NUM_EMPTY for seconds in ours)
    trained = tuple(seconds / NUM_STEPS for seconds in reference)
    return [Measurement(f"record: ResNet-20 on digits, batch {BATCH}", steps, trained, TARGET)]
