"""The data a table is of, for its title: so that a small grid is not taken for the paper's."""

import pandas as pd

# Configuration key: how a title says its values, and what it says for null beside a number.
SIZES = {
    "dataset.subset.train": ("{} training images", "all"),
    "dataset.subset.test": ("{} test images", "all"),
    "dataset.image_size": ("{} px", "unchanged"),
    "trainer.epochs": ("{} epochs", None),
    "trainer.steps": ("at most {} steps", None),
}


def describe_data(frame: pd.DataFrame) -> str:
    """Say on what data, and for how long, runs were trained.

    Args:
        frame: One row a run, from `collect`.

    Returns:
        ``"fashion_mnist, 8000 training images, 2000 test images, 14 px, 8 epochs"``; where runs
        differ, each value (``"all or 8000 training images"``). What is as the data set has it is
        left out. Empty where no run has a configuration.
    """
    if "dataset.name" not in frame:
        return ""
    known = frame[frame["dataset.name"].notna()]
    parts = [" and ".join(dict.fromkeys(map(str, known["dataset.name"])))]
    for key, (words, null) in SIZES.items():
        values = known[key] if key in known else pd.Series(dtype=float)
        given = [f"{value:.0f}" for value in sorted(set(values.dropna().astype(float)))]
        if given and null and values.isna().any():
            given.insert(0, null)
        if given:
            parts.append(words.format(" or ".join(given)))
    return ", ".join(filter(None, parts))
