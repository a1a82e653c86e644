"""Jobs are found by what they are and by the words of their prompts, however many and however old they are."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from common.db import new_id, transaction
from common.enums import ImageState, JobState, Tier
from common.queue import search
from common.queue.search import JobFilter, Search, find, preview
from tests.support.stories import Story


class Seeker:
    """Somebody who looks for jobs, a page after the other."""

    def __init__(self, story: Story, tenant: str = "somebody") -> None:
        self.story = story
        self.tenant_id = story.tenant(tenant)

    def pages(self, limit: int = 50, **what: Any) -> Iterator[list[UUID]]:
        before: UUID | None = None
        while True:
            with transaction(self.story.database) as connection:
                found = find(connection, self.tenant_id, Search(limit=limit, before=before, **what))
            yield list(found.ids)
            before = found.ids[-1] if len(found.ids) == limit else found.resume
            if before is None:
                return

    def found(self, **what: Any) -> list[UUID]:
        """On the first page."""
        return next(self.pages(**what))

    def all(self, **what: Any) -> list[UUID]:
        return [job for page in self.pages(**what) for job in page]

    def count(self, **what: Any) -> tuple[int, bool]:
        """How many there are, and whether these are all."""
        with transaction(self.story.database) as connection:
            seen = preview(connection, self.tenant_id, JobFilter(**what))
        return seen.jobs, seen.is_all


@pytest.fixture
def seeker(story: Story) -> Seeker:
    return Seeker(story)


@pytest.fixture
def near_sighted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question looks at five jobs, for words first at three; the index of characters gives two at most."""
    monkeypatch.setattr(search, "WINDOW", 5)
    monkeypatch.setattr(search, "FIRST_WINDOW", 3)
    monkeypatch.setattr(search, "CANDIDATES", 2)


def test_words_are_found_wherever_they_stand_in_a_prompt(story: Story, seeker: Seeker) -> None:
    castle = story.submit(prompt="雪中的城堡，远处有 Castle_100%")
    pavilion = story.submit(prompt="城外雪山，堡垒旁的小亭子")
    story.submit("somebody else", prompt="雪中的城堡")
    assert seeker.found(q="雪中的城堡") == seeker.found(q="CASTLE") == seeker.found(q="0%") == [castle]
    assert seeker.found(q="雪") == [pavilion, castle]
    assert seeker.found(q="子") == [pavilion]
    assert seeker.found(q="城堡") == [castle], "Both prompts have both characters."
    assert seeker.found(q="城雪") == seeker.found(q="c_stle") == seeker.found(q="龙") == []


@pytest.mark.usefixtures("near_sighted")
def test_a_rare_word_is_found_at_once_however_old_it_is(story: Story, seeker: Seeker) -> None:
    oldest = [story.submit(prompt=prompt) for prompt in ("冰糖葫芦", "葫芦和冰糖")]
    for n in range(12):
        story.submit(prompt=f"一只猫 {n}")
    newest = story.submit(prompt="又是冰糖葫芦")
    assert seeker.found(q="葫芦和") == [oldest[1]]
    assert seeker.count(q="葫芦和") == (1, True)
    assert seeker.found(q="葫芦", limit=2) == [newest], "It is not known of more than two whether these are all."
    assert seeker.all(q="葫芦") == [newest, oldest[1], oldest[0]]
    assert seeker.count(q="葫芦") == (1, False)


