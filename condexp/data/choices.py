"""The values of a data set's keys, as augment=none; data sets themselves are found by their files.

The configuration reads these names too, so there is no torch here.
"""

from enum import StrEnum


class Augment(StrEnum):
    """How training images are varied.

    crop_flip: reflection padding by 4 px, a random crop of the old size, a random horizontal flip
    (He et al. 2016, §4.2, with reflection for zeros). Images that are read from files of any size:
    a random crop of 8 to 100 % of the area, resized, and the flip (Szegedy et al. 2015, §6).
    """

    NONE = "none"
    CROP_FLIP = "crop_flip"


class Shape(StrEnum):
    """How eigenvalues are spaced between the largest and the smallest."""

    LOG = "log"
    LINEAR = "linear"


class ChecksumOf(StrEnum):
    """What of the files a checksum is of: names and sizes, or all contents, which takes long."""

    SIZES = "sizes"
    CONTENTS = "contents"
