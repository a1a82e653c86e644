"""What a tenant notices of another one, which submits as fast as it can. The quiet tenant submits a job of two images
every 0.7 s, in each tier in turn, and a batch of eight prompts every 5 s; it reads a job and the list of its jobs five
times a second. Shown are the time from `created_at` until its jobs have started and until they have ended, and the time
of its requests; if one is refused, the bench fails. The greedy tenant has three threads that submit jobs of four
images, two that submit batches, one that uploads files and submits batches from them, in all tiers, and 17 that follow
jobs. Each sends its next request at once, or 0.05 s after a refusal (1 s after that of a stream). Its limits: 400
images waiting, of these 8 interactive; 4 batches in preparation; 3,000 requests a minute; 16 streams. Its clients are a
process on the same cores as the farm, so a part of what the other one notices is their work. Four workers have a fake
GPU each that takes 1.1 to 1.25 s for a microbatch of 8. On a busy farm a job waits until a worker claims, which is 0.3
s before the end of what that one renders. With one worker it would wait for a whole microbatch and 0.3 s at worst, more
than its own time. Bulk jobs have no goal: by the meaning of the tier, standard jobs of anybody come before them.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from sqlalchemy import Engine, text

from bench.harness import load
from bench.harness.farm import Farm, farm, wait_until
from bench.harness.greedy import KINDS
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.accounts import tenants
from common.db import connect, transaction
from common.enums import Tier

STEPS = 20
MICROBATCHES_S = (1.1, 1.15, 1.2, 1.25)  # of the workers: equal ones would claim at the same moments for minutes
QUIET, GREEDY = "quiet", "greedy"
BESIDE = "beside a greedy tenant"
RECIPE = {"model": "zh-v0", "width": 256, "height": 256, "steps": STEPS}
TIERS = tuple(Tier)
JOB_EVERY_S, BATCH_EVERY_S, READ_EVERY_S = 0.7, 5.0, 0.2
IMAGES, PROMPTS = 2, 8
BEFORE_S = 5
URGENT = ("interactive job", "standard job", "job of a batch")
LIMITS = {
    "waiting_images": 400,
    "waiting_interactive": 8,
    "preparing_batches": 4,
    "requests_a_minute": 3000,
    "open_streams": 16,
}
GOALS = (
    *(Goal(BESIDE, "alone", f"{kind}, p95 s", at_most=2) for kind in URGENT),
    Goal(BESIDE, "alone", "bulk job, p95 s"),
    Goal(BESIDE, "alone", "POST, p95 ms", at_most=2),
    Goal(BESIDE, "alone", "GET, p95 ms", at_most=2),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    seconds = 10 if options.quick else 45
    with ExitStack() as stack:
        the_farm = stack.enter_context(farm())
        settings = the_farm.settings
        url = stack.enter_context(the_farm.api(settings))
        stack.enter_context(the_farm.control(settings))
        for seconds_each in MICROBATCHES_S:
            gpu = f"stub:{seconds_each / STEPS}"
            stack.enter_context(the_farm.worker(settings, gpu, "--models", str(RECIPE["model"])))
        database = connect(settings, pool=1)
        quiet, greedy = [the_farm.key(database, tenant) for tenant in (QUIET, GREEDY)]
        with transaction(database) as connection:
            tenants.change(connection, tenants.ensure_tenant(connection, GREEDY), {"limits": LIMITS})
        Quiet(url, quiet, database).figures(5)  # what only the first requests need is in memory then
        yield {
            "alone": lambda: Quiet(url, quiet, database).figures(seconds),
            BESIDE: lambda: beside(the_farm, url, greedy, Quiet(url, quiet, database), seconds),
        }
        database.dispose()


def beside(the_farm: Farm, url: str, key: str, quiet: "Quiet", seconds: float) -> Figures:
    file = Path(the_farm.site.home) / "greedy.json"
    with the_farm.program("bench.harness.greedy", url, str(RECIPE["model"]), str(file), GREEDY_KEY=key):
        time.sleep(BEFORE_S)  # until much of it waits
        figures = quiet.figures(seconds)
    load.wait_until_done(quiet.database, 300)
    answers: dict[str, int] = json.loads(file.read_text())
    requests = sum(number for answer, number in answers.items() if answer.split()[0] in KINDS)
    return {
        **figures,
        "greedy, requests/s": requests / (seconds + BEFORE_S),
        "greedy, jobs accepted": float(answers["job 201"]),
        "greedy, batches accepted": float(answers.get("batch 201", 0)),
        **{f"greedy, refused by {name}": float(answers.get(f"refused: {name}", 0)) for name in LIMITS},
    }


class Quiet:
    """The jobs, batches and requests of the quiet tenant, timed. Raises HTTPStatusError if one is refused."""

    def __init__(self, url: str, key: str, database: Engine) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.database = database
        self._client = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)
        self._job = ""
        self._took: dict[str, list[float]] = defaultdict(list)
        self._failures: list[Exception] = []
        self._posted = 0

    def figures(self, seconds: float) -> Figures:
        since, end = load.now(self.database), time.monotonic() + seconds
        acts = (
            (self.submit, JOB_EVERY_S),
            (self.submit_batch, BATCH_EVERY_S),
            (self.read_job, READ_EVERY_S),
            (self.list_jobs, READ_EVERY_S),
        )
        threads = [threading.Thread(target=self._repeat, args=(*act, end)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]
        wait_until(lambda: not self._rows(OPEN), seconds=300)
        rows = self._rows(WAITS, since=since)
        assert all(row.succeeded for row in rows)
        return {
            **{f"{row.kind}, p95 s": p95(row.ended) for row in rows},
            **{f"{row.kind} started, p95 s": p95(row.started) for row in rows},
            **{f"{name}, p95 ms": 1000 * p95(took) for name, took in sorted(self._took.items())},
            **{f"{name}, median ms": 1000 * median(took) for name, took in sorted(self._took.items())},
        }

    def submit(self) -> None:
        self._posted += 1
        job = {"prompt": f"红色的圆形，第{self._posted}幅", "count": IMAGES, "tier": TIERS[self._posted % 3], **RECIPE}
        self._job = self._timed("POST", "/v1/jobs", json=job)["id"]

    def submit_batch(self) -> None:
        body = {"prompts": ["绿色的心形"] * PROMPTS, "defaults": RECIPE, "tier": Tier.STANDARD}
        self._timed("POST", "/v1/batches", json=body)

    def read_job(self) -> None:
        if self._job:
            self._timed("GET", f"/v1/jobs/{self._job}")

    def list_jobs(self) -> None:
        self._timed("GET", "/v1/jobs", params={"limit": 20})

    def _timed(self, method: str, path: str, **request: Any) -> Any:
        began = time.perf_counter()
        answer = self._client.request(method, path, **request).raise_for_status()
        self._took[method].append(time.perf_counter() - began)
        return answer.json()

    def _repeat(self, act: Callable[[], None], every_s: float, end: float) -> None:
        try:
            while time.monotonic() < end:
                due = time.monotonic() + every_s
                act()
                time.sleep(max(due - time.monotonic(), 0))
        except Exception as error:
            self._failures.append(error)

    def _rows(self, statement: Any, **parameters: Any) -> list[Any]:
        with transaction(self.database) as connection:
            return list(connection.execute(statement, {"tenant": QUIET, **parameters}))


def p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20)[18] if len(values) > 1 else values[0]


OPEN = text("""
    SELECT FROM jobs JOIN tenants ON tenants.id = tenant_id WHERE name = :tenant AND finished_at IS NULL LIMIT 1
""")

# The seconds until jobs were started and had ended.
WAITS = text("""
    SELECT CASE WHEN batch_id IS NULL THEN tier || ' job' ELSE 'job of a batch' END AS kind,
           bool_and(state = 'succeeded') AS succeeded,
           array_agg(extract(epoch FROM started_at - jobs.created_at)::float8) AS started,
           array_agg(extract(epoch FROM finished_at - jobs.created_at)::float8) AS ended
    FROM jobs JOIN tenants ON tenants.id = tenant_id
    WHERE name = :tenant AND jobs.created_at > :since GROUP BY 1 ORDER BY 1
""")
