"""When the demo stops waiting for a worker."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli.commands.demo import check_started
from cli.errors import Failure

BEGAN = datetime(2026, 11, 29, 8, tzinfo=UTC)


def worker(after_s: float, **facts: Any) -> dict[str, Any]:
    seen_at = (BEGAN + timedelta(seconds=after_s)).isoformat().replace("+00:00", "Z")
    refused = {"name": "worker-1", "state": "stopped", "models": [], "reason": "There is a GPU.", "seen_at": seen_at}
    return refused | facts


def test_a_worker_that_has_just_refused_its_device_ends_the_demo() -> None:
    with pytest.raises(Failure, match=r"worker-1 did not start: There is a GPU\."):
        check_started([worker(-60, state="ready"), worker(1)], BEGAN)


def test_one_that_starts_has_served_or_refused_earlier_does_not() -> None:
    check_started([worker(1, state="starting"), worker(1, models=["mini-zh"]), worker(-60)], BEGAN)
