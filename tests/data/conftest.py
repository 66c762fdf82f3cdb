import pytest

from tests.data.helpers import opened


@pytest.fixture(autouse=True)
def _closed():
    """Processes of a test's loaders end with it."""
    yield
    while opened:
        opened.pop().close()
