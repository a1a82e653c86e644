"""What an Availability logs, and when it retries."""

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


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split()[0] for record in caplog.records]


def test_each_change_is_logged_once(availability: Availability, caplog: pytest.LogCaptureFixture) -> None:
    for is_away in (False, True, True, False, False, True):
        availability.mark_down("a drill") if is_away else availability.mark_up()
    assert logged(caplog) == ["storage_away", "storage_back", "storage_away"]


def test_the_pauses_between_retries_grow_to_two_seconds(
    availability: Availability, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(away=7)
    assert availability.retry(service.answer, give_up=lambda: False) == "answer"
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2, 2])
    assert logged(caplog) == ["storage_away", "storage_back"]


def test_it_tries_at_least_once_and_not_again_when_it_gives_up(availability: Availability, pauses: list[float]) -> None:
    assert availability.retry(Service(away=0).answer, give_up=lambda: True) == "answer"
    service = Service(away=9)
    with pytest.raises(Unavailable):
        availability.retry(service.answer, give_up=lambda: service.calls == 3)
    assert (service.calls, len(pauses)) == (3, 2)


def test_another_error_changes_nothing(
    availability: Availability, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """It marks the service neither down nor up."""
    for is_away in (False, True):
        if is_away:
            availability.mark_down("a drill")
        with pytest.raises(ZeroDivisionError):
            availability.retry(lambda: 1 // 0, give_up=lambda: False)
    assert logged(caplog) == ["storage_away"]
    assert pauses == []
