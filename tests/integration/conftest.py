"""What integration tests start from, beside the servers of `tests/conftest.py`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from common.config import Settings
from common.estimates import farm
from tests.support.serving import EVERYTHING, Api, serving
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker
from worker.render.worker import RenderWorker


@pytest.fixture
def story(database: Engine) -> Story:
    return Story(database)


@pytest.fixture
def api(settings: Settings, database: Engine) -> Iterator[Api]:
    with serving(settings, database) as api:
        yield api


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    """A client of the tenant `somebody`, who may do everything within it."""
    with api.client() as client:
        yield client


@pytest.fixture
def operator(api: Api) -> Iterator[httpx.Client]:
    """A client of the tenant `somebody`, who also runs the farm."""
    with api.client(scopes=EVERYTHING) as client:
        yield client


@pytest.fixture
def make_worker(settings: Settings) -> Iterator[MakeWorker]:
    """Workers whose threads rest until they are started: a test calls `engine.work()` and `heartbeat.beat()`."""
    made = []

    def make(**changes: Any) -> RenderWorker:
        worker = RenderWorker(settings.model_copy(update={"drain_s": 5, **changes}), CATALOG)
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.stop()
        worker.database.dispose()


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """A thread for what the test watches from outside."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(autouse=True)
def estimates_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees at once what it changed, not seconds later."""
    monkeypatch.setattr(farm, "MAX_AGE_S", 0.0)
