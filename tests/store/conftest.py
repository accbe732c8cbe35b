"""What the tests of the store share."""

import pytest

from condexp.store.schema.layout import FileSpec
from tests.store.records import make_spec, write_run


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileSpec, bytes]:
    """A run written without a fault: its specification and its bytes."""
    spec = make_spec()
    path = write_run(tmp_path_factory.mktemp("writer") / "results.h5", spec)
    return spec, path.read_bytes()
