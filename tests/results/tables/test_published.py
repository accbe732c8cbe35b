from itertools import combinations

import pandas as pd
import pytest

from condexp.results.tables.cells import lay_out
from condexp.results.tables.published import find_published, read_published
from condexp.results.tables.table import ResultTable, make_table


def runs(**changes: object) -> pd.DataFrame:
    """Two seeds of ResNet-110 on CIFAR-10 at full size."""
    whole = {
        "experiment": "table1",
        "dataset.name": "cifar10",
        "dataset.subset.train": None,
        "dataset.image_size": None,
        "model.name": "resnet",
        "model.depth": 110,
        "model.last_bn": False,
        "state": "complete",
        "test_error": 6.5,
    }
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    return pd.DataFrame([{**whole, **keys, "seed": seed} for seed in (1, 2)])


def table(frame: pd.DataFrame, value: str = "test_error") -> ResultTable:
    keys = ["model.name", "model.depth"], ["model.last_bn"]
    return make_table(frame, *keys, value, published=True)


def test_every_line_of_the_file_is_whole_cited_and_unlike_the_others() -> None:
    lines = read_published()
    assert lines
    for line in lines:
        assert {"model.name", "model.depth", "model.last_bn"} <= set(line.model)
        assert line.model["model.last_bn"] in {"false", "true"}
        assert 0 < float(line.mean) < 100
        assert line.source
        assert any(word in line.citation for word in ("arXiv", "README"))
    for one, other in combinations(lines, 2):
        assert (one.dataset, one.model, one.value) != (other.dataset, other.model, other.value)


def test_the_value_of_the_same_model_on_the_same_data() -> None:
    found = find_published(runs(), "test_error")
    assert found
    # Table 6 of He et al. 2016a: 6.43 (6.61±0.16), best and mean of five.
    assert (found.published.number, found.published.runs) == ("6.61 ± 0.16", "5")
    assert found.published.source == "He et al. 2016a"
    assert found.same_data


@pytest.mark.parametrize(
    "change",
    [
        {"dataset__name": "fashion_mnist"},
        {"dataset__subset.train": 8000},
        {"dataset__image_size": 14},
    ],
)
def test_beside_other_data_it_is_said_to_be_of_other_data(change: dict[str, object]) -> None:
    found = find_published(runs(**change), "test_error")
    assert found
    assert not found.same_data
    header = lay_out(table(runs(**change)))[0].columns[-1]
    assert header == (
        "model.last_bn=false",
        "published on cifar10 by He et al. 2016a",
        "not these runs' data",
    )
    assert lay_out(table(runs()))[0].columns[-1] == header[:2]


@pytest.mark.parametrize(
    "change",
    [
        {"model__last_bn": True},
        {"model__depth": 20},
        {"model__name": "preresnet"},  # without its last BatchNorm
        {"experiment": None, "dataset__name": "svhn"},
    ],
)
def test_none_is_shown_where_none_is_at_hand(change: dict[str, object]) -> None:
    assert find_published(runs(**change), "test_error") is None
    layout = lay_out(table(runs(**change)))[0]
    assert len(layout.columns) == 1
    assert layout.notes[-1] == "no published value is at hand"


def test_it_is_of_this_value_only() -> None:
    assert find_published(runs(), "train_loss") is None


def test_a_cell_over_several_models_has_none() -> None:
    both = pd.concat([runs(), runs(model__depth=56)])
    assert find_published(both, "test_error") is None


def test_a_users_own_grid_on_the_same_data_has_it_too() -> None:
    found = find_published(runs(experiment=None, model__depth=56.0), "test_error")
    assert found
    assert found.published.number == "6.97"


def test_dropout_belongs_to_the_model() -> None:
    image: dict[str, object] = {"dataset__name": "imagenet", "model__name": "resnet_imagenet"}
    with_it = runs(**image, model__depth=50, model__dropout=0.3)
    without = runs(**image, model__depth=50, model__dropout=0.0)
    assert find_published(with_it, "test_error") is None
    found = find_published(without, "test_error")
    assert found
    assert found.published.number == "24.01"


def test_a_column_has_a_field_for_every_row_and_its_citation_below() -> None:
    frame = pd.concat([
        runs(),
        runs(model__depth=20),
        runs(model__name="preresnet", model__last_bn=True),
    ])
    layout = lay_out(table(frame))[0]
    fields = {keys: [str(entry) for entry in entries] for keys, entries in layout.body}
    assert fields["resnet", "20"] == ["6.50 ± 0.00 (2)", "– (0)", "", ""]
    assert fields["resnet", "110"][2:] == ["6.61 ± 0.16 (5)", ""]
    assert fields["preresnet", "110"][2:] == ["", "6.37 (median of 5)"]
    assert any("1512.03385, Table 6" in note for note in layout.notes)
    assert any("1603.05027, Table 3" in note for note in layout.notes)


def test_six_columns_are_the_most_side_by_side() -> None:
    """Table 1's four nets fill a page: what others published has a table of its own."""
    nets = [
        runs(model__name=name, model__last_bn=last_bn, model__depth=depth)
        for name in ("resnet", "preresnet")
        for last_bn in (False, True)
        for depth in (20, 110)
    ]
    keys = ["model.depth"], ["model.name", "model.last_bn"]
    main, others = lay_out(make_table(pd.concat(nets), *keys, "test_error", published=True))
    assert len(main.columns) == 4
    assert not any("arXiv" in note for note in main.notes)
    assert others.title.endswith(": published values")
    assert [key for key, _ in others.body] == [("110",)]  # none is at hand of depth 20
    assert [str(entry) for entry in others.body[0][1]] == ["6.37 (median of 5)", "6.61 ± 0.16 (5)"]
    assert len(others.notes) == 2
