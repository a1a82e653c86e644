"""200 open dashboards: what they cost the API, and how soon they show a new job. A worker renders a batch meanwhile (a
fake GPU, 200 ms for a microbatch of 8), and every half second a job is submitted by HTTP. `one` is an open Jobs screen;
`200` are Jobs screens with twenty different filters, overviews, batches, galleries, workers and the pages of single
jobs, in both languages, each a stream that is read as it comes. `shown after`: from the answer to `POST /v1/jobs` until
the stream of an open Jobs screen has the job in it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import quantiles
from typing import Any
from urllib.parse import quote

import httpx
import psutil

from bench.harness.farm import Farm, farm
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.db import connect

GOALS = (
    Goal("200", measure="cores of the API", at_most=1.0),
    Goal("200", measure="shown after, p99 s", at_most=2.0),
    Goal("one", measure="shown after, p99 s", at_most=2.0),
)
RECIPE = {"model": "mini-zh", "width": 128, "height": 128, "steps": 20}
DEVICE = "stub:0.01"
PAUSE_S = 0.5  # between two jobs
LANGUAGES = ("zh-CN", "en")


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    seconds = 6 if options.quick else 30
    with (
        farm() as the_farm,
        the_farm.api(the_farm.settings) as url,
        the_farm.control(the_farm.settings),
        the_farm.worker(the_farm.settings, DEVICE, "--models", str(RECIPE["model"])),
        client_of(the_farm, url) as client,
    ):
        client.post("/v1/batches", json={"prompts": ["红色的圆形"] * 60_000, "defaults": RECIPE}).raise_for_status()
        session = sign_in(client, url)

        def measure(count: int) -> Figures:
            return asyncio.run(Dashboards(client, url, session).figures(count, seconds))

        yield {"one": lambda: measure(1), "200": lambda: measure(200)}


def client_of(the_farm: Farm, url: str) -> httpx.Client:
    database = connect(the_farm.settings, pool=1)
    key = the_farm.key(database)
    database.dispose()
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False)


def sign_in(client: httpx.Client, url: str) -> str:
    """The cookie of a new session."""
    key = client.headers["Authorization"].removeprefix("Bearer ")
    answer = httpx.post(
        f"{url}/dashboard/sign-in", data={"key": key}, headers={"Origin": url}, timeout=30, trust_env=False
    )
    return f"huafang_session={answer.cookies['huafang_session']}"


class Dashboards:
    """Open dashboards, and the jobs that their streams show."""

    def __init__(self, client: httpx.Client, url: str, session: str) -> None:
        self.client = client
        self.host, _, self.port = url.removeprefix("http://").partition(":")
        self.session = session
        self.awaited: dict[bytes, float] = {}  # a job's id → when it was submitted
        self.delays: list[float] = []

    async def figures(self, count: int, seconds: float) -> Figures:
        jobs = [self.submit() for _ in range(count // 10)]
        streams = [asyncio.create_task(self.follow(path, place)) for place, path in enumerate(screens(count, jobs))]
        await asyncio.sleep(3)
        self.delays.clear()
        process = process_of(self.port)
        began, used = time.perf_counter(), cpu_s(process)
        while time.perf_counter() - began < seconds:
            job = await asyncio.to_thread(self.submit)
            self.awaited[job.encode()] = time.perf_counter()
            await asyncio.sleep(PAUSE_S)
        cores = (cpu_s(process) - used) / (time.perf_counter() - began)
        async with asyncio.timeout(30):
            while self.awaited:
                await asyncio.sleep(0.1)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        cuts = quantiles(self.delays, n=100)
        return {
            "cores of the API": cores,
            "shown after, median s": cuts[49],
            "shown after, p99 s": cuts[98],
            "memory of the API, MB": process.memory_info().rss / 1e6,
        }

    def submit(self) -> str:
        answer = self.client.post("/v1/jobs", json={"prompt": "蓝色的三角形", **RECIPE})
        answer.raise_for_status()
        return str(answer.json()["id"])

    async def follow(self, path: str, place: int) -> None:
        """Read a stream to its end. The first one is the Jobs screen where new jobs are awaited."""
        reader, writer = await asyncio.open_connection(self.host, int(self.port), limit=2**22)
        head = f"GET /dashboard/live{path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nCookie: {self.session}\r\n"
        writer.write(f"{head}Accept-Language: {LANGUAGES[place % 2]}\r\n\r\n".encode())
        status = await reader.readline()
        assert status.startswith(b"HTTP/1.1 200"), f"{path}: {status!r}"
        try:
            while line := await reader.readline():
                if place == 0:
                    self.find(line)
        finally:
            writer.close()

    def find(self, line: bytes) -> None:
        for job in [job for job in self.awaited if job in line]:
            self.delays.append(time.perf_counter() - self.awaited.pop(job))


def screens(count: int, jobs: list[str]) -> list[str]:
    """The addresses of so many open dashboards."""
    filters = [f"/jobs?q={quote(word)}" for word in "红色的圆形蓝三角绿方黄星紫心橙猫白月亮"[:20]]
    some = ["/jobs", "/", "/batches", "/images", "/workers", *filters]
    paths = [some[place % len(some)] for place in range(count - len(jobs))]
    return [*paths, *(f"/jobs/{job}" for job in jobs)]


def process_of(port: str) -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        line: list[Any] = process.info["cmdline"] or []
        if "api" in line and port in line:
            with suppress(psutil.Error):
                return process
    raise LookupError(f"No API listens on {port}.")


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
