"""A clock that a test turns."""

import pytest

from tests.support.stories import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
