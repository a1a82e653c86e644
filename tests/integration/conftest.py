"""What integration tests start from, beside the servers of `tests/conftest.py`."""

from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import Engine

from common.config import Settings
from tests.serving import Api, serving
from tests.stories import Story


@pytest.fixture
def story(database: Engine) -> Story:
    return Story(database)


@pytest.fixture
def api(settings: Settings, database: Engine) -> Iterator[Api]:
    with serving(settings, database) as api:
        yield api


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    """A client of the tenant `somebody`, who may do everything."""
    with api.client() as client:
        yield client
