"""What the tests of several figures ask of them."""

from pathlib import Path

import pandas as pd
from matplotlib.image import imread

from condexp.results.claims import CLAIMS
from condexp.results.figures import find_figure
from condexp.results.figures.style import EXTENSIONS, Size
from condexp.store.reader import Run


def check_same_bytes_in_any_order(name: str, runs: list[Run], folder: Path) -> None:
    """Draw runs twice, reversed the second time; the table holds what the verdict is from."""
    paths = find_figure(name)(runs, folder / "a", size=Size.TEXT)
    again = find_figure(name)(runs[::-1], folder / "b", size=Size.TEXT)
    assert [path.name for path in paths] == [f"{name}.{extension}" for extension in EXTENSIONS]
    assert imread(paths[1]).shape[1] == round(7.2 * 220)
    for first, second in zip(paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    measured = CLAIMS[name].measure(runs)
    pd.testing.assert_frame_equal(pd.read_csv(paths[3]), measured, check_dtype=False)
