"""Quarantines: by name, with trials that come ever later, ended by a good one or by an operator; and trial pictures."""

from typing import Any

import pytest
from sqlalchemy import text

from common.db import new_id, transaction
from common.enums import ImageState
from common.errors import NotFound
from common.queue import quarantines, sentence, workers
from common.queue.quarantines import Quarantine
from tests.support.stories import Story

WHY = sentence("worker_lost")  # any sentence


def quarantine(story: Story, name: str = "sick", **facts: Any) -> bool:
    with transaction(story.database) as connection:
        return quarantines.quarantine(connection, name, WHY, **facts)


def of(story: Story, name: str = "sick") -> Quarantine | None:
    with transaction(story.database) as connection:
        return quarantines.of(connection, name)


def take_trial(story: Story, name: str = "sick") -> bool:
    with transaction(story.database) as connection:
        return quarantines.take_trial(connection, name, rest_s=60)


def wait_for_trial(story: Story) -> None:
    with transaction(story.database) as connection:
        connection.execute(text("UPDATE quarantines SET retry_at = now()"))


def minutes(found: Quarantine | None) -> int:
    assert found
    return round(found.due_in_s / 60)


def test_a_quarantine_is_of_a_name_and_keeps_its_first_reason(story: Story) -> None:
    assert quarantine(story, model="mini-zh")
    with transaction(story.database) as connection:
        assert not quarantines.quarantine(connection, "sick", sentence("worker_silent"))
    found = of(story)
    assert found
    assert (found.code, found.reason, found.model, found.trials) == ("worker_lost", WHY, "mini-zh", 0)
    assert of(story, "well") is None


def test_trials_are_due_after_1_5_and_then_every_15_minutes(story: Story) -> None:
    quarantine(story)
    assert minutes(of(story)) == 1
    assert not take_trial(story)
    for trials, rest in enumerate((5, 15, 15, 15), 1):
        wait_for_trial(story)
        assert take_trial(story)
        assert not take_trial(story)  # by a second process of that name
        found = of(story)
        assert (found.trials, minutes(found)) == (trials, rest)


def test_a_good_trial_ends_it(story: Story) -> None:
    quarantine(story)
    quarantine(story, "another")
    with transaction(story.database) as connection:
        assert quarantines.lift(connection, "sick")
        assert not quarantines.lift(connection, "sick")
    assert of(story) is None
    assert of(story, "another")


def test_an_operator_ends_it_and_the_picture_it_differed_from_is_forgotten(story: Story) -> None:
    with transaction(story.database) as connection:
        for digest in ("one", "two"):
            quarantines.record_picture(connection, digest, "mini-zh", "first", b"picture")
    quarantine(story, known_picture="one")
    with transaction(story.database) as connection:
        quarantines.resume(connection, "sick")
        assert quarantines.known_picture(connection, "one") is None
        assert quarantines.known_picture(connection, "two") == b"picture"
        with pytest.raises(NotFound, match="sick"):
            quarantines.resume(connection, "sick")


def test_the_first_picture_is_the_known_one(story: Story) -> None:
    with transaction(story.database) as connection:
        assert quarantines.known_picture(connection, "digest") is None
        assert quarantines.record_picture(connection, "digest", "mini-zh", "first", b"first") == b"first"
        assert quarantines.record_picture(connection, "digest", "mini-zh", "second", b"second") == b"first"
        assert quarantines.known_picture(connection, "digest") == b"first"


def test_what_others_stored(story: Story) -> None:
    """Neither what this worker stored itself, nor what failed everywhere."""
    own, others, failed = (story.submit(steps=steps) for steps in (2, 3, 4))
    us = story.worker_id
    story.publish(story.started())
    story.worker_id = new_id()
    story.publish(story.started())
    story.publish(story.started(), ImageState.FAILED, error_code="poison", error_message="It failed.")
    ids = [story.images(job)[0].id for job in (own, others, failed)]
    with transaction(story.database) as connection:
        assert quarantines.stored_by_others(connection, us, ids) == {ids[1]}
        assert quarantines.stored_by_others(connection, us, ids[:1]) == frozenset()


def test_a_restarted_process_has_the_quarantine_of_its_name(story: Story) -> None:
    quarantine(story)
    with transaction(story.database) as connection:
        for _ in range(2):
            workers.heartbeat(connection, workers.Worker(new_id(), "sick", {}, ["mini-zh"]), ready=True)
        assert quarantines.of(connection, "sick")
