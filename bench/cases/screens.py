"""How long the API takes for the pages of the dashboard, with a million jobs in the database, 50 batches and 20 workers
that hold microbatches. One signed-in client requests each screen again and again, with different jobs, batches, filters
and words: in many prompts, in one of a hundred thousand, in none. `count` is the request that precedes an action on all
jobs that match a filter.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median, quantiles
from urllib.parse import urlencode

import httpx

from bench.cases.dashboards import client_of, sign_in
from bench.harness.farm import farm
from bench.harness.measurement import Figures, Goal, Options, Sides
from bench.harness.stock import RARE, WORDS, Stock, stock_up
from common.db import connect

GOALS = tuple(
    Goal(screen, measure="p95 ms", at_most=150)
    for screen in ("overview", "jobs", "job", "batches", "batch", "gallery", "workers", "admin", "search", "count")
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    with farm() as the_farm:
        database = connect(the_farm.settings, pool=1, statement_timeout_s=600)
        stock = stock_up(database, 20_000 if options.quick else 1_000_000)
        with the_farm.api(the_farm.settings) as url, client_of(the_farm, url) as client:
            browser = httpx.Client(
                base_url=f"{url}/dashboard", headers={"Cookie": sign_in(client, url)}, timeout=60, trust_env=False
            )
            times = 20 if options.quick else 100
            yield {screen: partial(request, browser, paths, times) for screen, paths in screens(stock).items()}
            browser.close()
        database.dispose()


def screens(stock: Stock) -> dict[str, list[str]]:
    words = [WORDS[0], WORDS[40], WORDS[-1], RARE, "龙卷风", "第123456幅", WORDS[-1][::-1], "晨"]
    filters = [{"state": state} for state in ("queued", "running", "succeeded", "failed", "cancelled")]
    filters += [{"model": "mini-zh"}, {"tier": "interactive"}, {"batch": str(stock.big_batch)}]
    filters += [{"batch": str(stock.big_batch), "state": "failed"}, {"created_before": "2026-01-01T00:00:00Z"}]
    searches = [{"q": word} for word in words]
    batches = [stock.big_batch, stock.old_batch]
    return {
        "overview": ["/"],
        "jobs": ["/jobs", *(f"/jobs?{urlencode(one)}" for one in filters)],
        "search": [f"/{screen}?{urlencode(one)}" for one in searches for screen in ("jobs", "images")],
        "count": [f"/jobs/matching?{urlencode(one)}" for one in filters + searches],
        "job": [f"/jobs/{job}" for job in stock.jobs],
        "batches": ["/batches"],
        "batch": [f"/batches/{batch}" for batch in batches],
        "gallery": ["/images", "/images?model=mini-zh", *(f"/images?batch={batch}" for batch in batches)],
        "workers": ["/workers"],
        "admin": ["/admin", "/admin/audit"],
    }


def request(browser: httpx.Client, paths: list[str], times: int) -> Figures:
    took: list[float] = []
    browser.get(paths[0]).raise_for_status()
    for number in range(max(times, len(paths))):
        began = time.perf_counter()
        browser.get(paths[number % len(paths)]).raise_for_status()
        took.append(1000 * (time.perf_counter() - began))
    return {"p95 ms": quantiles(took, n=20)[18], "p50 ms": median(took), "slowest ms": max(took)}
