"""scikit-learn's handwritten digits: 1797 images of 8×8 px, offline in its wheel."""

import torch

from condexp.data.dataset import Dataset, Split
from condexp.data.spec import ImageSpec
from condexp.data.transforms import class_balanced_subset, image_dataset

NUM_TEST = 360
LEVEL = 15
Spec = ImageSpec


def load(spec: Spec) -> Dataset:
    """Load the digits, split once and for all: 1437 training images, 360 test images (36 a class).

    The 17 grey levels 0 to 16 become 0, 15, …, 240, so that bytes hold them exactly. The split is
    stratified: the test split's share of each class is between 19.6 and 20.7 %.

    Args:
        spec: The keys.

    Returns:
        The data set; inputs uint8 [N, 1, 8, 8], targets int64 [N].
    """
    # Imported here: it takes a second, and only this data set needs it.
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).mul(LEVEL).to(torch.uint8).unsqueeze(1)
    indices = torch.arange(len(images))
    digits = Split(images, torch.from_numpy(bunch.target).long())
    test_indices = class_balanced_subset(Split(indices, digits.targets), NUM_TEST).inputs
    train_indices = indices[~torch.isin(indices, test_indices)]
    train, test = digits.select(train_indices), digits.select(test_indices)
    return image_dataset(spec, train, test, 10)
