"""A connection of one's own to the API."""

from collections.abc import Iterator

import pytest

from tests.support.raw_http import RawConnection, raw_connection
from tests.support.serving import Api


@pytest.fixture
def raw(api: Api) -> Iterator[RawConnection]:
    with raw_connection(api.url) as raw:
        yield raw