@pytest.mark.usefixtures("near_sighted")
def test_a_page_of_new_and_old_jobs_with_a_word_is_as_long_as_asked(
    story: Story, seeker: Seeker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first job is found in the window, the others by the index of characters."""
    monkeypatch.setattr(search, "CANDIDATES", 10)
    old = [story.submit(prompt=f"冰糖葫芦 {n}") for n in range(4)][::-1]
    for n in range(2):
        story.submit(prompt=f"一只猫 {n}")
    newest = story.submit(prompt="又是冰糖葫芦")
    assert list(seeker.pages(q="葫芦", limit=2)) == [[newest, old[0]], [old[1], old[2]], [old[3]]]


@pytest.mark.usefixtures("near_sighted")
def test_what_no_index_knows_is_looked_for_a_window_at_a_time(story: Story, seeker: Seeker) -> None:
    """The pages follow each other without gap or repetition, though some of them are empty."""
    urgent = [story.submit(tier=Tier.INTERACTIVE) for _ in range(3)][::-1]
    others = [story.submit() for _ in range(13)][::-1]
    pages = list(seeker.pages(tier=Tier.INTERACTIVE, limit=2))
    assert [len(page) for page in pages] == [0, 0, 2, 1]
    assert [job for page in pages for job in page] == urgent
    assert seeker.all(limit=3) == others + urgent
    assert seeker.count(tier=Tier.INTERACTIVE) == (0, False)


@pytest.mark.usefixtures("near_sighted")
def test_jobs_in_a_rare_state_are_found_at_once(story: Story, seeker: Seeker) -> None:
    failed, running, cancelled = (story.submit() for _ in range(3))
    story.publish(story.started(capacity=1), ImageState.FAILED, error_code="bad", error_message="x", retryable=False)
    story.started(capacity=1)
    story.cancel(cancelled)
    queued = [story.submit() for _ in range(7)][::-1]
    assert seeker.found(state=JobState.FAILED) == [failed]
    assert seeker.found(state=JobState.RUNNING) == [running]
    assert seeker.found(state=JobState.CANCELLED) == [cancelled]
    assert seeker.all(state=JobState.QUEUED) == queued
    assert seeker.count(state=JobState.FAILED) == (1, True)


def test_jobs_are_found_by_the_time_they_were_made(story: Story, seeker: Seeker) -> None:
    first, second, third = (story.submit(at=datetime(2026, 1, day, tzinfo=UTC)) for day in (1, 2, 3))
    today = story.submit()
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert seeker.found(created_after=noon) == [today, third]
    assert seeker.found(created_before=noon) == [second, first]
    assert seeker.found(created_after=datetime(2026, 1, 2, tzinfo=UTC), created_before=noon) == []


def test_a_job_is_found_by_its_time_though_its_id_is_of_another_clock(story: Story, seeker: Seeker) -> None:
    """Whoever makes the ids may have a clock that is some minutes ahead of the database's, or behind it."""
    made = datetime(2026, 1, 2, 12, tzinfo=UTC)
    second, skew = timedelta(seconds=1), timedelta(minutes=4)
    jobs = [story.submit(at=at) for at in (made - skew, made, made + skew)]
    with story.database.begin() as connection:
        connection.execute(text("UPDATE jobs SET created_at = :made"), {"made": made})
    assert seeker.found(created_before=made + second) == seeker.found(created_after=made - second) == jobs[::-1]
    assert seeker.found(created_before=made) == seeker.found(created_after=made) == []


def test_a_count_says_whether_it_is_exact(story: Story, seeker: Seeker, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(7):
        story.submit(prompt=f"红色的圆形 {n}")
    story.submit("somebody else")
    assert seeker.count() == seeker.count(q="红色") == (7, True)
    assert seeker.count(q="圆形 3") == (1, True)
    monkeypatch.setattr(search, "WINDOW", 5)
    assert seeker.count() == (5, False)
    assert seeker.count(q="圆形 3") == (1, True)


def test_the_index_of_prompts_is_asked_and_kept_in_order(story: Story) -> None:
    """What is written lies before the index, unsorted, until somebody sorts it in: the sweep does."""

    story.submit(prompt="冰糖葫芦")
    with story.database.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        question = "EXPLAIN " + search.HITS.format(narrowed="true", wanted="true", order="id")
        plan = connection.execute(text(question), {"q": "葫芦", "candidates": 10, "limit": 10}).scalars().all()
        assert "jobs_prompt_idx" in "\n".join(plan)
        pending = text("SELECT gin_clean_pending_list('jobs_prompt_idx')")
        search.index_prompts(connection)
        assert connection.execute(pending).scalar() == 0


def test_a_page_of_a_batch_without_statistics_is_no_sort_of_all_its_jobs(story: Story) -> None:
    page = search.Search(limit=5, batch=new_id())
    known = search.parameters(story.tenant(), page) | {
        "window": search.window_of(page, search.MINE),
        "upload": new_id(),
    }
    with story.database.begin() as connection:
        for statement in FILL:
            connection.execute(text(statement), known)
        question = text(f"EXPLAIN {search._statement(search.SCAN, page, search.MINE)}")
        plan = "\n".join(connection.execute(question, known).scalars())
    assert "Index Scan Backward using jobs_batch_id_idx" in plan
    assert "Bitmap" not in plan


FILL = (
    "INSERT INTO uploads (id, tenant_id, format, bytes, sha256) VALUES (:upload, :tenant, 'txt', 1, 'x')",
    """INSERT INTO batches (id, tenant_id, upload_id, tier, plan) VALUES (:batch, :tenant, :upload, 'bulk', '{}')""",
    """INSERT INTO jobs (id, tenant_id, batch_id, position, tier, recipe, count, open)
       SELECT uuidv7(), :tenant, :batch, position, 'bulk', '{"prompt": "圆", "model": "mini-zh"}', 1, 1
       FROM generate_series(1, 20000) AS position""",
)
