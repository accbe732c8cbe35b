from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from condexp.data.dataset import Dataset, Split
from condexp.data.imagenet import MEAN, STD
from condexp.data.loaders import Batches
from condexp.errors import InputError
from condexp.training.choices import ProbeMode
from condexp.training.probe import draw_probe
from tests.data.archives import write_imagenet
from tests.from_conf import load

CROP = 14


@pytest.fixture(autouse=True)
def one_worker() -> Iterator[None]:
    """As many workers as torch has threads; a test may set more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_imagenet(folder / "imagenet")
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load("imagenet", root=folder, image_size=CROP)


def raw_batches(dataset: Dataset, **options: object) -> Batches:
    return Batches(dataset.train, batch_size=5, **options)  # type: ignore[arg-type]


def epoch(batches: Batches, number: int = 0) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*batches.epoch(number), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def centre_crop(path: Path) -> Tensor:
    """Pillow's own resize and crop, with the sizes worked out by hand."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    shorter = 16  # 14 · 256 / 224
    scale = shorter / min(rgb.size)
    width, height = (max(shorter, int(scale * side)) for side in rgb.size)
    small = rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    pixels = np.asarray(small.crop((left, top, left + CROP, top + CROP)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def test_classes_are_the_folders_in_their_order(dataset: Dataset, folder: Path) -> None:
    assert dataset.input_shape == (3, CROP, CROP)
    assert (dataset.num_outputs, len(dataset.train), len(dataset.test)) == (3, 18, 9)
    assert dataset.train.targets.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert load("imagenet", root=folder).input_shape == (3, 224, 224)


def test_images_come_in_order_and_centre_cropped(folder: Path, dataset: Dataset) -> None:
    inputs, targets = epoch(raw_batches(dataset))
    paths = sorted((folder / "imagenet" / "train").rglob("*.JPEG"))
    assert torch.equal(inputs, torch.stack([centre_crop(path) for path in paths]).float())
    assert torch.equal(targets, dataset.train.targets)
    grey = inputs[1]  # stored with one channel
    assert torch.equal(grey[0], grey[1])
    normalised, _ = epoch(Batches(dataset.train, batch_size=5, mean=dataset.mean, std=dataset.std))
    expected = (inputs - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(normalised, expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_an_epoch_is_a_function_of_seed_and_epoch_whoever_reads_it(dataset: Dataset) -> None:
    def training(seed: int = 0) -> Batches:
        return raw_batches(dataset, shuffle=True, seed=seed, augment="crop_flip")

    torch.manual_seed(3)
    state = torch.get_rng_state()
    inputs, targets = epoch(training(), 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(inputs) == 15  # the last partial batch is dropped
    torch.set_num_threads(2)
    torch.manual_seed(4)
    again, targets_again = epoch(training(), 1)
    assert torch.equal(again, inputs)
    assert torch.equal(targets_again, targets)
    for other in (epoch(training(), 2), epoch(training(seed=1), 1)):
        assert not torch.equal(other[0], inputs)


def test_the_order_is_that_of_a_set_in_memory(dataset: Dataset) -> None:
    in_memory = Batches(
        Split(torch.arange(18.0).view(18, 1), torch.arange(18)),
        batch_size=5, shuffle=True, seed=2,
    )  # fmt: skip
    indices = epoch(in_memory, 4)[1]
    streamed = epoch(raw_batches(dataset, shuffle=True, seed=2), 4)
    everything = epoch(raw_batches(dataset))
    assert torch.equal(streamed[0], everything[0][indices])
    assert torch.equal(streamed[1], everything[1][indices])


def test_training_crops_are_random_in_place_size_and_flip(tmp_path: Path) -> None:
    """Red is the column and green the row, so an image tells how it was cropped."""
    side = 120
    ramp = np.arange(side, dtype=np.uint8) * 2
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[None, :], ramp[:, None]
    for split in ("train", "val"):
        (tmp_path / split / "ramp").mkdir(parents=True)
        for index in range(100 if split == "train" else 1):
            Image.fromarray(pixels).save(tmp_path / split / "ramp" / f"{index}.png")
    dataset = load("imagenet", root=tmp_path, image_size=20)
    inputs, _ = epoch(raw_batches(dataset, shuffle=True, augment="crop_flip"))
    rows = (inputs[:, 1, -1, :].mean(1) - inputs[:, 1, 0, :].mean(1)) / 2
    cols = (inputs[:, 0, :, -1].mean(1) - inputs[:, 0, :, 0].mean(1)) / 2
    # Centres of the outer pixels are 19/20 of the crop apart.
    height, width = rows / 0.95, cols.abs() / 0.95
    area = height * width / side**2
    # The ends of a ramp are averaged over a pixel of up to 6 columns: a few per cent.
    assert (area > 0.07).all()
    assert (area < 1.05).all()
    ratio = width / height
    assert (ratio > 0.7).all()
    assert (ratio < 1.4).all()
    assert area.std() > 0.1
    # Binomial(100, ½): five deviations are 25.
    assert abs(int((cols < 0).sum()) - 50) < 25


def test_a_subset_is_balanced_and_a_probe_is_read_once(dataset: Dataset, folder: Path) -> None:
    small = load("imagenet", root=folder, image_size=CROP, subset={"train": 6, "test": 3})
    assert small.train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert small.test.targets.tolist() == [0, 1, 2]
    assert small.checksum != dataset.checksum
    probe = draw_probe(dataset, size=4, batch_size=3, mode=ProbeMode.EVAL, seed=0)
    inputs = torch.cat([inputs for inputs, _ in probe.batches])
    everything, _ = epoch(Batches(dataset.train, mean=dataset.mean, std=dataset.std))
    assert all(any(torch.equal(each, one) for one in everything) for each in inputs)
    assert [len(targets) for _, targets in probe.batches] == [3, 1]


def test_the_checksum_is_of_names_and_sizes(tmp_path: Path) -> None:
    write_imagenet(tmp_path, num_train=1, num_val=1)
    first = load("imagenet", root=tmp_path).checksum
    assert load("imagenet", root=tmp_path, image_size=8).checksum == first
    image = next((tmp_path / "val").rglob("*.JPEG"))
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    assert load("imagenet", root=tmp_path).checksum != first
    image.write_bytes(content)
    assert load("imagenet", root=tmp_path).checksum == first
    image.rename(image.with_name("other.JPEG"))
    assert load("imagenet", root=tmp_path).checksum != first


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load("imagenet", root=tmp_path)
    for words in (f"{tmp_path / 'imagenet'} or {tmp_path}", "by hand", "dataset.root"):
        assert words in str(caught.value)
    write_imagenet(tmp_path, num_train=1, num_val=1)
    (tmp_path / "val" / "n01484850").rename(tmp_path / "val" / "n02")
    with pytest.raises(InputError, match=r"3 classes in train and 3 in val; they differ in n01484"):
        load("imagenet", root=tmp_path)
    for image in (tmp_path / "val" / "n02").iterdir():
        image.unlink()
    with pytest.raises(InputError, match=r"val must hold one folder a class.*n02"):
        load("imagenet", root=tmp_path)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_imagenet(tmp_path, num_train=1, num_val=1)
    broken = next((tmp_path / "train").rglob("*.JPEG"))
    broken.write_bytes(b"no image")
    with pytest.raises(OSError, match=broken.name):
        epoch(raw_batches(load("imagenet", root=tmp_path, image_size=CROP)))
