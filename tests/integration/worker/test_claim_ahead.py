"""When a render worker claims and starts the next microbatch: just before the current one ends."""

from tests.support.stories import Story
from tests.support.workers import SLOW, MakeWorker, until_published


def test_the_next_microbatch_is_claimed_late_and_started_later(story: Story, make_worker: MakeWorker) -> None:
    """Better work may come until then, and what is started counts as an attempt if this process dies."""
    story.submit(count=16, steps=100)
    worker = make_worker(device=SLOW)
    worker.loop.run(30)
    until_published(worker)
    first, second = story.rows("SELECT * FROM leases ORDER BY claimed_at")
    assert (second.claimed_at - first.started_at).total_seconds() > 2.6  # of 3 s
    assert (second.started_at - first.started_at).total_seconds() > 2.8
