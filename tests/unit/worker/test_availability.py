"""A service that is away is said to be once, and what waits for it tries again, less and less often."""

import time

import pytest

from common.errors import Unavailable
from worker.availability import Availability


class Service:
    """Away for so many calls."""

    def __init__(self, away: int) -> None:
        self.away = away
        self.calls = 0

    def answer(self) -> str:
        self.calls += 1
        if self.calls <= self.away:
            raise Unavailable("It is away.")
        return "answer"


@pytest.fixture
def availability(caplog: pytest.LogCaptureFixture) -> Availability:
    caplog.set_level("INFO")
    return Availability("storage_away", "storage_back")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split()[0] for record in caplog.records]


def test_it_is_said_once_when_it_goes_and_once_when_it_is_back(
    availability: Availability, caplog: pytest.LogCaptureFixture
) -> None:
    for is_away in (False, True, True, False, False, True):
        availability.mark_down("a drill") if is_away else availability.mark_up()
    assert said(caplog) == ["storage_away", "storage_back", "storage_away"]


def test_what_waits_tries_again_every_two_seconds_at_last(
    availability: Availability, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(away=7)
    assert availability.retry(service.answer, give_up=lambda: False) == "answer"
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2, 2])
    assert said(caplog) == ["storage_away", "storage_back"]


def test_it_tries_once_however_late_it_is_and_not_again_then(availability: Availability, pauses: list[float]) -> None:
    assert availability.retry(Service(away=0).answer, give_up=lambda: True) == "answer"
    service = Service(away=9)
    with pytest.raises(Unavailable):
        availability.retry(service.answer, give_up=lambda: service.calls == 3)
    assert (service.calls, len(pauses)) == (3, 2)


def test_another_failure_is_no_outage(
    availability: Availability, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """It says neither that the service is away nor that it is back."""
    for is_away in (False, True):
        if is_away:
            availability.mark_down("a drill")
        with pytest.raises(ZeroDivisionError):
            availability.retry(lambda: 1 // 0, give_up=lambda: False)
    assert said(caplog) == ["storage_away"]
    assert pauses == []
