"""What the tests of survival share: the nursery, and runs that nothing disturbed."""

from collections.abc import Iterator

import pytest

from tests.survival.nursery import Nursery
from tests.survival.runs import EVERY_RUN, Reference, undisturbed


@pytest.fixture(scope="package")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="package")
def references(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """Each run, undisturbed."""
    return {
        name: undisturbed(nursery, tmp_path_factory.mktemp("reference"), overrides)
        for name, overrides in EVERY_RUN.items()
    }
