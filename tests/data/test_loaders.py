import pytest
import torch
from torch import Tensor

from condexp.data import dataset
from condexp.data.choices import Augment
from condexp.data.dataset import Split
from condexp.data.loaders import Batches
from condexp.data.transforms import pixel_statistics
from condexp.errors import InputError

NUM_SAMPLES = 50


@pytest.fixture(scope="module")
def split() -> Split:
    """Images of three channels; each target is the sample's own index."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM_SAMPLES, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(NUM_SAMPLES))


def order(batches: Batches, epoch: int) -> list[int]:
    return torch.cat([targets for _, targets in batches.epoch(epoch)]).tolist()


def all_inputs(batches: Batches, epoch: int) -> Tensor:
    return torch.cat([inputs for inputs, _ in batches.epoch(epoch)])


def test_order_is_a_function_of_seed_and_epoch_alone(split: Split) -> None:
    batches = Batches(split, batch_size=8, shuffle=True, seed=3)
    orders = [order(batches, epoch) for epoch in range(3)]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    again = Batches(split, batch_size=8, shuffle=True, seed=3)
    assert [order(again, epoch) for epoch in (2, 1, 0)] == orders[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    others = [
        order(Batches(split, batch_size=8, shuffle=True, seed=seed), epoch)
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len({tuple(each) for each in others}) == 25


def test_training_drops_the_last_partial_batch(split: Split) -> None:
    batches = Batches(split, batch_size=8, shuffle=True)
    assert batches.steps_per_epoch == 6
    sizes = [len(targets) for _, targets in batches.epoch(0)]
    assert sizes == [8] * 6
    assert len(set(order(batches, 0))) == 48
    # What an epoch drops is random: 30 epochs see all, but for (2/50)^30.
    assert len({index for epoch in range(30) for index in order(batches, epoch)}) == NUM_SAMPLES


@pytest.mark.parametrize("augment", list(Augment))
@pytest.mark.parametrize("batch_size", [8, None])
def test_an_epoch_can_be_entered_anywhere(
    split: Split, augment: Augment, batch_size: int | None
) -> None:
    batches = Batches(split, batch_size=batch_size, shuffle=True, seed=3, augment=augment)
    whole = [*batches.epoch(2)]
    for first in range(batches.steps_per_epoch + 1):
        rest = [*batches.epoch(2, first=first)]
        assert len(rest) == len(whole) - first
        for (inputs, targets), (others, other_targets) in zip(rest, whole[first:], strict=True):
            assert torch.equal(inputs, others)
            assert torch.equal(targets, other_targets)


@pytest.mark.parametrize("batch_size", [None, NUM_SAMPLES, 1000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_only_batch_is_kept_and_in_order(
    split: Split, batch_size: int | None, shuffle: bool
) -> None:
    batches = Batches(split, batch_size=batch_size, shuffle=shuffle)
    assert batches.steps_per_epoch == 1
    assert order(batches, 4) == list(range(NUM_SAMPLES))


def test_evaluation_keeps_all_in_order(split: Split) -> None:
    batches = Batches(split, batch_size=8)
    assert batches.steps_per_epoch == 7
    assert [len(targets) for _, targets in batches.epoch()] == [8] * 6 + [2]
    assert order(batches, 0) == list(range(NUM_SAMPLES))


def test_inputs_are_standardised_by_channel(split: Split) -> None:
    mean, std = pixel_statistics(split.inputs)
    batches = Batches(split, mean=mean, std=std, batch_size=8, dtype=torch.float64)
    inputs = all_inputs(batches, 0)
    # Means over 3200 numbers of order 1 in float64.
    zeros = torch.zeros(3).double()
    torch.testing.assert_close(inputs.mean((0, 2, 3)), zeros, rtol=0, atol=1e-13)
    torch.testing.assert_close(inputs.std((0, 2, 3), correction=0), zeros + 1, rtol=0, atol=1e-13)
    single = all_inputs(Batches(split, mean=mean, std=std, batch_size=8), 0)
    assert single.dtype == torch.float32
    # Subtraction and division, each rounded once; up to 2 in size.
    torch.testing.assert_close(single.double(), inputs, rtol=0, atol=1e-6)


def test_vectors_pass_as_they_are_and_are_never_aliased() -> None:
    vectors = torch.arange(12.0).view(4, 3)
    regression = Split(vectors, torch.ones(4, 2, dtype=torch.float64))
    for inputs, targets in Batches(regression, batch_size=2).epoch(0):
        assert inputs.dtype == targets.dtype == torch.float32
        inputs.zero_()  # a network may work in place
    assert torch.equal(vectors, torch.arange(12.0).view(4, 3))
    exact = Batches(regression, batch_size=2, dtype=torch.float64)
    assert torch.equal(all_inputs(exact, 0), vectors.double())


def test_augmentation_is_a_function_of_seed_and_epoch_and_keeps_the_order(split: Split) -> None:
    def batches(seed: int, augment: Augment | str = "crop_flip") -> Batches:
        return Batches(split, batch_size=8, shuffle=True, seed=seed, augment=augment)

    first = all_inputs(batches(0), 1)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    assert torch.equal(all_inputs(batches(0), 1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert order(batches(0), 1) == order(batches(0, Augment.NONE), 1)
    plain = all_inputs(batches(0, Augment.NONE), 1)
    assert not torch.equal(first, plain)


def test_augmentation_differs_between_epochs_batches_and_seeds() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    same = Split(image.expand(32, 1, 8, 8), torch.zeros(32))
    views = {
        tuple(inputs.flatten().tolist())
        for seed in range(3)
        for epoch in range(3)
        for inputs, _ in Batches(
            same, batch_size=8, shuffle=True, seed=seed, augment="crop_flip"
        ).epoch(epoch)
    }
    assert len(views) == 3 * 3 * 4


def test_a_split_that_does_not_fit_moves_batch_by_batch(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_fits", lambda split, device: False)
    batches = Batches(split, batch_size=8, shuffle=True, augment="crop_flip", device="meta")
    shapes = [(inputs.device.type, inputs.shape) for inputs, _ in batches.epoch(0)]
    assert shapes == [("meta", (8, 3, 8, 8))] * 6
    assert all(targets.device.type == "meta" for _, targets in batches.epoch(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -4}, "batch_size is -4"),
        ({"seed": -1}, "seed is -1"),
        ({"augment": "crop"}, "allowed are none, crop_flip"),
    ],
)
def test_errors(split: Split, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batches(split, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 4, 8)])
def test_augmentation_needs_images_larger_than_the_padding(shape: tuple[int, ...]) -> None:
    tiny = Split(torch.zeros(shape), torch.zeros(6))
    with pytest.raises(InputError, match="more than 4 px"):
        Batches(tiny, augment="crop_flip")


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match="without samples"):
        Batches(Split(torch.zeros(0, 3), torch.zeros(0)))
