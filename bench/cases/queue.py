"""Jobs a second that do next to nothing, in one worker process each. The sides do not do the same. `celery` and
`dramatiq` take a message out of Redis and call a function; of what it did nothing is left, and what a worker had taken
when it was killed is lost, or done twice (`celery late` acknowledges afterwards). `farm` claims a microbatch of jobs in
Postgres under a lease, paints a picture of 64×64 for each, encodes it, puts it into a store (the embedded one, or one
that answers at once), publishes it exactly once and ends its job: a row a job, a row an image, a row a lease. It pays
for that eight jobs at a time. Submitting is not measured here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from redis import Redis

from bench.harness import load, noops
from bench.harness.farm import Farm, farm, wait_until
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.db import connect

GOALS = (
    Goal("farm, instant store", "celery"),
    Goal("farm", "celery"),
    Goal("celery late", "celery"),
    Goal("dramatiq", "celery"),
)
MODEL = "zh-v0"
NOTHING = {"model": MODEL, "width": 64, "height": 64, "steps": 1}


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    jobs = 80 if options.quick else 800
    messages = 500 if options.quick else 10_000
    with farm() as the_farm, the_farm.api(the_farm.settings) as url, the_farm.instant_store() as instant:
        yield {
            "farm": partial(empty_jobs, the_farm, url, jobs),
            "farm, instant store": partial(empty_jobs, the_farm, url, jobs, S3_ENDPOINT_URL=instant),
            **{kind: partial(plain, the_farm, kind, messages) for kind in ("celery", "celery late", "dramatiq")},
        }


def empty_jobs(the_farm: Farm, url: str, jobs: int, **changes: str) -> Figures:
    database = connect(the_farm.settings, pool=1)
    since = load.now(database)
    load.submit(url, the_farm.key(database), jobs, per_job=1, **NOTHING)
    with the_farm.worker(the_farm.settings, "stub:0", "--models", MODEL, **changes):
        load.wait_until_done(database, 120)
    found = load.steady(database, since)
    database.dispose()
    return {"jobs/s": found["images/s"]}


def plain(the_farm: Farm, kind: str, messages: int) -> Figures:
    url = the_farm.settings.redis_url.get_secret_value()
    with Redis.from_url(url) as redis:
        redis.delete(noops.MARKS)
        noops.send(kind, url, messages)
        with the_farm.program("bench.harness.noops", kind, BENCH_REDIS_URL=url):
            wait_until(lambda: redis.llen(noops.MARKS) == 2, seconds=120)
        first, last = map(float, redis.lrange(noops.MARKS, 0, -1))
    return {"jobs/s": (messages - 1) / (last - first)}
