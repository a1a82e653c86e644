"""Notifications over Redis: cancellations that a render worker receives."""

import redis

from common.broker import CANCELLED_CHANNEL, Broker
from common.config import Settings
from common.db import new_id
from tests.support.stories import Story
from tests.support.workers import MakeWorker, until


def test_messages_without_ids_are_ignored(story: Story, settings: Settings, make_worker: MakeWorker) -> None:
    """Whoever reaches Redis can write there."""
    job, worker = story.submit(), make_worker()
    held = story.started()
    worker.held_leases.add(held)
    worker.notifications.start()
    until(lambda: Broker(settings).announce_cancelled([new_id()]))
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as anybody:

        def is_heard() -> bool:
            """Published again and again: who listens may be the worker of an earlier test."""
            anybody.publish(CANCELLED_CHANNEL, f"no id {new_id()} " + "-" * 36)
            anybody.publish(CANCELLED_CHANNEL, b"\xff is no UTF-8")
            anybody.publish(CANCELLED_CHANNEL, f"nonsense {job}")
            return not worker.held_leases.wanted(held.lease_id)

        until(is_heard)
    worker.uploader.release(held, "the test is over")
