"""What the tests of the store share."""

import pytest

from condexp.store.schema.layout import FileSpec
from tests.store.records import make_spec, run_bytes


@pytest.fixture(scope="session")
def reference() -> tuple[FileSpec, bytes]:
    """A run written without a fault: its specification and its bytes."""
    return make_spec(), run_bytes()
