"""What every claim is judged on: ended runs, of seeds that chose nothing, all that there are."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from condexp.results.claims.conditions import CHOOSING_SEEDS, at_most, describe, judged, lacking
from condexp.results.claims.verdict import every
from condexp.store.reader import open_run
from tests.results.stored import write_run

CONF = Path(__file__).parents[3] / "conf" / "experiment"


def test_no_preset_judges_a_seed_that_chooses_settings() -> None:
    presets = [yaml.safe_load(path.read_text()) for path in sorted(CONF.rglob("*.yaml"))]
    swept = [preset["hydra"]["sweeper"]["params"] for preset in presets if "hydra" in preset]
    seeds = {int(seed) for params in swept for seed in str(params.get("seed", 1)).split(",")}
    assert seeds == {1, 2, 3, 4, 5}
    assert not seeds & CHOOSING_SEEDS


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ([True, True], True),
        ([True, None], None),
        ([None, False, True], False),
        ([], None),
        ([None], None),
    ],
    ids=str,
)
def test_all_parts_have_to_hold(parts: list[bool | None], shown: bool | None) -> None:
    assert every(parts) is shown


def test_seeds_are_counted_within_a_network_and_its_data() -> None:
    runs = [
        ("mlp on digits, model.norm=none", 1),
        ("mlp on digits, model.norm=none", 2),
        ("mlp on digits, model.norm=batch", 1),
        ("vgg on digits", 1),
    ]
    frame = pd.DataFrame(runs, columns=["condition", "seed"])
    assert lacking(frame, frame) == {"mlp on digits, model.norm=batch": [2]}
    assert lacking(frame, frame.iloc[:3])["vgg on digits"] == [1]
    assert lacking(frame.iloc[:0], frame) == {}


def test_conditions_are_named_by_what_sets_them_apart(tmp_path: Path) -> None:
    """By the last part of a key; one that only repeats another is left out."""
    changes: tuple[dict[str, Any], ...] = (
        {"model__depth": 3, "trainer__batch_size": 4, "dataset__root": "a", "trainer__depth": 1},
        {"model__depth": 4, "trainer__batch_size": 8, "dataset__root": "a", "trainer__depth": 1},
        {"model__depth": 4, "trainer__batch_size": 4, "dataset__root": "a", "trainer__depth": 2},
    )
    runs = [
        open_run(write_run(tmp_path / str(i), **change, analysis__source=str(change)))
        for i, change in enumerate(changes)
    ]
    names = [row["condition"] for row in describe(runs, ["analysis.source"])]
    assert names == [
        "mlp on digits, model.depth=3, batch_size=4, trainer.depth=1",
        "mlp on digits, model.depth=4, batch_size=8, trainer.depth=1",
        "mlp on digits, model.depth=4, batch_size=4, trainer.depth=2",
    ]
    again = [row["condition"] for row in describe(runs[:2], ["analysis.source"])]
    assert again == ["mlp on digits, depth=3", "mlp on digits, depth=4"]


def test_what_is_judged() -> None:
    states = ["complete", "diverged", "running", "failed", "interrupted", "complete"]
    frame = pd.DataFrame({"seed": [1, 2, 3, 4, 5, 101], "state": states})
    assert judged(frame)["seed"].tolist() == [1, 2]


def test_a_bound_is_infinite_at_most() -> None:
    inf = float("inf")
    frame = pd.DataFrame({"kappa": [2.0, 3.0, inf, 5.0], "high": [2.1, inf, inf, float("nan")]})
    assert at_most(frame, "kappa", "high").tolist() == [2, inf, inf, 5]
    assert at_most(frame, "kappa", "none").tolist() == [2, 3, inf, 5]
