import pandas as pd

from condexp.results.captions import describe_data

SMALL = {
    "dataset.name": "fashion_mnist",
    "dataset.subset.train": 8000,
    "dataset.subset.test": None,
    "dataset.image_size": 14,
    "trainer.epochs": 8,
    "trainer.steps": None,
}
FULL = {
    "dataset.name": "cifar10",
    "dataset.subset.train": None,
    "dataset.image_size": None,
    "trainer.epochs": 160,
}


def test_a_small_grid_is_called_so() -> None:
    words = "fashion_mnist, 8000 training images, 14 px, 8 epochs"
    assert describe_data(pd.DataFrame([SMALL, SMALL])) == words


def test_what_is_as_the_data_set_has_it_is_not_said() -> None:
    assert describe_data(pd.DataFrame([FULL])) == "cifar10, 160 epochs"


def test_runs_that_differ_are_not_said_to_be_alike() -> None:
    words = "fashion_mnist and cifar10, all or 8000 training images, unchanged or 14 px"
    assert describe_data(pd.DataFrame([SMALL, FULL])) == f"{words}, 8 or 160 epochs"


def test_a_run_without_a_configuration_changes_nothing() -> None:
    unread = {"dataset.name": None}
    assert describe_data(pd.DataFrame([SMALL, unread])) == describe_data(pd.DataFrame([SMALL]))
    assert describe_data(pd.DataFrame({"state": ["pending"]})) == ""
    assert describe_data(pd.DataFrame([unread])) == ""


def test_steps_are_said_where_they_end_a_run() -> None:
    steps = FULL | {"trainer.steps": 100}
    assert describe_data(pd.DataFrame([steps])) == "cifar10, 160 epochs, at most 100 steps"
