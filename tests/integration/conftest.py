"""What integration tests start from, beside the servers of `tests/conftest.py`."""

import pytest
from sqlalchemy import Engine

from tests.stories import Story


@pytest.fixture
def story(database: Engine) -> Story:
    return Story(database)
