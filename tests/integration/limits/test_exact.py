"""Limits that are exact: however many submit at once, through however many processes, not one image is over."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import httpx
import pytest
import redis

from common.accounts import admission
from common.accounts.limits import Limits
from common.config import Settings
from common.db import transaction
from common.enums import Tier
from common.errors import LimitReached
from common.queue import jobs
from tests.faults.farm import free_ports
from tests.support.limits import images, limit, reached
from tests.support.serving import Api
from tests.support.stories import Story
from tests.support.workers import until_blocked

CLIENTS = 50
ALLOWED = 120
SIZES = (64, 128, 192)  # each has a lane of its own


@pytest.fixture
def urls(api: Api, farm_env: dict[str, str], tmp_path: Path) -> Iterator[list[str]]:
    """Two processes of the API."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with open(tmp_path / "api.log", "wb") as log:
        arguments = [sys.executable, "-m", "api", "--port", str(port)]
        other = subprocess.Popen(arguments, env=farm_env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not is_ready(url):
            assert other.poll() is None, (tmp_path / "api.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield [api.url, url]
    finally:
        other.terminate()
        other.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def storm(urls: list[str], authorization: dict[str, str], tier: str) -> list[httpx.Response]:
    """Each client submits until it is refused. The refusals."""
    together = Barrier(CLIENTS)

    def submit(number: int) -> httpx.Response:
        with httpx.Client(
            base_url=urls[number % len(urls)], headers=authorization, timeout=120, trust_env=False
        ) as client:
            size, count = SIZES[number % len(SIZES)], 1 + number % 3
            job = {
                "prompt": "红色的圆形",
                "model": "mini-zh",
                "width": size,
                "height": size,
                "count": count,
                "tier": tier,
            }
            together.wait()
            while (answer := client.post("/v1/jobs", json=job)).status_code in (201, 503):
                pass  # 503: this machine is too slow for so many
            return answer

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(submit, range(CLIENTS)))


@pytest.mark.parametrize(
    ("name", "tier"),
    [("waiting_images", "bulk"), ("waiting_interactive", "interactive"), ("images_a_day", "standard")],
)
def test_fifty_clients_of_two_processes_are_not_one_image_over(
    story: Story, api: Api, urls: list[str], settings: Settings, name: str, tier: str
) -> None:
    limit(story, **{name: ALLOWED})
    with api.client() as client:
        authorization = {"Authorization": client.headers["Authorization"]}
    refusals = storm(urls, authorization, tier)
    assert {reached(answer)[0] for answer in refusals} == {name}
    assert images(story) == ALLOWED
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as emptied:
        emptied.flushdb()
    assert {reached(answer) for answer in storm(urls, authorization, tier)} == {(name, ALLOWED, ALLOWED)}
    assert images(story) == ALLOWED
    assert story.balances()


def test_far_from_a_limit_nobody_waits_and_near_it_all_take_turns(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SUBMISSIONS` is the number of threads here, so that most of the way to the limit is far from it."""
    threads, allowed = 8, 400
    monkeypatch.setattr(admission, "SUBMISSIONS", threads)
    tenant, limits = story.tenant(), Limits(waiting_images=allowed)
    together = Barrier(threads)

    def submit(number: int) -> int:
        recipe = story.recipe(width=SIZES[number % 3], count=1)
        together.wait()
        submitted = 0
        while True:
            try:
                with transaction(story.database) as connection:
                    jobs.submit(connection, tenant, recipe, tier=Tier.BULK, limits=limits)
            except LimitReached:
                return submitted
            submitted += 1

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(submit, range(threads))) == allowed
    assert images(story) == allowed


def test_near_a_limit_one_waits_for_those_that_began_far_from_it(
    story: Story, monkeypatch: pytest.MonkeyPatch, aside: ThreadPoolExecutor
) -> None:
    monkeypatch.setattr(admission, "SUBMISSIONS", 2)
    tenant, limits = story.tenant(), Limits(waiting_images=8)

    def submit(count: int) -> None:
        with transaction(story.database) as connection:
            jobs.submit(connection, tenant, story.recipe(width=128, count=count), limits=limits)

    with transaction(story.database) as open_for_long:
        jobs.submit(open_for_long, tenant, story.recipe(width=64), limits=limits)
        for _ in range(3):
            submit(1)
        late = aside.submit(submit, 5)  # fits beside what is committed
        until_blocked(story)
    with pytest.raises(LimitReached):
        late.result(60)
    assert images(story) == 4


def test_far_from_a_limit_a_submission_does_not_wait_for_another(story: Story) -> None:
    tenant, limits = story.tenant(), Limits(waiting_images=1_000_000, images_a_day=None)
    with transaction(story.database) as one, transaction(story.database) as another:
        jobs.submit(one, tenant, story.recipe(width=64), limits=limits)
        jobs.submit(another, tenant, story.recipe(width=128), limits=limits)  # else a deadlock with itself: a time-out
    assert images(story) == 2


def test_what_is_rolled_back_was_never_counted(story: Story) -> None:
    tenant, limits = story.tenant(), Limits(waiting_images=2, waiting_interactive=2, images_a_day=2)
    for _ in range(3):
        with pytest.raises(RuntimeError), transaction(story.database) as connection:
            jobs.submit(connection, tenant, story.recipe(count=2), tier=Tier.INTERACTIVE, limits=limits)
            raise RuntimeError
    with transaction(story.database) as connection:
        jobs.submit(connection, tenant, story.recipe(count=2), tier=Tier.INTERACTIVE, limits=limits)
    assert images(story) == 2
